"""Values and linear bounds of exp, sigmoid and tanh over boxes, in numpy, with their rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from milp_agt.core.program import Array, Curve, Function, Index
from milp_agt.core.rounding import ELEMENTARY, TINY, UNIT_ROUNDOFF, gamma

SLOPES = 4  # rows of a curve

Map = Callable[[Array], Array]


@dataclass(frozen=True)
class _Smooth:
    """An increasing function, its derivative, and a point where the derivative is m.

    ``odd`` functions (up to a constant) have another such point at the opposite argument.
    """

    value: Map
    derivative: Map
    stationary: Map
    odd: bool


def _sigmoid(x: Array) -> Array:
    grown: Array = np.exp(-np.abs(x))
    return np.where(x >= 0.0, 1.0, grown) / (1.0 + grown)


def _sigmoid_stationary(m: Array) -> Array:
    smaller = 2.0 * m / (1.0 + np.sqrt(1.0 - 4.0 * m))
    found: Array = np.log(smaller) - np.log1p(-smaller)
    return found


_SMOOTH: dict[Function, _Smooth] = {
    Function.EXP: _Smooth(np.exp, np.exp, np.log, False),
    Function.SIGMOID: _Smooth(
        _sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x), _sigmoid_stationary, True
    ),
    Function.TANH: _Smooth(
        np.tanh, lambda x: 1.0 / np.cosh(x) ** 2, lambda m: np.arctanh(np.sqrt(1.0 - m)), True
    ),
}


class Curves:
    """The exact functions of a program, by kind.

    Attributes:
        result, argument: columns, (curves,).
    """

    def __init__(self, curves: tuple[Curve, ...]) -> None:
        self.result: Index = np.array([c.result for c in curves], dtype=np.int64)
        self.argument: Index = np.array([c.argument for c in curves], dtype=np.int64)
        kinds = [c.function for c in curves]
        self._of = [
            (smooth, np.array([k is kind for k in kinds], dtype=np.bool_))
            for kind, smooth in _SMOOTH.items()
            if kind in kinds
        ]

    def __len__(self) -> int:
        return int(self.result.size)

    def value(self, x: Array) -> Array:
        """``f(x)`` of each curve, rounded."""
        found = np.zeros_like(x)
        for smooth, own in self._of:
            found[own] = smooth.value(x[own])
        return found

    def range(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Bounds of ``f`` over ``[lower, upper]``, rounded outwards."""
        low, high = self.value(lower), self.value(upper)
        return low - _slack(lower, low), high + _slack(upper, high)

    def lines(self, lower: Array, upper: Array) -> tuple[Array, Array, Array]:
        """Slopes m and offsets with ``offset_low <= f(x) - m x <= offset_high`` for all x in the box.

        The slopes are those of the tangents at both ends and in the middle, and of the chord. For
        any m the extremes of ``f(x) - m x`` are at the ends and where ``f'(x) = m``.

        Returns:
            m, offset_low, offset_high, (curves, SLOPES) each.
        """
        slopes = np.zeros((len(self), SLOPES))
        low, high = np.zeros_like(slopes), np.zeros_like(slopes)
        for smooth, own in self._of:
            a, b = lower[own, None], upper[own, None]
            width = b - a
            with np.errstate(all="ignore"):
                chord = (smooth.value(b) - smooth.value(a)) / width
            middle = 0.5 * a + 0.5 * b
            wide = width > 1e-7 * (1.0 + np.abs(middle))
            chord = np.where(wide, chord, smooth.derivative(middle))
            tangents = [smooth.derivative(x) for x in (a, b, middle)]
            m = np.concatenate([*tangents, chord], axis=1)
            slopes[own] = m
            low[own], high[own] = _residual(smooth, m, a, b)
        return slopes, low, high


def _residual(smooth: _Smooth, m: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Bounds of ``f(x) - m x`` over ``[a, b]``.

    A stationary point that is slightly off, or outside the box, does no harm: the extreme is of second
    order there, or at an end.
    """
    with np.errstate(all="ignore"):
        found = smooth.stationary(m)
    points = [found, -found] if smooth.odd else [found]
    inside = [np.where(np.isfinite(x), np.clip(x, a, b), a) for x in points]
    places = np.stack([np.broadcast_to(a, m.shape), np.broadcast_to(b, m.shape), *inside])
    values = smooth.value(places)
    rest = values - m * places
    slack = _slack(places, values) + gamma(8) * (np.abs(values) + np.abs(m * places))
    return (rest - slack).min(0), (rest + slack).max(0)


def _slack(x: Array, value: Array) -> Array:
    """The assumed error of an elementary function, as everywhere in this library."""
    return np.abs(value) * (UNIT_ROUNDOFF * (ELEMENTARY + 4.0 * np.abs(x))) + TINY
