"""Which rows of a program contradict each other: the multipliers of the least violation."""

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

    They are those of ``min sum_i t_i / w_i`` over ``A x + t`` instead of ``A x`` with ``t`` of either
    sign and ``w_i = max_j |a_ij|``, which is positive where no x satisfies all rows.

    Args:
        solve: gives row multipliers of a program for costs (columns,), None where it fails.

    Returns:
        Multipliers (rows,) of ``program``; whether they prove anything is for ``safe_bound`` to say.
    """
    rows, columns = program.matrix.shape
    least, most = activity(program)
    weight = np.maximum(abs(program.matrix).max(axis=1).toarray().reshape(-1), 1e-12)
    # enough to reach the side from anywhere in the box
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
