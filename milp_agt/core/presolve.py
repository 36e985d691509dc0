"""Presolve: the same feasible set, up to rounding, with fewer rows and tighter bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from milp_agt.core.program import Array, Index, Program
from milp_agt.core.rounding import TINY, gamma

Mask = npt.NDArray[np.bool_]

# Entries that move their row by at most this share of its range are treated as constants.
FLAT = 2.0**-42
ROUNDS = 3  # the first round usually suffices


def presolve(program: Program, wanted: Index) -> tuple[Program, Index]:
    """Rows of one column become bounds, constants leave their rows, implied and equal rows are dropped.

    Bounds shrink only as far as a row proves, divided and rounded outwards, and every dropped or
    loosened row enlarges the feasible set. So each point of the program is a point of the result. In
    the other direction a side of a row moves by at most ``FLAT`` of the row's range for each constant.

    Returns:
        The smaller program, and the columns that it keeps, ascending: the wanted ones, and those that a
        row, a bilinear term or a function reads.
    """
    matrix = sp.csr_matrix(program.matrix, copy=True)
    matrix.sum_duplicates()  # also sorts: the code below reads entries in order
    program = replace(program, matrix=matrix)
    for _ in range(ROUNDS):
        rows = program.row_lower.size
        program = _without_equals(_without_implied(_without_constants(_singles_as_bounds(program))))
        if program.row_lower.size == rows:
            break
    used = np.zeros(program.lower.size, dtype=np.bool_)
    used[wanted] = True
    used[program.matrix.indices] = True
    used[program.products.reshape(-1)] = True
    used[[column for c in program.curves for column in (c.result, c.argument)]] = True
    every = np.ones(program.row_lower.size, dtype=np.bool_)
    return program.part(every, used), np.flatnonzero(used)


def _singles_as_bounds(program: Program) -> Program:
    matrix = program.matrix
    single = np.flatnonzero((np.diff(matrix.indptr) == 1) & (matrix.indptr[:-1] < matrix.nnz))
    at = matrix.indptr[single]
    column, factor = matrix.indices[at], matrix.data[at]
    good = (factor != 0.0) & ~program.integer[column]
    single, column, factor = single[good], column[good], factor[good]
    with np.errstate(over="ignore"):
        one, other = program.row_lower[single] / factor, program.row_upper[single] / factor
    low = np.nextafter(np.minimum(one, other), -np.inf)
    high = np.nextafter(np.maximum(one, other), np.inf)
    lower, upper = program.lower.copy(), program.upper.copy()
    np.maximum.at(lower, column, low)
    np.minimum.at(upper, column, high)
    # Crossed bounds mean that the program is infeasible: leave it to the solver to report that.
    crossed = lower > upper
    lower, upper = (
        np.where(crossed, old, new) for old, new in ((program.lower, lower), (program.upper, upper))
    )
    keep = np.ones(program.row_lower.size, dtype=np.bool_)
    keep[single[~crossed[column]]] = False
    return _kept(replace(program, lower=lower, upper=upper), keep)


def _without_constants(program: Program) -> Program:
    """Move entries that hardly move their row to its sides, widened by their whole variation."""
    matrix = program.matrix
    width = program.upper - program.lower
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    moves = np.abs(matrix.data) * width[matrix.indices]
    chosen = moves <= FLAT * (abs(matrix) @ width)[row]
    if not chosen.any():
        return program
    picked, rest = matrix.copy(), matrix.copy()
    picked.data = np.where(chosen, matrix.data, 0.0)
    rest.data = np.where(chosen, 0.0, matrix.data)
    picked.eliminate_zeros()
    rest.eliminate_zeros()
    moved: Mask = np.diff(picked.indptr) > 0
    shift = picked @ (0.5 * program.lower + 0.5 * program.upper)
    size = abs(picked) @ np.maximum(np.abs(program.lower), np.abs(program.upper))
    terms = int(np.diff(picked.indptr).max(initial=0))
    # The centre may be off by half of the width, the sums by their rounding.
    slack = _spread_of(picked, width) + gamma(2 * terms + 8) * size + TINY

    def side(values: Array, sign: float) -> Array:
        finite = moved & np.isfinite(values)
        known = np.where(finite, values, 0.0)
        charge = slack + gamma(4) * (np.abs(known) + np.abs(shift))
        return np.where(finite, known - shift + sign * charge, values)

    lower, upper = side(program.row_lower, -1.0), side(program.row_upper, 1.0)
    # A row without columns that admits 0 is redundant; any other is left to the solver.
    empty = (np.diff(rest.indptr) == 0) & (lower <= 0.0) & (upper >= 0.0)
    return _kept(replace(program, matrix=rest, row_lower=lower, row_upper=upper), ~empty)


def _spread_of(picked: sp.csr_matrix, width: Array) -> Array:
    spread: Array = abs(picked) @ width
    return spread


def _without_implied(program: Program) -> Program:
    """Drop rows and sides of rows that the box implies (up to rounding; dropping is always safe)."""
    low, high = activity(program)
    lower = np.where(low >= program.row_lower, -np.inf, program.row_lower)
    upper = np.where(high <= program.row_upper, np.inf, program.row_upper)
    keep = np.isfinite(lower) | np.isfinite(upper)
    return _kept(replace(program, row_lower=lower, row_upper=upper), keep)


def activity(program: Program) -> tuple[Array, Array]:
    """Smallest and largest value of each row over the box of the columns, (rows,), not rounded."""
    positive, negative = program.matrix.maximum(0.0), program.matrix.minimum(0.0)
    return (
        positive @ program.lower + negative @ program.upper,
        positive @ program.upper + negative @ program.lower,
    )


def _without_equals(program: Program) -> Program:
    """Merge rows with the same coefficients into one with their tightest sides."""
    group = _groups(program.matrix)
    if group.size == 0 or int(group.max(initial=-1)) + 1 == group.size:
        return program
    count = int(group.max()) + 1
    lower, upper = np.full(count, -np.inf), np.full(count, np.inf)
    np.maximum.at(lower, group, program.row_lower)
    np.minimum.at(upper, group, program.row_upper)
    waiting = np.ones(count, dtype=np.bool_)
    np.logical_and.at(waiting, group, program.lazy)
    first = np.full(count, group.size, dtype=np.int64)
    np.minimum.at(first, group, np.arange(group.size))
    keep = np.zeros(group.size, dtype=np.bool_)
    keep[first] = True
    low, high = lower[group], upper[group]
    merged = replace(program, row_lower=low, row_upper=high, lazy=waiting[group])
    return _kept(merged, keep)


def _groups(matrix: sp.csr_matrix) -> Index:
    """A number for each row, equal for rows with exactly the same columns and coefficients."""
    counts = np.diff(matrix.indptr).astype(np.int64)
    group = np.zeros(counts.size, dtype=np.int64)
    begun = 0
    for count in np.unique(counts).tolist():
        rows = np.flatnonzero(counts == count)
        entries = matrix.indptr[rows][:, None] + np.arange(count)
        key = np.concatenate(
            [matrix.indices[entries].astype(np.int64), matrix.data[entries].view(np.int64)], axis=1
        )
        found, inverse = np.unique(key, axis=0, return_inverse=True)
        group[rows] = begun + inverse.reshape(-1)
        begun += len(found)
    return group


def _kept(program: Program, keep: Mask) -> Program:
    return program if keep.all() else program.part(keep)
