"""A loss of regression: log cosh of the residuals."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.loss import LossFunction, LossPlanes, convex_planes, register_loss
from milp_agt.formulations.tanh import Tanh


def log_cosh(x: Tensor) -> Tensor:
    return x.abs() + torch.log1p(torch.exp(-2.0 * x.abs())) - math.log(2.0)


@register_loss
class LogCoshLoss(LossFunction):
    """``sum_j log cosh(f_j - y_j)``, gradient ``tanh(f - y)``."""

    key = "log_cosh_loss"
    is_classification = False
    formula = "sum over outputs of log cosh(f - y)"

    def classes(self, outputs: int) -> int:
        return 0

    def encode(self, labels: Tensor, outputs: int) -> Tensor:
        return labels.to(torch.float64).reshape(len(labels), -1)

    def gradient(self, graph: Graph, prediction: Node, labels: Node) -> Node:
        residual = Combine.build(graph, [(1.0, prediction), (-1.0, labels)])
        return graph.add(Tanh(), residual, name="loss_gradient")

    def value(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return log_cosh(prediction - labels).sum(-1)

    def forms(self, labels: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
        eye = torch.eye(outputs, dtype=torch.float64)
        return eye.expand(len(labels), outputs, outputs), -labels

    def of_forms(self, forms: Interval) -> Interval:
        straddles = (forms.lower <= 0) & (forms.upper >= 0)
        nearest = torch.minimum(forms.lower.abs(), forms.upper.abs())
        lower = log_cosh(torch.where(straddles, 0.0, nearest)).sum(-1)
        return Interval(lower, log_cosh(forms.magnitude).sum(-1))

    def planes(self, forms: Interval) -> LossPlanes:
        return convex_planes(forms, log_cosh, torch.tanh)
