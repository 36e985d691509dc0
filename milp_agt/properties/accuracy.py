"""How many test points does every reachable model get right?"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field
from torch import Tensor

from milp_agt.core.option_table import KIND
from milp_agt.properties.decision import DecisionQuestion, classes_of, only
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import PROPERTIES, TableOfShares
from milp_agt.properties.question import Question


class AccuracyQuestion(DecisionQuestion):
    """Share of points whose prediction is the label: every other class is unsafe."""

    @classmethod
    def of(cls, models: ReachableModels, features: Tensor, labels: Tensor) -> Self:
        """For features (n, *shape) and encoded labels (n, width)."""
        classes = models.step_graph.loss.classes(models.step_graph.outputs)
        wrong = ~only(classes_of(models, labels), classes)
        return cls.at(models, features, wrong)


@PROPERTIES.register
class AccuracyTable(TableOfShares):
    """Share of points with the right class."""

    what = "untargeted: share of test points that are right"
    high_is_good = True
    in_short = "the model is right for at least {low} of the {part} points"
    in_words = (
        "On the {part} data the model is right for at least {low} and at most {high} of the "
        "points, whichever admissible data it was trained on; trained on the data as given it is "
        "{given}."
    )
    where_exact = (
        "On the {part} data the model is right for {given} of the points, whichever admissible "
        "data it was trained on: no poisoning within the limits can change that share."
    )
    kind: Literal["accuracy"] = Field(description=KIND)

    def question(self, models: ReachableModels, features: Tensor, labels: Tensor) -> Question:
        return AccuracyQuestion.of(models, features, labels)
