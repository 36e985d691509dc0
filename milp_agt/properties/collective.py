"""How many test points can be wrong at the same time, under one and the same poisoning?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.adversary.two_budgets import worst_sum
from milp_agt.bounds.linear.window_bounds import bound_by_sample
from milp_agt.bounds.passes import in_passes
from milp_agt.bounds.program.output_objectives import OutputForms, most_by_selection
from milp_agt.core.interval import Interval
from milp_agt.core.option_table import KIND
from milp_agt.core.reachable import Bounds
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.properties.accuracy import AccuracyQuestion
from milp_agt.properties.answer import Answer, GroupName
from milp_agt.properties.last_forms import by_sample_of_forms
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import PROPERTIES, TableOfShares
from milp_agt.properties.question import Question
from milp_agt.properties.reached import Reached


@dataclass(frozen=True)
class CollectiveQuestion(AccuracyQuestion):
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

    def answer(self, models: ReachableModels, groups: npt.NDArray[Any] | None = None) -> Answer:
        bounds, tried = self.searched(models)
        answer = self.summary(models, [bounds], groups)
        open_ = self.evaluate([bounds]).value.lower.amin(0) == 0

        def better(alone: Bounds, part: Tensor) -> float:
            """The lower end for some of the points."""
            some = (open_ & part).nonzero()[:, 0]
            count = int(part.sum())
            if not len(some) or alone.lower == alone.nominal:
                return alone.lower
            return max(alone.lower, (count - _most(models, self, bounds, some)) / count)

        parts: dict[GroupName, Bounds] = {}
        for name, own in answer.groups.items():
            among = torch.from_numpy(np.asarray(groups == name)).to(open_.device)
            parts[name] = replace(own, lower=better(own, among))
        lower = better(answer, torch.ones_like(open_))
        return replace(answer, lower=lower, groups=parts, tried=tried)


def _most(
    models: ReachableModels, question: AccuracyQuestion, known: Interval, points: Tensor
) -> int:
    """How many of some points can be wrong at once."""
    decision = question.decision
    forms, groups = decision.forms.part(points), decision.unsafe_of[points]
    most = len(points)
    if models.is_late():
        return most
    found, adversary = sample_influences(models, forms), models.reached[0].adversary
    if found is not None:
        # What is proved of a form alone holds as well.
        lower = known.lower.amin(0)[points]
        base = torch.where(lower > 0, torch.inf, found[0])
        restriction = adversary.restriction if isinstance(adversary, Joint) else UNRESTRICTED
        most = most_by_selection(
            base,
            found[1],
            groups,
            models.poison,
            restriction.inside,
            restriction.outside,
            models.deadline,
        )
    if models.program is not None:
        box = Interval(known.lower[:, points], known.upper[:, points])
        program = models.program.by(models.deadline)
        most = min(most, program.most_at_once(forms, groups, box))
    return most


def sample_influences(models: ReachableModels, forms: OutputForms) -> tuple[Tensor, Tensor] | None:
    """Lower bounds that know who is poisoned: ``form >= base - sum_{i in S} dev_i`` for every set S
    of samples that the adversary may choose.

    Returns:
        ``base`` (n, forms) and ``dev`` (n, forms, N), of each form the pair that proves most; None where
        all is bounded selection by selection, selections are made anew in every batch or have two
        budgets, or no forms are kept.
    """
    known = [r for r in models.everywhere if isinstance(r.adversary, Joint) and r.keeps_forms]
    poison = models.poison
    if not known or poison.is_clean or poison.label_quota is not None or poison.per_batch:
        return None
    best: tuple[Tensor, Tensor] | None = None
    for reached in known:
        pieces = [_piece(models, reached, forms.part(p)) for p in models.parts(forms)]
        base, dev = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        if best is not None:
            least = [b - worst_sum(d.movedim(-1, 0), poison.budget) for b, d in ((base, dev), best)]
            wins = least[0] > least[1]
            base = torch.where(wins, base, best[0])
            dev = torch.where(wins.unsqueeze(-1), dev, best[1])
        best = base, dev
    return best


def _piece(models: ReachableModels, reached: Reached, forms: OutputForms) -> tuple[Tensor, Tensor]:
    rows = models.rows_of(reached, forms)

    def bound(part: Tensor) -> tuple[Tensor, Tensor]:
        some = rows.part(part.to(rows.constant.device))
        if reached.forward is not None:
            return by_sample_of_forms(reached.forward, some, reached.state)
        return bound_by_sample(models.schedule, reached.window, some, reached.adversary)

    size = models.rows_at_once(reached.window)
    found = in_passes(rows.rows // 2, size, bound)  # the other half are opposites
    base, dev = torch.cat([b for b, _ in found]), torch.cat([d for _, d in found])
    points = len(forms)
    return base.reshape(-1, points).T, dev.reshape(-1, points, dev.shape[1]).transpose(0, 1)


@PROPERTIES.register
class CollectiveTable(TableOfShares):
    """Share of points with the right class, where all points face the same poisoning."""

    what = "untargeted: share that is right when all points face one poisoning"
    high_is_good = True
    in_short = "the model is right for at least {low} of the {part} points"
    in_words = (
        "No single admissible data set leaves the model right for fewer than {low} of the {part} "
        "points; trained on the data as given it is {given}."
    )
    kind: Literal["collective"] = Field(description=KIND)

    def question(self, models: ReachableModels, features: Tensor, labels: Tensor) -> Question:
        return CollectiveQuestion.of(models, features, labels)
