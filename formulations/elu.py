"""ELU, ``a (exp(x) - 1)`` below 0 and ``x`` above, and its derivative."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import ELEMENTARY, TINY, UNIT_ROUNDOFF
from milp_agt.errors import EncodingError
from milp_agt.formulations.curved import Curved
from milp_agt.formulations.heaviside import Heaviside
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.registry import register


@register
@dataclass(frozen=True)
class Elu(Curved):
    """``f(z) = z`` for z > 0 and ``a (exp(z) - 1)`` otherwise, a > 0: increasing, exact above 0.

    ``f' = a exp(z)`` and 1, with a kink at 0 unless a = 1. Whether a run forms ``exp(z) - 1`` or
    expm1, the error below 0 is at most ``20 a u``.
    """

    alpha: float = 1.0
    key = "elu"
    rises = 1
    exactness = "exact above 0; chord slope with offsets by bisection; chord and tangent rows"
    turns = (0.0,)

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise EncodingError("ELU needs alpha > 0", f"{self.alpha}")

    @property
    def image(self) -> tuple[float, float]:
        return -self.alpha * (1.0 + 1e-9), math.inf

    def value(self, *inputs: Tensor) -> Tensor:
        return functional.elu(inputs[0], self.alpha)

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        room = UNIT_ROUNDOFF * (2.0 * ELEMENTARY * self.alpha)
        return value * (ELEMENTARY * UNIT_ROUNDOFF) + room + TINY

    def is_linear_on(self, box: Interval) -> Tensor:
        return box.lower > 0

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, self.alpha * torch.exp(x.clamp(max=0.0)))

    def derivative_error(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 0.0, 2.0 * ELEMENTARY * UNIT_ROUNDOFF * self.derivative(x))

    def slope_node(self, graph: Graph, node: Node) -> Node:
        """``f' = a exp(min(z, 0)) + (1 - a) step(z)``; torch takes a at z = 0, and so do we."""
        (argument,) = graph.inputs(node)
        slope = graph.add(EluSlope(), argument)
        if self.alpha != 1.0:
            step = graph.add(Heaviside(), argument)
            slope = Combine.build(graph, [(self.alpha, slope), (1.0 - self.alpha, step)])
        return slope


@register
@dataclass(frozen=True)
class EluSlope(Curved):
    """``f(z) = exp(min(z, 0))``: increasing, level above 0."""

    key = "elu_slope"
    rises, least = 1, 0.0
    exactness = "exact above 0; chord slope with offsets by bisection; chord and tangent rows"
    turns = (0.0,)
    image = (0.0, 1.0)

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.exp(inputs[0].clamp(max=0.0))

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        return torch.full_like(value, 2.0 * ELEMENTARY * UNIT_ROUNDOFF)

    def is_linear_on(self, box: Interval) -> Tensor:
        return box.lower > 0

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 0.0, torch.exp(x.clamp(max=0.0)))

    def derivative_error(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, 0.0, 2.0 * ELEMENTARY * UNIT_ROUNDOFF * self.derivative(x))
