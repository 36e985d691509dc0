"""A solver: linear programs by scipy."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from milp_agt.core.program import Array, Program
from milp_agt.core.results import Limits, Termination
from milp_agt.solvers.session import Session, SolverAnswer
from milp_agt.solvers.solver import Solver, register

STATUS = {
    0: Termination.OPTIMAL,
    1: Termination.BOUND_ONLY,
    2: Termination.INFEASIBLE,
}


@register
class Scipy(Solver):
    """scipy.optimize.linprog."""

    name: ClassVar[str] = "scipy"
    requires: ClassVar[tuple[str, ...]] = ("scipy",)
    distribution: ClassVar[str] = "scipy"
    note: ClassVar[str] = "linear programs alone"

    def open(self, program: Program) -> ScipySession:
        return ScipySession(program)


class ScipySession(Session):
    def solve_lp(self, costs: Array, time: float | None) -> SolverAnswer:
        p, optimize = self.program, import_module("scipy.optimize")
        below, above = np.isfinite(p.row_lower), np.isfinite(p.row_upper)
        matrix = p.matrix.toarray()
        found: Any = optimize.linprog(
            costs,
            A_ub=np.concatenate([matrix[above], -matrix[below]]),
            b_ub=np.concatenate([p.row_upper[above], -p.row_lower[below]]),
            bounds=np.stack([p.lower, p.upper], 1),
            method="highs",
        )
        status = STATUS.get(found.status, Termination.FAILED)
        if status is not Termination.OPTIMAL:
            return SolverAnswer(status, found.message)
        multipliers = np.zeros(len(matrix))
        multipliers[above] += found.ineqlin.marginals[: above.sum()]
        multipliers[below] -= found.ineqlin.marginals[above.sum() :]
        return SolverAnswer(status, found.message, multipliers, point=found.x)

    def solve_tree(self, costs: Array, limits: Limits) -> SolverAnswer:
        return SolverAnswer(Termination.FAILED, "no tree")

    def close(self) -> None:
        return
