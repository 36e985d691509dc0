"""Hardtanh and ReLU6: clipping as an activation, with its derivative."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from milp_agt.core.graph import Graph, Node
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.heaviside import Heaviside
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.registry import register


@register
@dataclass(frozen=True)
class Hardtanh(Clip):
    """``f(z) = min(max(z, low), high)``: ``Hardtanh(0, 6)`` is ReLU6.

    The rules are those of :class:`Clip`. Its derivative is 1 inside and 0 outside; at the kinks torch takes
    0 for hardtanh and relu6, and 1 for clamp (``edges``).
    """

    edges_count: bool = False
    key = "hardtanh"

    def slope_node(self, graph: Graph, node: Node) -> Node:
        """``step(z - low) + step(high - z) - 1``; with edges, ``1 - step(low - z) - step(z - high)``."""
        (argument,) = graph.inputs(node)
        sign = -1.0 if self.edges_count else 1.0
        steps = []
        for toward, kink in ((sign, -sign * self.low), (-sign, sign * self.high)):
            constant = torch.tensor(kink, dtype=torch.float64)
            shifted = Combine.build(graph, [(toward, argument)], constant)
            steps.append(graph.add(Heaviside(), shifted))
        constant = torch.tensor(-sign, dtype=torch.float64)
        return Combine.build(graph, [(sign, step) for step in steps], constant)
