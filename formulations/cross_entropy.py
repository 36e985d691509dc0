"""Cross entropy on logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import Precision
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.bce import softplus
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.linear import Affine, Combine
from milp_agt.formulations.loss import (
    LossFunction,
    LossPlanes,
    convex_planes,
    log_sum_exp_planes,
    margin_forms,
    register_loss,
)
from milp_agt.formulations.reciprocal import Reciprocal
from milp_agt.formulations.sigmoid import Sigmoid


@register_loss
@dataclass(frozen=True)
class CrossEntropy(LossFunction):
    """``loss = log sum_k exp(f_k) - f_y``, gradient ``softmax(f) - onehot(y)``.

    With ``label_smoothing`` s and ``class_weights`` w of C classes, as torch has them, the loss of a sample
    is ``- sum_k q_k log p_k`` with ``q = (1 - s) w_y onehot(y) + s w / C``, its gradient
    ``(sum_k q_k) p - q``; a mean over a batch is the sum divided by the sum of all ``w_y``.

    Two classes: the sigmoid of the difference of the logits, one node for both outputs. More:
    ``p_j = 1 / (1 + sum_{k != j} exp(f_k - f_j))``, so that softmax needs no rule of its own; its
    box is exact, because p_j increases in f_j and decreases in the other logits.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    key = "cross_entropy"
    rounds_in_run = True
    is_classification = True
    formula = "log sum_k exp(f_k) - f_y"

    def classes(self, outputs: int) -> int:
        if outputs < 2:
            raise InvalidInputError(
                "Loss 'cross_entropy' needs a model with one output for each class",
                f"{outputs} output",
                "use loss 'bce' for one logit",
            )
        if self.class_weights is not None and len(self.class_weights) != outputs:
            raise InvalidInputError(
                "Each class has a weight (class_weights)",
                f"{len(self.class_weights)} weights, {outputs} outputs of the model",
                "give as many weights as there are classes",
            )
        return outputs

    def divisor(self, labels: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        return (labels @ labels.new_tensor(self.class_weights)).sum(-1)

    def encode(self, labels: Tensor, outputs: int) -> Tensor:
        return torch.eye(outputs, dtype=torch.float64)[labels.long()]

    def gradient(self, graph: Graph, prediction: Node, labels: Node) -> Node:
        classes = prediction.shape[0]
        if classes == 2:
            difference = Affine(torch.tensor([[-1.0, 1.0]], dtype=torch.float64))
            second = graph.add(Sigmoid(), graph.add(difference, prediction), name="probability")
            spread = Affine(
                torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
                torch.tensor([1.0, 0.0], dtype=torch.float64),
            )
            probability = graph.add(spread, second)
        else:
            eye = torch.eye(classes, dtype=torch.float64)
            pairs = [(j, k) for j in range(classes) for k in range(classes) if k != j]
            differences = torch.stack([eye[k] - eye[j] for j, k in pairs])
            exponentials = graph.add(Exponential(), graph.add(Affine(differences), prediction))
            total = Affine(
                eye.repeat_interleave(classes - 1, dim=1), torch.ones(classes, dtype=torch.float64)
            )
            probability = graph.add(
                Reciprocal(), graph.add(total, exponentials), name="probability"
            )
        return self._against(graph, probability, labels)

    def _against(self, graph: Graph, probability: Node, labels: Node) -> Node:
        """``(sum_k q_k) p - q``; q is affine in the label."""
        kept, share = 1.0 - self.label_smoothing, self.label_smoothing / probability.shape[0]
        constant = None
        scale: float | Tensor = -kept
        if self.class_weights is not None:
            weights = torch.tensor(self.class_weights, dtype=torch.float64)
            total = kept * weights + share * weights.sum()
            factor = graph.add(Affine(total.expand(len(weights), -1).clone()), labels)
            probability = graph.add(Einsum("na,na->na"), factor, probability)
            scale = -kept * weights
        if share:
            constant = torch.full((probability.shape[0],), -share, dtype=torch.float64)
            constant = constant if self.class_weights is None else constant * weights
        terms = [(1.0, probability), (scale, labels)]
        return Combine.build(graph, terms, constant, name="loss_gradient")

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """Of ``exp(d_j - log S) - y_j`` with ``d_j = f_j - max f``, ``S = sum_k exp(d_k)``, and the division.

        With u the unit roundoff and the grant ``u (16 + 4 |x|)`` for an elementary function at x, in units
        of u, for C classes: ``d_k`` is off by ``|d_k|``, so that a term of S is off by the share
        ``16 + 5 |d_k|`` of it. Since ``S >= 1`` and ``|d| exp(d) <= 0.37``, S is off by a share of
        ``16 + 1.9 (C - 1)``, and ``C - 1`` more for its sum; log S by that and ``16 log C``. The exponent
        ``d_j - log S`` then is off by ``16 + 2.9 (C - 1) + 17 log C + 2 |d_j|``, and p_j by that share and
        ``16 + 4 |d_j| + 4 log C`` of its own exp. A tenth covers second order (beyond it, p_j is 0 to all
        digits). Where ``max f + log S`` is added up first, another ``2 max|f|`` enters the exponent.
        """
        prediction, labels = inputs
        classes = prediction.lower.shape[-1]
        top, least = prediction.upper.amax(-1, keepdim=True), prediction.lower
        spread = (top - least).clamp(min=0.0)
        # p_j <= 1 / (1 + exp(f_k - f_j)) for the largest of the others; 1 is always right.
        highest = prediction.lower.amax(-1, keepdim=True)
        probability = torch.exp((prediction.upper - highest).clamp(max=0.0))
        terms = 32.0 + 2.9 * (classes - 1) + 21.0 * math.log(classes)
        largest = prediction.magnitude.amax(-1, keepdim=True)
        share = 1.1 * precision.unit * (terms + 6.0 * spread + 2.0 * largest)
        own = probability * share
        size = probability + labels.magnitude
        if self.options:
            # Terms of one sign are summed over the classes, with their weights and shares.
            most = max(self.class_weights or (1.0,))
            own, size = own * (1.1 * most), most * (size + 1.0)
            return own + size * precision.gamma(16 + 2 * classes) + precision.tiny
        return own + size * precision.gamma(6) + precision.tiny

    def curvature(self, gradient: Tensor, labels: Tensor, off: Tensor) -> Tensor:
        """``diag(p) - p p'``: by its rows at most ``2 max_k p_k (1 - p_k)``, which is at most 1/2."""
        probability = gradient + labels
        each = (probability * (1.0 - probability)).amax(-1)
        return (2.0 * (each + off)).clamp(max=0.5)

    def value(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return -(labels * torch.log_softmax(prediction, -1)).sum(-1)

    def plain(self, prediction: Tensor, labels: Tensor) -> Tensor:
        weights = None if self.class_weights is None else prediction.new_tensor(self.class_weights)
        classes, smoothing = labels.argmax(-1), self.label_smoothing
        return functional.cross_entropy(prediction, classes, weights, label_smoothing=smoothing)

    def forms(self, labels: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
        coefficients = margin_forms(labels.argmax(-1), outputs)
        return coefficients, torch.zeros(coefficients.shape[:2], dtype=torch.float64)

    def of_forms(self, forms: Interval) -> Interval:
        """``log(1 + sum_k exp(-margin_k))``, decreasing in every margin."""

        def loss(margins: Tensor) -> Tensor:
            zero = torch.zeros_like(margins[..., :1])
            return torch.logsumexp(torch.cat([zero, -margins], -1), -1)

        return Interval(loss(forms.upper), loss(forms.lower))

    def planes(self, forms: Interval) -> LossPlanes:
        if forms.lower.shape[-1] == 1:
            return convex_planes(forms, lambda m: softplus(-m), lambda m: -torch.sigmoid(-m))
        return log_sum_exp_planes(forms)
