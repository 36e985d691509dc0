"""Properties of all reachable models: accuracy, loss and stability on test points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.evaluate import evaluate
from milp_agt.core.graph import Node
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.engines.linear import bound_forms, forms_of_outputs
from milp_agt.engines.relaxed import RelaxedStep
from milp_agt.engines.step import Schedule, State
from milp_agt.errors import InvalidInputError
from milp_agt.poison import Poison
from milp_agt.reachable import Bounds
from milp_agt.tracing import FEATURES, StepGraph

# Test points that share one walk through the window.
POINTS_AT_ONCE = 64


@dataclass(frozen=True)
class Models:
    """All that is known of the reachable models: a box, and the steps that led to it.

    ``window`` may be empty (a loaded result): then only the box counts.
    """

    step_graph: StepGraph
    schedule: Schedule
    state: State
    nominal: dict[str, Tensor]
    window: Sequence[RelaxedStep]
    poison: Poison

    @property
    def forward(self) -> tuple[Node, ...]:
        return self.step_graph.graph.needed_for([self.step_graph.output])

    def outputs(self, features: Tensor) -> Tensor:
        """Outputs of the nominal model, (n, outputs)."""
        leaves = {**self.nominal, FEATURES: features}
        return evaluate(self.forward, leaves)[self.step_graph.output]

    def bound(self, features: Tensor, coefficients: Tensor, constant: Tensor) -> Interval:
        """Bounds of forms of the outputs of each test point over all reachable models.

        Args:
            features: (n, *shape).
            coefficients: (n, forms, outputs).
            constant: (n, forms).

        Returns:
            A box of shape (n, forms): the better of intervals on the final box and of linear forms
            walked back from the test point through the window.
        """
        pieces = [
            self._bound_piece(features[part], coefficients[part], constant[part])
            for part in torch.arange(len(features)).split(POINTS_AT_ONCE)
        ]
        return Interval(torch.cat([p.lower for p in pieces]), torch.cat([p.upper for p in pieces]))

    def _bound_piece(self, features: Tensor, coefficients: Tensor, constant: Tensor) -> Interval:
        boxed = self._by_intervals(features, coefficients, constant)
        both = torch.cat([coefficients, -coefficients], 1).transpose(0, 1)
        own = forms_of_outputs(self.step_graph, self.forward, self.state, features, both)
        own.constant = own.constant + torch.cat([constant, -constant], 1).T
        own.magnitude = own.magnitude + torch.cat([constant, constant], 1).T.abs()
        start = own.rows(torch.arange(own.constant.numel(), device=features.device), self.state)
        best = start.concretise(self.state, torch.zeros_like(start.constant))
        if self.window:
            through = bound_forms(self.step_graph, self.schedule, self.window, start, self.poison)
            best = torch.maximum(best, through)
        lower, upper = best.reshape(-1, len(features)).T.chunk(2, 1)
        walked = Interval(lower, -upper)
        return boxed.meet(walked, "a form of the outputs by intervals and by linear forms")

    def _by_intervals(self, features: Tensor, coefficients: Tensor, constant: Tensor) -> Interval:
        boxes = dict(self.state) | {FEATURES: Interval.point(features.unsqueeze(0))}
        for node in self.forward:
            if node.name not in boxes:
                boxes[node.name] = node.op.interval(*(boxes[i] for i in node.inputs))
        output = boxes[self.step_graph.output]
        low, high = output.lower[CLEAN][:, None], output.upper[CLEAN][:, None]
        positive = coefficients.clamp(min=0.0)
        negative = coefficients - positive
        lower = (positive * low + negative * high).sum(-1) + constant
        upper = (positive * high + negative * low).sum(-1) + constant
        size = (coefficients.abs() * torch.maximum(low.abs(), high.abs())).sum(-1) + constant.abs()
        return Interval(lower, upper).widen(size * gamma(4 * coefficients.shape[-1] + 16) + TINY)


def correct_counts(margins: Interval, nominal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each point: surely right, right in the nominal run, possibly right; (n,) bool each.

    A point is surely right only if every margin is above zero, and possibly right unless one is
    below zero: a tie never counts as certified, on either side.
    """
    return (margins.lower > 0).all(-1), nominal, ~(margins.upper < 0).any(-1)


def accuracy(models: Models, features: Tensor, labels: Tensor) -> tuple[Bounds, Interval]:
    """Share of test points that the model gets right, with the margins of each point.

    ``labels`` are encoded. Guarantee: the accuracy of every reachable model lies in the bounds.
    """
    coefficients, constant = models.step_graph.loss.forms(labels.cpu(), models.step_graph.outputs)
    margins = models.bound(features, coefficients.to(features), constant.to(features))
    at_nominal = _forms_at(models.outputs(features), coefficients, constant)
    sure, right, possible = correct_counts(margins, (at_nominal > 0).all(-1))
    count = len(features)
    bounds = Bounds(
        int(sure.sum()) / count, int(right.sum()) / count, int((possible | right).sum()) / count
    )
    return bounds, margins


def loss(models: Models, features: Tensor, labels: Tensor) -> tuple[Bounds, Interval]:
    """Mean loss over the test points, with the bounds of each point.

    The loss is the exact function of the float64 outputs.
    """
    chosen = models.step_graph.loss
    coefficients, constant = chosen.forms(labels.cpu(), models.step_graph.outputs)
    forms = models.bound(features, coefficients.to(features), constant.to(features))
    each = chosen.of_forms(forms)
    each = each.widen(
        gamma(64 + 8 * forms.lower.shape[-1]) * (each.magnitude + forms.magnitude.amax(-1)) + TINY
    )
    # From the same forms as the bounds: log sum exp(f) - f_y would cancel for large logits.
    at_nominal = _forms_at(models.outputs(features), coefficients, constant)
    nominal = float(chosen.of_forms(Interval.point(at_nominal)).lower.mean())
    if not math.isfinite(nominal):
        raise InvalidInputError(
            "The loss of the nominal model must be finite",
            f"{nominal} over {len(features)} test points",
            "the nominal run has diverged: lower the learning rate or scale the data",
        )
    count = len(features)
    slack = gamma(2 * count + 8) * float(each.magnitude.mean())
    bounds = Bounds(
        max(float(each.lower.mean()) - slack, 0.0), nominal, float(each.upper.mean()) + slack
    )
    return bounds, each


def stable(models: Models, features: Tensor) -> tuple[Bounds, Interval]:
    """Share of points whose prediction is the same for every reachable model as in the nominal run."""
    outputs = models.outputs(features)
    chosen = models.step_graph.loss
    predicted = outputs.argmax(-1) if outputs.shape[-1] > 1 else (outputs[:, 0] > 0).to(torch.int64)
    labels = chosen.encode(predicted.cpu(), models.step_graph.outputs)
    coefficients, constant = chosen.forms(labels, models.step_graph.outputs)
    margins = models.bound(features, coefficients.to(features), constant.to(features))
    sure = (margins.lower > 0).all(-1)
    return Bounds(int(sure.sum()) / len(features), 1.0, 1.0), margins


def _forms_at(outputs: Tensor, coefficients: Tensor, constant: Tensor) -> Tensor:
    return torch.einsum("nfo,no->nf", coefficients.to(outputs), outputs) + constant.to(outputs)
