"""The relaxations of a training step, from cheap to tight, as named sets of switches."""

from __future__ import annotations

from enum import Enum

from milp_agt.errors import InvalidInputError


class Relaxation(Enum):
    """What is kept of a step. Each level also carries the chains of all levels before it."""

    INTERVAL = "interval"  # boxes of all nodes; the gradient is concretised before it meets theta
    LINEAR = "linear"  # linear forms walked back through a window of steps
    LP = "lp"  # program of a window; bilinear terms and phases relaxed
    MILP = "milp"  # the same with binary phases and selection

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
    def rank(self) -> int:
        return list(Relaxation).index(self)

    @property
    def uses_programs(self) -> bool:
        return self.rank >= Relaxation.LP.rank

    @property
    def exact_phases(self) -> bool:
        return self is Relaxation.MILP

    def chain(self) -> tuple[Relaxation, ...]:
        """This level and all looser ones, loosest first."""
        return tuple(r for r in Relaxation if r.rank <= self.rank)
