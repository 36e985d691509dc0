"""Proofs of infeasibility: row multipliers from the program of least violation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from milp_agt.core.presolve import activity
from milp_agt.core.program import Array, Program

Multipliers = Callable[[Program, Array], Array | None]


def farkas_ray(program: Program, solve: Multipliers) -> Array | None:
    """Row multipliers whose bound of the objective 0 is positive if the relaxation is infeasible.

    They are the multipliers of ``min sum_i |t_i| / w_i`` with ``A x + t`` in place of ``A x`` and
    ``w_i = max_j |a_ij|``; the minimum is positive if no x satisfies all rows.

    Args:
        solve: returns row multipliers of a program for costs (columns,), None if it fails.

    Returns:
        Multipliers (rows,) of ``program``; ``safe_bound`` decides whether they prove anything.
    """
    rows, columns = program.matrix.shape
    least, most = activity(program)
    weight = np.maximum(abs(program.matrix).max(axis=1).toarray().reshape(-1), 1e-12)
    # large enough to reach the side from any point of the box
    reach = [
        np.maximum(np.where(np.isfinite(gap), gap, 0.0), 0.0) * 1.01
        for gap in (program.row_lower - least, most - program.row_upper)
    ]
    loose = replace(
        program,
        lower=np.concatenate([program.lower, np.zeros(2 * rows)]),
        upper=np.concatenate([program.upper, *reach]),
        integer=np.zeros(columns + 2 * rows, dtype=np.bool_),
        matrix=sp.csr_matrix(sp.hstack([program.matrix, sp.eye(rows), -sp.eye(rows)])),
        products=np.zeros((0, 3), dtype=np.int64),
        curves=(),
        column_origin=(),
        row_origin=(),
    )
    return solve(loose, np.concatenate([np.zeros(columns), 1.0 / weight, 1.0 / weight]))
