"""A question in general: which forms of the outputs it needs, and what follows from their bounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import Any, ClassVar

import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.bounds.program import OutputForms
from milp_agt.core.arguments import array_of
from milp_agt.core.interval import Interval
from milp_agt.errors import InvalidInputError
from milp_agt.properties.answer import Answer, Scores, summarise
from milp_agt.properties.models import POINTS_AT_ONCE, ReachableModels
from milp_agt.training import inputs
from milp_agt.training.tracing import FEATURES, StepGraph


class Question(ABC):
    """A property of models as the mean of a quantity over test points.

    All that depends on the reachable models goes through the bounds of ``forms``; the rest is a pure
    function of these, so that every way of bounding forms answers every question.

    Attributes:
        counts_harm: whether the quantity counts unsafe points (targets reached, say) and not safe ones.
        index: positions of the counted points among those given, (n,).
    """

    counts_harm: ClassVar[bool] = False
    index: Tensor

    @property
    @abstractmethod
    def forms(self) -> tuple[OutputForms, ...]:
        """What must be bounded."""

    @abstractmethod
    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        """Bounds of each point from bounds of the forms, (cases, n, forms) each."""

    @abstractmethod
    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Value and score of each point, (n,), from the forms at the nominal model, (n, forms)."""

    def answer(self, models: ReachableModels, groups: npt.NDArray[Any] | None = None) -> Answer:
        """The answer over all reachable models; ``groups`` names the subgroup of every given point.

        Guarantee: the mean of every reachable model lies in the bounds, that of a subgroup in the bounds
        of the subgroup, and the quantity of each point in its row of the table.
        """
        return self.summary(models, self.bounds(models), groups)

    def summary(
        self,
        models: ReachableModels,
        bounds: Sequence[Interval],
        groups: npt.NDArray[Any] | None = None,
    ) -> Answer:
        """The answer that follows from bounds of the forms."""
        nominal = self.nominal([models.at_nominal(forms) for forms in self.forms])
        own = None if groups is None else groups[self.index.cpu().numpy()]
        return summarise(self.evaluate(bounds), nominal, self.index, own)

    def bounds(self, models: ReachableModels) -> list[Interval]:
        """Bounds of the forms, with points walked through training where that may decide.

        Points whose quantity follows from the box of the parameters are not walked: the quantity cannot
        become tighter, and the ends of their score are those of the box. Where there is a time limit,
        some points at a time until it is over, or less is left than the last of them took.
        """
        boxed = [models.bound_in_box(forms) for forms in self.forms]
        open_ = self.open_points(boxed)
        size, spent = len(open_) if models.deadline is None else POINTS_AT_ONCE, 0.0
        for which, forms in enumerate(self.forms):
            for some in open_.split(max(1, size)):
                if len(some) and models.is_late(-spent):
                    break
                begun = monotonic()
                boxed[which] = models.refine(forms, boxed[which], some)
                spent = monotonic() - begun
        return boxed

    def open_points(self, bounds: Sequence[Interval]) -> Tensor:
        """Positions of the points whose quantity is not settled in some case."""
        value = self.evaluate(bounds).value
        return (~(value.lower == value.upper)).any(0).nonzero()[:, 0]


def index_of(features: Tensor) -> Tensor:
    """Positions of all test points."""
    return torch.arange(len(features), device=features.device)


def features_at(features: inputs.ArrayLike, graph: StepGraph) -> Tensor:
    """Features of test points, (n, *shape) float64; those of another shape than the data are refused."""
    x, wanted = inputs.features_of(features, "Test features"), graph.graph[FEATURES].shape
    if x.shape[1:] != wanted:
        raise InvalidInputError(
            f"Test features need shape {tuple(wanted)} for each sample",
            f"{tuple(x.shape[1:])}",
            "use the features that the model was trained on",
        )
    return x


def groups_of(groups: object, count: int) -> npt.NDArray[Any] | None:
    """The names of the subgroups of test points, (n,): texts or whole numbers; others are refused."""
    if groups is None:
        return None
    remedy = f"give an array ({count},) of texts or whole numbers"
    names = array_of(groups, "Subgroups", remedy)
    if names.shape != (count,) or names.dtype.kind not in "iuUb":
        raise InvalidInputError(
            f"Subgroups need one name for each of {count} test points",
            f"shape {names.shape} of type {names.dtype}",
            remedy,
        )
    return names
