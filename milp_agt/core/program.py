"""The solver-neutral program: columns, sparse rows, and nothing about any solver."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from milp_agt.errors import EncodingError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Program:
    """The feasible set ``{x : lower <= x <= upper, row_lower <= A x <= row_upper, x_j integer for j in I}``.

    Every column has finite bounds, so that any row multipliers give a finite dual bound
    (Neumaier and Shcherbina 2004). Objectives are passed to the solver session one by one, because
    many of them share one feasible set.

    Attributes:
        lower, upper: column bounds, shape (columns,), float64, finite.
        integer: True for integer columns, shape (columns,), bool.
        matrix: rows A, shape (rows, columns), CSR, float64.
        row_lower, row_upper: row sides, shape (rows,), float64, +-inf allowed.
        row_origin: for each block of rows, the graph node that it came from and its first row.

    Raises:
        EncodingError: shapes that disagree, an infinite or crossed column bound, a NaN.
    """

    lower: Array
    upper: Array
    integer: npt.NDArray[np.bool_]
    matrix: sp.csr_matrix
    row_lower: Array
    row_upper: Array
    row_origin: tuple[tuple[str, int], ...] = field(default=())

    def __post_init__(self) -> None:
        rows, columns = self.matrix.shape
        shapes = {
            "lower": (self.lower.shape, (columns,)),
            "upper": (self.upper.shape, (columns,)),
            "integer": (self.integer.shape, (columns,)),
            "row_lower": (self.row_lower.shape, (rows,)),
            "row_upper": (self.row_upper.shape, (rows,)),
        }
        for name, (found, wanted) in shapes.items():
            if found != wanted:
                raise EncodingError(f"A program needs '{name}' of shape {wanted}", f"shape {found}")
        if not (np.isfinite(self.lower).all() and np.isfinite(self.upper).all()):
            bad = int(np.flatnonzero(~(np.isfinite(self.lower) & np.isfinite(self.upper)))[0])
            raise EncodingError(
                "Every column of a program needs finite bounds",
                f"column {bad} has [{self.lower[bad]}, {self.upper[bad]}]",
                "bound the node by a cheaper relaxation first",
            )
        if (self.lower > self.upper).any():
            bad = int(np.flatnonzero(self.lower > self.upper)[0])
            raise EncodingError(
                "Every column of a program needs lower <= upper",
                f"column {bad} has [{self.lower[bad]}, {self.upper[bad]}]",
            )
        if not np.isfinite(self.matrix.data).all():
            raise EncodingError(
                "Row coefficients must be finite", "a NaN or an infinity in the matrix"
            )
        if np.isnan(self.row_lower).any() or np.isnan(self.row_upper).any():
            raise EncodingError("Row sides must be numbers", "a NaN")

    @property
    def size(self) -> dict[str, int]:
        """Counts of columns, rows, integer columns and non-zeros."""
        return {
            "columns": self.matrix.shape[1],
            "rows": self.matrix.shape[0],
            "integers": int(self.integer.sum()),
            "nonzeros": int(self.matrix.nnz),
        }

    @property
    def is_mixed_integer(self) -> bool:
        return bool(self.integer.any())

    def violation(self, point: Array) -> float:
        """Largest violation of a bound or row at ``point`` (columns,); 0 when feasible."""
        activity = self.matrix @ point
        gaps = [
            self.lower - point,
            point - self.upper,
            self.row_lower - activity,
            activity - self.row_upper,
        ]
        return float(max((g.max(initial=0.0) for g in gaps), default=0.0))
