"""Rows of bilinear terms, exp, sigmoid and tanh over the boxes of a tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from milp_agt.core.program import Array, Curve, Function, Index, Program
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


SIDES = 4  # rows of a bilinear term


class Envelopes:
    """A program with rows for each bilinear term (four) and function, recomputed for every box.

    For ``z = x y`` with x in [a, b] and y in [c, d] (McCormick 1976)::

        z - c x - a y >= -a c        -z + d x + a y >= a d
        z - d x - b y >= -b d        -z + c x + b y >= b c

    These hold for every point of the box: coefficients are the bounds themselves, and sides are
    rounded outwards. A square adds its two coefficients, and its sides cover the rounding of the sum.
    The rows of a function are those of :meth:`Curves.lines`.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._curves = Curves(program.curves)
        _, left, right = program.products.T
        self._operands = left, right
        self._square = left == right
        self._kept = np.ones((len(left), SIDES, 3), dtype=np.bool_)
        self._kept[self._square, :, 2] = False  # both factors share one entry
        of_terms = np.broadcast_to(program.products[:, None, :], self._kept.shape)[self._kept]
        of_curves = np.stack([self._curves.result, self._curves.argument], axis=-1)
        of_curves = np.repeat(of_curves, SLOPES, axis=0).reshape(-1)
        counts = [*self._kept.sum(-1).reshape(-1).tolist(), *[2] * (SLOPES * len(self._curves))]
        base = sp.csr_matrix(program.matrix)
        self._indices = np.concatenate([base.indices, of_terms, of_curves]).astype(np.int32)
        ends = base.nnz + np.cumsum(counts, dtype=np.int64)
        self._indptr = np.concatenate([base.indptr, ends]).astype(np.int32)
        self._shape = (base.shape[0] + len(counts), base.shape[1])
        self._base = base.data
        self._lazy = np.concatenate([program.lazy, np.ones(len(counts), dtype=np.bool_)])

    def over(self, lower: Array, upper: Array) -> Program:
        """The program on a smaller box, (columns,) each, with the rows of this box as lazy rows."""
        p = self._program
        if p.is_linear:
            return replace(p, lower=lower, upper=upper)
        of_terms, sides = self._of_terms(lower, upper)
        of_curves, low, high = self._of_curves(lower, upper)
        data = np.concatenate([self._base, of_terms, of_curves])
        # copied: scipy sorts indices in place
        matrix = sp.csr_matrix((data, self._indices, self._indptr), shape=self._shape, copy=True)
        return replace(
            p,
            lower=lower,
            upper=upper,
            matrix=matrix,
            row_lower=np.concatenate([p.row_lower, sides, low]),
            row_upper=np.concatenate([p.row_upper, np.full(sides.size, np.inf), high]),
            row_owner=p.row_owner[:0],  # nothing is left out of a node
            lazy=self._lazy,
        )

    def _of_terms(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Entries of the rows of bilinear terms in their order, and their lower sides."""
        left, right = self._operands
        a, b, c, d = lower[left], upper[left], lower[right], upper[right]
        signs = np.array([1.0, 1.0, -1.0, -1.0])
        with_x = np.stack([-c, -d, d, c], axis=-1)
        with_y = np.stack([-a, -b, a, b], axis=-1)
        sides = np.nextafter(np.stack([-a * c, -b * d, a * d, b * c], axis=-1), -np.inf)
        square = self._square[:, None]
        with_x = np.where(square, with_x + with_y, with_x)
        reach = np.maximum(np.abs(a), np.abs(b))[:, None]
        # a sum of two coefficients has an error of half a unit in the last place, eps / 2 of itself
        lost = np.where(square, np.finfo(np.float64).eps * np.abs(with_x) * reach, 0.0)
        sides = np.where(lost > 0.0, np.nextafter(sides - lost, -np.inf), sides)
        results = np.broadcast_to(signs, with_x.shape)
        data = np.stack([results, with_x, with_y], axis=-1)[self._kept]
        return data, sides.reshape(-1)

    def _of_curves(self, lower: Array, upper: Array) -> tuple[Array, Array, Array]:
        """Entries of the rows of functions in their order, and both sides."""
        argument = self._curves.argument
        slopes, low, high = self._curves.lines(lower[argument], upper[argument])
        data = np.stack([np.ones_like(slopes), -slopes], axis=-1)
        return data.reshape(-1), low.reshape(-1), high.reshape(-1)
