"""A value that is known up to an error: what rounding may have done before the graph begins."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions
from milp_agt.core.graph import LinearBounds, Operation, Signature
from milp_agt.core.interval import Boxes, Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.registry import ElementwisePlanes, register


@register
@dataclass(frozen=True, eq=False)
class RoundingError(Operation):
    """``v = u + d`` with an unknown ``|d| <= error``, elementwise, anew for each sample and step.

    ``error`` has the shape of u without the sample axis. The nominal value is u.
    """

    error: Tensor
    key = "blur"
    exactness = "exact"

    def infer(self, *inputs: Signature) -> Signature:
        if inputs[0].shape != tuple(self.error.shape):
            raise EncodingError(f"An error of shape {tuple(self.error.shape)}", f"{inputs[0]}")
        return inputs[0]

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0]

    def interval(self, *inputs: Interval) -> Interval:
        # The ends are rounded themselves.
        return inputs[0].widen(self.error + (inputs[0].magnitude + self.error) * gamma(2) + TINY)

    def relax(self, *inputs: Interval) -> LinearBounds:
        size = inputs[0].magnitude.amax(0)
        error = self.error.expand(size.shape).unsqueeze(0)
        return ElementwisePlanes(1.0, 1.0, -error, error, size + self.error)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        return inputs[0].plus_error(self.error.cpu().numpy())
