"""The unit step, derivative of relu: the phase of a unit as a node of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.formulations.bent import Bent, Mask, Part
from milp_agt.formulations.registry import register

# Slopes beyond this would only blow up the offset at the far end of the range.
STEEPEST = 1e6


@register
@dataclass(frozen=True)
class Heaviside(Bent):
    """``f(z) = 1`` iff z > 0 (as torch's relu). Stable on iff l > 0, stable off iff u <= 0.

    Planes on an ambiguous range l <= 0 < u: ``a >= z / (2u)`` and ``a <= 1 - z / (2l)``; slope zero
    where stable. Programs use the closure, in which both phases are admitted at z = 0.
    """

    key = "step"
    rounds_in_run = False
    rises = 1
    exactness = "exact where stable; lines through the kink (lp), phase binary (milp)"

    def value(self, *inputs: Tensor) -> Tensor:
        return (inputs[0] > 0).to(inputs[0].dtype)

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        """A comparison is exact."""
        return torch.zeros_like(value)

    def is_linear_on(self, box: Interval) -> Tensor:
        return (box.lower > 0) | (box.upper <= 0)

    def residual(self, slope: Tensor | float, box: Interval) -> Interval:
        """Extremes of the pieces: ends, ``0`` from the left (0) and from the right (1)."""
        low, high = box.lower, box.upper
        at_low = (low > 0).to(low.dtype) - slope * low
        at_high = (high > 0).to(low.dtype) - slope * high
        ambiguous = (low <= 0) & (high > 0)
        zero, one = torch.zeros_like(at_low), torch.ones_like(at_low)
        smallest, largest = torch.minimum(at_low, at_high), torch.maximum(at_low, at_high)
        # max(largest, 1), min(smallest, 0): the values next to the kink are 0 and 1.
        return Interval(
            torch.where(ambiguous, torch.minimum(smallest, zero), smallest),
            torch.where(ambiguous, torch.maximum(largest, one), largest),
        )

    def slopes(self, clean: Interval) -> tuple[Tensor, Tensor]:
        low, high = clean.lower, clean.upper
        ambiguous = (low <= 0) & (high > 0)
        zero = torch.zeros_like(low)
        rising = ambiguous & (high > 0.5 / STEEPEST)
        falling = ambiguous & (low < -0.5 / STEEPEST)
        return (
            torch.where(rising, 0.5 / torch.where(rising, high, 1.0), zero),
            torch.where(falling, -0.5 / torch.where(falling, low, 1.0), zero),
        )

    def program_slopes(self, box: Interval) -> tuple[list[Tensor], list[Tensor]]:
        zero = torch.zeros_like(box.lower[CLEAN])
        halves = [self.slopes(each) for each in (box.of_clean, box.hull())]
        return [zero, *(2.0 * low for low, _ in halves)], [zero, *(2.0 * up for _, up in halves)]

    def straight(self, argument: Expression, low: Array, high: Array, bent: Mask) -> Expression:
        return Expression.of((low > 0).astype(np.float64))

    def bent_columns(self, encoder: Encoder, part: Part) -> Expression:
        """The phase column itself: ``z <= u a`` and ``z >= l (1 - a)``."""
        phase = encoder.phase(part.argument, part.mask)
        encoder.rows(add([part.x, phase.scale(-part.high)]), -np.inf, 0.0)
        encoder.rows(add([part.x, phase.scale(part.low)]), part.low, np.inf)
        return phase
