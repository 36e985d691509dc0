"""The reachable sets of a run, one chain for each level.

The boxes of every chain contain all runs; after each step they are met with those of the looser chains.
Besides the requested levels, ``linear`` may have one more chain: for each selection
(a chain of several parts, whose union counts). A part is one adversary model
with its boxes: all selections jointly, a group of listed ones, or a single listed one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.linear.composed import ComposedStep, PastStep
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.step import State, union
from milp_agt.bounds.zonotope import ZonotopePass
from milp_agt.certification.checkpoint import pack, unpack
from milp_agt.core.relaxation import STEP_RULES, Relaxation

ENUMERATED = "linear, each selection"


@dataclass
class ChainPart:
    """Boxes under one adversary model, with the linearised steps of its window.

    ``past`` holds bounds of earlier steps without their samples, oldest first.
    ``forward`` is the set as a hybrid zonotope, for the level of that name.
    """

    name: str
    adversary: AdversaryModel
    state: State
    window: list[LinearizedStep] = field(default_factory=list)
    past: list[PastStep] = field(default_factory=list)
    forward: ZonotopePass | None = None

    def key(self, step: int, kind: str = "") -> str:
        """Name of a step of the window or of the past in a snapshot."""
        return "-".join(filter(None, (self.name, kind, f"{step + 1:06d}")))

    def before(self, window: Sequence[LinearizedStep]) -> tuple[PastStep, ...]:
        """The past steps before a window."""
        return tuple(past for past in self.past if window and past.index < window[0].step.index)

    def end_past(self) -> None:
        """Start again from the current state: backward passes do not go beyond it."""
        self.window, self.past = [], []

    def forget(self, kept: int) -> None:
        """Keep only the last ``kept`` steps of the window, to free memory for the next."""
        self.window = self.window[max(0, len(self.window) - kept) :]


@dataclass
class Chain:
    """The reachable sets of one level: the union of its parts."""

    name: str
    level: Relaxation
    parts: list[ChainPart]

    @property
    def tells_apart(self) -> bool:
        """Whether boxes distinguish selections."""
        return any(part.adversary.cases > 1 for part in self.parts)

    @property
    def used(self) -> str:
        """What records call it: its level, or the name of a rule of its own."""
        return self.name if self.name in STEP_RULES else self.level.value

    @property
    def looser(self) -> tuple[str, ...]:
        """Chains whose boxes contain those of this one."""
        if self.name == ENUMERATED:
            return (Relaxation.LINEAR.value,)
        if self.name in STEP_RULES:
            return (self.level.value,)
        names = tuple(level.value for level in self.level.looser)
        return (*names, ENUMERATED) if self.level.uses_programs else names

    def within(self, looser: Mapping[str, State], state: State) -> State:
        """The meet of a state with those of the looser chains in ``looser``."""
        for name in self.looser:
            if name in looser:
                what = f"by {self.name} and by {name}"
                state = {n: b.meet(looser[name][n], f"'{n}' {what}") for n, b in state.items()}
        return state

    @property
    def state(self) -> State:
        """One box that contains the boxes of all parts."""
        return self.outer([part.state for part in self.parts])

    def outer(self, states: Sequence[State]) -> State:
        """One box, (1, *shape) for each name, that contains the states of all parts."""
        return union(states)


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
    """The inverse of :func:`pack_past`."""
    numbers = (plain[name] for name in ("coefficients", "constant", "magnitude", "operations"))
    return PastStep(index, unpack(plain["state"]), ComposedStep(*numbers))
