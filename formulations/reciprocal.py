"""The reciprocal on positive arguments, a part of softmax."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Index
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.registry import register
from milp_agt.formulations.univariate import ClosedForm


@register
@dataclass(frozen=True)
class Reciprocal(ClosedForm):
    """``f(x) = 1 / x`` on x > 0, decreasing and convex; ``f' = m`` at ``1 / sqrt(-m)``.

    A box that reaches zero (an overflow before it) gives a vacuous bound, never a wrong one.
    """

    key = "reciprocal"
    rises = -1

    def value(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return torch.where(x > 0, 1.0 / x, torch.inf)

    def derivative(self, x: Tensor) -> Tensor:
        return -1.0 / (x * x)

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        return (1.0 / torch.sqrt(-slope),)

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        return value * gamma(8) + TINY

    def encode_exactly(
        self, encoder: Encoder, column: Expression, argument: Index, box: Interval
    ) -> Expression:
        """``1 = v x`` with a column for the one."""
        one = encoder.columns(np.ones(1), np.ones(1)).matrix.indices.astype(np.int64)
        result = column.matrix.indices.astype(np.int64)
        encoder.product(np.broadcast_to(one, result.shape), result, argument)
        return self.blurred(column, box)
