"""Affine expressions over the columns of a program, one for each element of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Expression:
    """``matrix @ columns + constant``, one row for each element of a tensor of ``shape`` (C order).

    ``shape`` includes the sample axis where there is one. Linear operations of the graph are folded
    into the matrix, so they cost neither columns nor rows of the program. ``error`` bounds how far
    the value in the float64 run, and the float64 coefficients here, may be from exact arithmetic;
    every row that reads the expression is loosened by it.
    """

    matrix: sp.csr_matrix
    constant: Array
    error: Array
    shape: tuple[int, ...]

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

    @property
    def is_single_columns(self) -> bool:
        """True where every element is one column or a constant, so that new columns gain nothing."""
        return bool((np.diff(self.matrix.indptr) <= 1).all())

    def reshape(self, shape: tuple[int, ...]) -> Expression:
        return Expression(self.matrix, self.constant, self.error, shape)

    def take(self, index: Index) -> Expression:
        """Elements by flat index; the result has the shape of ``index``."""
        flat = index.reshape(-1)
        return Expression(self.matrix[flat], self.constant[flat], self.error[flat], index.shape)

    def scale(self, factor: Array | float) -> Expression:
        """Elementwise product with a constant that broadcasts to ``shape``."""
        factors = np.broadcast_to(np.asarray(factor, dtype=np.float64), self.shape).reshape(-1)
        matrix = sp.csr_matrix(sp.diags_array(factors) @ self.matrix)
        return Expression(matrix, factors * self.constant, np.abs(factors) * self.error, self.shape)

    def shift(self, offset: Array | float) -> Expression:
        moved = self.constant + np.broadcast_to(offset, self.shape).reshape(-1)
        return Expression(self.matrix, moved, self.error, self.shape)

    def blur(self, error: Array | float) -> Expression:
        """Grant a further rounding error to every element."""
        total = self.error + np.broadcast_to(error, self.shape).reshape(-1)
        return Expression(self.matrix, self.constant, total, self.shape)

    def apply(self, linear_map: sp.csr_matrix, shape: tuple[int, ...]) -> Expression:
        """A linear map of the flattened elements, ``linear_map`` of shape (new size, size)."""
        return Expression(
            sp.csr_matrix(linear_map @ self.matrix),
            linear_map @ self.constant,
            abs(linear_map) @ self.error,
            shape,
        )


def add(terms: Sequence[Expression]) -> Expression:
    """Sum of expressions of one shape."""
    width = max(t.matrix.shape[1] for t in terms)
    total = widened(terms[0].matrix, width)
    constant, error = terms[0].constant, terms[0].error
    for term in terms[1:]:
        total = total + widened(term.matrix, width)
        constant = constant + term.constant
        error = error + term.error
    return Expression(sp.csr_matrix(total), constant, error, terms[0].shape)


def widened(matrix: sp.csr_matrix, columns: int) -> sp.csr_matrix:
    """The same rows over more columns, without a copy of the data."""
    matrix = sp.csr_matrix(matrix)
    return sp.csr_matrix(
        (matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], columns)
    )
