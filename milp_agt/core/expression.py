"""Affine expressions over the columns of a program, one for each element of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from milp_agt.core.rounding import TINY, gamma

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Slack:
    """An error range of an expression: ``[low + below @ columns, high + above @ columns]``.

    The columns are selections ``s_i`` in [0, 1]: an error that is small for a clean sample and larger
    for a poisoned one needs neither columns nor rows until the expression gets a column.
    """

    below: sp.csr_matrix
    above: sp.csr_matrix
    low: Array
    high: Array

    def take(self, flat: Index) -> Slack:
        return Slack(self.below[flat], self.above[flat], self.low[flat], self.high[flat])

    def apply(self, linear_map: sp.csr_matrix) -> tuple[Slack, Array]:
        """The image under ``linear_map`` of independent errors, and a bound of the rounding in it."""
        positive = sp.csr_matrix(linear_map.maximum(0.0))
        negative = sp.csr_matrix(linear_map.minimum(0.0))
        size = np.maximum(np.abs(self.low), np.abs(self.high))
        size = size + np.maximum(_row_sums(self.below), _row_sums(self.above))
        terms = int(np.diff(linear_map.indptr).max(initial=0))
        rounding = (abs(linear_map) @ size) * gamma(2 * terms + 16) + TINY
        return (
            Slack(
                _summed([positive @ self.below, negative @ self.above]),
                _summed([positive @ self.above, negative @ self.below]),
                positive @ self.low + negative @ self.high,
                positive @ self.high + negative @ self.low,
            ),
            rounding,
        )


@dataclass(frozen=True, eq=False)
class Expression:
    """``matrix @ columns + constant``, one row for each element of a tensor of ``shape`` (C order).

    ``shape`` includes the sample axis if there is one. Linear operations of the graph are folded into
    the matrix, so they need neither columns nor rows of the program. ``error`` bounds how far the value
    in the float64 run, and the float64 coefficients here, may be from exact arithmetic; every row that
    reads the expression is loosened by it. ``slack`` is a further error that depends on which samples
    are poisoned.
    """

    matrix: sp.csr_matrix
    constant: Array
    error: Array
    shape: tuple[int, ...]
    slack: Slack | None = None

    @staticmethod
    def of(constant: Array) -> Expression:
        """A tensor of constants."""
        flat = np.asarray(constant, dtype=np.float64)
        return Expression(
            sp.csr_matrix((flat.size, 0)), flat.reshape(-1), np.zeros(flat.size), flat.shape
        )

    @property
    def size(self) -> int:
        return self.constant.size

    def at(self, points: Array) -> Array:
        """Values at points (points, columns), without errors: (points, *shape)."""
        values = (self.matrix @ points[:, : self.matrix.shape[1]].T).T + self.constant
        return np.asarray(values.reshape(len(points), *self.shape))

    def over(self, columns: Index, rest: Array) -> Expression:
        """The same over some columns, renumbered; all others are fixed to their values in ``rest`` (all,)."""
        matrix = widened(self.matrix, rest.size)
        others = rest.copy()
        others[columns] = 0.0
        kept = sp.csr_matrix(matrix[:, columns])
        return Expression(kept, self.constant + matrix @ others, self.error, self.shape)

    @property
    def is_single_columns(self) -> bool:
        """Whether every element is one column or a constant, so that new columns gain nothing."""
        return self.slack is None and bool((np.diff(self.matrix.indptr) <= 1).all())

    @property
    def below(self) -> Expression:
        """The expression with the lower end of its slack: at most the value."""
        if self.slack is None:
            return self
        return self._with(self.slack.below, self.slack.low)

    @property
    def above(self) -> Expression:
        """The expression with the upper end of its slack: at least the value."""
        if self.slack is None:
            return self
        return self._with(self.slack.above, self.slack.high)

    def _with(self, matrix: sp.csr_matrix, offset: Array) -> Expression:
        end = Expression(matrix, offset, np.zeros(self.size), self.shape)
        bare = Expression(self.matrix, self.constant, self.error, self.shape)
        rounding = gamma(4) * (np.abs(self.constant) + np.abs(offset) + _row_sums(matrix))
        return add([bare, end]).plus_error(rounding.reshape(self.shape))

    def reshape(self, shape: tuple[int, ...]) -> Expression:
        return Expression(self.matrix, self.constant, self.error, shape, self.slack)

    def take(self, index: Index) -> Expression:
        """Elements by flat index; the result has the shape of ``index``."""
        flat = index.reshape(-1)
        slack = None if self.slack is None else self.slack.take(flat)
        return Expression(
            self.matrix[flat], self.constant[flat], self.error[flat], index.shape, slack
        )

    def scale(self, factor: Array | float) -> Expression:
        """Elementwise product with a constant that broadcasts to ``shape``."""
        factors = np.broadcast_to(np.asarray(factor, dtype=np.float64), self.shape).reshape(-1)
        matrix, error = _scaled(self.matrix, factors), np.abs(factors) * self.error
        scaled = Expression(matrix, factors * self.constant, error, self.shape)
        if self.slack is None:
            return scaled
        return self._carry(scaled, sp.csr_matrix(sp.diags_array(factors)))

    def shift(self, offset: Array | float) -> Expression:
        moved = self.constant + np.broadcast_to(offset, self.shape).reshape(-1)
        return Expression(self.matrix, moved, self.error, self.shape, self.slack)

    def plus_error(self, error: Array | float) -> Expression:
        """Add a rounding error to every element."""
        total = self.error + np.broadcast_to(error, self.shape).reshape(-1)
        return Expression(self.matrix, self.constant, total, self.shape, self.slack)

    def apply(self, linear_map: sp.csr_matrix, shape: tuple[int, ...]) -> Expression:
        """A linear map of the flattened elements, ``linear_map`` of shape (new size, size).

        Errors of different elements count as independent.
        """
        mapped = Expression(
            _product(linear_map, self.matrix),
            linear_map @ self.constant,
            abs(linear_map) @ self.error,
            shape,
        )
        return self._carry(mapped, linear_map)

    def _carry(self, mapped: Expression, linear_map: sp.csr_matrix) -> Expression:
        """Add the image of the slack to the image of an expression under a linear map."""
        if self.slack is None:
            return mapped
        slack, rounding = self.slack.apply(linear_map)
        error = mapped.error + rounding
        return Expression(mapped.matrix, mapped.constant, error, mapped.shape, slack)


Expressions = tuple[Expression, ...]


def add(terms: Sequence[Expression]) -> Expression:
    """Sum of expressions of one shape."""
    matrix = _summed([t.matrix for t in terms])
    constant, error = terms[0].constant, terms[0].error
    for term in terms[1:]:
        constant = constant + term.constant
        error = error + term.error
    slacks = [t.slack for t in terms if t.slack is not None]
    if not slacks:
        return Expression(matrix, constant, error, terms[0].shape)
    if len(slacks) == 1:
        return Expression(matrix, constant, error, terms[0].shape, slacks[0])
    slack = Slack(
        _summed([s.below for s in slacks]),
        _summed([s.above for s in slacks]),
        np.sum([s.low for s in slacks], axis=0),
        np.sum([s.high for s in slacks], axis=0),
    )
    size = np.sum([np.abs(s.low) + np.abs(s.high) for s in slacks], axis=0)
    size = size + np.sum([_row_sums(s.below) + _row_sums(s.above) for s in slacks], axis=0)
    return Expression(matrix, constant, error + gamma(2 * len(terms)) * size, terms[0].shape, slack)


def stacked(parts: Sequence[Expression], shape: tuple[int, ...]) -> Expression:
    """Expressions concatenated to one tensor."""
    size = sum(p.size for p in parts)
    slack = None
    if any(p.slack is not None for p in parts):
        ends = [p.slack or _no_slack(p.size) for p in parts]
        slack = Slack(
            _stacked([e.below for e in ends]),
            _stacked([e.above for e in ends]),
            np.concatenate([e.low for e in ends]),
            np.concatenate([e.high for e in ends]),
        )
    return Expression(
        _stacked([p.matrix for p in parts]),
        np.concatenate([p.constant for p in parts]),
        np.concatenate([p.error for p in parts]),
        shape if -1 not in shape else (size,),
        slack,
    )


def widened(matrix: sp.csr_matrix, columns: int) -> sp.csr_matrix:
    """The same rows over more columns, without a copy of the data."""
    if matrix.shape[1] == columns:
        return matrix
    return sp.csr_matrix(
        (matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], columns)
    )


def _product(linear_map: sp.csr_matrix, matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The matrix product without stored zeros, so that a row does not list columns with factor 0."""
    product = sp.csr_matrix(linear_map @ matrix)
    product.eliminate_zeros()
    return product


