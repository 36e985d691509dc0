"""The base of all sessions: scaling, safe bounds, widening, and the check of points."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from time import perf_counter
from typing import ClassVar

import numpy as np
import scipy.sparse as sp

from milp_agt.core.program import Array, Index, Program
from milp_agt.core.results import Limits, SolveResult, Termination
from milp_agt.solvers.safe import checked_objective, clip_multipliers, safe_bound

# Rows of a trusted tree are loosened by this share of their largest coefficient: where rows hold with
# equality up to rounding, presolve, propagation and heuristics of solvers have cut off feasible points
# (SCIP 10.0: bounds of a logistic run wrong by a third of the range; HiGHS 1.15: by 0.08).
LOOSER = 1e-8
HUGE = 1e15  # HiGHS refuses larger coefficients
POINT_TOLERANCE = 1e-6  # relative violation up to which a point is reported as an incumbent


def statuses(*, optimal: str, infeasible: str, bound_only: str) -> dict[str, Termination]:
    """What the statuses of a solver mean, separated by spaces; any other is FAILED."""
    table = {
        Termination.OPTIMAL: optimal,
        Termination.INFEASIBLE: infeasible,
        Termination.BOUND_ONLY: bound_only,
    }
    return {word: meaning for meaning, words in table.items() for word in words.split()}


@dataclass(frozen=True)
class SolverAnswer:
    """The untrusted answer of a back end to one solve.

    Attributes:
        termination: from the status table of the back end.
        raw_status: the status in the solver's own words.
        multipliers: row multipliers of an LP, None if there are none.
        bound: the dual bound of a tree, ``-inf`` if there is none.
        point: the solver's best point, None if there is none.
        proved: whether the bound, or infeasibility, holds whatever the solver did (:class:`Tree`).
    """

    termination: Termination
    raw_status: str
    multipliers: Array | None = None
    bound: float = -math.inf
    point: Array | None = None
    proved: bool = False


class Session(ABC):
    """One program in a back end, which only has to implement :meth:`solve_lp` and :meth:`solve_tree`;
    every reported number passes through this class.

    An LP's dual bound is recomputed from its multipliers by :func:`safe_bound`, so it is valid
    whatever the solver did. A mixed-integer program is bounded twice: by its LP relaxation in the
    same way, and by the solver's tree, whose dual bound is *trusted* after it has been capped by
    the incumbent's value and widened by :meth:`widening`; the larger bound is reported. Hence
    a tree is never looser than its relaxation, and a limit of any kind only costs tightness.

    Objectives are scaled by a power of two to ``max |c_j|`` in [1, 2), so that the absolute
    tolerances of a solver are relative to the objective.
    """

    primal_tolerance: ClassVar[float] = 1e-9
    dual_tolerance: ClassVar[float] = 1e-10

    def __init__(self, program: Program) -> None:
        self.program = program

    @abstractmethod
    def solve_lp(self, costs: Array, time: float | None) -> SolverAnswer:
        """Solve the LP relaxation with the scaled ``costs`` (columns,) in ``time`` seconds."""

    @abstractmethod
    def solve_tree(self, costs: Array, limits: Limits) -> SolverAnswer:
        """Solve the program, including integer columns and bilinear terms, with the scaled ``costs``."""

    @abstractmethod
    def close(self) -> None:
        """Free the solver's resources. The session cannot be used afterwards."""

    def minimise(self, objective: Array, limits: Limits) -> SolveResult:
        """Bound ``min objective.x`` from below.

        Args:
            objective: c, shape (columns,), float64, finite.
            limits: seconds, relative gap and nodes; the seconds cover relaxation and tree.

        Returns:
            ``dual_bound`` is None exactly if the termination is INFEASIBLE or FAILED; if a limit stops
            the solver before it has any multipliers, it is the bound of the box.

        Raises:
            EncodingError: an objective of a wrong shape, or with a NaN or an infinity.
        """
        start = perf_counter()
        c = checked_objective(self.program, objective)
        if not c.size:
            return self._no_columns(start)
        exponent = scale_exponent(c)
        costs = np.ldexp(c, -exponent)
        answer = self.solve_lp(costs, limits.time)
        if answer.termination in (Termination.INFEASIBLE, Termination.FAILED):
            return self._nothing(answer, start)
        y = self._multipliers(answer.multipliers, exponent)
        dual = safe_bound(self.program, c, y)
        box = safe_bound(self.program, c)
        if box > dual:
            y, dual = np.zeros_like(y), box
        highest = -safe_bound(self.program, -c)  # of c.x over the box, rounded up
        if dual > highest:
            # proved: no point of the box satisfies the rows
            return self._nothing(replace(answer, termination=Termination.INFEASIBLE), start)
        multipliers: Array | None = y
        relaxed = answer
        if self.needs_tree:
            left = None if limits.time is None else limits.time - (perf_counter() - start)
            if left is None or left > 0.0:
                answer = self.solve_tree(costs, replace(limits, time=left))
                if answer.termination is Termination.INFEASIBLE:
                    return self._nothing(answer, start)
            if answer.termination is Termination.FAILED or answer is relaxed:
                # the relaxation's bound remains valid
                answer = replace(answer, termination=Termination.BOUND_ONLY, bound=-math.inf)
        point, value = self._checked_point(answer.point, c)
        if self.needs_tree and answer is not relaxed:
            tree = (
                _scaled(answer.bound, exponent)
                if answer.proved
                else self._tree_bound(answer.bound, value, costs, y, exponent)
            )
            if dual < tree <= highest:  # a larger one is not a bound of a feasible program
                dual, multipliers = tree, None
        if not math.isfinite(dual):
            word = f"{answer.raw_status}: overflow"
            return self._nothing(SolverAnswer(Termination.FAILED, word), start)
        return SolveResult(
            termination=answer.termination,
            dual_bound=dual,
            primal_bound=value,
            point=point,
            multipliers=multipliers,
            raw_status=answer.raw_status,
            seconds=perf_counter() - start,
            relaxed=_finite(relaxed.point, c),
        )

    @property
    def needs_tree(self) -> bool:
        """Whether the LP relaxation drops something that this solver can handle exactly."""
        return self.program.is_mixed_integer or not self.program.is_linear

    def _no_columns(self, start: float) -> SolveResult:
        """Result for a program without columns: feasible if each row admits 0. Solvers disagree on it."""
        p = self.program
        if ((p.row_lower > 0.0) | (p.row_upper < 0.0)).any():
            return self._nothing(SolverAnswer(Termination.INFEASIBLE, "no columns"), start)
        seconds = perf_counter() - start
        y, point = np.zeros_like(p.row_lower), np.zeros(0)
        return SolveResult(Termination.OPTIMAL, 0.0, 0.0, point, y, "no columns", seconds)

    def widening(self, costs: Array, y: Array) -> float:
        """The error of a tree's dual bound due to its tolerances, in the units of ``costs``.

        With n columns, ``reach_j = |l_j| + |u_j|``, the activity range ``rho_i`` of row i (at most
        ``row_upper_i - row_lower_i``), multipliers ``y`` of the relaxation and ``d = c - A^T y``::

            dual_tolerance * (sum of the n largest of reach and rho)
              + primal_tolerance * (sum_i |y_i| max(1, |b_i|) + sum_j |d_j| max(1, reach_j))

        The first term bounds the error of one LP whose optimal basis has reduced costs of the
        wrong sign up to the tolerance: at most n variables, structural or slack, are non-basic. The
        second is the first-order effect of bounds and rows that hold, or are tightened by presolve
        and propagation, up to the tolerance; for bilinear terms and functions it is the tolerance times
        all multiplier flow through the column of their result. The floating-point arithmetic of the
        solver's cuts and presolve is not covered: a tree's bound depends on it.
        """
        p = self.program
        reach = np.abs(p.lower) + np.abs(p.upper)
        rho = np.minimum(abs(p.matrix) @ reach, p.row_upper - p.row_lower)
        n = reach.size
        ranges = np.sort(np.concatenate([reach, rho]))[rho.size :]
        side = np.where(y > 0, p.row_lower, p.row_upper)
        side[y == 0.0] = 0.0
        d = costs - p.matrix.T @ y
        dual = self.dual_tolerance * float(ranges.sum()) if n else 0.0
        primal = float(np.abs(y) @ np.maximum(1.0, np.abs(side)))
        primal += float(np.abs(d) @ np.maximum(1.0, reach))
        if not p.is_linear:
            results = [*p.products[:, 0].tolist(), *(c.result for c in p.curves)]
            flow = np.abs(d) + abs(p.matrix.T) @ np.abs(y)
            primal += float(flow[results] @ np.maximum(1.0, reach[results]))
        return dual + self.primal_tolerance * primal

    def _tree_bound(
        self, bound: float, value: float | None, costs: Array, y: Array, exponent: int
    ) -> float:
        """The widened bound of a tree in the units of the objective, ``-inf`` if there is none."""
        if math.isnan(bound):
            return -math.inf
        capped = math.inf if value is None else value
        scaled_y = np.ldexp(y, -exponent)
        loss = self.widening(costs, scaled_y)
        if not (math.isfinite(bound) and math.isfinite(loss)):
            return -math.inf
        try:
            widened = min(math.ldexp(bound, exponent), capped) - math.ldexp(loss, exponent)
        except OverflowError:
            return -math.inf
        return math.nextafter(widened, -math.inf)

    def _multipliers(self, scaled: Array | None, exponent: int) -> Array:
        if scaled is None or np.shape(scaled) != self.program.row_lower.shape:
            return clip_multipliers(self.program, None)
        with np.errstate(over="ignore", under="ignore"):
            return clip_multipliers(self.program, np.ldexp(scaled, exponent))

    def _checked_point(self, point: Array | None, c: Array) -> tuple[Array | None, float | None]:
        """The point and its value, or (None, None) unless it is feasible to POINT_TOLERANCE."""
        p = self.program
        point = _finite(point, c)
        if point is None:
            return None, None
        point = np.clip(point, p.lower, p.upper)
        sides = np.concatenate([p.row_lower, p.row_upper])
        scale = max(1.0, float(np.abs(sides[np.isfinite(sides)]).max(initial=0.0)))
        whole = point[p.integer]
        fraction = float(np.abs(whole - np.round(whole)).max(initial=0.0))
        value = float(c @ point)
        good = fraction <= POINT_TOLERANCE and p.violation(point) <= POINT_TOLERANCE * scale
        return (point, value) if good and math.isfinite(value) else (None, None)

    @staticmethod
    def _nothing(answer: SolverAnswer, start: float) -> SolveResult:
        seconds = perf_counter() - start
        return SolveResult(answer.termination, None, None, None, None, answer.raw_status, seconds)


