"""How often does a trigger in the test input succeed, after the training data were poisoned?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from milp_agt.bounds.program import OutputForms
from milp_agt.core.arguments import is_at_least
from milp_agt.core.graph import evaluate
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.option_table import KIND, Index, NonNegative
from milp_agt.errors import InvalidInputError, Problem
from milp_agt.properties.answer import Scores
from milp_agt.properties.decision import Decision, classes_of, only, reached
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import PROPERTIES, TableOfShares
from milp_agt.properties.question import Question, index_of
from milp_agt.properties.triggers import (
    BallTrigger,
    FreeTrigger,
    PatchTrigger,
    Trigger,
    descended,
    in_words,
)
from milp_agt.training.precision import rounded_to
from milp_agt.training.tracing import FEATURES

Numbers = float | list[float]
# Signed gradient steps of the trigger that is tried on the nominal model.
TRIGGER_STEPS = 8


@dataclass(frozen=True)
class BackdoorQuestion(Question):
    """Share of points for which some input of the trigger's set is misclassified (or hits a target).

    The trigger is chosen anew for each point and each model, at the time of prediction, and is no part of the
    budget. So the upper bound ranges over all models and all triggered inputs. The lower bound and
    the nominal value are what one trigger, found on the nominal model, achieves: the true nominal
    rate may lie above ``nominal``, but not above ``upper``.

    Attributes:
        index: the counted points: all, or those of other classes than the target.
        over_box: the decision over all triggered inputs.
        tried: the decision at the trigger that was found.
    """

    counts_harm = True

    index: Tensor
    over_box: Decision
    tried: Decision

    @staticmethod
    def of(
        models: ReachableModels,
        features: Tensor,
        labels: Tensor,
        trigger: Trigger,
        target: int | None,
    ) -> BackdoorQuestion:
        """For features (n, *shape), encoded labels (n, width) and a target class or None. Raises
        InvalidInputError: a trigger of the wrong shape, a target that does not exist, no test point of
        another class."""
        classes = models.step_graph.loss.classes(models.step_graph.outputs)
        true = classes_of(models, labels)
        if target is None:
            index = index_of(features)
            unsafe = ~only(true, classes)
        else:
            _check_target(target, classes)
            index = (true != target).nonzero()[:, 0]
            unsafe = only(torch.full_like(index, target), classes)
            if len(index) == 0:
                raise InvalidInputError(
                    f"A backdoor to class {target} is counted over test points of other classes",
                    f"{len(features)} points, all of class {target}",
                    "add points of other classes, or choose another target",
                )
        precision = models.step_graph.precision
        box = trigger.inputs(features[index])
        # A triggered input is rounded to the precision of the model, which keeps the order of numbers.
        inputs = Interval(rounded_to(box.lower, precision), rounded_to(box.upper, precision))
        over_box = Decision.of(models, inputs, unsafe)
        found = rounded_to(_search(models, over_box), precision)
        return BackdoorQuestion(
            index, over_box, Decision.of(models, Interval.point(found.unsqueeze(0)), unsafe)
        )

    @property
    def forms(self) -> tuple[OutputForms, ...]:
        return (self.over_box.forms, self.tried.forms)

    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        worst = self.over_box.margin(bounds[0]).lower
        tried = self.tried.margin(bounds[1])
        margin = Interval(torch.minimum(worst, tried.lower), tried.upper)
        return Scores(reached(margin), margin)

    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        margin = self.tried.margin(Interval.point(values[1]))
        return reached(margin).upper, margin.lower


def _check_target(target: Any, classes: int) -> None:
    if not is_at_least(target, 0, whole=True) or target >= classes:
        raise InvalidInputError(
            "The target of a backdoor is a class of the model",
            f"target {target!r} beside classes 0..{classes - 1}",
            f"use a whole number from 0 to {classes - 1}, or None for any wrong class",
        )


def _search(models: ReachableModels, decision: Decision) -> Tensor:
    """Inputs in the boxes with small nominal margins, (n, *shape)."""
    forms = decision.forms

    def margin(inputs: Tensor) -> Tensor:
        outputs = evaluate(models.forward, {**models.nominal, FEATURES: inputs})
        found = outputs[models.step_graph.output]
        values = torch.einsum("nfo,no->nf", forms.coefficients, found)
        return decision.margin(Interval.point(values)).lower

    parts = range(1, TRIGGER_STEPS + 1)
    return descended(margin, forms.inputs.centre[CLEAN], forms.inputs, parts)


@PROPERTIES.register
class BackdoorTable(TableOfShares):
    """Success rate of a trigger in the test inputs: a ball (`radius`), free `coordinates` from `low` to
    `high`, or a patch (`coordinates` with `values`)."""

    what = "success rate of a trigger: ball, free coordinates or patch"
    searches_inputs = True
    in_short = "a trigger{detail} succeeds on at most {high} of the {part} points"
    in_words = (
        "A trigger in the input, on top of any admissible poisoning, succeeds on at most {high} "
        "of the {part} points; with the model trained on the data as given, one trigger that was "
        "found succeeds on {given}."
    )
    kind: Literal["backdoor"] = Field(description=KIND)
    radius: NonNegative | list[NonNegative] | None = Field(
        default=None,
        description="Largest move of each feature of a test input, one number or one for each.",
    )
    coordinates: Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None, description="Features that the trigger sets, by position."
    )
    low: Numbers | None = Field(
        default=None,
        description="Low end of the free `coordinates`, or of the input domain beside a `radius`: one "
        "number, or one for each feature.",
    )
    high: Numbers | None = Field(
        default=None,
        description="High end of the free `coordinates`, or of the input domain beside a `radius`: one "
        "number, or one for each feature.",
    )
    values: Numbers | None = Field(
        default=None,
        description="What the patch writes into its `coordinates`: one number, or one for each feature "
        "of the input.",
    )
    target: Index | None = Field(
        default=None, description="The class that the trigger is after; any wrong one unless given."
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        keys = ("radius", "coordinates", "low", "high", "values")
        told = {key for key in keys if key in given}
        kinds = ({"coordinates", "low", "high"}, {"coordinates", "values"})
        if told not in kinds and not (told <= {"radius", "low", "high"} and "radius" in told):
            named = [f"'{key}'" for key in keys if key in told]
            yield (
                f"a trigger of {' and '.join(named)}" if named else "no trigger",
                "give radius; or coordinates with low and high; or coordinates with values",
            )

    @property
    def detail(self) -> str:
        wanted = "" if self.target is None else f", to class {self.target}"
        if self.radius is not None:
            return f"radius {in_words(self.radius)}{wanted}"
        assert self.coordinates is not None
        where = (
            "1 coordinate" if len(self.coordinates) == 1 else f"{len(self.coordinates)} coordinates"
        )
        return f"{where} {'patched' if self.values is not None else 'free'}{wanted}"

    @property
    def trigger(self) -> Trigger:
        """The trigger as an object."""
        if self.radius is not None:
            return BallTrigger(self.radius, self.low, self.high)
        assert self.coordinates is not None
        if self.values is not None:
            return PatchTrigger(self.coordinates, self.values)
        assert self.low is not None
        assert self.high is not None
        return FreeTrigger(self.coordinates, self.low, self.high)

    def question(self, models: ReachableModels, features: Tensor, labels: Tensor) -> Question:
        return BackdoorQuestion.of(models, features, labels, self.trigger, self.target)
