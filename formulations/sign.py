"""The sign, with 0 at 0 as torch has it: the subgradient of the l1 norm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add
from milp_agt.core.interval import Interval
from milp_agt.formulations.bent import HullEdges, Mask, Part
from milp_agt.formulations.heaviside import STEEPEST
from milp_agt.formulations.registry import register
from milp_agt.formulations.univariate import on_line


@register
@dataclass(frozen=True)
class Sign(HullEdges):
    """``f(x) = 1`` for x > 0, 0 for x = 0, -1 for x < 0; exact where the range has one sign.

    Planes over l < 0 < u: below, the line through ``(0-, -1)`` and ``(u, 1)``, or the constant -1 where
    ``-l > u``; above, mirrored. Both are edges of the closed hull of the graph. Programs write
    ``v = p - q`` with the phases ``p = [x > 0]`` and ``q = [x < 0]``, relaxed in lp; at x = 0 every value
    in between is admitted (closure).
    """

    key = "sign"
    exactness = "exact for one sign; hull edges (lp), a phase binary for each sign (milp)"

    @property
    def kinks(self) -> tuple[float, ...]:
        return (0.0,)

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.sign(inputs[0])

    def is_linear_on(self, box: Interval) -> Tensor:
        return (box.lower > 0) | (box.upper < 0) | (box.lower == box.upper)

    def residual(self, slope: Tensor | float, box: Interval) -> Interval:
        """Extremes of the pieces: both ends, 0 at 0, and -1 and 1 next to it."""
        low, high = box.lower, box.upper
        ends = [self.value(x) - on_line(slope, x) for x in (low, high)]
        lower, upper = torch.minimum(*ends), torch.maximum(*ends)
        holds_zero = (low <= 0) & (high >= 0)
        for inside, value in (
            (holds_zero, 0.0),
            (holds_zero & (low < 0), -1.0),
            (holds_zero & (high > 0), 1.0),
        ):
            lower = torch.where(inside, lower.clamp(max=value), lower)
            upper = torch.where(inside, upper.clamp(min=value), upper)
        return Interval(lower, upper)

    def edges(self, box: Interval) -> tuple[Tensor, Tensor]:
        """0 for one sign."""
        low, high = box.lower, box.upper
        rise_below = torch.where(low < 0, 2.0, 1.0)
        rise_above = torch.where(high > 0, 2.0, 1.0)
        below = (low <= 0) & (high * STEEPEST > rise_below)
        above = (high >= 0) & (-low * STEEPEST > rise_above)
        zero = torch.zeros_like(low)
        return (
            torch.where(below, rise_below / torch.where(below, high, 1.0), zero),
            torch.where(above, rise_above / torch.where(above, -low, 1.0), zero),
        )

    def straight(self, argument: Expression, low: Array, high: Array, bent: Mask) -> Expression:
        return Expression.of(np.where(bent, 0.0, np.sign(low)))

    def bent_columns(self, encoder: Encoder, part: Part) -> Expression:
        """The difference of two phases."""
        x, low, high = part.x, part.low, part.high
        integer, zero = encoder.exact_phases, np.zeros(low.shape)
        positive = encoder.columns(zero, (high > 0).astype(np.float64), integer)
        negative = encoder.columns(zero, (low < 0).astype(np.float64), integer)
        # x <= u p,  x >= l q,  x >= l (1 - p),  x <= u (1 - q),  p + q <= 1
        encoder.rows(add([x, positive.scale(-high)]), -np.inf, 0.0)
        encoder.rows(add([x, negative.scale(-low)]), 0.0, np.inf)
        encoder.rows(add([x, positive.scale(low)]), low, np.inf)
        encoder.rows(add([x, negative.scale(high)]), -np.inf, high)
        encoder.rows(add([positive, negative]), -np.inf, 1.0)
        return add([positive, negative.scale(-1.0)])
