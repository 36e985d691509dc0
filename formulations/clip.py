"""Clipping to an interval: per-sample gradients coordinate by coordinate, parameters to a box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add
from milp_agt.core.interval import Interval
from milp_agt.errors import EncodingError
from milp_agt.formulations.bent import HullEdges, Mask, Part
from milp_agt.formulations.registry import register
from milp_agt.formulations.univariate import on_line


@register
@dataclass(frozen=True)
class Clip(HullEdges):
    """``f(x) = min(max(x, low), high)`` with low < high: increasing, slope 1 between the kinks.

    Planes: below, the line through ``p = max(l, low)`` and the upper end of the range, or the constant
    ``low`` where most of the range lies below it; above, mirrored at ``q = min(u, high)``. Both are
    edges of the convex hull of the graph. Ranges that touch only one piece are exact. Programs
    have a phase for each kink, ``a = [x > low]`` and ``b = [x > high]``, relaxed in lp.

    Any argument is allowed, infinite ends too: the image is within [low, high].
    """

    low: float
    high: float
    key = "clip"
    exactness = "exact on one piece; hull edges (lp), a phase binary for each kink (milp)"
    piece_slopes = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise EncodingError("A clip needs low < high", f"[{self.low}, {self.high}]")

    @property
    def kinks(self) -> tuple[float, ...]:
        return (self.low, self.high)

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(self.low, self.high)

    def is_linear_on(self, box: Interval) -> Tensor:
        inside = (box.lower >= self.low) & (box.upper <= self.high)
        return inside | (box.upper <= self.low) | (box.lower >= self.high)

    def residual(self, slope: Tensor | float, box: Interval) -> Interval:
        """Extremes of the pieces: both ends of the range and the kinks inside it."""
        kinks = (box.lower.clamp(min=kink).minimum(box.upper) for kink in self.kinks)
        points = (box.lower, *kinks, box.upper)
        return Interval.spanning(self.value(x) - on_line(slope, x) for x in points)

    def _chord(self, low: Tensor, high: Tensor) -> Tensor:
        """Slope of the secant; 1 inside and 0 outside where the range is a point."""
        width = high - low
        narrow = width <= 0
        secant = (self.value(high) - self.value(low)) / torch.where(narrow, 1.0, width)
        inside = ((low >= self.low) & (high <= self.high)).to(low.dtype)
        return torch.where(narrow, inside, secant)

    def edges(self, box: Interval) -> tuple[Tensor, Tensor]:
        low, high = box.lower, box.upper
        return (
            self._chord(torch.minimum(low.clamp(min=self.low), high), high),
            self._chord(low, torch.maximum(high.clamp(max=self.high), low)),
        )

    def straight(self, argument: Expression, low: Array, high: Array, bent: Mask) -> Expression:
        inside = (low >= self.low) & (high <= self.high)
        below, above = high <= self.low, low >= self.high
        constant = np.where(below, self.low, self.high) * (below | above) * ~inside
        return argument.scale(inside.astype(np.float64)).shift(constant)

    def bent_columns(self, encoder: Encoder, part: Part) -> Expression:
        return encoder.columns_of(self.interval(part.box))

    def phase_rows(self, encoder: Encoder, part: Part, column: Expression) -> None:
        """Big-M rows of both kinks: ``a = 0: v = low``, ``a = 1, b = 0: v = x``, ``b = 1: v = high``.

        A phase that the range decides is a fixed column.
        """
        x, low, high, integer = part.x, part.low, part.high, encoder.exact_phases
        surely, maybe = (low >= self.low).astype(np.float64), (high > self.high).astype(np.float64)
        above_low = encoder.columns(surely, np.ones_like(surely), integer)
        above_high = encoder.columns(np.zeros_like(maybe), maybe, integer)
        excess = add([column, x.scale(-1.0)]).plus_error(2.0**-50 * (np.abs(low) + np.abs(high)))
        reach = np.minimum(high, self.high) - self.low
        fall = self.high - np.maximum(low, self.low)
        slack = 2.0**-50 * (abs(self.low) + abs(self.high) + np.abs(low) + np.abs(high))
        # v <= low + reach a,  v >= high - fall (1 - b),  v - x <= (low - l)(1 - a),  v - x >= -(u - high) b
        encoder.rows(add([column, above_low.scale(-reach)]), -np.inf, self.low + slack)
        encoder.rows(add([column, above_high.scale(-fall)]), self.high - fall - slack, np.inf)
        under = np.maximum(self.low - low, 0.0)
        over = np.maximum(high - self.high, 0.0)
        encoder.rows(add([excess, above_low.scale(under)]), -np.inf, under + slack)
        encoder.rows(add([excess, above_high.scale(over)]), -slack, np.inf)
        encoder.rows(add([above_high, above_low.scale(-1.0)]), -np.inf, 0.0)