def _finite(point: Array | None, like: Array) -> Array | None:
    """The point, or None if it has a wrong shape or non-finite entries."""
    if point is None or point.shape != like.shape or not np.isfinite(point).all():
        return None
    return point


def _scaled(bound: float, exponent: int) -> float:
    """``bound * 2**exponent``, exactly or rounded down."""
    try:
        return math.nextafter(math.ldexp(bound, exponent), -math.inf)
    except OverflowError:
        return -math.inf


def scale_exponent(objective: Array) -> int:
    """The e with ``2**e <= max |c_j| < 2**(e + 1)``, 0 for a zero objective; scaling is exact
    except where a coefficient becomes subnormal."""
    largest = float(np.abs(objective).max(initial=0.0))
    return math.frexp(largest)[1] - 1 if largest > 0.0 else 0


def without_extremes(program: Program, threshold: float) -> tuple[sp.csr_matrix, Array, Array]:
    """Rows without coefficients ``0 < |a_ij| <= threshold`` or ``|a_ij| >= HUGE``: no point is lost.

    Solvers drop tiny coefficients silently, which can cut off points or make a feasible program
    infeasible. Here ``A x = A' x + t`` with ``|t_i| <= sum_j |a_ij| max(|l_j|, |u_j|)`` over the
    dropped j, and the sides of row i move outwards by that sum, rounded up. A row with a huge
    coefficient, for which solvers refuse the whole program, becomes a free row.

    Returns:
        (matrix, row_lower, row_upper) with the shapes of the program, without explicit zeros.
    """
    matrix = program.matrix.copy()
    matrix.sum_duplicates()
    row_lower, row_upper = program.row_lower, program.row_upper
    huge = np.abs(matrix.data) >= HUGE
    if huge.any():
        free = np.bincount(_rows_of(matrix)[huge], minlength=row_lower.size) > 0
        matrix.data = np.where(free[_rows_of(matrix)], 0.0, matrix.data)
        matrix.eliminate_zeros()
        row_lower = np.where(free, -np.inf, row_lower)
        row_upper = np.where(free, np.inf, row_upper)
    tiny = np.abs(matrix.data) <= threshold
    if not tiny.any():
        return matrix, row_lower, row_upper
    dropped = matrix.copy()
    dropped.data = np.where(tiny, np.abs(matrix.data), 0.0)
    matrix.data = np.where(tiny, 0.0, matrix.data)
    matrix.eliminate_zeros()
    # 1e-9 is far above the relative rounding error of the sum, 1e-300 above an underflow
    moved = dropped @ np.maximum(np.abs(program.lower), np.abs(program.upper)) * (1.0 + 1e-9)
    moved = np.where(moved > 0.0, moved + 1e-300, 0.0)
    lower = np.where(moved > 0.0, np.nextafter(row_lower - moved, -np.inf), 0.0)
    upper = np.where(moved > 0.0, np.nextafter(row_upper + moved, np.inf), 0.0)
    return (
        matrix,
        np.where(moved > 0.0, lower, row_lower),
        np.where(moved > 0.0, upper, row_upper),
    )


def _rows_of(matrix: sp.csr_matrix) -> Index:
    """The row index of every entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def loosened(matrix: sp.csr_matrix, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Row sides moved outwards by ``LOOSER`` times the largest coefficient, or side if that is larger."""
    if not matrix.shape[0]:
        return lower, upper
    room = np.asarray(abs(matrix).max(axis=1).todense()).ravel()
    for side in (lower, upper):
        room = np.maximum(room, np.where(np.isfinite(side), np.abs(side), 0.0))
    return lower - LOOSER * room, upper + LOOSER * room
