"""Binary cross entropy on the logit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import ELEMENTARY, Precision
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.loss import BinaryLoss, register_loss
from milp_agt.formulations.sigmoid import Sigmoid


@register_loss
@dataclass(frozen=True)
class BinaryCrossEntropy(BinaryLoss):
    """``loss = log(1 + exp(f)) - y f`` with y in {0, 1}, gradient ``p - y`` with ``p = sigmoid(f)``.

    With ``positive_weight`` w (pos_weight of torch) the loss of samples with y = 1 counts w times:
    gradient ``(1 + (w - 1) y) p - w y``.
    """

    positive_weight: float | None = None
    key = "bce"
    formula = "log(1 + exp(f)) - y f, y in {0, 1}, on the logit"

    def gradient(self, graph: Graph, prediction: Node, labels: Node) -> Node:
        probability = graph.add(Sigmoid(), prediction, name="probability")
        weight = 1.0
        if self.positive_weight is not None:
            weight = self.positive_weight
            one = torch.ones(1, dtype=torch.float64)
            factor = Combine.build(graph, [(weight - 1.0, labels)], one)
            probability = graph.add(Einsum("na,na->na"), factor, probability)
        return Combine.build(graph, [(1.0, probability), (-weight, labels)], name="loss_gradient")

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """``p = sigmoid(f)`` as any elementary function, a difference, and the division by the batch.

        Where the gradient is put together from that of ``log sigmoid`` instead, it has terms of the size
        of 1 that cancel.
        """
        prediction, labels = inputs
        probability = torch.sigmoid(prediction.upper).clamp(min=precision.unit)
        own = probability * (precision.unit * (2.0 * ELEMENTARY + 4.0 * prediction.magnitude))
        size = 1.0 + labels.magnitude
        if self.positive_weight is not None:
            # w + 1 - 1 is computed as it stands.
            own, size = own * (1.0 + self.positive_weight), size * (2.0 + self.positive_weight)
        return own + size * precision.gamma(6) + precision.tiny

    def curvature(self, gradient: Tensor, labels: Tensor, off: Tensor) -> Tensor:
        """``p (1 - p)``, at most 1/4."""
        probability = gradient + labels
        return ((probability * (1.0 - probability)).squeeze(-1) + off).clamp(max=0.25)

    def value(self, prediction: Tensor, labels: Tensor) -> Tensor:
        # As softplus of the negative margin: nothing cancels for large logits.
        return softplus((1.0 - 2.0 * labels) * prediction).squeeze(-1)

    def plain(self, prediction: Tensor, labels: Tensor) -> Tensor:
        own = self.positive_weight
        weight = None if own is None else prediction.new_tensor(own)
        return functional.binary_cross_entropy_with_logits(prediction, labels, pos_weight=weight)

    def of_margin(self, margin: Tensor) -> Tensor:
        return softplus(-margin)

    def slope_of_margin(self, margin: Tensor) -> Tensor:
        return -torch.sigmoid(-margin)


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` to the last digits; torch leaves out ``exp(-x)`` from x = 20 on by default."""
    return functional.softplus(x, threshold=50.0)
