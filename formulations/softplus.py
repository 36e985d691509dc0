"""Softplus, ``log(1 + exp(b x)) / b``, and its derivative."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import ELEMENTARY, TINY, UNIT_ROUNDOFF
from milp_agt.errors import EncodingError
from milp_agt.formulations.curved import Curved
from milp_agt.formulations.registry import register


@dataclass(frozen=True)
class _Softened(Curved):
    beta: float = 1.0
    threshold: float = 20.0

    def __post_init__(self) -> None:
        if not self.beta > 0 or not self.threshold >= 1:
            raise EncodingError(
                "Softplus needs beta > 0 and threshold >= 1", f"{self.beta}, {self.threshold}"
            )

    @property
    @abstractmethod
    def jump(self) -> float:
        """Bound on the distance of torch's values from the smooth function beyond the threshold."""

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        """With that of ``b x`` in front of exp."""
        size = self.beta * argument
        return value * UNIT_ROUNDOFF * (2.0 * ELEMENTARY + 8.0 * size) + TINY

    def _beyond(self, upper: Tensor) -> Tensor:
        """What ranges that reach the threshold are widened by."""
        return torch.where(self.beta * upper > 0.999 * self.threshold, self.jump, 0.0)

    def residual(self, slope: Tensor | float, box: Interval) -> Interval:
        return super().residual(slope, box).widen(self._beyond(box.upper))

    def interval(self, *inputs: Interval) -> Interval:
        (box,) = inputs
        found = self.monotone(box.lower, box.upper).widen(self._beyond(box.upper))
        return Interval(found.lower.clamp(min=0.0), found.upper)


@register
@dataclass(frozen=True)
class Softplus(_Softened):
    """``f(z) = log(1 + exp(b z)) / b``, increasing and convex; ``f' = s(b z)``.

    Torch returns z itself where ``b z`` exceeds a threshold (20): a jump of ``exp(-20) / b``, which
    ranges that reach so far are widened by.
    """

    key = "softplus"
    turns = ()
    image = (0.0, math.inf)

    def value(self, *inputs: Tensor) -> Tensor:
        return functional.softplus(inputs[0], self.beta, self.threshold)

    @property
    def jump(self) -> float:
        return 1.01 * math.exp(-self.threshold) / self.beta

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.beta * x)

    def derivative_error(self, x: Tensor) -> Tensor:
        y = self.beta * x
        share = torch.sigmoid(y)
        return UNIT_ROUNDOFF * share * (32.0 + 4.0 * y.abs() * torch.sigmoid(-y))

    def slope_node(self, graph: Graph, node: Node) -> Node:
        (argument,) = graph.inputs(node)
        return graph.add(SoftplusSlope(self.beta, self.threshold), argument)


@register
@dataclass(frozen=True)
class SoftplusSlope(_Softened):
    """``f(z) = s(b z)``, and 1 beyond torch's threshold; ``f' = b s(b z) s(-b z)``, largest at 0."""

    key = "softplus_slope"
    turns = (0.0,)
    image = (0.0, 1.0)

    def value(self, *inputs: Tensor) -> Tensor:
        y = self.beta * inputs[0]
        return torch.where(y > self.threshold, 1.0, torch.sigmoid(y))

    @property
    def jump(self) -> float:
        return 1.01 * math.exp(-self.threshold)

    def derivative(self, x: Tensor) -> Tensor:
        y = self.beta * x
        return self.beta * torch.sigmoid(y) * torch.sigmoid(-y)

    def derivative_error(self, x: Tensor) -> Tensor:
        y = self.beta * x
        return UNIT_ROUNDOFF * self.derivative(x) * (64.0 + 8.0 * y.abs())