def _scaled(matrix: sp.csr_matrix, factors: Array) -> sp.csr_matrix:
    """What :func:`_product` gives for a diagonal matrix, entry by entry and in its order: from the last."""
    starts, counts = matrix.indptr, np.diff(matrix.indptr)
    turned = np.repeat(starts[:-1] + starts[1:], counts) - 1 - np.arange(matrix.nnz)
    data = np.repeat(factors, counts) * matrix.data[turned]
    kept = data != 0.0
    ends = np.concatenate([[0], np.cumsum(kept)])[starts]
    return sp.csr_matrix((data[kept], matrix.indices[turned][kept], ends), shape=matrix.shape)


def _summed(matrices: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    width = max(m.shape[1] for m in matrices)
    total = widened(matrices[0], width)
    for matrix in matrices[1:]:
        total = total + widened(matrix, width)
    return sp.csr_matrix(total)


def _stacked(matrices: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    width = max(m.shape[1] for m in matrices)
    blocks = [widened(m, width) for m in matrices]
    return sp.csr_matrix(sp.vstack(blocks, format="csr"))


def _no_slack(size: int) -> Slack:
    empty, zero = sp.csr_matrix((size, 0)), np.zeros(size)
    return Slack(empty, empty, zero, zero)


def _row_sums(matrix: sp.csr_matrix) -> Array:
    return np.asarray(abs(matrix).sum(axis=1), dtype=np.float64).reshape(-1)
