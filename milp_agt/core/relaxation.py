"""The relaxations of a training step, from cheap to tight, as named sets of switches."""

from __future__ import annotations

from enum import Enum

from milp_agt.errors import InvalidInputError


class Relaxation(Enum):
    """What is kept of a step. Each level also carries the chains of all looser levels."""

    INTERVAL = "interval"  # boxes of all nodes; the gradient is concretised before it meets theta
    LINEAR = "linear"  # linear forms walked back through a window of steps
    LP = "lp"  # program of a window; bilinear terms and phases relaxed
    MILP = "milp"  # the same with binary phases and selection
    QCQP = "qcqp"  # bilinear terms (relu, too) and functions kept, selection relaxed
    MIQP = "miqp"  # both kept: exact over its window, up to the boxes at its start

    @staticmethod
    def parse(name: str) -> Relaxation:
        """Look a relaxation up by name; raises InvalidInputError that lists them."""
        try:
            return Relaxation(name)
        except ValueError:
            known = ", ".join(r.value for r in Relaxation)
            raise InvalidInputError(
                f"Relaxation {name!r} was asked for",
                "no such relaxation",
                f"use one of {known}, auto",
            ) from None

    @property
    def uses_programs(self) -> bool:
        return self not in (Relaxation.INTERVAL, Relaxation.LINEAR)

    @property
    def exact_phases(self) -> bool:
        """Phases and selection are integral."""
        return self in (Relaxation.MILP, Relaxation.MIQP)

    @property
    def exact_products(self) -> bool:
        """Bilinear terms are kept beside their relaxation."""
        return self in (Relaxation.QCQP, Relaxation.MIQP)

    @property
    def looser(self) -> tuple[Relaxation, ...]:
        """The levels right below this one, whose boxes hold its own at every step.

        The order is partial: milp and qcqp both lie within lp, and miqp within both of them.
        """
        return _LOOSER[self]

    def chain(self) -> tuple[Relaxation, ...]:
        """This level and all looser ones, every level after those that it lies within."""
        below = {level for other in self.looser for level in other.chain()} | {self}
        return tuple(level for level in Relaxation if level in below)


_LOOSER: dict[Relaxation, tuple[Relaxation, ...]] = {
    Relaxation.INTERVAL: (),
    Relaxation.LINEAR: (Relaxation.INTERVAL,),
    Relaxation.LP: (Relaxation.LINEAR,),
    Relaxation.MILP: (Relaxation.LP,),
    Relaxation.QCQP: (Relaxation.LP,),
    Relaxation.MIQP: (Relaxation.MILP, Relaxation.QCQP),
}

# What users may ask for: a level, or the tightest that fits.
LEVELS = (*(level.value for level in Relaxation), "auto")
