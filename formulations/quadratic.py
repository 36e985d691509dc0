"""Quadratic functions of one variable: squares, and derivatives of sigmoid and tanh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder, as_arrays
from milp_agt.core.expression import Expression, Index, add
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.formulations.registry import register
from milp_agt.formulations.univariate import ClosedForm


@register
@dataclass(frozen=True)
class Quadratic(ClosedForm):
    """``f(x) = a x^2 + b x + c``; ``f' = m`` at ``(m - b) / (2 a)``. Requires a != 0."""

    a: float
    b: float
    c: float
    key = "quadratic"

    def value(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return (self.a * x + self.b) * x + self.c

    def derivative(self, x: Tensor) -> Tensor:
        return 2.0 * self.a * x + self.b

    @property
    def bend(self) -> float:
        return 2.0 * abs(self.a)

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        return ((slope - self.b) / (2.0 * self.a),)

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        size = (abs(self.a) * argument + abs(self.b)) * argument + abs(self.c)
        return torch.as_tensor(size * gamma(8) + TINY)

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """By the sizes of all terms: nothing is said of how a run arranges them."""
        size = inputs[0].magnitude
        total = (abs(self.a) * size + abs(self.b)) * size + abs(self.c)
        return total * precision.gamma(4) + precision.tiny

    def encode_exactly(
        self, encoder: Encoder, column: Expression, argument: Index, box: Interval
    ) -> Expression:
        """``v = a q + b x + c`` up to rounding, with a column ``q = x^2``."""
        hull = box.hull()
        zero = torch.zeros_like(hull.lower)
        nearest = torch.minimum(torch.maximum(zero, hull.lower), hull.upper)
        square = Interval(nearest**2, hull.magnitude**2).widen(hull.magnitude**2 * gamma(4) + TINY)
        root = encoder.of_columns(argument, column.shape)
        squares = encoder.columns(*as_arrays(square, column.shape))
        encoder.product(squares.matrix.indices.astype(np.int64), argument, argument)
        slack = self.rounding(hull.magnitude, hull.magnitude)
        form = add([column, squares.scale(-self.a), root.scale(-self.b)])
        encoder.rows(form.plus_error(np.asarray(slack.cpu().numpy())), self.c, self.c)
        return column
