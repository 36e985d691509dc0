"""How many test points can be wrong at the same time, under one and the same poisoning?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.program.counts import most_by_selection
from milp_agt.core.interval import Interval
from milp_agt.core.option_table import KIND
from milp_agt.core.reachable import Bounds
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.properties.accuracy import AccuracyQuestion
from milp_agt.properties.answer import Answer, GroupName, summarise
from milp_agt.properties.influences import sample_influences
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import PROPERTIES, TableOfPoints
from milp_agt.properties.question import Question, bounds_of


def collective(
    models: ReachableModels, question: AccuracyQuestion, groups: npt.NDArray[Any] | None = None
) -> Answer:
    """The accuracy, with the points bounded together: at least as tight as point by point.

    Of the points that are not right for certain, the largest number that one poisoning can get wrong
    is bounded by

    - the worst case, where selections are enumerated (each case is one selection);
    - a program over the samples: which of them must be poisoned for a point to be wrong follows from
      the forms through the window (:func:`most_by_selection`);
    - the programs of the last window, where the run was bounded by programs, with a binary for each way
      to get a point wrong: poison, phases and parameters are those of one run. By single choices of
      the adversary, where these are enumerated: the worst of them counts.

    Each is a dual bound, and the best counts. The table of the points is that of the accuracy.
    """
    (bounds,) = bounds_of(models, question)
    scores = question.evaluate([bounds])
    nominal = question.nominal([models.at_nominal(question.decision.forms)])
    answer = summarise(scores, nominal, question.index, groups)
    open_ = scores.value.lower.amin(0) == 0

    def better(alone: Bounds, part: Tensor) -> float:
        """The lower end for some of the points."""
        some = (open_ & part).nonzero()[:, 0]
        count = int(part.sum())
        if not len(some) or alone.lower == alone.nominal:
            return alone.lower
        return max(alone.lower, (count - _most(models, question, bounds, some)) / count)

    everything = torch.ones_like(open_)
    parts: Mapping[GroupName, Bounds] = {
        name: replace(
            own, lower=better(own, torch.from_numpy(np.asarray(groups == name)).to(open_.device))
        )
        for name, own in answer.groups.items()
    }
    return replace(answer, lower=better(answer, everything), groups=parts)


def _most(
    models: ReachableModels, question: AccuracyQuestion, known: Interval, points: Tensor
) -> int:
    """How many of some points can be wrong at once."""
    decision = question.decision
    forms, groups = decision.forms.part(points), decision.unsafe_of[points]
    most = len(points)
    found, adversary = sample_influences(models, forms), models.reached[0].adversary
    if found is not None:
        # What is proved of a form alone holds as well.
        lower = known.lower.amin(0)[points]
        base = torch.where(lower > 0, torch.inf, found[0])
        restriction = adversary.restriction if isinstance(adversary, Joint) else UNRESTRICTED
        most = most_by_selection(
            base, found[1], groups, models.poison, restriction.inside, restriction.outside
        )
    if models.program is not None:
        box = Interval(known.lower[:, points], known.upper[:, points])
        most = min(most, models.program.most_at_once(models.asked(forms), groups, box))
    return most


@dataclass(frozen=True)
class CollectiveQuestion(AccuracyQuestion):
    """The accuracy, bounded for all points together."""

    def answer(self, models: ReachableModels, groups: npt.NDArray[Any] | None) -> Answer:
        """See :func:`collective`."""
        return collective(models, self, groups)


@PROPERTIES.register
class CollectiveTable(TableOfPoints):
    """Share of points with the right class, where all points face the same poisoning."""

    what = "untargeted: share that is right when all points face one poisoning"
    needs_classes = True
    is_share = True
    high_is_good = True
    in_short = "the model is right for at least {low} of the {part} points"
    in_words = (
        "No single admissible data set leaves the model right for fewer than {low} of the {part} "
        "points; trained on the data as given it is {given}."
    )
    kind: Literal["collective"] = Field(description=KIND)

    def question(self, models: ReachableModels, features: Tensor, labels: Tensor) -> Question:
        return CollectiveQuestion.of(models, features, labels)
