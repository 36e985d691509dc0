"""GELU, ``x Phi(x)`` with the normal distribution function, and its derivative."""

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

# The density is 0 in float64 beyond this.
_TAIL = 40.0


def density(x: Tensor) -> Tensor:
    """``exp(-x^2 / 2) / sqrt(2 pi)``."""
    inside = x.clamp(-_TAIL, _TAIL)
    return torch.exp(-0.5 * inside * inside) / math.sqrt(2.0 * math.pi)


def distribution(x: Tensor) -> Tensor:
    """``Phi(x)``, accurate in the left tail, too."""
    tail: Tensor = torch.special.erfc(-x / math.sqrt(2.0))
    return 0.5 * tail


@register
@dataclass(frozen=True)
class Gelu(Curved):
    """``f(z) = z Phi(z)``, falling up to z = -0.7518 and rising from there on.

    ``f' = Phi(z) + z phi(z)`` with the density phi; ``f'' = phi(z) (2 - z^2)``, inflections at
    ``+-sqrt(2)``. Torch computes ``z (1 + erf(z / sqrt 2)) / 2``, whose error does not vanish in the
    left tail: ``32 u |z|`` is granted.
    """

    key = "gelu"
    turns = (-math.sqrt(2.0), math.sqrt(2.0))

    def value(self, *inputs: Tensor) -> Tensor:
        return functional.gelu(inputs[0])

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        return 32.0 * UNIT_ROUNDOFF * argument + TINY

    def derivative(self, x: Tensor) -> Tensor:
        return distribution(x) + x.clamp(-_TAIL, _TAIL) * density(x)

    def derivative_error(self, x: Tensor) -> Tensor:
        near = x.clamp(-_TAIL, _TAIL).abs()
        tail = (32.0 + 8.0 * near * near) * (1.0 + near) * density(x)
        return UNIT_ROUNDOFF * (32.0 * distribution(x) + tail)

    def slope_node(self, graph: Graph, node: Node) -> Node:
        (argument,) = graph.inputs(node)
        return graph.add(GeluSlope(), argument)


@register
@dataclass(frozen=True)
class GeluSlope(Curved):
    """``f(z) = Phi(z) + z phi(z)``, the derivative of GELU, between -0.129 and 1.129.

    ``f' = phi(z) (2 - z^2)``, which turns where ``z (z^2 - 4) = 0``.
    """

    key = "gelu_slope"
    turns = (-2.0, 0.0, 2.0)
    image = (-0.13, 1.13)

    def value(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        near = x.clamp(-_TAIL, _TAIL)
        return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + near * density(x)

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        """``z^3 phi(z)`` is below 1/2: so is what the error of the square does to the density."""
        return torch.full_like(value, 64.0 * UNIT_ROUNDOFF)

    def derivative(self, x: Tensor) -> Tensor:
        near = x.clamp(-_TAIL, _TAIL)
        return density(x) * (2.0 - near * near)

    def derivative_error(self, x: Tensor) -> Tensor:
        square = x.clamp(-_TAIL, _TAIL) ** 2
        return UNIT_ROUNDOFF * (32.0 + 4.0 * square) * (2.0 + square) * density(x)
