"""An activation: its rules, its layer, and its name in run files."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from milp_agt.core.graph import Graph, Node
from milp_agt.core.rounding import ELEMENTARY, TINY, UNIT_ROUNDOFF
from milp_agt.formulations.curved import Curved
from milp_agt.formulations.registry import register
from milp_agt.formulations.tanh import Tanh
from milp_agt.training.layers.builder import Builder, handles


class LogCosh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.cosh(x))


@register
@dataclass(frozen=True)
class LogCoshOperation(Curved):
    """``f(z) = log cosh z``, convex; ``f' = tanh z``."""

    key = "log_cosh"
    turns = ()
    image = (0.0, math.inf)

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.log(torch.cosh(inputs[0]))

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        """That of cosh, which log turns into an absolute one, and that of log."""
        return UNIT_ROUNDOFF * 4.0 * ELEMENTARY * (1.0 + value.abs()) + TINY

    def derivative(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def derivative_error(self, x: Tensor) -> Tensor:
        return 2.0 * ELEMENTARY * UNIT_ROUNDOFF * torch.tanh(x).abs() + TINY

    def slope_node(self, graph: Graph, node: Node) -> Node:
        (argument,) = graph.inputs(node)
        return graph.add(Tanh(), argument)


@handles(LogCosh, name="log_cosh")
def log_cosh(builder: Builder, layer: nn.Module, path: str) -> None:
    builder.append(LogCoshOperation(), name=builder.free_name(f"{path}:h"))
