"""A property: the share of test points that are right by a lead of at least so much."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from milp_agt.core.option_table import KIND, NonNegative
from milp_agt.properties.accuracy import AccuracyQuestion
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import PROPERTIES, TableOfPoints
from milp_agt.properties.question import Question


@PROPERTIES.register
class ConfidentTable(TableOfPoints):
    """Share of points whose label leads every other class by `lead`."""

    what = "share of test points that are right by some lead"
    needs_classes = True
    is_share = True
    high_is_good = True
    kind: Literal["confident"] = Field(description=KIND)
    lead: NonNegative = Field(description="The lead that counts.")

    @property
    def detail(self) -> str:
        return f"lead {self.lead:g}"

    def question(self, models: ReachableModels, features: Tensor, labels: Tensor) -> Question:
        plain = AccuracyQuestion.of(models, features, labels)
        forms = plain.decision.forms
        led = replace(forms, constant=forms.constant - self.lead)
        return replace(plain, decision=replace(plain.decision, forms=led))
