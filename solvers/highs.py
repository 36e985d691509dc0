"""HiGHS through highspy: the default back end."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from milp_agt.core.program import Array, Index, Program
from milp_agt.core.results import Limits, Termination
from milp_agt.errors import EncodingError
from milp_agt.solvers.base import BackEnd, Capability
from milp_agt.solvers.session import Answer, ProgramSession, without_tiny

# A status that is not listed is FAILED. kUnknown (residual infeasibilities) keeps the safe bound of
# its multipliers; a tree's own bound is not used then. Columns are bounded, so kUnbounded is a
# numerical failure and kUnboundedOrInfeasible means infeasible.
STATUS: dict[str, Termination] = {
    "kOptimal": Termination.OPTIMAL,
    "kModelEmpty": Termination.OPTIMAL,
    "kInfeasible": Termination.INFEASIBLE,
    "kUnboundedOrInfeasible": Termination.INFEASIBLE,
    "kTimeLimit": Termination.BOUND_ONLY,
    "kIterationLimit": Termination.BOUND_ONLY,
    "kSolutionLimit": Termination.BOUND_ONLY,
    "kObjectiveBound": Termination.BOUND_ONLY,
    "kObjectiveTarget": Termination.BOUND_ONLY,
    "kInterrupt": Termination.BOUND_ONLY,
    "kHighsInterrupt": Termination.BOUND_ONLY,
    "kMemoryLimit": Termination.BOUND_ONLY,
    "kUnknown": Termination.BOUND_ONLY,
}

_TINY = 1e-12  # HiGHS drops coefficients up to small_matrix_value; this is the least it allows
_VIOLATED = 1e-9  # a lazy row beyond this joins the program
_COMMON: dict[str, object] = {
    "output_flag": False,
    "threads": 1,
    "parallel": "off",
    "small_matrix_value": _TINY,
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}
# Dual simplex without presolve is the fastest from the basis of the previous objective: 0.02 to
# 0.03 s on one-step programs of 2,000 columns, against 0.06 s for primal simplex and for presolve.
_LP: dict[str, object] = {"solver": "simplex", "simplex_strategy": 1, "presolve": "off"}
# From this many rows on, interior point without crossover: a basis of the last objective then is worth
# less than it costs. (m40, window 3, 4,000 rows: 3.4 s by simplex, 0.5 s by interior point.)
_LARGE = 2000
_LARGE_LP: dict[str, object] = {
    "solver": "ipm",
    "run_crossover": "off",
    "presolve": "on",
    "ipm_optimality_tolerance": 1e-8,
    "kkt_tolerance": 1e-7,
}
_IMPROVED = 1e-8  # a round that gains less (in units of the scaled objective) is the last one
# The absolute gap is in units of a scaled objective; the tree's own LPs use a tenth of the
# feasibility tolerance as their dual tolerance. Presolve of a tree has cut off true optima where rows
# hold with equality up to rounding (highspy 1.15, bounds of 0.08 too tight; SCIP and Gurobi agreed with
# attacks). So trees go without it, and their rows are loosened, so that points of runs lie well inside.
_TREE: dict[str, object] = {
    "mip_feasibility_tolerance": 1e-9,
    "mip_abs_gap": 1e-9,
    "presolve": "off",
}
_LOOSER = 1e-8  # of the largest term of a row, in a tree


def _finite(sides: Array) -> Array:
    return np.where(np.isfinite(sides), sides, 0.0)


class Highs(BackEnd):
    """LP and mixed-integer programs by HiGHS (Huangfu and Hall 2018), MIT licence."""

    name: ClassVar[str] = "highs"
    capabilities: ClassVar[Capability] = Capability.LP | Capability.MIP
    requires: ClassVar[tuple[str, ...]] = ("highspy",)
    distribution: ClassVar[str] = "highspy"
    note: ClassVar[str] = "open source (MIT); the default"

    def open(self, program: Program) -> HighsSession:
        self.check_available()
        self.check_able(program)
        return HighsSession(program)


class HighsSession(ProgramSession):
    """Two models, made when first needed: the LP relaxation, warm-started from the basis of the
    previous objective, and the tree."""

    primal_tolerance: ClassVar[float] = 1e-9
    dual_tolerance: ClassVar[float] = 1e-10  # of the LPs in a tree

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._highspy: Any = import_module("highspy")
        self._columns = np.arange(program.lower.size, dtype=np.int32)
        self._matrix, self._lower, self._upper = without_tiny(program, _TINY)
        self._held = ~program.lazy  # rows of the relaxation, in the order of the model
        self._order: Index = np.flatnonzero(self._held)
        self._large = self._order.size > _LARGE
        self._lp: Any = None
        self._tree: Any = None

    def solve_lp(self, costs: Array, time: float | None) -> Answer:
        """The relaxation, with lazy rows added as points violate them; they stay for the next
        objective. Multipliers of rows that were not needed are 0, so a stop at any time is safe.
        A large program is solved once for each objective, with the rows that the last ones needed."""
        deadline = None if time is None else perf_counter() + time
        last = -np.inf
        while True:
            left = None if deadline is None else deadline - perf_counter()
            answer = self._solve_lp(costs, left)
            if answer.termination is not Termination.OPTIMAL or answer.point is None:
                return answer
            violated = self._violated(answer.point)
            value = float(costs @ answer.point)
            done = self._large or value - last <= _IMPROVED or not violated.size
            last = value
            if violated.size:
                self._add(violated)  # for the next objective, if not for this one
            if done:
                return answer
            if deadline is not None and perf_counter() >= deadline:
                return replace(answer, termination=Termination.BOUND_ONLY)

    def _violated(self, point: Array) -> Index:
        """Waiting rows that the point violates."""
        waiting = np.flatnonzero(~self._held)
        activity = self._matrix[waiting] @ point
        gap = np.maximum(self._lower[waiting] - activity, activity - self._upper[waiting])
        chosen: Index = waiting[gap > _VIOLATED]
        return chosen

    def _add(self, rows: Index) -> None:
        part = self._matrix[rows]
        self._lp.addRows(
            rows.size,
            self._lower[rows],
            self._upper[rows],
            part.nnz,
            part.indptr[:-1].astype(np.int32),
            part.indices.astype(np.int32),
            part.data,
        )
        self._held[rows] = True
        self._order = np.concatenate([self._order, rows])

    def _solve_lp(self, costs: Array, time: float | None) -> Answer:
        if self._lp is None:
            options = _LARGE_LP if self._large else _LP
            self._lp = self._model(integer=False, options=options, rows=self._order)
        raw = self._run(self._lp, costs, time)
        termination = STATUS.get(raw, Termination.FAILED)
        if raw == "kUnknown" or termination is Termination.FAILED:
            # once more from scratch: a basis carried over many objectives can be ill-conditioned
            self._lp.clearSolver()
            self._lp.setOptionValue("presolve", "on")
            raw = self._run(self._lp, costs, time)
            self._lp.setOptionValue("presolve", "off")
            termination = STATUS.get(raw, Termination.FAILED)
        solution = self._lp.getSolution()
        duals = None
        if solution.dual_valid:
            duals = np.zeros(self.program.row_lower.size)
            duals[self._order] = solution.row_dual
        point = np.array(solution.col_value) if solution.value_valid else None
        return Answer(termination, raw, duals, point=point)

    def solve_tree(self, costs: Array, limits: Limits) -> Answer:
        if self._tree is None:
            self._tree = self._model(True, _TREE, np.arange(self.program.row_lower.size))
        model = self._tree
        model.setOptionValue("mip_rel_gap", limits.gap)
        nodes = self._highspy.kHighsIInf if limits.nodes is None else limits.nodes
        model.setOptionValue("mip_max_nodes", nodes)
        raw = self._run(model, costs, limits.time)
        solution = model.getSolution()
        point = np.array(solution.col_value) if solution.value_valid else None
        bound = -np.inf if raw == "kUnknown" else float(model.getInfo().mip_dual_bound)
        return Answer(STATUS.get(raw, Termination.FAILED), raw, bound=bound, point=point)

    def close(self) -> None:
        for model in (self._lp, self._tree):
            if model is not None:
                model.clear()
        self._lp = self._tree = None

    def _model(self, integer: bool, options: dict[str, object], rows: Index) -> Any:
        h, p = self._highspy, self.program
        model = h.Highs()
        for key, value in (_COMMON | options).items():
            if model.setOptionValue(key, value) != h.HighsStatus.kOk:
                raise EncodingError(
                    f"HiGHS has no option {key} = {value}", f"highspy {model.version()}"
                )
        matrix = self._matrix[rows]
        lp = h.HighsLp()
        lp.num_row_, lp.num_col_ = matrix.shape
        lp.col_cost_ = np.zeros(lp.num_col_)
        lp.col_lower_, lp.col_upper_ = p.lower, p.upper
        lp.row_lower_, lp.row_upper_ = self._lower[rows], self._upper[rows]
        lp.a_matrix_.format_ = h.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = matrix.indptr
        lp.a_matrix_.index_ = matrix.indices
        lp.a_matrix_.value_ = matrix.data
        if integer:
            sides = np.maximum(np.abs(_finite(lp.row_lower_)), np.abs(_finite(lp.row_upper_)))
            room = _LOOSER * np.maximum(abs(matrix).max(axis=1).toarray().ravel(), sides)
            lp.row_lower_, lp.row_upper_ = lp.row_lower_ - room, lp.row_upper_ + room
            kinds = (h.HighsVarType.kContinuous, h.HighsVarType.kInteger)
            lp.integrality_ = [kinds[int(i)] for i in p.integer]
        if model.passModel(lp) == h.HighsStatus.kError:
            largest = float(np.abs(matrix.data).max(initial=0.0))
            raise EncodingError(
                "HiGHS refuses this program",
                f"{p.size}, largest coefficient {largest:.3g} (HiGHS allows 1e15)",
                "rescale the rows",
            )
        return model

    def _run(self, model: Any, costs: Array, time: float | None) -> str:
        """Solve and return the raw status. The clock of a model runs on over its solves, so a
        limit is put on top of what it shows."""
        h = self._highspy
        limit = np.inf if time is None else model.getRunTime() + max(0.0, time)
        model.setOptionValue("time_limit", limit)
        model.changeColsCost(costs.size, self._columns, costs)
        status = model.run()
        if status == h.HighsStatus.kError and model.getModelStatus() == h.HighsModelStatus.kNotset:
            # another model of this process started the shared scheduler with more threads
            model.setOptionValue("threads", 0)
            model.run()
        return str(model.getModelStatus().name)
