"""The solver-neutral program: columns, sparse rows, bilinear terms and functions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from milp_agt.errors import EncodingError

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

SIZES = ("columns", "rows", "integers", "nonzeros", "products", "curves")
SHARED = -1  # the owner of rows that belong to all of their columns


class Function(Enum):
    """Functions of one column that a solver may handle exactly."""

    EXP = "exp"
    SIGMOID = "sigmoid"
    TANH = "tanh"


@dataclass(frozen=True)
class Curve:
    """``x_result = function(x_argument)``."""

    function: Function
    result: int
    argument: int


@dataclass(frozen=True)
class Program:
    """The feasible set ``{x : lower <= x <= upper, row_lower <= A x <= row_upper, x_j integer for j in I}``
    and, if there are any, ``x_p = x_a x_b`` and ``x_r = f(x_a)``.

    Every column has finite bounds, so any row multipliers give a finite dual bound
    (Neumaier and Shcherbina 2004). Objectives are passed to the solver session one by one, because
    many of them share one feasible set.

    Attributes:
        lower, upper: column bounds, shape (columns,), float64, finite.
        integer: True for integer columns, shape (columns,), bool.
        matrix: rows A, shape (rows, columns), CSR, float64.
        row_lower, row_upper: row sides, shape (rows,), float64, +-inf allowed.
        row_owner, column_owner: a number for the graph node that each row or column comes from, or
            ``SHARED``.
        products: bilinear terms, (terms, 3): columns p, a and b of ``x_p = x_a x_b``.
        curves: exact functions; the rows relax them too, so a solver without them only loses
            tightness.
        lazy: rows that a solver may omit until a point violates them, (rows,); empty for none.

    Raises:
        EncodingError: inconsistent shapes, an infinite or crossed column bound, a NaN.
    """

    lower: Array
    upper: Array
    integer: npt.NDArray[np.bool_]
    matrix: sp.csr_matrix
    row_lower: Array
    row_upper: Array
    row_owner: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    column_owner: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    products: Index = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    curves: tuple[Curve, ...] = ()
    lazy: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def __post_init__(self) -> None:
        rows, columns = self.matrix.shape
        for name, size in (("lazy", rows), ("row_owner", rows), ("column_owner", columns)):
            if (given := getattr(self, name)).size == 0:
                object.__setattr__(self, name, np.zeros(size, dtype=given.dtype))
        of_columns = dict.fromkeys(("lower", "upper", "integer", "column_owner"), (columns,))
        of_rows = dict.fromkeys(("row_lower", "row_upper", "row_owner", "lazy"), (rows,))
        shapes = {**of_columns, **of_rows, "products": (len(self.products), 3)}
        for name, wanted in shapes.items():
            found = getattr(self, name).shape
            if found != wanted:
                raise EncodingError(f"A program needs '{name}' of shape {wanted}", f"shape {found}")
        for bad, asked, remedy in (
            (
                ~(np.isfinite(self.lower) & np.isfinite(self.upper)),
                "Every column of a program needs finite bounds",
                "bound the node by a cheaper relaxation first",
            ),
            (self.lower > self.upper, "Every column of a program needs lower <= upper", ""),
        ):
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                found = f"column {first} has [{self.lower[first]}, {self.upper[first]}]"
                raise EncodingError(asked, found, remedy)
        if not np.isfinite(self.matrix.data).all():
            raise EncodingError(
                "Row coefficients must be finite", "a NaN or an infinity in the matrix"
            )
        if np.isnan(self.row_lower).any() or np.isnan(self.row_upper).any():
            raise EncodingError("Row sides must be numbers", "a NaN")

    @property
    def size(self) -> dict[str, int]:
        """Counts of columns, rows, integer columns, non-zeros, bilinear terms and exact functions."""
        rows, columns = self.matrix.shape
        terms = (
            int(self.integer.sum()),
            int(self.matrix.nnz),
            len(self.products),
            len(self.curves),
        )
        return dict(zip(SIZES, (columns, rows, *terms), strict=True))

    @property
    def is_linear(self) -> bool:
        """Whether the program has only rows and bounds, apart from integrality."""
        return not len(self.products) and not self.curves

    @property
    def is_mixed_integer(self) -> bool:
        return bool(self.integer.any())

    def violation(self, point: Array) -> float:
        """Largest violation of a bound or row at ``point`` (columns,); 0 when feasible."""
        activity = self.matrix @ point
        of_columns = np.maximum(self.lower - point, point - self.upper)
        of_rows = np.maximum(self.row_lower - activity, activity - self.row_upper)
        return float(max(of_columns.max(initial=0.0), of_rows.max(initial=0.0)))

    def part(
        self, rows: npt.NDArray[np.bool_], columns: npt.NDArray[np.bool_] | None = None
    ) -> Program:
        """A relaxation: the masked rows over the masked columns, which must include all that they read."""
        matrix = sp.csr_matrix(self.matrix[np.flatnonzero(rows)])
        kept = replace(
            self,
            matrix=matrix,
            row_lower=self.row_lower[rows],
            row_upper=self.row_upper[rows],
            row_owner=self.row_owner[rows],
            lazy=self.lazy[rows],
        )
        if columns is None:
            return kept
        left = np.flatnonzero(columns)
        place = np.full(columns.size, -1, dtype=np.int64)
        place[left] = np.arange(left.size)
        return replace(
            kept,
            lower=self.lower[left],
            upper=self.upper[left],
            integer=self.integer[left],
            matrix=sp.csr_matrix(matrix[:, left]),
            column_owner=self.column_owner[left],
            products=place[self.products[columns[self.products[:, 0]]]],
            curves=tuple(
                Curve(c.function, int(place[c.result]), int(place[c.argument]))
                for c in self.curves
                if columns[c.result]
            ),
        )

    def needed_for(self, wanted: Index) -> tuple[Program, Index]:
        """The part of the program that constrains the wanted columns.

        A row belongs to those of its columns that have the same owner, to its newest column if there
        is none, and to all its columns if its owner is ``SHARED``. Rows that belong to no needed
        column are dropped (always a relaxation); all columns of the other rows are needed as well.

        Returns:
            The smaller program, and the columns that it keeps, ascending.
        """
        owned, pattern = self._owners()
        alive = np.zeros(self.lower.size, dtype=np.bool_)
        alive[wanted] = True
        seen = np.zeros(self.row_lower.size, dtype=np.bool_)
        while True:
            before = int(alive.sum())
            alive[self.products[alive[self.products[:, 0]]].reshape(-1)] = True
            for curve in self.curves:
                alive[curve.argument] |= alive[curve.result]
            rows = ~seen & (owned @ alive > 0.0)
            seen |= rows
            alive[pattern[rows].indices] = True
            if int(alive.sum()) == before and not rows.any():
                break
        return self.part(seen, alive), np.flatnonzero(alive)

    def _owners(self) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Which rows belong to which columns, and which rows read which: 0/1 matrices (rows, columns)."""
        matrix = sp.csr_matrix(self.matrix, copy=True)
        matrix.sort_indices()
        counts = np.diff(matrix.indptr)
        row = np.repeat(np.arange(matrix.shape[0]), counts)
        owner = self.row_owner[row]
        own = (owner == self.column_owner[matrix.indices]) | (owner == SHARED)
        alone = np.bincount(row[own], minlength=matrix.shape[0]) == 0
        last = matrix.indptr[1:][alone & (counts > 0)] - 1
        own[last] = True
        ones = np.ones(matrix.nnz)
        pattern = sp.csr_matrix((ones, matrix.indices, matrix.indptr), shape=matrix.shape)
        owned = sp.csr_matrix((own.astype(np.float64), (row, matrix.indices)), shape=matrix.shape)
        owned.eliminate_zeros()
        return owned, pattern
