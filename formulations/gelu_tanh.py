"""The form of GELU with tanh in place of the error function, and its derivative."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.graph import Graph, Node
from milp_agt.core.rounding import TINY, UNIT_ROUNDOFF
from milp_agt.formulations.curved import Curved
from milp_agt.formulations.registry import register

_K, _C = math.sqrt(2.0 / math.pi), 0.044715
# Beyond this both tails are constant in float64: 2 q(z) is above 745.
_TAIL = 30.0


def _parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``z`` cut off where the tails are constant, ``q'(z)``, ``s(2 q)`` and ``s(2 q) s(-2 q)``."""
    z = x.clamp(-_TAIL, _TAIL)
    q = _K * (z + _C * z * z * z)
    share = torch.sigmoid(2.0 * q)
    return z, _K * (1.0 + 3.0 * _C * z * z), share, share * torch.sigmoid(-2.0 * q)


@register
@dataclass(frozen=True)
class GeluTanh(Curved):
    """``f(z) = z (1 + tanh q(z)) / 2`` with ``q(z) = sqrt(2 / pi) (z + 0.044715 z^3)``.

    With the logistic function s, ``f = z s(2 q)`` and ``f' = s(2 q) + 2 z q' s(2 q) s(-2 q)``;
    inflections at +-1.4185.
    """

    key = "gelu_tanh"
    turns = (-1.4185040087908284, 1.4185040087908284)

    def value(self, *inputs: Tensor) -> Tensor:
        return functional.gelu(inputs[0], approximate="tanh")

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        return 32.0 * UNIT_ROUNDOFF * argument + TINY

    def derivative(self, x: Tensor) -> Tensor:
        z, rate, share, bell = _parts(x)
        return share + 2.0 * z * rate * bell

    def derivative_error(self, x: Tensor) -> Tensor:
        z, rate, share, bell = _parts(x)
        size = z.abs() * rate
        return UNIT_ROUNDOFF * (32.0 * share + (64.0 + 32.0 * size) * (1.0 + 2.0 * size) * bell)

    def slope_node(self, graph: Graph, node: Node) -> Node:
        (argument,) = graph.inputs(node)
        return graph.add(GeluTanhSlope(), argument)


@register
@dataclass(frozen=True)
class GeluTanhSlope(Curved):
    """``f(z) = s(2 q) + 2 z q' s(2 q) s(-2 q)``, the derivative of :class:`GeluTanh`.

    ``f' = s(2 q) s(-2 q) (4 q' + 2 z q'' - 4 z q'^2 tanh q)``, which turns at 0 and +-2.0135. Torch
    computes ``1 - tanh^2``, whose error is multiplied by ``z q' / 2``: a multiple of that is granted.
    """

    key = "gelu_tanh_slope"
    turns = (-2.0134807246242577, 0.0, 2.0134807246242577)
    image = (-0.14, 1.14)

    def value(self, *inputs: Tensor) -> Tensor:
        z, rate, share, bell = _parts(inputs[0])
        return share + 2.0 * z * rate * bell

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        size = argument * _K * (1.0 + 3.0 * _C * argument * argument)
        return UNIT_ROUNDOFF * (64.0 + 32.0 * size) + TINY

    def derivative(self, x: Tensor) -> Tensor:
        z, rate, share, bell = _parts(x)
        return bell * (
            4.0 * rate + 12.0 * _K * _C * z * z - 4.0 * z * rate**2 * (2.0 * share - 1.0)
        )

    def derivative_error(self, x: Tensor) -> Tensor:
        z, rate, _, bell = _parts(x)
        size = z.abs() * rate
        terms = 4.0 * rate + 12.0 * _K * _C * z * z + 4.0 * size * rate
        return UNIT_ROUNDOFF * (64.0 + 32.0 * size) * terms * bell
