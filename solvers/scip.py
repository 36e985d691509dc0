"""SCIP through PySCIPOpt: open source, with its own tree search."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from milp_agt.core.program import Array, Function, Program
from milp_agt.core.results import Limits, Termination
from milp_agt.solvers.session import Session, SolverAnswer, loosened, statuses, without_extremes
from milp_agt.solvers.solver import Solver, register

# Any other status is FAILED. Columns are bounded, so 'inforunbd' means infeasible and
# 'unbounded' is a numerical failure.
# 'gaplimit' is closed up to the requested gap; the LP interface is 'stopped' at its limit, or stuck.
STATUS = statuses(
    optimal="optimal gaplimit",
    infeasible="infeasible inforunbd",
    bound_only="timelimit nodelimit totalnodelimit stallnodelimit memlimit sollimit bestsollimit "
    "restartlimit primallimit duallimit userinterrupt terminate stopped",
)

_EPSILON = 1e-10  # SCIP treats smaller coefficients as zero
_INFINITY = 1e20


@register
class Scip(Solver):
    """All levels by SCIP (Bestuzheva et al. 2023) with SoPlex: spatial branch and bound."""

    name = "scip"
    requires = ("pyscipopt",)
    distribution = "PySCIPOpt"
    rank = 1
    note = "open source (Apache 2.0); slower to build large programs"
    install = "pip install 'milp_agt[scip]'"

    def open(self, program: Program) -> ScipSession:
        self.check_available()
        return ScipSession(program)


class ScipSession(Session):
    """The relaxation in SCIP's LP solver, warm-started, and a tree for every objective."""

    primal_tolerance = 1e-9
    dual_tolerance = 1e-10

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._scip: Any = import_module("pyscipopt")
        self._matrix, self._lower, self._upper = without_extremes(program, _EPSILON)
        self._lp: Any = None

    def solve_lp(self, costs: Array, time: float | None) -> SolverAnswer:
        """SCIP's LP interface has no status: the LP is optimal, infeasible with a Farkas ray, or
        stopped, in which case the multipliers so far are used."""
        if self._lp is None:
            self._lp = self._relaxation()
        lp = self._lp
        limit = _INFINITY if time is None else min(max(0.0, time), _INFINITY)
        lp.setRealParam(self._scip.SCIP_LPPARAM.LPTILIM, limit)
        for column, cost in enumerate(costs.tolist()):
            lp.chgObj(column, cost)
        lp.solve(dual=True)
        if not (lp.isOptimal() or lp.getDualRay() is not None) and time != 0.0:
            # again from scratch: a basis kept over many objectives can be ill-conditioned
            lp.setIntParam(self._scip.SCIP_LPPARAM.FROMSCRATCH, 1)
            lp.solve(dual=True)
            lp.setIntParam(self._scip.SCIP_LPPARAM.FROMSCRATCH, 0)
        if lp.isOptimal():
            raw = "optimal"
        elif lp.getDualRay() is not None:
            return SolverAnswer(STATUS.get("infeasible", Termination.FAILED), "infeasible")
        else:
            raw = "stopped"
        duals = np.array(lp.getDual(), dtype=np.float64)
        point = np.array(lp.getPrimal(), dtype=np.float64)
        return SolverAnswer(STATUS.get(raw, Termination.FAILED), raw, duals, point=point)

    def solve_tree(self, costs: Array, limits: Limits) -> SolverAnswer:
        # A model already solved for other objectives has cut off optima (a bound of 0.024 although
        # 0.080 is reached, PySCIPOpt 6), so every objective gets a new model.
        model, variables = self._model()
        expression = self._scip.Expr(
            {
                self._scip.scip.Term(v): c
                for v, c in zip(variables, costs.tolist(), strict=True)
                if c
            }
        )
        model.setObjective(expression, "minimize")
        time = _INFINITY if limits.time is None else max(0.0, limits.time)
        model.setParam("limits/time", min(time, _INFINITY))
        model.setParam("limits/gap", limits.gap)
        model.setParam("limits/nodes", -1 if limits.nodes is None else limits.nodes)
        model.optimize()
        if model.getStatus() == "infeasible":
            # again without presolve, which substitutes columns that are fixed up to its epsilon
            model.freeTransform()
            model.setParam("presolving/maxrounds", 0)
            model.optimize()
        raw = str(model.getStatus())
        bound = float(model.getDualbound())
        if abs(bound) >= _INFINITY:  # SCIP's infinity: nothing was bounded yet
            bound = -np.inf
        point = None
        if model.getNSols() > 0:
            best = model.getBestSol()
            point = np.array([model.getSolVal(best, v) for v in variables])
        return SolverAnswer(STATUS.get(raw, Termination.FAILED), raw, bound=bound, point=point)

    def close(self) -> None:
        self._lp = None

    @staticmethod
    def _finite(lower: Array, upper: Array) -> tuple[list[float], list[float]]:
        return np.maximum(lower, -_INFINITY).tolist(), np.minimum(upper, _INFINITY).tolist()

    def _entries(self) -> list[list[tuple[int, float]]]:
        starts, m = self._matrix.indptr, self._matrix
        columns, values = m.indices.tolist(), m.data.tolist()
        return [
            list(zip(columns[a:b], values[a:b], strict=True)) for a, b in pairwise(starts.tolist())
        ]

    def _relaxation(self) -> Any:
        lp, p = self._scip.LP(), self.program
        lp.setRealParam(self._scip.SCIP_LPPARAM.FEASTOL, 1e-9)
        lp.setRealParam(self._scip.SCIP_LPPARAM.DUALFEASTOL, 1e-9)
        n = p.lower.size
        if n:
            lp.addCols([[] for _ in range(n)], [0.0] * n, p.lower.tolist(), p.upper.tolist())
        lower, upper = self._finite(self._lower, self._upper)
        if lower:
            lp.addRows(self._entries(), lower, upper)
        return lp

    def _model(self) -> tuple[Any, list[Any]]:
        model, p = self._scip.Model(), self.program
        model.hideOutput()
        model.setParam("numerics/feastol", 1e-9)
        model.setParam("numerics/dualfeastol", self.dual_tolerance)
        model.setParam("numerics/epsilon", _EPSILON)
        model.setParam("limits/absgap", 1e-9)
        x = [
            model.addVar(lb=low, ub=up, vtype="I" if whole else "C")
            for low, up, whole in zip(
                p.lower.tolist(), p.upper.tolist(), p.integer.tolist(), strict=True
            )
        ]
        term, expr = self._scip.scip.Term, self._scip.Expr
        sides = self._finite(*loosened(self._matrix, self._lower, self._upper))
        for entries, low, up in zip(self._entries(), *sides, strict=True):
            if low <= -_INFINITY and up >= _INFINITY:
                continue
            body = expr({term(x[j]): value for j, value in entries})
            model.addCons(self._scip.scip.ExprCons(body, low, up))
        for result, first, second in p.products.tolist():
            model.addCons(x[first] * x[second] - x[result] == 0.0)
        for curve in p.curves:
            model.addCons(self._value(curve.function, x[curve.argument]) - x[curve.result] == 0.0)
        return model, x

    def _value(self, function: Function, z: Any) -> Any:
        """The function in SCIP's expressions."""
        exp = self._scip.exp
        if function is Function.EXP:
            return exp(z)
        if function is Function.SIGMOID:
            return 1.0 / (1.0 + exp(-z))
        return 1.0 - 2.0 / (1.0 + exp(2.0 * z))
