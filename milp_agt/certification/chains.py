"""The reachable sets that a run carries side by side, one chain for each level.

Every chain holds all runs by itself, and is met with the looser ones after each step. Beside the levels
that were asked for, ``linear`` may be carried in three more ways: charged, for each selection (a chain of
several parts, whose union counts), and with optimised slopes. A part is one exposure with its boxes: all
selections jointly, a group of enumerated ones, or one of these alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from milp_agt.bounds.adversary.enumerated import Enumerated
from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.linear.composed import ComposedStep, PastStep
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.slopes import Slopes
from milp_agt.bounds.step import State, union
from milp_agt.certification.checkpoint import pack, unpack
from milp_agt.core.relaxation import Relaxation

CHARGED = "linear, charged to samples"
ENUMERATED = "linear, each selection"
OPTIMISED = "linear, optimised slopes"


@dataclass
class ChainPart:
    """Boxes that one exposure leads to, with the steps that its window keeps.

    ``slopes`` are those that an optimisation ended with, by the index of the training step: where the
    next one begins. ``past`` is what steps have proved without their samples, one after the other; it
    ends with the newest.
    """

    name: str
    adversary: AdversaryModel
    state: State
    window: list[LinearizedStep] = field(default_factory=list)
    slopes: dict[int, Slopes] = field(default_factory=dict)
    past: list[PastStep] = field(default_factory=list)

    def key(self, step: int, kind: str = "") -> str:
        """Name of a step of the window, or of the past, in a snapshot."""
        return "-".join(filter(None, (self.name, kind, f"{step + 1:06d}")))

    def fork(self, name: str) -> ChainPart:
        """A part that goes on from here by itself."""
        return ChainPart(name, self.adversary, self.state, list(self.window), past=list(self.past))

    def before(self, window: Sequence[LinearizedStep]) -> tuple[PastStep, ...]:
        """The past of the steps before a window."""
        return tuple(past for past in self.past if window and past.index < window[0].step.index)

    def end_past(self) -> None:
        """Begin anew: forms do not reach beyond the state as it is."""
        self.window, self.slopes, self.past = [], {}, []

    def forget(self, kept: int) -> None:
        """Drop all steps of the window but the last ones, so that their memory serves the next."""
        self.window = self.window[max(0, len(self.window) - kept) :]
        known = {relaxed.step.index for relaxed in self.window}
        self.slopes = {index: own for index, own in self.slopes.items() if index in known}


@dataclass
class Chain:
    """The reachable sets of one level: the union of its parts."""

    name: str
    level: Relaxation
    parts: list[ChainPart]

    def fork(self, name: str, part: str) -> Chain:
        """A chain that goes on from here by itself, within this one."""
        parts = [own.fork(f"{part}-{number}") for number, own in enumerate(self.parts)]
        return Chain(name, self.level, parts)

    @property
    def tells_apart(self) -> bool:
        """Whether there are boxes for selections, listed or charged."""
        return any(part.adversary.cases > 1 for part in self.parts)

    @property
    def lists_selections(self) -> bool:
        """Whether each case is a selection of its own."""
        return all(isinstance(part.adversary, Enumerated) for part in self.parts)

    @property
    def looser(self) -> tuple[str, ...]:
        """Chains whose boxes hold those of this one."""
        if self.name == CHARGED:
            return (Relaxation.LINEAR.value,)
        if self.name == ENUMERATED:
            return (Relaxation.LINEAR.value, CHARGED)
        if self.name == OPTIMISED:
            return (Relaxation.LINEAR.value, CHARGED, ENUMERATED)
        names = tuple(level.value for level in self.level.looser)
        return (*names, CHARGED, ENUMERATED, OPTIMISED) if self.level.uses_programs else names

    def within(self, looser: Mapping[str, State], state: State) -> State:
        """The meet of a state with those of the looser chains that are there."""
        for name in self.looser:
            if name in looser:
                what = f"by {self.name} and by {name}"
                state = {n: b.meet(looser[name][n], f"'{n}' {what}") for n, b in state.items()}
        return state

    @property
    def state(self) -> State:
        """One box for everything that all parts reach."""
        return self.outer([part.state for part in self.parts])

    def outer(self, states: Sequence[State]) -> State:
        """One box, (1, *shape) for each name, for the states of all parts."""
        hulls = [
            {name: part.adversary.algebra.hull(box) for name, box in state.items()}
            for part, state in zip(self.parts, states, strict=True)
        ]
        return union(hulls)


def pack_past(past: PastStep) -> dict[str, Any]:
    """Plain values, for a checkpoint."""
    ends = past.ends
    return {
        "state": pack(past.state),
        "coefficients": dict(ends.coefficients),
        "constant": ends.constant,
        "magnitude": ends.magnitude,
        "operations": ends.operations,
    }


def unpack_past(index: int, plain: Mapping[str, Any]) -> PastStep:
    """What :func:`pack_past` packed."""
    numbers = (plain[name] for name in ("coefficients", "constant", "magnitude", "operations"))
    return PastStep(index, unpack(plain["state"]), ComposedStep(*numbers))
