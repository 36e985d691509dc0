"""The hyperbolic tangent."""

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
class Tanh(ClosedForm):
    """``f(z) = tanh(z)``, increasing; ``f' = 1 - f^2``, so ``f' = m`` at ``+-artanh(sqrt(1 - m))``."""

    key = "tanh"
    rises, least, most = 1, -1.0, 1.0
    function = Function.TANH

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.tanh(inputs[0])

    def derivative(self, x: Tensor) -> Tensor:
        return 4.0 * torch.sigmoid(2.0 * x) * torch.sigmoid(-2.0 * x)

    @property
    def bend(self) -> float:
        return 0.7698004  # 4 / (3 sqrt 3)

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        # artanh(r) = log((1 + r)^2 / (1 - r^2)) / 2 with 1 - r^2 = slope: no cancellation at r = 1.
        root = torch.sqrt(1.0 - slope)
        point = torch.log1p(root) - 0.5 * torch.log(slope)
        return point, -point

    def slope_node(self, graph: Graph, node: Node) -> Node:
        return graph.add(Quadratic(-1.0, 0.0, 1.0), node)
