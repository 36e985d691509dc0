"""SiLU (swish), ``x s(x)`` with the logistic function, and its derivative."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.graph import Graph, Node
from milp_agt.core.rounding import TINY, UNIT_ROUNDOFF
from milp_agt.formulations.curved import Curved
from milp_agt.formulations.registry import register

# Where ``z tanh(z / 2) = 2``.
_INFLECTION = 2.3993572805154677
# Where ``3 t = z t^2 - z (1 - t^2) / 2`` with ``t = tanh(z / 2)``.
_STEEPEST = 3.4358409935351107


@register
@dataclass(frozen=True)
class Silu(Curved):
    """``f(z) = z s(z)`` with ``s(z) = 1 / (1 + exp(-z))``, falling up to z = -1.2785.

    ``f' = s (1 + z s(-z))`` and ``f'' = s(z) s(-z) (2 - z tanh(z / 2))``: inflections at +-2.3994.
    """

    key = "silu"
    turns = (-_INFLECTION, _INFLECTION)

    def value(self, *inputs: Tensor) -> Tensor:
        return functional.silu(inputs[0])

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * (1.0 + x * torch.sigmoid(-x))

    def derivative_error(self, x: Tensor) -> Tensor:
        return UNIT_ROUNDOFF * 64.0 * torch.sigmoid(x) * (1.0 + x.abs() * torch.sigmoid(-x))

    def slope_node(self, graph: Graph, node: Node) -> Node:
        (argument,) = graph.inputs(node)
        return graph.add(SiluSlope(), argument)


@register
@dataclass(frozen=True)
class SiluSlope(Curved):
    """``f(z) = s(z) (1 + z s(-z))``, the derivative of SiLU, between -0.0999 and 1.0999.

    ``f' = s(z) s(-z) (2 - z tanh(z / 2))``, which turns at 0 and +-3.4358. Torch computes
    ``s (1 + z (1 - s))``, whose error grows with z.
    """

    key = "silu_slope"
    turns = (-_STEEPEST, 0.0, _STEEPEST)
    image = (-0.1, 1.1)

    def value(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return torch.sigmoid(x) * (1.0 + x * torch.sigmoid(-x))

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        return UNIT_ROUNDOFF * (64.0 + 32.0 * argument) + TINY

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x) * (2.0 - x * torch.tanh(0.5 * x))

    def derivative_error(self, x: Tensor) -> Tensor:
        return UNIT_ROUNDOFF * 64.0 * torch.sigmoid(x) * torch.sigmoid(-x) * (2.0 + x.abs())
