"""Bounds of columns that rows and bilinear terms imply on a box, rounded outwards (FBBT)."""

from __future__ import annotations

import numpy as np

from milp_agt.core.program import Array, Index, Program
from milp_agt.core.rounding import TINY, gamma
from milp_agt.solvers.curves import Curves

ROUNDS = 3
WORTH = 0.02  # share of a column's width; smaller gains are dropped
_EPS = 2.0**-52


class Propagation:
    """Feasibility-based bound tightening over one set of rows (Belotti et al. 2009).

    From ``L <= sum_j a_j x_j <= U`` follows ``a_j x_j <= U - sum of the least a_k x_k over k != j``, and
    from ``z = x y`` the ranges of all three by interval arithmetic. Bounds cover the rounding of sums, and
    quotients are rounded outwards, so no point of the program is lost, whatever the rows.
    """

    def __init__(self, program: Program) -> None:
        matrix = program.matrix
        self._columns: Index = matrix.indices.astype(np.int64)
        self._data = matrix.data
        counts = np.diff(matrix.indptr)
        self._row: Index = np.repeat(np.arange(counts.size), counts)
        self._rows = counts.size
        self._slack = gamma(2 * int(counts.max(initial=0)) + 8)
        self._order = np.argsort(self._columns, kind="stable")
        ordered = self._columns[self._order]
        self._starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        self._own = ordered[self._starts]
        self._integer = program.integer
        self._products = program.products
        self._curves = Curves(program.curves)
        self._sides = program.row_lower, program.row_upper

    def tightened(self, lower: Array, upper: Array) -> tuple[Array, Array] | None:
        """Smaller bounds (columns,) that hold for every point in the box; None if the box has no point."""
        for _ in range(ROUNDS):
            low, high = lower, upper
            for rule in (self._by_rows, self._by_terms, self._by_curves, self._whole):
                low, high = rule(low, high)
            if (low > high).any():
                return None
            width = upper - lower
            gained = (width - (high - low)) > WORTH * width
            if not gained.any():
                break
            lower, upper = np.where(gained, low, lower), np.where(gained, high, upper)
        return lower, upper

    def _by_rows(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        if not self._data.size:
            return lower, upper
        column, row, a = self._columns, self._row, self._data
        one, other = a * lower[column], a * upper[column]
        least, most = np.minimum(one, other), np.maximum(one, other)
        size = np.bincount(row, np.maximum(np.abs(one), np.abs(other)), self._rows)
        row_lower, row_upper = self._sides
        with np.errstate(all="ignore"):
            room_up = (row_upper - np.bincount(row, least, self._rows))[row] + least
            room_down = (row_lower - np.bincount(row, most, self._rows))[row] + most
            charge_up = self._slack * (size + np.abs(row_upper))[row] + TINY
            charge_down = self._slack * (size + np.abs(row_lower))[row] + TINY
            ends = (room_down - charge_down) / a, (room_up + charge_up) / a
            low = np.where(a > 0.0, ends[0], ends[1])
            high = np.where(a > 0.0, ends[1], ends[0])
            low, high = low - _EPS * np.abs(low), high + _EPS * np.abs(high)
        low = np.where(np.isfinite(low), low, -np.inf)
        high = np.where(np.isfinite(high), high, np.inf)
        new_lower, new_upper = lower.copy(), upper.copy()
        best_low = np.maximum.reduceat(low[self._order], self._starts)
        best_high = np.minimum.reduceat(high[self._order], self._starts)
        new_lower[self._own] = np.maximum(lower[self._own], best_low)
        new_upper[self._own] = np.minimum(upper[self._own], best_high)
        return new_lower, new_upper

    def _by_terms(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        if not len(self._products):
            return lower, upper
        lower, upper = lower.copy(), upper.copy()
        z, x, y = self._products.T
        corners = np.stack([s[x] * t[y] for s in (lower, upper) for t in (lower, upper)])
        np.maximum.at(lower, z, np.nextafter(corners.min(0), -np.inf))
        np.minimum.at(upper, z, np.nextafter(corners.max(0), np.inf))
        for own, other in ((x, y), (y, x)):
            away = (lower[other] > 0.0) | (upper[other] < 0.0)
            own, other, result = own[away], other[away], z[away]
            with np.errstate(all="ignore"):
                quotients = np.stack(
                    [s[result] / t[other] for s in (lower, upper) for t in (lower, upper)]
                )
            known = np.isfinite(quotients).all(0)
            own, quotients = own[known], quotients[:, known]
            np.maximum.at(lower, own, np.nextafter(quotients.min(0), -np.inf))
            np.minimum.at(upper, own, np.nextafter(quotients.max(0), np.inf))
        return lower, upper

    def _by_curves(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        if not len(self._curves):
            return lower, upper
        x, z = self._curves.argument, self._curves.result
        with np.errstate(invalid="ignore"):
            low, high = self._curves.range(lower[x], upper[x])
        lower, upper = lower.copy(), upper.copy()
        np.maximum.at(lower, z, low)
        np.minimum.at(upper, z, high)
        return lower, upper

    def _whole(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        whole = self._integer
        return np.where(whole, np.ceil(lower), lower), np.where(whole, np.floor(upper), upper)
