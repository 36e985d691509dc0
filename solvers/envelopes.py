"""Rows that relax bilinear terms and functions over the boxes of the nodes of a tree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from milp_agt.core.program import Array, Program
from milp_agt.solvers.curves import SLOPES, Curves

SIDES = 4  # rows of a bilinear term


class Envelopes:
    """A program with rows for each bilinear term (four) and function, recomputed for every box.

    For ``z = x y`` with x in [a, b] and y in [c, d] (McCormick 1976)::

        z - c x - a y >= -a c        -z + d x + a y >= a d
        z - d x - b y >= -b d        -z + c x + b y >= b c

    These hold for every point of the box: coefficients are the bounds themselves, and sides are
    rounded outwards. A square adds its two coefficients, and its sides cover the rounding of the sum.
    The rows of a function are those of :meth:`Curves.lines`.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._curves = Curves(program.curves)
        _, left, right = program.products.T
        self._operands = left, right
        self._square = left == right
        self._kept = np.ones((len(left), SIDES, 3), dtype=np.bool_)
        self._kept[self._square, :, 2] = False  # both factors share one entry
        of_terms = np.broadcast_to(program.products[:, None, :], self._kept.shape)[self._kept]
        of_curves = np.stack([self._curves.result, self._curves.argument], axis=-1)
        of_curves = np.repeat(of_curves, SLOPES, axis=0).reshape(-1)
        counts = [*self._kept.sum(-1).reshape(-1).tolist(), *[2] * (SLOPES * len(self._curves))]
        base = sp.csr_matrix(program.matrix)
        self._indices = np.concatenate([base.indices, of_terms, of_curves]).astype(np.int32)
        ends = base.nnz + np.cumsum(counts, dtype=np.int64)
        self._indptr = np.concatenate([base.indptr, ends]).astype(np.int32)
        self._shape = (base.shape[0] + len(counts), base.shape[1])
        self._base = base.data
        self._lazy = np.concatenate([program.lazy, np.ones(len(counts), dtype=np.bool_)])

    def over(self, lower: Array, upper: Array) -> Program:
        """The program on a smaller box, (columns,) each, with the rows of this box as lazy rows."""
        p = self._program
        if p.is_linear:
            return replace(p, lower=lower, upper=upper)
        of_terms, sides = self._of_terms(lower, upper)
        of_curves, low, high = self._of_curves(lower, upper)
        data = np.concatenate([self._base, of_terms, of_curves])
        # copied: scipy sorts indices in place
        matrix = sp.csr_matrix((data, self._indices, self._indptr), shape=self._shape, copy=True)
        return replace(
            p,
            lower=lower,
            upper=upper,
            matrix=matrix,
            row_lower=np.concatenate([p.row_lower, sides, low]),
            row_upper=np.concatenate([p.row_upper, np.full(sides.size, np.inf), high]),
            lazy=self._lazy,
        )

    def _of_terms(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Entries of the rows of bilinear terms in their order, and their lower sides."""
        left, right = self._operands
        a, b, c, d = lower[left], upper[left], lower[right], upper[right]
        signs = np.array([1.0, 1.0, -1.0, -1.0])
        with_x = np.stack([-c, -d, d, c], axis=-1)
        with_y = np.stack([-a, -b, a, b], axis=-1)
        sides = np.nextafter(np.stack([-a * c, -b * d, a * d, b * c], axis=-1), -np.inf)
        square = self._square[:, None]
        with_x = np.where(square, with_x + with_y, with_x)
        reach = np.maximum(np.abs(a), np.abs(b))[:, None]
        # a sum of two coefficients has an error of half a unit in the last place, eps / 2 of itself
        lost = np.where(square, np.finfo(np.float64).eps * np.abs(with_x) * reach, 0.0)
        sides = np.where(lost > 0.0, np.nextafter(sides - lost, -np.inf), sides)
        results = np.broadcast_to(signs, with_x.shape)
        data = np.stack([results, with_x, with_y], axis=-1)[self._kept]
        return data, sides.reshape(-1)

    def _of_curves(self, lower: Array, upper: Array) -> tuple[Array, Array, Array]:
        """Entries of the rows of functions in their order, and both sides."""
        argument = self._curves.argument
        slopes, low, high = self._curves.lines(lower[argument], upper[argument])
        data = np.stack([np.ones_like(slopes), -slopes], axis=-1)
        return data.reshape(-1), low.reshape(-1), high.reshape(-1)
