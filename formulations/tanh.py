"""The hyperbolic tangent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Index
from milp_agt.core.graph import Graph, Node, Pulled, Wanted
from milp_agt.core.interval import Interval
from milp_agt.core.program import Function
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.registry import register
from milp_agt.formulations.sigmoid import times
from milp_agt.formulations.univariate import Smooth


@register
@dataclass(frozen=True)
class Tanh(Smooth):
    """``f(z) = tanh(z)``, increasing; ``f' = 1 - f^2``, so ``f' = m`` at ``+-artanh(sqrt(1 - m))``."""

    key = "tanh"
    exactness = "chord slope with exact offsets; chord and tangent rows; exact in qcqp, miqp"

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.tanh(inputs[0])

    def derivative(self, x: Tensor) -> Tensor:
        return 4.0 * torch.sigmoid(2.0 * x) * torch.sigmoid(-2.0 * x)

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        # artanh(r) = log((1 + r)^2 / (1 - r^2)) / 2 with 1 - r^2 = slope: no cancellation at r = 1.
        root = torch.sqrt(1.0 - slope)
        point = torch.log1p(root) - 0.5 * torch.log(slope)
        return point, -point

    def interval(self, *inputs: Interval) -> Interval:
        box = self.monotone(inputs[0].lower, inputs[0].upper)
        return Interval(box.lower.clamp(min=-1.0), box.upper.clamp(max=1.0))

    def encode_exactly(
        self, encoder: Encoder, column: Expression, argument: Index, box: Interval
    ) -> Expression:
        encoder.curve(Function.TANH, column.matrix.indices, argument, box)
        return self.blurred(column, box)

    def vjp(self, graph: Graph, node: Node, cotangent: Node, wanted: Wanted) -> Pulled:
        slope = graph.add(Quadratic(-1.0, 0.0, 1.0), node)
        return (times(graph, cotangent, slope),)
