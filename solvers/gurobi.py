"""Gurobi through gurobipy: commercial; the licence that comes with pip is limited in size."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from milp_agt.core.program import Array, Function, Program
from milp_agt.core.results import Limits, Termination
from milp_agt.errors import EncodingError, SolverUnavailableError
from milp_agt.solvers.session import Session, SolverAnswer, loosened, statuses, without_extremes
from milp_agt.solvers.solver import Solver, register

# Any other status is FAILED. SUBOPTIMAL, limits and interrupts leave a valid dual bound.
# Columns are bounded, so INF_OR_UNBD means infeasible and UNBOUNDED is a numerical failure.
STATUS = statuses(
    optimal="OPTIMAL",
    infeasible="INFEASIBLE INF_OR_UNBD",
    bound_only="SUBOPTIMAL ITERATION_LIMIT NODE_LIMIT TIME_LIMIT SOLUTION_LIMIT INTERRUPTED "
    "USER_OBJ_LIMIT WORK_LIMIT MEM_LIMIT",
)

FREE_LIMIT = 2000  # columns, and rows, of the licence that pip installs
FREE_NONLINEAR = 200  # columns, once there is a bilinear term or a function
_TINY = 1e-13  # Gurobi treats smaller coefficients as zero


@register
class Gurobi(Solver):
    """All levels by Gurobi."""

    name = "gurobi"
    requires = ("gurobipy",)
    distribution = "gurobipy"
    rank = 2
    note = (
        f"commercial; without a licence of your own at most {FREE_LIMIT} columns and rows, and "
        f"{FREE_NONLINEAR} columns in qcqp and miqp"
    )
    install = "pip install 'milp_agt[gurobi]'"

    def open(self, program: Program) -> GurobiSession:
        self.check_available()
        return GurobiSession(program)


class GurobiSession(Session):
    """Two models in one environment: the warm-started relaxation, and the tree, created when needed.

    Raises:
        SolverUnavailableError: no valid licence, or one that is too small for the program.
    """

    primal_tolerance = 1e-9
    dual_tolerance = 1e-9

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._gp: Any = import_module("gurobipy")
        self._names = {
            getattr(self._gp.GRB.Status, n): n for n in dir(self._gp.GRB.Status) if n.isupper()
        }
        self._env: Any = None
        self._lp: Any = None
        self._tree: Any = None
        self._matrix, self._lower, self._upper = without_extremes(program, _TINY)
        self._below = np.isfinite(self._lower)
        self._above = np.isfinite(self._upper)
        self._equal = self._below & self._above & (self._lower == self._upper)
        self._below &= ~self._equal
        self._above &= ~self._equal
        try:
            self._env = self._gp.Env(empty=True)
            self._env.setParam("OutputFlag", 0)
            self._env.setParam("Threads", 1)
            for name in ("FeasibilityTol", "OptimalityTol", "IntFeasTol"):
                self._env.setParam(name, 1e-9)
            self._env.start()
            self._lp = self._model(integer=False)
            if max(program.matrix.shape) > FREE_LIMIT // 2:
                # Only a solve checks the licence: do that now, while the caller can still choose
                # another solver. Half the limit, because a row with two sides counts twice.
                self._lp.Params.TimeLimit = 0.0
                self._lp.optimize()
                self._lp.reset()
            if not program.is_linear:
                self._tree = self._model(integer=True)
                self._tree.Params.TimeLimit = 0.0
                self._tree.optimize()
                self._tree.reset()
        except self._gp.GurobiError as error:
            self.close()
            raise self._refused(error) from error

    def solve_lp(self, costs: Array, time: float | None) -> SolverAnswer:
        raw, point = self._run(self._lp, costs, time)
        duals = None
        try:
            rows = self._lp.getConstrs()
            pi = np.array(self._lp.getAttr("Pi", rows), dtype=np.float64)
            duals = self._fold(pi)
        except (AttributeError, self._gp.GurobiError):
            pass  # no duals after a limit: the session then uses the bound of the box
        return SolverAnswer(STATUS.get(raw, Termination.FAILED), raw, duals, point=point)

    def solve_tree(self, costs: Array, limits: Limits) -> SolverAnswer:
        if self._tree is None:
            self._tree = self._model(integer=True)
        self._tree.Params.MIPGap = limits.gap
        self._tree.Params.MIPGapAbs = 1e-9
        self._tree.Params.NodeLimit = np.inf if limits.nodes is None else limits.nodes
        raw, point = self._run(self._tree, costs, limits.time)
        try:
            bound = float(self._tree.ObjBound)
        except (AttributeError, self._gp.GurobiError):
            bound = -np.inf
        if abs(bound) >= 1e100:  # Gurobi's infinity: nothing was bounded yet
            bound = -np.inf
        if raw != "OPTIMAL" and not self.program.is_linear:
            bound = -np.inf  # bounds of stopped spatial trees have been above the optimum (by 1e-5)
        return SolverAnswer(STATUS.get(raw, Termination.FAILED), raw, bound=bound, point=point)

    def close(self) -> None:
        for held in (self._lp, self._tree, self._env):
            if held is not None:
                held.dispose()
        self._lp = self._tree = self._env = None

    def _model(self, integer: bool) -> Any:
        """Rows in the order: equalities, lower sides, upper sides (Gurobi has no ranged rows).

        The rows of a tree are loosened, so it has no equalities.
        """
        gp, p = self._gp, self.program
        low, high = self._lower, self._upper
        equal, below, above = self._equal, self._below, self._above
        if integer:
            low, high = loosened(self._matrix, low, high)
            equal, below, above = np.zeros_like(equal), np.isfinite(low), np.isfinite(high)
        model = gp.Model(env=self._env)
        kinds = np.where(p.integer & integer, gp.GRB.INTEGER, gp.GRB.CONTINUOUS)
        x = model.addMVar(p.lower.size, lb=p.lower, ub=p.upper, vtype=kinds)
        for mask, sense, side in (
            (equal, "=", low),
            (below, ">", low),
            (above, "<", high),
        ):
            if mask.any() and p.lower.size:
                model.addMConstr(self._matrix[mask], x, sense, side[mask])
        if not integer:
            model.Params.Method = 1  # dual simplex, which starts from the basis of the last solve
        elif not p.is_linear:
            self._add_exact(model, x)
        model.update()
        return model

    def _add_exact(self, model: Any, x: Any) -> None:
        """Add bilinear terms and functions; Gurobi handles both by spatial branching."""
        p, known = self.program, import_module("gurobipy.nlfunc")
        model.Params.NonConvex = 2
        if len(p.products):
            result, first, second = p.products.T
            model.addConstr(x[first] * x[second] == x[result])
        variables = x.tolist()
        for curve in p.curves:
            z, value = variables[curve.argument], variables[curve.result]
            if curve.function is Function.EXP:
                model.addGenConstrNL(value, known.exp(z))
            elif curve.function is Function.SIGMOID:
                model.addGenConstrNL(value, 1.0 / (1.0 + known.exp(-z)))
            else:
                model.addGenConstrNL(value, 1.0 - 2.0 / (1.0 + known.exp(2.0 * z)))

    def _fold(self, pi: Array) -> Array:
        """Multipliers of our rows from those of Gurobi's one-sided rows."""
        y = np.zeros(self.program.row_lower.size)
        start = 0
        for mask in (self._equal, self._below, self._above):
            count = int(mask.sum())
            y[mask] += pi[start : start + count]
            start += count
        return y

    def _run(self, model: Any, costs: Array, time: float | None) -> tuple[str, Array | None]:
        model.Params.TimeLimit = np.inf if time is None else max(0.0, time)
        variables = model.getVars()
        try:
            model.setAttr("Obj", variables, costs.tolist())
            model.optimize()
        except self._gp.GurobiError as error:
            raise self._refused(error) from error
        raw = self._names.get(model.Status, str(model.Status))
        try:
            point = np.array(model.getAttr("X", variables), dtype=np.float64)
        except (AttributeError, self._gp.GurobiError):
            point = None
        return raw, point

    def _refused(self, error: Any) -> Exception:
        size = self.program.size
        codes = self._gp.GRB.Error
        licence = (codes.SIZE_LIMIT_EXCEEDED, codes.NO_LICENSE)
        if getattr(error, "errno", None) not in licence:
            return EncodingError("Gurobi refuses this program", f"{size}: {error}")
        return SolverUnavailableError(
            "Gurobi is to solve this program",
            f"{size['columns']} columns, {size['rows']} rows; the licence says: {error} "
            f"(the free one allows {FREE_LIMIT} of each, and {FREE_NONLINEAR} columns with bilinear terms)",
            "choose 'highs', or install a licence of your own",
        )
