"""HiGHS through highspy, the default back end: LPs warm-started, lazy rows added once they are violated."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp

from milp_agt.core.program import Array, Index, Program
from milp_agt.core.results import Limits, Termination
from milp_agt.errors import EncodingError
from milp_agt.solvers.safe import farkas_ray
from milp_agt.solvers.session import Session, SolverAnswer, statuses, without_extremes
from milp_agt.solvers.solver import Solver, register
from milp_agt.solvers.tree import Tree

# Any other status is FAILED. kUnknown (residual infeasibilities) keeps the safe bound of
# its multipliers. Columns are bounded, so kUnbounded is a numerical failure and
# kUnboundedOrInfeasible means infeasible.
STATUS = statuses(
    optimal="kOptimal kModelEmpty",
    infeasible="kInfeasible kUnboundedOrInfeasible",
    bound_only="kTimeLimit kIterationLimit kObjectiveBound kObjectiveTarget kInterrupt kHighsInterrupt "
    "kMemoryLimit kUnknown",
)

_TINY = 1e-12  # HiGHS drops coefficients up to small_matrix_value; this is the least it allows
_VIOLATED = 1e-9  # lazy rows violated by more than this are added
_IMPROVED = 1e-8  # stop after a round that gains less (in units of the scaled objective)
# Dual simplex without presolve is the fastest from the basis of the previous objective: 0.02 to
# 0.03 s on one-step programs of 2,000 columns, against 0.06 s for primal simplex and for presolve.
_SIMPLEX: dict[str, object] = {"solver": "simplex", "simplex_strategy": 1, "presolve": "off"}
# Above this many rows, interior point without crossover: there, the basis of the last objective saves
# less than it costs. (m40, window 3, 4,000 rows: 3.4 s by simplex, 0.5 s by interior point.)
LARGE = 2000
_INTERIOR: dict[str, object] = {
    "solver": "ipm",
    "run_crossover": "off",
    "presolve": "on",
    "ipm_optimality_tolerance": 1e-8,
    "kkt_tolerance": 1e-7,
}
# Nodes of a large program differ in a few bounds: dual simplex from the basis of the last node (by
# crossover after the first) takes 0.01 to 0.4 s, interior point 0.6 s (m40, window 10, 4,800 rows).
# Beyond this many iterations interior point with crossover is faster.
WARM_ITERATIONS = 1000
_CROSSOVER: dict[str, object] = _INTERIOR | {"run_crossover": "on"}
_COMMON: dict[str, object] = {
    "output_flag": False,
    "threads": 1,
    "parallel": "off",
    "small_matrix_value": _TINY,
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}


class HighsRelaxation:
    """One model, whose bounds and coefficients may change between solves; its rows stay the same.

    Lazy rows are added when a point violates them, and stay for later solves. Multipliers of rows that
    were not added are 0, so multipliers are valid whenever the solve stops.

    Args:
        warm: consecutive solves have the same costs and differ in bounds, as the nodes of a tree do.
    """

    def __init__(self, program: Program, warm: bool = False) -> None:
        self._highspy: Any = import_module("highspy")
        self._columns = np.arange(program.lower.size, dtype=np.int32)
        self._program = program
        self._matrix, self._lower, self._upper = without_extremes(program, _TINY)
        self._held = ~program.lazy
        self._order: Index = np.flatnonzero(self._held)  # rows of the model, in its order
        self.large = self._order.size > LARGE
        self._warm = warm
        self._costs: Array | None = None  # of the current basis of a large model
        self._crossed = False  # whether the basis is from crossover
        self._usual = 0  # simplex iterations of the longest solve so far
        self._model: Any = None

    def solve(self, costs: Array, time: float | None) -> SolverAnswer:
        """Bound ``min costs.x`` from below.

        A large program has the lazy rows that earlier objectives needed. An INFEASIBLE answer has the
        multipliers of a ray if there is one.
        """
        deadline = None if time is None else perf_counter() + time
        last = -np.inf
        while True:
            left = None if deadline is None else deadline - perf_counter()
            answer = self._solve(costs, left)
            if answer.termination is not Termination.OPTIMAL or answer.point is None:
                return answer
            violated = self._violated(answer.point)
            value = float(costs @ answer.point)
            once = self.large and not self._warm
            done = once or value - last <= _IMPROVED or not violated.size
            last = value
            if violated.size:
                self._add(violated)  # for the next objective, if not for this one
            if done:
                return answer
            if deadline is not None and perf_counter() >= deadline:
                return replace(answer, termination=Termination.BOUND_ONLY)

    def over(self, program: Program) -> HighsRelaxation:
        """Take over the bounds, and changed coefficients, of a program of the same shape."""
        before, self._program = self._program, program
        if program.matrix is not before.matrix:
            self._rewrite(*without_extremes(program, _TINY))
        if self._model is not None:
            ends = program.lower, program.upper
            self._model.changeColsBounds(self._columns.size, self._columns, *ends)
        return self

    def close(self) -> None:
        if self._model is not None:
            self._model.clear()
        self._model = None

    def _rewrite(self, matrix: sp.csr_matrix, lower: Array, upper: Array) -> None:
        if self._model is not None:
            held = matrix[self._order]
            change = sp.coo_matrix(held - self._matrix[self._order])
            changed = np.flatnonzero(change.data)
            for row, column in zip(
                change.row[changed].tolist(), change.col[changed].tolist(), strict=True
            ):
                self._model.changeCoeff(row, column, float(held[row, column]))
            every = np.arange(self._order.size, dtype=np.int32)
            sides = lower[self._order], upper[self._order]
            self._model.changeRowsBounds(every.size, every, *sides)
        self._matrix, self._lower, self._upper = matrix, lower, upper

    def _violated(self, point: Array) -> Index:
        """Lazy rows, not yet in the model, that the point violates."""
        waiting = np.flatnonzero(~self._held)
        activity = self._matrix[waiting] @ point
        gap = np.maximum(self._lower[waiting] - activity, activity - self._upper[waiting])
        chosen: Index = waiting[gap > _VIOLATED]
        return chosen

    def _add(self, rows: Index) -> None:
        part = self._matrix[rows]
        self._model.addRows(
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

    def _solve(self, costs: Array, time: float | None) -> SolverAnswer:
        if self._model is None:
            self._model = self._new_model()
        model = self._model
        raw = self._by_either(costs, time) if self.large else self._by_simplex(costs, time)
        termination = STATUS.get(raw, Termination.FAILED)
        if raw == "kUnknown" or termination is Termination.FAILED:
            # again from scratch: a basis kept over many objectives can be ill-conditioned
            model.clearSolver()
            model.setOptionValue("presolve", "on")
            raw = self._run(costs, time)
            model.setOptionValue("presolve", "on" if self.large else "off")
            termination = STATUS.get(raw, Termination.FAILED)
        if termination is Termination.INFEASIBLE:
            return SolverAnswer(termination, raw, self._of_rows(self._ray()))
        solution = model.getSolution()
        duals = self._of_rows(solution.row_dual) if solution.dual_valid else None
        point = np.array(solution.col_value) if solution.value_valid else None
        return SolverAnswer(termination, raw, duals, point=point)

    def _by_simplex(self, costs: Array, time: float | None) -> str:
        raw = self._run(costs, time, 2 * self._usual if self._usual else None)
        if raw == "kIterationLimit":
            # stuck at degenerate vertices: a start without a basis is faster than going on
            self._model.clearSolver()
            raw = self._run(costs, time)
        self._usual = max(self._usual, int(self._model.getInfo().simplex_iteration_count))
        return raw

    def _by_either(self, costs: Array, time: float | None) -> str:
        """Interior point, or simplex if there is a basis for these costs that is close enough."""
        if not self._warm:
            return self._run(costs, time)
        begun = perf_counter()
        if self._costs is not None and np.array_equal(self._costs, costs):
            self._take_basis()
            self._use(_SIMPLEX)
            raw = self._run(costs, time, WARM_ITERATIONS)
            if raw != "kIterationLimit":
                return raw
            self._model.clearSolver()
        self._use(_CROSSOVER)
        self._costs, self._crossed = costs, True
        return self._run(costs, None if time is None else time - (perf_counter() - begun))

    def _take_basis(self) -> None:
        """Restart from the basis of the crossover: on top of the state of an earlier simplex, HiGHS 1.15
        corrupts its memory."""
        if self._crossed:
            basis = self._model.getBasis()
            self._model.clearSolver()
            self._model.setBasis(basis)
            self._crossed = False

    def _of_rows(self, values: Any) -> Array | None:
        """Values of the model's rows as values of the program's rows; 0 for rows not in the model."""
        if values is None or len(values) != self._order.size:
            return None
        found = np.zeros(self._program.row_lower.size)
        found[self._order] = values
        return found

    def _ray(self) -> Any:
        """Multipliers that prove that the rows admit no point of the box; None if there are none."""
        _, known, ray = self._model.getDualRay()
        return ray if known else None

    def _new_model(self) -> Any:
        h, p = self._highspy, self._program
        model = h.Highs()
        self._use(_COMMON | (_INTERIOR if self.large else _SIMPLEX), model)
        rows = self._order
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
        if model.passModel(lp) == h.HighsStatus.kError:
            largest = float(np.abs(matrix.data).max(initial=0.0))
            raise EncodingError(
                "HiGHS refuses this program",
                f"{p.size}, largest coefficient {largest:.3g} (HiGHS allows 1e15)",
                "rescale the rows",
            )
        return model

    def _use(self, options: dict[str, object], model: Any = None) -> None:
        model = model or self._model
        for key, value in options.items():
            if model.setOptionValue(key, value) != self._highspy.HighsStatus.kOk:
                raise EncodingError(
                    f"HiGHS has no option {key} = {value}", f"highspy {model.version()}"
                )

    def _run(self, costs: Array, time: float | None, iterations: int | None = None) -> str:
        """Solve and return the raw status.

        The clock of a model is not reset between solves, so a limit is added to its current value.
        """
        h, model = self._highspy, self._model
        most = h.kHighsIInf if iterations is None else iterations
        model.setOptionValue("simplex_iteration_limit", most)
        limit = np.inf if time is None else model.getRunTime() + max(0.0, time)
        model.setOptionValue("time_limit", limit)
        model.changeColsCost(costs.size, self._columns, costs)
        status = model.run()
        if status == h.HighsStatus.kError and model.getModelStatus() == h.HighsModelStatus.kNotset:
            # another model in this process started the shared scheduler with more threads
            model.setOptionValue("threads", 0)
            model.run()
        return str(model.getModelStatus().name)


@register
class Highs(Solver):
    """LP by HiGHS (Huangfu and Hall 2018), MIT licence; programs with integer columns, bilinear
    terms and functions by a :class:`Tree` of LPs, whose bounds do not depend on its tolerances."""

    name = "highs"
    requires = ("highspy",)
    distribution = "highspy"
    rank = 0
    note = "open source (MIT); the default; all bounds are proved"

    def open(self, program: Program) -> HighsSession:
        self.check_available()
        return HighsSession(program)


class HighsSession(Session):
    """The relaxation, warm-started from the basis of the previous objective or node.

    Nodes of a program with bilinear terms have their own rows, and large nodes are solved by another
    method than the objectives of the relaxation, so nodes get a second model.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._relaxation = HighsRelaxation(program)
        self._nodes: HighsRelaxation | None = None

    def solve_lp(self, costs: Array, time: float | None) -> SolverAnswer:
        return self._relaxation.over(self.program).solve(costs, time)

    def solve_tree(self, costs: Array, limits: Limits) -> SolverAnswer:
        return Tree(self.program, self._solve_node, costs, limits).search()

    def _solve_node(self, node: Program, costs: Array, time: float) -> SolverAnswer:
        answer = self._node(node).solve(costs, time)
        if answer.termination is Termination.INFEASIBLE and answer.multipliers is None:
            return replace(answer, multipliers=farkas_ray(node, _multipliers))
        return answer

    def _node(self, node: Program) -> HighsRelaxation:
        if node.is_linear and not self._relaxation.large:
            return self._relaxation.over(node)
        if self._nodes is None:
            self._nodes = HighsRelaxation(node, warm=True)
        return self._nodes.over(node)

    def close(self) -> None:
        self._relaxation.close()
        if self._nodes is not None:
            self._nodes.close()


def _multipliers(program: Program, costs: Array) -> Array | None:
    relaxation = HighsRelaxation(program)
    try:
        return relaxation.solve(costs, None).multipliers
    finally:
        relaxation.close()
