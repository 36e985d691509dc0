"""The logistic function and its derivative in terms of its value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Index
from milp_agt.core.graph import Graph, Node, Pulled, Wanted
from milp_agt.core.interval import Interval
from milp_agt.core.program import Function
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.registry import register
from milp_agt.formulations.univariate import Smooth


@register
@dataclass(frozen=True)
class Sigmoid(Smooth):
    """``f(z) = 1 / (1 + exp(-z))``, increasing; ``f' = f (1 - f)``, so ``f' = m`` at the logits of
    ``(1 +- sqrt(1 - 4 m)) / 2`` for 0 < m <= 1/4.
    """

    key = "sigmoid"
    exactness = "chord slope with exact offsets; chord and tangent rows; exact in qcqp, miqp"

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.sigmoid(inputs[0])

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        root = torch.sqrt(1.0 - 4.0 * slope)
        smaller = 2.0 * slope / (1.0 + root)
        point = torch.log(smaller) - torch.log1p(-smaller)
        return point, -point

    def interval(self, *inputs: Interval) -> Interval:
        box = self.monotone(inputs[0].lower, inputs[0].upper)
        return Interval(box.lower.clamp(min=0.0), box.upper.clamp(max=1.0))

    def encode_exactly(
        self, encoder: Encoder, column: Expression, argument: Index, box: Interval
    ) -> Expression:
        encoder.curve(Function.SIGMOID, column.matrix.indices, argument, box)
        return self.blurred(column, box)

    def vjp(self, graph: Graph, node: Node, cotangent: Node, wanted: Wanted) -> Pulled:
        slope = graph.add(Quadratic(-1.0, 1.0, 0.0), node)
        return (times(graph, cotangent, slope),)


def times(graph: Graph, first: Node, second: Node) -> Node:
    """Elementwise product of two nodes of one signature."""
    axes = "n" * first.batched + "abcdefg"[: len(first.shape)]
    return graph.add(Einsum(f"{axes},{axes}->{axes}"), first, second)
