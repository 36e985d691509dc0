"""The logistic function and its derivative in terms of its value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.graph import Graph, Node
from milp_agt.core.program import Function
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.registry import register
from milp_agt.formulations.univariate import ClosedForm


@register
@dataclass(frozen=True)
class Sigmoid(ClosedForm):
    """``f(z) = 1 / (1 + exp(-z))``, increasing; ``f' = f (1 - f)``, so ``f' = m`` at the logits of
    ``(1 +- sqrt(1 - 4 m)) / 2`` for 0 < m <= 1/4.
    """

    key = "sigmoid"
    rises, least, most = 1, 0.0, 1.0
    function = Function.SIGMOID

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.sigmoid(inputs[0])

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)

    @property
    def bend(self) -> float:
        return 0.0962251  # 1 / (6 sqrt 3)

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        root = torch.sqrt(1.0 - 4.0 * slope)
        smaller = 2.0 * slope / (1.0 + root)
        point = torch.log(smaller) - torch.log1p(-smaller)
        return point, -point

    def slope_node(self, graph: Graph, node: Node) -> Node:
        return graph.add(Quadratic(-1.0, 1.0, 0.0), node)
