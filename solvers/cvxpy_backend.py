"""Any solver of cvxpy, as an independent check. Only the multipliers of its answers are used."""

from __future__ import annotations

import math
import operator
import warnings
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from milp_agt.core.program import Array, Program
from milp_agt.core.results import Limits, Termination
from milp_agt.errors import SolverUnavailableError
from milp_agt.solvers.safe import farkas_ray
from milp_agt.solvers.session import Session, SolverAnswer, statuses, without_extremes
from milp_agt.solvers.solver import Solver, register
from milp_agt.solvers.tree import Tree

# Statuses of cvxpy; any other is FAILED. Columns are bounded, so 'unbounded' is a numerical failure;
# 'infeasible_inaccurate' is not listed because its caller would raise.
STATUS = statuses(
    optimal="optimal",
    infeasible="infeasible infeasible_or_unbounded",
    bound_only="optimal_inaccurate user_limit",
)

_TINY = 1e-12
# The name of the time limit in seconds, and settings for tight duals, for each inner solver.
_TIME = {"HIGHS": "time_limit", "CLARABEL": "time_limit", "OSQP": "time_limit"}
_TIME |= {"SCS": "time_limit_secs", "GUROBI": "TimeLimit"}
_OPTIONS: dict[str, dict[str, object]] = {
    "HIGHS": {
        "threads": 1,
        "small_matrix_value": _TINY,
        "primal_feasibility_tolerance": 1e-9,
        "dual_feasibility_tolerance": 1e-9,
    },
    "CLARABEL": {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10, "max_threads": 1},
    "SCS": {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 20_000},
    "OSQP": {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iter": 20_000, "polishing": False},
}


@register
class Cvxpy(Solver):
    """LP by any solver that cvxpy knows (Diamond and Boyd 2016); programs with integer columns,
    bilinear terms and functions by a :class:`Tree` of LPs.

    Args:
        inner: cvxpy's name of the solver; '' takes CLARABEL.
    """

    name = "cvxpy"
    requires = ("cvxpy",)
    distribution = "cvxpy"
    rank = 3
    has_inner = True
    note = "cvxpy:INNER names its solver; slow, a second opinion"
    install = "pip install cvxpy"

    def __init__(self, inner: str = "") -> None:
        self.inner = inner

    def check_available(self) -> None:
        """
        Raises:
            SolverUnavailableError: cvxpy or the inner solver is missing.
        """
        super().check_available()
        if self.inner:
            installed = import_module("cvxpy").installed_solvers()
            if self.inner not in installed:
                raise SolverUnavailableError(
                    f"Solver 'cvxpy:{self.inner}' is needed",
                    f"cvxpy finds {', '.join(installed)}",
                    "choose one of these or install the solver",
                )

    def open(self, program: Program) -> CvxpySession:
        self.check_available()
        return CvxpySession(program, self.inner)


# Blocks of rows, (mask, constraint, sign): our multipliers are the sign times cvxpy's, which has the
# opposite sign for equalities.
Rows = list[tuple[Any, Any, float]]
Compiled = tuple[Any, Any, Any, Rows]  # problem, variable, parameter of the costs, rows


class CvxpySession(Session):
    """Constraints are fixed and the objective is a parameter, so cvxpy compiles once per program, and
    once per node of a tree."""

    def __init__(self, program: Program, inner: str = "") -> None:
        super().__init__(program)
        self._cvxpy: Any = import_module("cvxpy")
        self._inner = inner
        self._matrix, self._lower, self._upper = without_extremes(program, _TINY)
        self._equal = np.isfinite(self._lower) & (self._lower == self._upper)
        self._below = np.isfinite(self._lower) & ~self._equal
        self._above = np.isfinite(self._upper) & ~self._equal
        self._problem: Compiled | None = None

    def solve_lp(self, costs: Array, time: float | None) -> SolverAnswer:
        raw, point, rows = self._solve(self._inner or "CLARABEL", costs, time)
        duals = np.zeros(self.program.row_lower.size)
        for mask, constraint, sign in rows:
            if constraint.dual_value is None:
                return SolverAnswer(STATUS.get(raw, Termination.FAILED), raw, None, point=point)
            duals[mask] += sign * np.ravel(constraint.dual_value)
        return SolverAnswer(STATUS.get(raw, Termination.FAILED), raw, duals, point=point)

    def solve_tree(self, costs: Array, limits: Limits) -> SolverAnswer:
        return Tree(self.program, self._solve_node, costs, limits).search()

    def _solve_node(self, node: Program, costs: Array, time: float) -> SolverAnswer:
        answer = CvxpySession(node, self._inner).solve_lp(costs, time)
        if answer.termination is Termination.INFEASIBLE:
            return replace(answer, multipliers=farkas_ray(node, self._alone))
        return answer

    def _alone(self, program: Program, costs: Array) -> Array | None:
        return CvxpySession(program, self._inner).solve_lp(costs, None).multipliers

    def close(self) -> None:
        self._problem = None

    def _compiled(self) -> Compiled:
        if self._problem is not None:
            return self._problem
        cp, p, n = self._cvxpy, self.program, self.program.lower.size
        # Columns are bounded by rows, because not every inner solver takes bounds of variables.
        x, costs = cp.Variable(n), cp.Parameter(n)
        rows: Rows = []
        for mask, holds, sides, sign in (
            (self._equal, operator.eq, self._lower, -1.0),
            (self._below, operator.ge, self._lower, 1.0),
            (self._above, operator.le, self._upper, -1.0),
        ):
            if mask.any():
                rows.append((mask, holds(self._matrix[mask] @ x, sides[mask]), sign))
        limits = [x >= p.lower, x <= p.upper]
        problem = cp.Problem(cp.Minimize(costs @ x), limits + [row[1] for row in rows])
        self._problem = (problem, x, costs, rows)
        return self._problem

    def _solve(
        self, inner: str, costs: Array, time: float | None
    ) -> tuple[str, Array | None, Rows]:
        """(raw status, point, rows)."""
        if time is not None and time <= 0.0:
            return "user_limit", None, []  # not every inner solver stops at once
        problem, x, parameter, rows = self._compiled()
        parameter.value = costs
        options = dict(_OPTIONS.get(inner, {}))
        if time is not None and math.isfinite(time) and inner in _TIME:
            options[_TIME[inner]] = time
        for variable in (x, *(row[1].dual_variables[0] for row in rows)):
            variable.save_value(None)  # values of the last objective must not look like an answer
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                problem.solve(solver=inner, verbose=False, **options)
        except self._cvxpy.error.SolverError as error:
            return f"solver error: {error}", None, rows
        point = None if x.value is None else np.array(x.value, dtype=np.float64)
        return str(problem.status), point, rows
