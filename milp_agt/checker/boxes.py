"""Boxes of numbers, and operations on them whose results are rounded outwards.

A box is two arrays of the same shape, in one of two arithmetics that share all code below:

- float64: every operation rounds to nearest (IEEE 754), and :func:`down` and :func:`up` go one number
  or two further. Sums are in any order; they are off by at most ``gamma(k) sum |x|`` with ``gamma(k) =
  k u / (1 - k u)`` and ``u = 2^-53`` (Higham 2002, section 4.2), which :func:`total` grants;
- exact: arrays of :class:`Exact` fractions; nothing is rounded, and :func:`coarse` shortens fractions
  outwards.

A number that is not finite proves nothing: it raises :class:`Unbounded`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

U = 2.0**-53
TINY = 2.0**-900  # more than underflow adds; products with it are no denormals, which are slow
# Covers 1 / (1 - k u) for k u <= 2^-10, and the rounding of the sizes that errors grow with.
SPARE = 1.0 + 2.0**-8
BITS = 320  # of the fractions that exact arithmetic keeps from one step to the next


class Unbounded(Exception):
    """A bound that is infinite or no number: nothing follows from it."""


def finite(*arrays: Array) -> None:
    if not all(is_exact(values) or np.isfinite(values).all() for values in arrays):
        raise Unbounded("a bound became infinite")


@dataclass(frozen=True)
class Box:
    """``{v : lo <= v <= hi}``, elementwise, both finite."""

    lo: Array
    hi: Array

    def __post_init__(self) -> None:
        finite(self.lo, self.hi)

    @staticmethod
    def point(values: Array) -> Box:
        return Box(values, values)

    @property
    def is_point(self) -> bool:
        return self.lo is self.hi

    @property
    def T(self) -> Box:
        """The last two axes exchanged."""
        low = np.swapaxes(self.lo, -1, -2)
        return Box(low, low if self.is_point else np.swapaxes(self.hi, -1, -2))

    @property
    def size(self) -> Array:
        """The largest magnitude, elementwise."""
        return np.asarray(np.maximum(abs(self.lo), abs(self.hi)))

    def __getitem__(self, key: Any) -> Box:
        low = self.lo[key]
        return Box(low, low if self.is_point else self.hi[key])

    def __neg__(self) -> Box:
        return Box(-self.hi, -self.lo)

    def __add__(self, other: Box) -> Box:
        return Box(down(self.lo + other.lo), up(self.hi + other.hi))

    def __sub__(self, other: Box) -> Box:
        return Box(down(self.lo - other.hi), up(self.hi - other.lo))

    def __mul__(self, other: Box) -> Box:
        """Of two unrelated numbers: the extremes are at corners."""
        low, high = corners(self, other)
        return Box(down(low), up(high))

    def times(self, factor: float | Fraction) -> Box:
        return self * scale_of(factor, self.lo)

    def square(self) -> Box:
        straddles = (self.lo <= 0) & (self.hi >= 0)
        nearest = np.where(straddles, 0.0, np.minimum(abs(self.lo), abs(self.hi)))
        return Box(down(nearest * nearest), up(self.size * self.size))

    def met(self, other: Box) -> Box:
        """What both hold."""
        return Box(np.maximum(self.lo, other.lo), np.minimum(self.hi, other.hi))

    def widened(self, error: Array) -> Box:
        """Both ends moved outwards by ``error >= 0``."""
        return Box(down(self.lo - error), up(self.hi + error))


class Exact(Fraction):
    """A fraction that takes a float beside it as the fraction which that is."""

    __slots__ = ()

    @staticmethod
    def _operation(name: str) -> Callable[..., Exact]:
        plain = getattr(Fraction, name)

        def operation(*operands: Any) -> Any:
            if isinstance(operands[-1], np.ndarray):
                return NotImplemented
            own = [v if isinstance(v, Fraction) else Fraction(v) for v in operands]
            found = plain(*own)
            found.__class__ = Exact
            return found

        return operation


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "abs"):
    setattr(Exact, f"__{_name}__", Exact._operation(f"__{_name}__"))


def is_exact(values: Array) -> bool:
    return values.dtype == object


def down(values: Array) -> Array:
    """A number that is no larger than what was rounded to ``values``: at least one float further, since
    ``2^-52 |v|`` is no smaller than the gap around v, and ``TINY`` than the least gap.
    """
    return values if is_exact(values) else values - (abs(values) * 2.0**-52 + TINY)


def up(values: Array) -> Array:
    """A number that is no smaller than what was rounded to ``values``."""
    return values if is_exact(values) else values + (abs(values) * 2.0**-52 + TINY)


def scale_of(value: float | Fraction, like: Array) -> Box:
    """A constant as a box, which may be a rational number that is no float."""
    if is_exact(like):
        return Box.point(np.array(Exact(value), dtype=object))
    if abs(Fraction(value)) >= 2**1023:
        raise Unbounded("a factor beyond all floats")
    near, same = np.array(float(value)), Fraction(float(value)) == Fraction(value)
    return Box.point(near) if same else Box(down(near), up(near))


def exact(value: Any) -> Any:
    """The same with fractions in all arrays of floats, however deep in it they stand."""
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        return np.asarray(np.frompyfunc(Exact, 1, 1)(value), dtype=object)
    if isinstance(value, Box) and value.is_point:
        return Box.point(exact(value.lo))
    if isinstance(value, dict):
        return {key: exact(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(exact, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: exact(getattr(value, f.name)) for f in fields(value)})
    return value


def root(values: Array) -> Array:
    """A number that is no smaller than the root of ``values >= 0``, of which underflow may have taken."""
    found = up(np.sqrt(up(values.astype(np.float64)) + TINY))
    finite(found)
    return exact(found) if is_exact(values) else found


def coarse(box: Box) -> Box:
    """The box with fractions of ``BITS`` bits behind the point, rounded outwards; floats stay as they
    are.
    """
    if not is_exact(box.lo):
        return box
    unit = 2**BITS
    low = np.frompyfunc(lambda v: Exact(Fraction(v) * unit // 1, unit), 1, 1)
    high = np.frompyfunc(lambda v: Exact(-(-Fraction(v) * unit // 1), unit), 1, 1)
    return Box(np.asarray(low(box.lo), dtype=object), np.asarray(high(box.hi), dtype=object))


def corners(a: Box, b: Box) -> tuple[Array, Array]:
    """Least and largest of the four products of ends, rounded to nearest."""
    if a.is_point and b.is_point:
        same = a.lo * b.lo
        return same, same
    if a.is_point or b.is_point:
        point, other = (a, b) if a.is_point else (b, a)
        first, second = point.lo * other.lo, point.lo * other.hi
        return np.minimum(first, second), np.maximum(first, second)
    products = a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi
    low = np.minimum(np.minimum(products[0], products[1]), np.minimum(products[2], products[3]))
    high = np.maximum(np.maximum(products[0], products[1]), np.maximum(products[2], products[3]))
    return low, high


def allowance(terms: int, size: Array) -> Array:
    """What ``terms`` roundings in a row, of which no array has 2^40, do to a sum of numbers of this total
    size, in our own arithmetic.
    """
    if is_exact(size):
        return size * 0
    return (terms + 4) * U * SPARE * size + TINY


def total(low: Array, high: Array, axis: int = -1) -> Box:
    """The sum of numbers that lie between ``low`` and ``high`` up to one rounding each.

    ``fl(sum low) - sum low`` is at most ``gamma(k) sum |low|``, and each term was rounded once more.
    """
    size = np.maximum(abs(low), abs(high)).sum(axis)
    error = allowance(low.shape[axis] + 1, size)
    return Box(down(low.sum(axis) - error), up(high.sum(axis) + error))


def matmul(a: Box, b: Box) -> Box:
    """Matrix product by midpoints and radii (Rump 1999): not exact, and much faster.

    ``A B`` lies within ``|A_m| R_b + R_a (|B_m| + R_b)`` of ``A_m B_m`` for ``A_m +- R_a`` and ``B_m +-
    R_b``.
    """
    (middle_a, radius_a), (middle_b, radius_b) = _balls(a), _balls(b)
    middle = middle_a @ middle_b
    radius = abs(middle_a) @ radius_b + radius_a @ (abs(middle_b) + radius_b)
    size = abs(middle_a) @ abs(middle_b) + radius
    radius = radius + 4 * allowance(a.lo.shape[-1], size)
    return Box(down(middle - radius), up(middle + radius))


def _balls(a: Box) -> tuple[Array, Array]:
    middle = 0.5 * a.lo + 0.5 * a.hi
    return middle, up(np.maximum(a.hi - middle, middle - a.lo))


def joined(parts: Sequence[Box], axis: int) -> Box:
    low, high = (np.concatenate([getattr(box, end) for box in parts], axis) for end in ("lo", "hi"))
    return Box(low, high)


def largest(values: Array, count: int, axis: int = 0) -> Array:
    """The ``count`` largest along an axis, in any order."""
    many = values.shape[axis]
    if count >= many:
        return values
    if is_exact(values):
        return np.take(np.sort(values, axis), range(many - count, many), axis)
    return np.take(np.partition(values, many - count, axis), range(many - count, many), axis)
