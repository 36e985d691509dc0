"""The reciprocal on positive arguments, a part of softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.base import register
from milp_agt.formulations.univariate import Smooth


@register
@dataclass(frozen=True)
class Reciprocal(Smooth):
    """``f(x) = 1 / x`` on x > 0, decreasing and convex; ``f' = m`` at ``1 / sqrt(-m)``.

    A box that reaches zero (an overflow before it) gives a vacuous bound, never a wrong one.
    """

    key = "reciprocal"
    exactness = "chord slope with exact offsets; chord and tangent rows"

    def value(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return torch.where(x > 0, 1.0 / x, torch.inf)

    def derivative(self, x: Tensor) -> Tensor:
        return -1.0 / (x * x)

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        return (1.0 / torch.sqrt(-slope),)

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        return value * gamma(8) + TINY

    def interval(self, *inputs: Interval) -> Interval:
        (box,) = inputs
        return self.monotone(box.upper, box.lower)
