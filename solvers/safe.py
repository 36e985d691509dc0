"""Dual bounds and proofs of infeasibility that hold in floating point, whatever the solver claims."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from milp_agt.core.program import Array, Program
from milp_agt.errors import EncodingError, SoundnessError

_EPS = 2.0**-52  # twice the unit roundoff u = 2**-53
_LAMBDA = 2.0**-1074  # smallest subnormal; a product that underflows errs by at most half of it


def clip_multipliers(program: Program, multipliers: Array | None) -> Array:
    """Admissible multipliers: finite, and zero where they would meet an infinite side.

    ``y_i > 0`` uses the side ``row_lower_i``, ``y_i < 0`` uses ``row_upper_i``; if that side is
    infinite, or ``y_i`` is NaN or infinite, ``y_i`` becomes 0.

    Args:
        program: the rows, with sides of shape (rows,).
        multipliers: any floats of shape (rows,); None means all zero.

    Returns:
        A new array (rows,), float64, finite.

    Raises:
        EncodingError: a wrong shape.
    """
    rows = program.matrix.shape[0]
    if multipliers is None:
        return np.zeros(rows)
    y = np.array(multipliers, dtype=np.float64)
    if y.shape != (rows,):
        raise EncodingError(f"Row multipliers need shape {(rows,)}", f"shape {y.shape}")
    side = np.where(y > 0, program.row_lower, program.row_upper)
    y[~(np.isfinite(y) & np.isfinite(side))] = 0.0
    return y


def safe_bound(program: Program, objective: Array, multipliers: Array | None = None) -> float:
    r"""A proved lower bound on ``min c.x`` over the program (Neumaier and Shcherbina 2004).

    For every ``y`` (signs clipped by :func:`clip_multipliers`) and every feasible ``x``, integer or
    not, with ``d = c - A^T y``::

        c.x = y.(A x) + d.x >= sum_i y_i b_i + sum_j min(d_j l_j, d_j u_j)

    where ``b_i`` is the lower side of row i if ``y_i > 0`` and the upper side if ``y_i < 0``. The
    returned float is at most the exact value of the right-hand side, so it is valid for any
    multipliers; good ones only make it tighter. None means ``y = 0`` (the bound of the box).

    *Proof of the rounding.* Arithmetic is IEEE 754 binary64, to nearest, with gradual underflow
    (checked at each call); ``u = 2**-53``, ``lam = 2**-1074``. Let column j have k products with a
    non-zero multiplier, ``S = sum |a_ij y_i|``, ``S'`` its computed value, ``p'`` the computed
    ``sum a_ij y_i``, summed in any order, fused or not, and ``d' = fl(c_j - p')``.

    1. A product has an error of at most ``u`` of itself plus ``lam/2``, a sum of ``u`` of itself. Hence
       ``|p' - p| <= g S + k lam`` and ``S <= (S' + k lam)/(1 - g)``, with ``g = ku/(1 - ku)``; and
       ``|d' - (c_j - p')| <= u |d'|``.
    2. So ``|d' - d| <= 1.01 k u S' + 1.01 k lam + u |d'|`` for ``k < 2**40``. The radius
       ``r = k * 2u * (S' + |d'|) + 2 k lam`` covers it: the factor 2 outweighs 1.01 and the
       roundings of r itself. ``k = 0`` gives ``r = 0`` and ``d' = d = c_j``.
    3. ``d`` lies in ``[prev(d' - r), next(d' + r)]`` and ``min(d l, d u)`` is concave in d, so its
       minimum is at one of the four corners; ``prev(fl(a b)) <= a b`` for a product rounded to
       nearest, also if it underflows. The same holds for each ``y_i b_i``.
    4. ``math.fsum`` rounds the exact sum of these terms once; ``prev`` of it is below the sum.

    An overflow anywhere makes a term infinite or NaN; the result is then ``-inf``, never NaN.

    Args:
        program: columns (bounds finite), rows and their sides.
        objective: c, shape (columns,), float64, finite.
        multipliers: y, any floats, shape (rows,), or None.

    Returns:
        A lower bound in the units of the objective; ``-inf`` if it overflows.

    Raises:
        EncodingError: a wrong shape or an objective that is not finite.
        SoundnessError: the process flushes subnormal numbers to zero.
    """
    c = checked_objective(program, objective)
    if not sys.float_info.min * 0.5 > 0.0 or not np.float64(_LAMBDA) * np.float64(1.0) > 0.0:
        raise SoundnessError(
            "A safe bound needs gradual underflow",
            "subnormal numbers are flushed to zero in this process",
            "call torch.set_flush_denormal(False), or load the library that sets it later",
        )
    y = clip_multipliers(program, multipliers)
    with np.errstate(all="ignore"):
        used = y != 0.0
        transposed = program.matrix.T
        magnitudes = abs(transposed)
        pattern = magnitudes.copy()
        pattern.data = np.ones_like(pattern.data)
        k = pattern @ used.astype(np.float64)
        d = c - transposed @ y
        radius = k * _EPS * (magnitudes @ np.abs(y) + np.abs(d)) + k * (2.0 * _LAMBDA)
        exact = k == 0.0
        ends = (
            np.where(exact, d, np.nextafter(d - radius, -np.inf)),
            np.where(exact, d, np.nextafter(d + radius, np.inf)),
        )
        corners = [end * bound for end in ends for bound in (program.lower, program.upper)]
        columns = _below(np.minimum.reduce(corners))
        side = np.where(y > 0, program.row_lower, program.row_upper)
        rows = _below(y[used] * side[used])
    terms = np.concatenate([columns, rows])
    if not np.isfinite(terms).all():
        return -math.inf
    try:
        total = math.fsum(terms.tolist())
    except OverflowError:
        return -math.inf
    return math.nextafter(total, -math.inf)


def checked_objective(program: Program, objective: Array) -> Array:
    """The objective as float64 of shape (columns,).

    Raises:
        EncodingError: a wrong shape, a NaN or an infinity.
    """
    c = np.asarray(objective, dtype=np.float64)
    columns = program.matrix.shape[1]
    if c.shape != (columns,):
        raise EncodingError(f"An objective needs shape {(columns,)}", f"shape {c.shape}")
    if not np.isfinite(c).all():
        bad = int(np.flatnonzero(~np.isfinite(c))[0])
        raise EncodingError("An objective must be finite", f"coefficient {bad} is {c[bad]}")
    return c


def _below(products: Array) -> Array:
    """Lower bounds of exact products from their values rounded to nearest."""
    return np.nextafter(products, -np.inf)


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
    # Ranges of the rows over the box, not rounded.
    positive, negative = program.matrix.maximum(0.0), program.matrix.minimum(0.0)
    least = positive @ program.lower + negative @ program.upper
    most = positive @ program.upper + negative @ program.lower
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
        column_owner=np.zeros(columns + 2 * rows, dtype=np.int64),
    )
    return solve(loose, np.concatenate([np.zeros(columns), 1.0 / weight, 1.0 / weight]))
