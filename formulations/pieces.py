"""Piecewise McCormick envelopes: the range of one operand cut into pieces, one binary for each."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, Index, add
from milp_agt.core.rounding import TINY, gamma


def encode_pieces(
    encoder: Encoder,
    result: Expression,
    split: tuple[Expression, Array, Array],
    other: tuple[Expression, Array, Array],
    element: Index,
    pieces: int,
) -> None:
    """Rows that hold ``result = a b`` in the envelope of the piece that a lies in.

    For piece k = [lo_k, hi_k] of a, with a binary l_k, and a_k, b_k that equal a and b there and vanish
    elsewhere (Bergamini, Aguirre and Grossmann 2005)::

        sum l_k = 1,   sum a_k = a,   sum b_k = b
        lo_k l_k <= a_k <= hi_k l_k,  low l_k <= b_k <= high l_k
        result >= sum (lo_k b_k + low a_k - lo_k low l_k), ... and the other three corners

    which is the convex hull of the pieces' envelopes: never looser than the envelope of the whole.

    Args:
        result, split, other: products, and their operands a and b with their bounds, (products,).
        element: which products share an operand a, (products,): they share the binaries.
        pieces: of equal width, at least 2.
    """
    count = result.size
    unique, first, home = np.unique(element, return_index=True, return_inverse=True)
    low_a, high_a = split[1][first], split[2][first]
    cuts = low_a[:, None] + (high_a - low_a)[:, None] * np.linspace(0.0, 1.0, pieces + 1)
    cuts = np.maximum.accumulate(np.clip(cuts, low_a[:, None], high_a[:, None]), axis=1)
    cuts[:, -1] = high_a
    low, high = cuts[:, :-1], cuts[:, 1:]  # (operands, pieces)
    shape = low.shape
    chosen = encoder.columns(np.zeros(shape), np.ones(shape), integer=encoder.exact_phases)
    part_a = encoder.columns(np.minimum(low, 0.0), np.maximum(high, 0.0))
    _within(encoder, part_a, chosen, low, high)
    _adds_up(encoder, chosen, Expression.of(np.ones(unique.size)))
    _adds_up(encoder, part_a, split[0].take(first.astype(np.int64)))

    low_b, high_b = (np.repeat(b[:, None], pieces, axis=1) for b in other[1:])
    part_b = encoder.columns(np.minimum(low_b, 0.0), np.maximum(high_b, 0.0))
    position = home.reshape(-1, 1) * pieces + np.arange(pieces)
    own, own_a = chosen.take(position), part_a.take(position)
    _within(encoder, part_b, own, low_b, high_b)
    _adds_up(encoder, part_b, other[0])
    low, high = low[home.reshape(-1)], high[home.reshape(-1)]
    size = np.maximum(np.abs(split[1]), np.abs(split[2]))
    size = size * np.maximum(np.abs(other[1]), np.abs(other[2]))
    slack = 4.0 * size * gamma(32) + TINY
    for at_a, at_b, is_lower in (
        (low, low_b, True),
        (high, high_b, True),
        (high, low_b, False),
        (low, high_b, False),
    ):
        plane = add([part_b.scale(at_a), own_a.scale(at_b), own.scale(-at_a * at_b)])
        total = plane.apply(_sums(count, pieces), (count,))
        form = add([result.reshape((count,)), total.scale(-1.0)]).plus_error(slack)
        encoder.rows(form, 0.0 if is_lower else -np.inf, np.inf if is_lower else 0.0)


def _sums(groups: int, pieces: int) -> sp.csr_matrix:
    return sp.csr_matrix(sp.kron(sp.eye_array(groups), np.ones((1, pieces)), format="csr"))


def _adds_up(encoder: Encoder, parts: Expression, whole: Expression) -> None:
    groups, pieces = parts.shape
    total = parts.apply(_sums(groups, pieces), (groups,))
    encoder.rows(add([total, whole.reshape((groups,)).scale(-1.0)]), 0.0, 0.0)


def _within(
    encoder: Encoder, part: Expression, chosen: Expression, low: Array, high: Array
) -> None:
    """``low l <= part <= high l``."""
    encoder.rows(add([part, chosen.scale(-low)]), 0.0, np.inf)
    encoder.rows(add([part, chosen.scale(-high)]), -np.inf, 0.0)
