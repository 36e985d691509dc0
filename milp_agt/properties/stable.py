"""Which predictions are the same for every reachable model as in the nominal run?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.properties.answer import Scores
from milp_agt.properties.decision import Decision, class_scores, only, safe
from milp_agt.properties.models import OutputForms, ReachableModels


@dataclass(frozen=True)
class StableQuestion:
    """Share of points that a model classifies as the nominal model does; no labels are needed.

    The nominal run is one of the reachable models, so that nominal and upper value are one.
    """

    counts_harm: ClassVar[bool] = False

    index: Tensor
    decision: Decision

    @staticmethod
    def of(models: ReachableModels, features: Tensor) -> StableQuestion:
        """For features (n, *shape)."""
        scores = models.outputs(features) @ class_scores(models).to(features).T
        changed = ~only(scores.argmax(-1), scores.shape[-1])
        inputs = Interval.point(features.unsqueeze(0))
        index = torch.arange(len(features), device=features.device)
        return StableQuestion(index, Decision.of(models, inputs, changed))

    @property
    def forms(self) -> tuple[OutputForms, ...]:
        return (self.decision.forms,)

    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        margin = self.decision.margin(bounds[0])
        sure = safe(margin).lower
        return Scores(Interval(sure, torch.ones_like(sure)), margin)

    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        margin = self.decision.margin(Interval.point(values[0])).lower
        return torch.ones_like(margin), margin
