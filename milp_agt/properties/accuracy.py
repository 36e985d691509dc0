"""How many test points does every reachable model get right?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.properties.answer import Scores
from milp_agt.properties.decision import Decision, classes_of, only, safe
from milp_agt.properties.models import OutputForms, ReachableModels


@dataclass(frozen=True)
class AccuracyQuestion:
    """Share of points whose prediction is the label: every other class is unsafe.

    A tie counts as wrong in the lower bound and in the nominal run, and as possibly right.
    """

    counts_harm: ClassVar[bool] = False

    index: Tensor
    decision: Decision

    @staticmethod
    def of(models: ReachableModels, features: Tensor, labels: Tensor) -> AccuracyQuestion:
        """For features (n, *shape) and encoded labels (n, width)."""
        classes = models.step_graph.loss.classes(models.step_graph.outputs)
        wrong = ~only(classes_of(models, labels), classes)
        inputs = Interval.point(features.unsqueeze(0))
        index = torch.arange(len(features), device=features.device)
        return AccuracyQuestion(index, Decision.of(models, inputs, wrong))

    @property
    def forms(self) -> tuple[OutputForms, ...]:
        return (self.decision.forms,)

    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        margin = self.decision.margin(bounds[0])
        return Scores(safe(margin), margin)

    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        margin = self.decision.margin(Interval.point(values[0]))
        return safe(margin).lower, margin.lower
