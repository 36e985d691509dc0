"""Bounds of exp, log, sigmoid and tanh that are proved here: no library is trusted with them.

Constants are computed from series in fractions when the module is loaded, not typed in.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from milp_agt.checker import boxes
from milp_agt.checker.boxes import Array, Box, Exact, Unbounded, down, exact, is_exact, up

# log 2 = sum_{n >= 1} 1 / (n 2^n); what is left after N terms is positive and below 2^-N / N.
_TERMS = 420
_BELOW = sum((Fraction(1, n * 2**n) for n in range(1, _TERMS + 1)), Fraction(0))
_ABOVE = _BELOW + Fraction(1, _TERMS * 2**_TERMS)
_HEAD = float(Fraction(_BELOW * 2**32 // 1, 2**32))  # 32 bits: k * _HEAD is exact for |k| < 2^20
_TAIL = (
    math.nextafter(float(_BELOW - Fraction(_HEAD)), 0.0),
    math.nextafter(float(_ABOVE - Fraction(_HEAD)), 1.0),
)

DEGREE, EXACT_DEGREE, EXACT_BITS = 16, 60, 320
FARTHEST = 800.0  # exp(-800) is below, exp(800) above every float


def _exp(x: Array, upper: bool) -> Array:
    """A bound of exp(x) on one side.

    ``x = k log 2 + r`` with ``r`` enclosed by ``[r_lo, r_hi]``, ``|r| <= 0.36``; on our side r is the end
    that exp, being increasing, needs. ``exp(r)`` by ``1 + r (1 + r/2 (1 + r/3 (...)))`` to degree 16: the
    rest of the series is below ``0.36^17 / 17! e^0.36 < 2^-70``. All partial results lie in [0.5, 1.5];
    each of the 16 levels adds at most three roundings, ``3 * 1.5 u``, and multiplies what came before by
    at most 0.36, so that the value is off by less than ``4.5 u / (1 - 0.36) < 8 u``. We grant ``32 u =
    2^-48``. Scaling by 2^k is exact above the smallest normal number, and rounds once below it.
    """
    if is_exact(x):
        return np.asarray(np.frompyfunc(_exact_exp, 2, 1)(x, upper), dtype=object)
    inside = np.clip(x, -FARTHEST, FARTHEST)
    k = np.rint(inside / 0.6931471805599453)
    rest = inside - k * _HEAD  # k * _HEAD is exact
    ends = k * _TAIL[0], k * _TAIL[1]
    if upper:
        r = up(up(rest) - down(np.minimum(*ends)))
    else:
        r = down(down(rest) - up(np.maximum(*ends)))
    if not (abs(r) <= 0.36).all():
        raise Unbounded("exp of something that is no number")
    value = np.ones_like(r)
    for n in range(DEGREE, 0, -1):
        value = 1.0 + (r / n) * value
    scaled = np.ldexp(value + (2.0**-48 if upper else -(2.0**-48)), k.astype(np.int64))
    if upper:
        return np.where(x > FARTHEST, np.inf, up(scaled))
    return np.clip(down(np.minimum(scaled, 2.0**1023)), 0.0, None)


def _exact_exp(x: Fraction, upper: bool) -> Exact:
    """A bound of exp in fractions, by the same series to a higher degree."""

    def short(value: Fraction) -> Fraction:
        scaled = Fraction(value) * 2**EXACT_BITS
        return Fraction(-(-scaled // 1) if upper else scaled // 1, 2**EXACT_BITS)

    x = short(x)
    k = round(x / _BELOW)
    ends = k * _BELOW, k * _ABOVE
    r, value = short(x - (min(ends) if upper else max(ends))), Fraction(1)
    for n in range(EXACT_DEGREE, 0, -1):
        value = 1 + r / n * value
    rest = abs(r) ** (EXACT_DEGREE + 1)  # > |r|^61 / 61! e^|r|
    return Exact(short((value + (rest if upper else -rest)) * Fraction(2) ** k))


def exp(x: Box) -> Box:
    """``exp``, increasing."""
    return Box(_exp(x.lo, False), _exp(x.hi, True))


def sigmoid(x: Box) -> Box:
    """``1 / (1 + exp(-x))``, increasing."""
    low = down(1.0 / up(1.0 + _exp(-x.lo, True)))
    high = up(1.0 / down(1.0 + _exp(-x.hi, False)))
    return Box(np.maximum(low, 0.0), np.minimum(high, 1.0))


def tanh(x: Box) -> Box:
    """``2 sigmoid(2 x) - 1``: doubling is exact, and the absolute error stays below 2^-47."""
    half = sigmoid(Box(2.0 * x.lo, 2.0 * x.hi))
    return Box(down(2.0 * half.lo - 1.0), up(2.0 * half.hi - 1.0))


def softmax(x: Box) -> Box:
    """``p_j = 1 / sum_k exp(x_k - x_j)`` over the last axis: increasing in x_j, decreasing in the
    others.
    """
    own = np.eye(x.lo.shape[-1], dtype=bool)
    least = _exp(down(x.lo[..., None, :] - x.hi[..., :, None]), False)
    most = _exp(up(x.hi[..., None, :] - x.lo[..., :, None]), True)
    least = np.minimum(least, 2.0**1000)  # no sum of them overflows
    least, most = np.where(own, 1.0, least), np.where(own, 1.0, most)
    size = most.sum(-1)
    error = boxes.allowance(x.lo.shape[-1], size)
    above = up(size + error)
    shorter = least.sum(-1)
    below = down(shorter - boxes.allowance(x.lo.shape[-1], shorter))
    low, high = down(1.0 / above), up(1.0 / np.maximum(below, 1.0))
    return Box(np.maximum(low, 0.0), np.minimum(high, 1.0))


def log(x: Box) -> Box:
    """``log`` of positive numbers: a guess, moved outwards and then proved by exp, which is increasing.

    ``y <= log x`` follows from ``exp(y) <= x``, which is tested on the upper bound of exp.
    """
    ends: list[Any] = []
    for value, sign in ((x.lo, -1.0), (x.hi, 1.0)):
        near = np.log(value.astype(np.float64))
        guess = near + sign * (1.0 + abs(near)) * 2.0**-44
        guess = exact(guess) if is_exact(value) else guess
        holds = _exp(guess, True) <= value if sign < 0 else _exp(guess, False) >= value
        if not np.all(holds):
            raise Unbounded("a logarithm that could not be bounded")
        ends.append(guess)
    return Box(ends[0], ends[1])
