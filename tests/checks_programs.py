"""Small programs, drawn or written down, and how they are solved; shared by the tests of solvers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import scipy.sparse as sp

from milp_agt.core.program import Array, Program
from milp_agt.core.results import Limits, SolveResult
from milp_agt.solvers import get_solver
from milp_agt.solvers.solver import back_ends

# Tolerances, all relative to max(1, |optimum|) unless said otherwise. A dual bound has none: it is
# compared exactly.
LOOSE = 1e-6  # a dual bound may lose this much: widening of trees, interior point and simplex
LOOSE_FIRST_ORDER = 1e-3  # first-order solvers stop at 1e-7 in their own norms
FOUND = 1e-6  # an incumbent may undercut by its feasibility tolerance
TIGHT = 1e-9  # a safe bound from optimal simplex multipliers
ROUNDING = 1e-12  # a safe bound against its exact formula, relative to the sum of magnitudes

INF = math.inf
BACK_ENDS = (*back_ends(), "cvxpy:HIGHS", "cvxpy:SCS")
FIRST_ORDER = ("cvxpy:SCS",)


def program(
    lower: Sequence[float] | Array,
    upper: Sequence[float] | Array,
    rows: Sequence[Sequence[float]] = (),
    row_lower: Sequence[float] | Array = (),
    row_upper: Sequence[float] | Array = (),
    integer: Sequence[int] = (),
) -> Program:
    n = len(lower)
    whole = np.zeros(n, dtype=bool)
    whole[list(integer)] = True
    return Program(
        np.array(lower, dtype=float),
        np.array(upper, dtype=float),
        whole,
        sp.csr_matrix(np.array(rows, dtype=float).reshape(len(rows), n)),
        np.array(row_lower, dtype=float),
        np.array(row_upper, dtype=float),
    )


def minimise(
    name: str, p: Program, objective: Sequence[float] | Array, limits: Limits | None = None
) -> SolveResult:
    session = get_solver(name).open(p)
    try:
        return session.minimise(np.array(objective, dtype=float), limits or Limits())
    finally:
        session.close()


def random_lp(
    rng: np.random.Generator, columns: int, rows: int, integer: bool = False
) -> tuple[Program, Array]:
    """A feasible program with all kinds of row sides, and a feasible point of it."""
    matrix = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < min(1, 6 / columns))
    lower = rng.integers(-3, 1, columns).astype(float)
    upper = lower + rng.integers(1, 4, columns).astype(float)
    point = np.round(rng.uniform(lower, upper)) if integer else rng.uniform(lower, upper)
    activity = matrix @ point
    kind = rng.integers(0, 4, rows)
    slack = 0.2 * rng.random(rows)
    row_lower = np.where(kind == 0, -INF, activity - np.where(kind == 3, 0.0, slack))
    row_upper = np.where(kind == 1, INF, activity + np.where(kind == 3, 0.0, slack))
    # without this an equality may miss the point by a rounding error
    row_lower, row_upper = row_lower - 1e-12, row_upper + 1e-12
    whole = np.full(columns, integer)
    return Program(lower, upper, whole, sp.csr_matrix(matrix), row_lower, row_upper), point


def exact_value(c: Array, x: Array) -> Fraction:
    return sum((Fraction(a) * Fraction(b) for a, b in zip(c, x, strict=True)), Fraction(0))


RANGES = program([-10, -10], [10, 10], [[1, 1], [1, -1]], [-1, 2], [1, 3])
