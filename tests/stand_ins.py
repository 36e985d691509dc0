"""Solvers that answer otherwise than the one that they ask, and workers that die."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from milp_agt.core.program import Array, Program
from milp_agt.core.results import Limits, SolveResult
from milp_agt.solvers import Session, get_solver

Answer = Callable[[Array, Callable[[], SolveResult]], SolveResult]


@dataclass(frozen=True)
class StandIn:
    """A solver of another name; ``answer`` is given the objective and what finds its honest answer."""

    answer: Answer
    name: str = "stand-in"
    honest: str = "highs"
    requires: ClassVar[tuple[str, ...]] = ()

    def available(self) -> bool:
        return True

    def version(self) -> str:
        return "1"

    def open(self, program: Program) -> Session:
        return StandInSession(get_solver(self.honest).open(program), self.answer)


@dataclass(frozen=True)
class StandInSession:
    inner: Session
    answer: Answer

    def minimise(self, objective: Array, limits: Limits) -> SolveResult:
        return self.answer(objective, lambda: self.inner.minimise(objective, limits))

    def close(self) -> None:
        self.inner.close()


def die(folder: str, deaths: int = 1) -> None:
    """Ends this process, the first ``deaths`` times that one comes here (counted in a folder of all)."""
    dead = len(list(Path(folder).iterdir()))
    if dead < deaths:
        (Path(folder) / f"{dead}").touch()
        os._exit(1)


@contextmanager
def threads() -> Iterator[None]:
    """Workers are threads of this process."""
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    with joblib.parallel_config(backend="threading"):
        yield


@contextmanager
def cluster() -> Iterator[None]:
    """Workers are two processes of a dask cluster on this machine."""
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    options = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "processes": True}
    with (
        distributed.LocalCluster(**options, dashboard_address=None) as machines,
        distributed.Client(machines),
        joblib.parallel_config(backend="dask"),
    ):
        yield
