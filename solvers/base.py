"""The door of this room: what a solver is, what it can, and how one is chosen."""

from __future__ import annotations

from enum import Flag, auto
from typing import ClassVar, Protocol

from milp_agt.core.program import Array, Program
from milp_agt.core.results import Limits, SolveResult


class Capability(Flag):
    """What a solver can do."""

    LP = auto()
    MIP = auto()


class Session(Protocol):
    """One program held by a solver; objectives are exchanged in place, so a basis is reused."""

    def minimise(self, objective: Array, limits: Limits) -> SolveResult:
        """Bound ``min objective.x`` from below. ``objective`` has shape (columns,), float64."""
        ...

    def close(self) -> None: ...


class Solver(Protocol):
    """A back end. Asking ``available`` neither imports the solver nor takes a licence."""

    name: ClassVar[str]
    capabilities: ClassVar[Capability]
    requires: ClassVar[tuple[str, ...]]  # modules, checked with importlib.util.find_spec

    def available(self) -> bool: ...

    def version(self) -> str: ...

    def open(self, program: Program) -> Session: ...
