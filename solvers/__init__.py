"""Solvers: back ends that bound a program from below. Importing this package imports no solver."""

from __future__ import annotations

if __name__ != "milp_agt.solvers":
    raise ImportError(f"This package is milp_agt.solvers; it was imported as {__name__!r}.")

from milp_agt.solvers.session import Session
from milp_agt.solvers.solver import (
    Solver,
    available_solvers,
    choose,
    get_solver,
    solver_table,
)

__all__ = [
    "Session",
    "Solver",
    "available_solvers",
    "choose",
    "get_solver",
    "solver_table",
]
