"""Which predictions are the same for every reachable model as in the nominal run?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.core.option_table import KIND
from milp_agt.properties.answer import Scores
from milp_agt.properties.decision import DecisionQuestion, class_scores, only
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import PROPERTIES, TableOfShares
from milp_agt.properties.question import Question


class StableQuestion(DecisionQuestion):
    """Share of points that a model classifies as the nominal model does; no labels are needed.

    The nominal run is one of the reachable models, so that nominal and upper value are one.
    """

    @staticmethod
    def of(models: ReachableModels, features: Tensor) -> StableQuestion:
        """For features (n, *shape)."""
        scores = models.outputs(features) @ class_scores(models).to(features).T
        changed = ~only(scores.argmax(-1), scores.shape[-1])
        return StableQuestion.at(models, features, changed)

    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        found = super().evaluate(bounds)
        sure = found.value.lower
        return Scores(Interval(sure, torch.ones_like(sure)), found.score)

    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        _, margin = super().nominal(values)
        return torch.ones_like(margin), margin


@PROPERTIES.register
class StableTable(TableOfShares):
    """Share of points with the class that the run on the data as given predicts."""

    what = "share of predictions that are those of the nominal run"
    high_is_good = True
    in_short = "the predictions of at least {low} of the {part} points cannot be changed"
    in_words = (
        "For at least {low} of the {part} points no admissible poisoning changes the prediction; "
        "for the others nothing is proved."
    )
    where_exact = "No admissible poisoning changes the prediction at any of the {part} points."
    kind: Literal["stable"] = Field(description=KIND)

    def question(self, models: ReachableModels, features: Tensor, labels: Tensor) -> Question:
        return StableQuestion.of(models, features)
