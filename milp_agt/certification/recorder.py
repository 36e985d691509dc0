"""Where engines report what a bound was made of, so that it can be replayed without heuristics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.slopes import Slopes
from milp_agt.bounds.program import ProgramReport
from milp_agt.bounds.step import State


class Recorder(Protocol):
    """Receives evidence in the order of the run, for each chain (a level, or its cases) apart."""

    def step(self, chain: str, relaxed: LinearizedStep) -> None:
        """Boxes, slopes and offsets of one step, before any bound is made from them."""
        ...

    def slopes(self, index: int, chain: str, ends: Tensor, slopes: Sequence[Slopes]) -> None:
        """Optimised slopes for each step of the window that ends with step ``index``.

        They have one row for each of some ends of the state, which are numbered: lower ends, then
        upper ends. The box after the step is also met with the bounds that the walk makes of these.
        A selection that was bounded by itself has steps of its own under the same name, each time
        from the start of its window.
        """
        ...

    def program(self, index: int, chain: str, report: ProgramReport) -> None:
        """The program of step ``index`` with the row multipliers that its bounds rest on.

        What programs of single selections prove goes into the boxes that these begin the next step with.
        """
        ...

    def state(self, index: int, chain: str, state: State) -> None:
        """The box after step ``index``, after the meets interval, linear, program, looser chain."""
        ...


class NullRecorder:
    """Keeps nothing."""

    def step(self, chain: str, relaxed: LinearizedStep) -> None:
        return

    def slopes(self, index: int, chain: str, ends: Tensor, slopes: Sequence[Slopes]) -> None:
        return

    def program(self, index: int, chain: str, report: ProgramReport) -> None:
        return

    def state(self, index: int, chain: str, state: State) -> None:
        return


@dataclass
class MemoryRecorder:
    """Keeps everything in memory: enough to walk the same planes again and get the same bounds."""

    steps: dict[str, list[LinearizedStep]] = field(default_factory=dict)
    states: dict[str, list[State]] = field(default_factory=dict)
    programs: dict[str, dict[int, ProgramReport]] = field(default_factory=dict)
    optimised: dict[str, dict[int, list[tuple[Tensor, Sequence[Slopes]]]]] = field(
        default_factory=dict
    )

    def slopes(self, index: int, chain: str, ends: Tensor, slopes: Sequence[Slopes]) -> None:
        self.optimised.setdefault(chain, {}).setdefault(index, []).append((ends, slopes))

    def program(self, index: int, chain: str, report: ProgramReport) -> None:
        self.programs.setdefault(chain, {})[index] = report

    def step(self, chain: str, relaxed: LinearizedStep) -> None:
        self.steps.setdefault(chain, []).append(relaxed)

    def state(self, index: int, chain: str, state: State) -> None:
        self.states.setdefault(chain, []).append(state)
