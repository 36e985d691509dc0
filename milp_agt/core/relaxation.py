"""The relaxation levels of a training step, from cheap to tight."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from milp_agt.errors import InvalidInputError


class Relaxation(Enum):
    """A relaxation level. A run at one level also computes the chains of all looser levels."""

    INTERVAL = "interval"  # boxes of all nodes; the gradient is concretised before it meets theta
    ZONOTOPE = "zonotope"  # generators of moves and flips passed forward, bounds by dual ascent
    LINEAR = "linear"  # backward bound propagation through a window of steps
    LP = "lp"  # program of a window; bilinear terms and phases relaxed
    MILP = "milp"  # the same with binary phases and selection
    QCQP = "qcqp"  # bilinear terms (of relu, too) and functions exact, selection relaxed
    MIQP = "miqp"  # both exact: exact over its window, up to the boxes at its start

    @staticmethod
    def parse(name: str) -> Relaxation:
        """The relaxation with this name, intervals for a registered rule; else an InvalidInputError."""
        if name in STEP_RULES:
            return Relaxation.INTERVAL
        try:
            return Relaxation(name)
        except ValueError:
            raise InvalidInputError(
                f"Relaxation {name!r} was asked for",
                "no such relaxation",
                f"use one of {', '.join(levels())}",
            ) from None

    @property
    def uses_programs(self) -> bool:
        return self.walks and self is not Relaxation.LINEAR

    @property
    def walks(self) -> bool:
        """Whether linear forms are walked back through a window of steps."""
        return self not in (Relaxation.INTERVAL, Relaxation.ZONOTOPE)

    @property
    def exact_phases(self) -> bool:
        """Whether phases and selection are binary."""
        return self in (Relaxation.MILP, Relaxation.MIQP)

    @property
    def exact_products(self) -> bool:
        """Whether programs keep bilinear terms in addition to their relaxation."""
        return self in (Relaxation.QCQP, Relaxation.MIQP)

    @property
    def looser(self) -> tuple[Relaxation, ...]:
        """The next looser levels, whose boxes contain those of this level at every step.

        The order is partial: milp and qcqp both lie within lp, and miqp lies within both of them.
        """
        return _LOOSER[self]

    def chain(self) -> tuple[Relaxation, ...]:
        """This level and all looser ones, each level after those that contain it."""
        below = {level for other in self.looser for level in other.chain()} | {self}
        return tuple(level for level in Relaxation if level in below)


_LOOSER: dict[Relaxation, tuple[Relaxation, ...]] = {
    Relaxation.INTERVAL: (),
    Relaxation.ZONOTOPE: (Relaxation.INTERVAL,),
    Relaxation.LINEAR: (Relaxation.INTERVAL, Relaxation.ZONOTOPE),
    Relaxation.LP: (Relaxation.LINEAR,),
    Relaxation.MILP: (Relaxation.LP,),
    Relaxation.QCQP: (Relaxation.LP,),
    Relaxation.MIQP: (Relaxation.MILP, Relaxation.QCQP),
}

Rule = TypeVar("Rule", bound=Callable[..., Any])
# Further levels by name: rules that bound a step by themselves, carried beside intervals and met with them.
STEP_RULES: dict[str, Callable[..., Any]] = {}


def register_level(name: str) -> Callable[[Rule], Rule]:
    """Decorator: enter ``rule(bounder, part, step) -> State`` as a level.

    It bounds the state after a step for all states in the boxes ``part.state`` and all admissible poisoning;
    ``bounder`` is a :class:`milp_agt.certification.bound_step.Bounder`.

    Raises:
        InvalidInputError: a name that is taken.
    """

    def enter(rule: Rule) -> Rule:
        if name in levels():
            raise InvalidInputError(
                f"Level '{name}' was registered twice", "a name that is taken", "choose another one"
            )
        STEP_RULES[name] = rule
        return rule

    return enter


def levels() -> tuple[str, ...]:
    """Values of the option ``relaxation``: a level, or auto for the tightest one that fits."""
    return (*(level.value for level in Relaxation), *STEP_RULES, "auto")
