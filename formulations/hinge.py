"""Hinge loss for two classes."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import Precision
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.heaviside import Heaviside
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.loss import BinaryLoss, register_loss


@register_loss
class Hinge(BinaryLoss):
    """``loss = max(0, 1 - y f)`` with labels 0/1 mapped to y in {-1, 1}.

    The gradient is ``-y step(1 - y f)``, zero at the kink as that of ``torch.relu(1 - y f)``
    (``clamp(min=0)`` has slope 1 there: a run on it leaves the claim at exact ties). It is built from
    ``y = 2 q - 1`` with the label weight q in {0, 1} as
    ``-q step(1 - f) + (1 - q) step(1 + f)``, which is exact at both labels and keeps the label out of
    the argument of the step.
    """

    key = "hinge"
    formula = "max(0, 1 - y f), labels 0/1 mapped to y in {-1, 1}"

    def gradient(self, graph: Graph, prediction: Node, labels: Node) -> Node:
        one = torch.ones(1, dtype=torch.float64)
        below = graph.add(Heaviside(), Combine.build(graph, [(-1.0, prediction)], one))
        above = graph.add(Heaviside(), Combine.build(graph, [(1.0, prediction)], one))
        other = Combine.build(graph, [(-1.0, labels)], one)
        positive = graph.add(Einsum("na,na->na"), labels, below)
        negative = graph.add(Einsum("na,na->na"), other, above)
        return Combine.build(graph, [(1.0, negative), (-1.0, positive)], name="loss_gradient")

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """``1 - y f`` has the sign of the exact difference, so that only the division by the size of the
        batch is rounded: of -1, 0 and 1."""
        return torch.full_like(inputs[0].lower, precision.gamma(6) + precision.tiny)

    def value(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return self.of_margin((2.0 * labels - 1.0) * prediction).squeeze(-1)

    def plain(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """With relu: torch's clamp has slope 1 at the kink, the library's hinge has slope 0."""
        return torch.relu(1.0 - (2.0 * labels - 1.0) * prediction).mean()

    def of_margin(self, margin: Tensor) -> Tensor:
        return (1.0 - margin).clamp(min=0.0)

    def slope_of_margin(self, margin: Tensor) -> Tensor:
        return -(margin < 1.0).to(margin.dtype)
