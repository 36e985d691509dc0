"""How large can the loss on test points become?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from milp_agt.bounds.program import OutputForms
from milp_agt.core.interval import Interval
from milp_agt.core.option_table import KIND
from milp_agt.core.reachable import Bounds
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.loss import LossFunction, LossPlanes
from milp_agt.properties.answer import Answer, Scores
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import PROPERTIES, TableOfPoints
from milp_agt.properties.question import Question, index_of


@dataclass(frozen=True)
class MeanLoss(Question):
    """Mean of the training loss over test points: the exact function of the float64 outputs."""

    counts_harm = True

    index: Tensor
    loss: LossFunction
    on_outputs: OutputForms
    encoded: Tensor  # labels of the points, (n, width)

    @staticmethod
    def of(models: ReachableModels, features: Tensor, labels: Tensor) -> MeanLoss:
        """For features (n, *shape) and encoded labels (n, width)."""
        loss = models.step_graph.loss
        coefficients, constant = loss.forms(labels.cpu(), models.step_graph.outputs)
        inputs = Interval.point(features.unsqueeze(0))
        forms = OutputForms(inputs, coefficients.to(features), constant.to(features))
        return MeanLoss(index_of(features), loss, forms, labels)

    @property
    def forms(self) -> tuple[OutputForms, ...]:
        return (self.on_outputs,)

    def answer(self, models: ReachableModels, groups: npt.NDArray[Any] | None = None) -> Answer:
        """The mean loss, with the points bounded together as well as one by one; the better bound counts.

        Bounds ``[l_i, u_i]`` of the forms m_i of each point give planes
        ``s_i . m_i + o_i <= loss_i <= t_i . m_i + p_i``. All points face the same model, so that

            min sum_i s_i . m_i + sum_i o_i  <=  sum_i loss_i  <=  max sum_i t_i . m_i + sum_i p_i

        over the reachable models, each sum bounded as one form of their parameters: effects on single
        points that no model has together cancel. The table of the points is that of single points.
        """
        late = models.is_late()
        bounds = (models.bound_in_box if late else models.bound)(self.on_outputs)
        answer = self.summary(models, [bounds], groups)
        answer = replace(answer, points=replace(answer.points, judged=False))
        if models.is_late() or models.reached[0].single_runs:
            return answer  # the mean of one model is that of its points
        names = list(answer.groups)
        parts = np.array([np.ones(len(self.index), dtype=bool), *(groups == n for n in names)])
        lower, upper = _together(models, self, bounds, torch.from_numpy(parts).to(bounds.lower))
        ends = {
            name: (max(own.lower, low), min(own.upper, high))
            for (name, own), low, high in zip(
                [(None, answer), *answer.groups.items()], lower, upper, strict=True
            )
        }
        known = {n: Bounds(ends[n][0], own.nominal, ends[n][1]) for n, own in answer.groups.items()}
        return replace(answer, lower=ends[None][0], upper=ends[None][1], groups=known)

    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        (forms,) = bounds
        each = self.loss.of_forms(forms)
        size = each.magnitude + forms.magnitude.amax(-1)
        wide = each.widen(gamma(64 + 8 * forms.lower.shape[-1]) * size + TINY)
        each = Interval(wide.lower.clamp(min=0.0), wide.upper)
        return Scores(each, each)

    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """From the same forms as the bounds: log sum exp(f) - f_y would cancel for large logits."""
        each = self.loss.of_forms(Interval.point(values[0])).lower
        if not bool(torch.isfinite(each).all()):
            raise InvalidInputError(
                "The loss of the nominal model must be finite",
                f"{float(each.mean())} over {len(each)} test points",
                "the nominal run has diverged: lower the learning rate or scale the data",
            )
        return each, each


def _together(
    models: ReachableModels, question: MeanLoss, bounds: Interval, parts: Tensor
) -> tuple[list[float], list[float]]:
    """Bounds of the mean loss over each part, a row of ones and zeros, (rows, n)."""
    planes = _of_all_cases(question.loss, bounds)
    member = parts.unsqueeze(-1)
    slopes = torch.cat([member * planes.slope_lower[0], -member * planes.slope_upper[0]])
    sums = models.bound_sums(question.on_outputs, slopes, bounds)
    found = []
    for low, offset in zip(sums.chunk(2, 1), (planes.lower, -planes.upper), strict=True):
        known = torch.isfinite(offset)
        offset = torch.where(known, offset, 0.0)
        total = low + offset @ parts.T
        size = low.abs() + offset.abs() @ parts.T
        total = total - gamma(4 * parts.shape[1] + 64) * size - TINY
        lost = (~known).to(parts) @ parts.T > 0
        total = torch.where(lost | torch.isnan(total), -torch.inf, total)
        found.append((total / parts.sum(1)).amin(0))
    return found[0].clamp(min=0.0).tolist(), (-found[1]).tolist()


def _of_all_cases(loss: LossFunction, bounds: Interval) -> LossPlanes:
    """Planes of every case, (cases, n), with the slopes of one box that holds all of them."""
    outer = loss.planes(bounds.of_all)
    if len(bounds.lower) == 1:
        return outer
    return loss.planes(bounds).turned(outer, bounds)


@PROPERTIES.register
class LossTable(TableOfPoints):
    """Mean loss."""

    what = "untargeted: mean loss, and the loss of each test point"
    least = 0.0
    in_short = "the mean loss on the {part} data is at most {high}"
    in_words = (
        "The mean loss on the {part} data lies between {low} and {high}; trained on the data as "
        "given it is {given}."
    )
    kind: Literal["loss"] = Field(description=KIND)

    def question(self, models: ReachableModels, features: Tensor, labels: Tensor) -> Question:
        return MeanLoss.of(models, features, labels)
