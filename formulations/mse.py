"""Mean squared error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import Precision
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.loss import LossFunction, LossPlanes, convex_planes, register_loss


@register_loss
class MeanSquaredError(LossFunction):
    """``loss_i = mean_j (f_ij - y_ij)^2`` over the outputs j, gradient ``2 (f - y) / outputs``."""

    key = "mse"
    rounds_in_run = True
    is_classification = False
    formula = "mean over outputs of (f - y)^2"

    def classes(self, outputs: int) -> int:
        return 0

    def encode(self, labels: Tensor, outputs: int) -> Tensor:
        return labels.to(torch.float64).reshape(len(labels), -1)

    def gradient(self, graph: Graph, prediction: Node, labels: Node) -> Node:
        scale = 2.0 / prediction.shape[0]
        return Combine.build(graph, [(scale, prediction), (-scale, labels)], name="loss_gradient")

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """A difference, doubled and divided by the outputs and the samples."""
        prediction, labels = (box.magnitude for box in inputs)
        size = (prediction + labels) * (2.0 / prediction.shape[-1])
        return size * precision.gamma(6) + precision.tiny

    def curvature(self, gradient: Tensor, labels: Tensor, off: Tensor) -> Tensor:
        """``2 / outputs`` everywhere."""
        return torch.full_like(gradient[..., 0], 2.0 / gradient.shape[-1])

    def value(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return ((prediction - labels) ** 2).mean(-1)

    def plain(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return functional.mse_loss(prediction, labels)

    def forms(self, labels: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
        eye = torch.eye(outputs, dtype=torch.float64)
        return eye.expand(len(labels), outputs, outputs), -labels

    def of_forms(self, forms: Interval) -> Interval:
        largest = forms.magnitude
        straddles = (forms.lower <= 0) & (forms.upper >= 0)
        nearest = torch.minimum(forms.lower.abs(), forms.upper.abs())
        smallest = torch.where(straddles, 0.0, nearest)
        return Interval((smallest**2).mean(-1), (largest**2).mean(-1))

    def planes(self, forms: Interval) -> LossPlanes:
        share = 1.0 / forms.lower.shape[-1]
        return convex_planes(forms, lambda m: share * m**2, lambda m: 2.0 * share * m)
