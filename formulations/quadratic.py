"""Quadratic functions of one variable: squares, and derivatives of sigmoid and tanh."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.base import register
from milp_agt.formulations.univariate import Smooth


@register
@dataclass(frozen=True)
class Quadratic(Smooth):
    """``f(x) = a x^2 + b x + c``; ``f' = m`` at ``(m - b) / (2 a)``. Requires a != 0."""

    a: float
    b: float
    c: float
    key = "quadratic"
    exactness = "chord slope with exact offsets; chord and tangent rows"

    def value(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return (self.a * x + self.b) * x + self.c

    def derivative(self, x: Tensor) -> Tensor:
        return 2.0 * self.a * x + self.b

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        return ((slope - self.b) / (2.0 * self.a),)

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        size = (abs(self.a) * argument + abs(self.b)) * argument + abs(self.c)
        return torch.as_tensor(size * gamma(8) + TINY)
