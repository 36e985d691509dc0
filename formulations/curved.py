"""Smooth functions with few inflections: extremes of ``f(x) - m x`` by bisection on the derivative."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, UNIT_ROUNDOFF
from milp_agt.formulations.univariate import Smooth, on_line

# Beyond this an argument counts as infinite: nothing overflows below it.
HUGE = 1e150
# Bisection stops at brackets of this width; one step of the secant method follows.
BRACKET = 1e-6
HALVINGS = 600


class Curved(Smooth):
    """A function whose derivative is monotone between finitely many points (:attr:`turns`).

    On each piece between two turns ``g(x) = f(x) - m x`` has at most one stationary point, which a
    change of sign of ``g'`` encloses. Let ``[a, b]`` be the bracket, ``c`` a point of it and ``e`` the
    bound on the error of the computed derivative. ``g'`` is monotone, so that the extreme at ``x*``
    satisfies ``|g(x*) - g(c)| <= (|g'(c)| + e) (b - a)``. Where the sign at an end of a piece is within
    its error, the extreme may lie beyond any bracket, but then ``|g'| <= 2 e`` from there to the extreme:
    it is off by at most ``2 e`` times the width of the piece. Both amounts are granted.

    A subclass states ``value``, ``derivative`` with a bound on its error, and ``turns``.
    """

    rounds_in_run = None  # how torch arranges these functions in float32 is not bounded

    exactness = "chord slope with offsets by bisection; chord and tangent rows"

    @property
    @abstractmethod
    def turns(self) -> tuple[float, ...]:
        """Ascending points between which f' is monotone; at one of them f' may jump."""

    @abstractmethod
    def derivative_error(self, x: Tensor) -> Tensor:
        """Bound on the error of :meth:`derivative` in float64, small where the derivative is."""

    @property
    def image(self) -> tuple[float, float]:
        """Bounds of all values; used where an argument is infinite."""
        return -math.inf, math.inf

    def residual(self, slope: Tensor | float, box: Interval) -> Interval:
        line = torch.as_tensor(slope, dtype=box.lower.dtype, device=box.lower.device)
        low, high = box.lower.clamp(-HUGE, HUGE), box.upper.clamp(-HUGE, HUGE)
        flat, none, slack = line.detach(), torch.zeros_like(low), torch.zeros_like(low)
        turns = [torch.full_like(low, turn).maximum(low).minimum(high) for turn in self.turns]
        points = [(x, none) for x in (low, high, *turns)]
        for first, last in self._pieces(low, high):
            point, own = self._bracketed(flat, first, last)
            slack = torch.maximum(slack, self._unsure(flat, first, last))
            points.append((point, own))
        values = [(self.value(x) - on_line(line, x), own) for x, own in points]
        below = Interval.spanning(value - own for value, own in values).lower
        above = Interval.spanning(value + own for value, own in values).upper
        return self._known(flat, box, Interval(below - slack, above + slack))

    def _known(self, slope: Tensor, box: Interval, found: Interval) -> Interval:
        """Nothing is known on a range without end, but what the image says of f itself."""
        endless = ~((box.lower >= -HUGE) & (box.upper <= HUGE))
        if not bool(endless.any()):
            return found
        level = (slope == 0.0) & endless
        smallest, largest = self.image
        lower = torch.where(level, smallest, torch.where(endless, -torch.inf, found.lower))
        upper = torch.where(level, largest, torch.where(endless, torch.inf, found.upper))
        return Interval(lower, upper)

    def _pieces(self, low: Tensor, high: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The box cut at the turns; a piece that misses it is a point of it."""
        cuts = [-math.inf, *self.turns, math.inf]
        pieces = []
        for before, after in itertools.pairwise(cuts):
            # One float beyond a turn: where f' jumps there, this piece has the value on its side.
            start = before if math.isinf(before) else math.nextafter(before, math.inf)
            last = high.clamp(max=after).maximum(low)
            pieces.append((torch.minimum(low.clamp(min=start), last), last))
        return pieces

    def _gap(self, slope: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``f'(x) - m`` and a bound on its error."""
        gap = self.derivative(x) - slope
        error = self.derivative_error(x) + UNIT_ROUNDOFF * gap.abs() + TINY
        return gap, error

    def _unsure(self, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """What is granted where the sign at an end of a piece is not known."""
        ends = [self._gap(slope, x) for x in (low, high)]
        either = [torch.where(gap.abs() <= error, 2.0 * error, 0.0) for gap, error in ends]
        return torch.where(high > low, torch.maximum(*either) * (high - low), 0.0)

    def _bracketed(self, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """A point near the stationary one of a piece, and what is granted around it.

        Where there is none, the point is the lower end and nothing is granted.
        """
        slope, low, high = torch.broadcast_tensors(slope, low, high)
        rises = self.derivative(high) >= self.derivative(low)
        sign = torch.where(rises, 1.0, -1.0)
        crosses = (sign * (self.derivative(low) - slope) < 0.0) & (
            sign * (self.derivative(high) - slope) > 0.0
        )
        point, granted = low.clone(), torch.zeros_like(low)
        if not bool(crosses.any()):
            return point, granted
        m, a, b, s = (t[crosses] for t in (slope, low, high, sign))
        for _ in range(HALVINGS):
            if bool((b - a <= BRACKET + 4.0 * UNIT_ROUNDOFF * (a.abs() + b.abs())).all()):
                break
            middle = a + 0.5 * (b - a)
            before = s * (self.derivative(middle) - m) < 0.0
            a, b = torch.where(before, middle, a), torch.where(before, b, middle)
        at_a, at_b = self.derivative(a) - m, self.derivative(b) - m
        step = (b - a) * (at_a / (at_a - at_b))
        c = torch.where(torch.isfinite(step), a + step, a).maximum(a).minimum(b)
        gap, error = self._gap(m, c)
        point[crosses] = c
        granted[crosses] = (gap.abs() + error) * (b - a)
        return point, granted
