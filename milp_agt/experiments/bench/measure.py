"""One certification in a process of its own: widths, seconds and peak memory; and its attacks."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from milp_agt.attacks import Attack, Search, attack
from milp_agt.certification.certify import certify
from milp_agt.certification.result import Result
from milp_agt.core.deadline import Deadline
from milp_agt.core.reachable import ReachableSet
from milp_agt.core.torch_modes import threads
from milp_agt.experiments.bench.cases import CaseSource

FORWARD = ("interval", "zonotope")  # these have no window


@dataclass(frozen=True)
class Level:
    """How a run is bounded: the arguments of ``certify`` of these names; ``window`` 0 is the whole run.

    Linear forms and programs are by themselves, without the zonotope that ``certify`` carries beside them.
    """

    relaxation: str
    window: int = 0
    selections: str | None = None
    device: str = "cpu"

    @property
    def name(self) -> str:
        if self.relaxation in FORWARD:
            return self.relaxation
        return f"{self.relaxation}, {f'window {self.window}' if self.window else 'whole run'}"


@dataclass(frozen=True)
class Measured:
    """One certification at the marks of its source.

    Attributes:
        reachable: the set after each mark.
        seconds: of a step, in the mean from the first to the mark.
        peak_bytes: the most memory up to the mark, beyond what the process had before; on a GPU, of its
            tensors. None where the system does not tell.
        parameters: how many are trained.
        cut_short: whether the time was over before the last mark.
    """

    reachable: tuple[ReachableSet, ...]
    seconds: tuple[float, ...]
    peak_bytes: tuple[int | None, ...]
    parameters: int
    cut_short: bool


class _TimeIsOver(Exception):
    """Ends a certification after a step."""


def certified(source: CaseSource, level: Level, within: float | None = None) -> Measured:
    """Certify a run to its last mark, or to the last mark within so many seconds."""
    deadline = Deadline.within(within)
    case = source.at(source.marks[-1])
    on_gpu = level.device != "cpu" and torch.cuda.is_available()
    before = peak_bytes(on_gpu)
    sets: list[ReachableSet] = []
    seconds: list[float] = []
    parameters = 0
    peaks: list[int | None] = []

    def keep(result: Result, done: int, total: int) -> None:
        nonlocal parameters
        if done in source.marks:
            after = peak_bytes(on_gpu)
            peaks.append(None if before is None or after is None else after - before)
            sets.append(result.reachable)
        parameters = result.models.step_graph.parameter_count
        seconds[:] = [record.seconds for record in result.steps]
        if done < total and deadline.is_over():
            raise _TimeIsOver

    with suppress(_TimeIsOver):
        certify(
            case.model,
            case.data,
            case.training,
            case.threat,
            relaxation=level.relaxation,
            window=level.window or None,
            selections=level.selections,
            carried="none",
            device=level.device,
            on_step=keep,
        )
    return Measured(
        tuple(sets),
        tuple(sum(seconds[:mark]) / mark for mark in source.marks[: len(sets)]),
        tuple(peaks),
        parameters,
        deadline.missed,
    )


def attacked(source: CaseSource, step: int, search: Search) -> Attack:
    """Attack a run that is cut off after a mark; on one thread, which suits small runs best."""
    with threads(1):
        return attack(*source.at(step), search=search)


def peak_bytes(on_gpu: bool) -> int | None:
    """The most memory that this process has held so far; None where the system does not tell."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def processes() -> Iterator[ProcessPoolExecutor]:
    """A process for each task, one after the other, so that no task pays for what another left.

    Where the system can, each is a copy of one that has imported everything and done nothing yet.
    """
    able = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in able else "spawn")
    if "forkserver" in able:
        context.set_forkserver_preload(["milp_agt.experiments.bench.measure", "sklearn.datasets"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        yield pool
