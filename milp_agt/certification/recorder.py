"""Recorders: engines report the evidence for each bound, so that it can be replayed without heuristics."""

from __future__ import annotations

from dataclasses import dataclass, field

from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.program import ProgramReport
from milp_agt.bounds.step import State


class Recorder:
    """Receives evidence in the order of the run, by chain (a level, or its cases); this one keeps nothing."""

    def step(self, chain: str, relaxed: LinearizedStep) -> None:
        """Boxes, slopes and intercepts of one step, before any bound is computed from them."""

    def program(self, index: int, chain: str, report: ProgramReport) -> None:
        """The program of step ``index`` with the row multipliers that prove its bounds."""

    def state(self, index: int, chain: str, state: State) -> None:
        """The box after step ``index``, met in the order interval, linear, program, looser chain."""


@dataclass
class MemoryRecorder(Recorder):
    """Keeps everything in memory: enough to repeat the backward passes and get the same bounds."""

    steps: dict[str, list[LinearizedStep]] = field(default_factory=dict)
    states: dict[str, list[State]] = field(default_factory=dict)
    programs: dict[str, dict[int, ProgramReport]] = field(default_factory=dict)

    def program(self, index: int, chain: str, report: ProgramReport) -> None:
        self.programs.setdefault(chain, {})[index] = report

    def step(self, chain: str, relaxed: LinearizedStep) -> None:
        self.steps.setdefault(chain, []).append(relaxed)

    def state(self, index: int, chain: str, state: State) -> None:
        self.states.setdefault(chain, []).append(state)
