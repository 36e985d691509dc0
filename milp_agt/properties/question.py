"""A question in general: which forms of the outputs it needs, and what follows from their bounds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt
from torch import Tensor

from milp_agt.core.arguments import array_of
from milp_agt.core.interval import Interval
from milp_agt.errors import InvalidInputError
from milp_agt.properties.answer import Answer, Scores, summarise
from milp_agt.properties.by_tree import by_branching, by_tree
from milp_agt.properties.decision import Decision
from milp_agt.properties.models import POINTS_AT_ONCE, OutputForms, ReachableModels
from milp_agt.training import inputs
from milp_agt.training.tracing import FEATURES, StepGraph


class Question(Protocol):
    """A property of models as the mean of a quantity over test points.

    All that depends on the reachable models goes through the bounds of ``forms``; the rest is a pure
    function of these, so that every way of bounding forms answers every question.
    """

    @property
    def counts_harm(self) -> bool:
        """Whether the quantity counts unsafe points (targets reached, say) and not safe ones."""
        ...

    @property
    def index(self) -> Tensor:
        """Positions of the counted points among those given, (n,)."""
        ...

    @property
    def forms(self) -> tuple[OutputForms, ...]:
        """What must be bounded."""
        ...

    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        """Bounds of each point from bounds of the forms, (cases, n, forms) each."""
        ...

    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Value and score of each point, (n,), from the forms at the nominal model, (n, forms)."""
        ...


@runtime_checkable
class Decides(Protocol):
    """A question whose forms are those of one decision at points that nobody touches."""

    @property
    def decision(self) -> Decision: ...


@runtime_checkable
class BoundsTogether(Protocol):
    """A question whose points are bounded together, in a way of its own."""

    def answer(self, models: ReachableModels, groups: npt.NDArray[Any] | None) -> Answer: ...


def ask(
    models: ReachableModels, question: Question, groups: npt.NDArray[Any] | None = None
) -> Answer:
    """The answer over all reachable models; ``groups`` names the subgroup of every given point.

    Guarantee: the mean of every reachable model lies in the bounds, that of a subgroup in the bounds
    of the subgroup, and the quantity of each point in its row of the table.
    """
    if isinstance(question, BoundsTogether):
        return question.answer(models, groups)
    return _answer(models, question, bounds_of(models, question), groups)


def bounds_of(models: ReachableModels, question: Question) -> list[Interval]:
    """Bounds of the forms of a question, with points walked through training where that may decide.

    Points whose quantity follows from the box of the parameters are not walked: the quantity cannot
    become tighter, and the ends of their score are those of the box.
    """
    boxed = [models.bound_in_box(forms) for forms in question.forms]
    open_ = _open(question, boxed)
    pairs = zip(question.forms, boxed, strict=True)
    bounds = [_refined(models, forms, known, open_) for forms, known in pairs]
    if models.tree is None or not isinstance(question, Decides) or is_late(models):
        return bounds
    left = models.tree.seconds
    if models.deadline is not None:
        left = min(left, models.deadline.left)
    begun, cells = time.monotonic(), models.tree.cells
    if models.tree.branches:
        share = left if cells is None else 0.5 * left
        open_ = _open(question, bounds)
        bounds = [by_branching(models, question.decision, bounds[0], open_, share)]
    if cells is not None:
        left -= time.monotonic() - begun
        open_ = _open(question, bounds)
        bounds = [by_tree(cells, question.decision, bounds[0], open_, left)]
    return bounds


def _open(question: Question, bounds: Sequence[Interval]) -> Tensor:
    """Positions of the points whose quantity is not settled in some case."""
    value = question.evaluate(bounds).value
    return (~(value.lower == value.upper)).any(0).nonzero()[:, 0]


def is_late(models: ReachableModels) -> bool:
    """Whether the time limit is over, so that bounds come from boxes alone."""
    return models.deadline is not None and models.deadline.is_over()


def _refined(
    models: ReachableModels, forms: OutputForms, known: Interval, points: Tensor
) -> Interval:
    """Points walked through training, some at a time until the time limit is over."""
    if models.deadline is None:
        return models.refine(forms, known, points)
    for some in points.split(POINTS_AT_ONCE):
        if len(some) and is_late(models):
            break
        known = models.refine(forms, known, some)
    return known


def ask_scores(models: ReachableModels, question: Question) -> Answer:
    """The same with every point walked, for the tightest scores."""
    bound = models.bound_in_box if is_late(models) else models.bound
    return _answer(models, question, [bound(forms) for forms in question.forms], None)


def _answer(
    models: ReachableModels,
    question: Question,
    bounds: Sequence[Interval],
    groups: npt.NDArray[Any] | None,
) -> Answer:
    nominal = question.nominal([models.at_nominal(forms) for forms in question.forms])
    own = None if groups is None else groups[question.index.cpu().numpy()]
    return summarise(question.evaluate(bounds), nominal, question.index, own)


def features_at(features: inputs.ArrayLike, graph: StepGraph) -> Tensor:
    """Features of test points, (n, *shape) float64.

    Raises:
        InvalidInputError: no finite numbers, or another shape than that of the training data.
    """
    x, wanted = inputs.features_of(features, "Test features"), graph.graph[FEATURES].shape
    if x.shape[1:] != wanted:
        raise InvalidInputError(
            f"Test features need shape {tuple(wanted)} for each sample",
            f"{tuple(x.shape[1:])}",
            "use the features that the model was trained on",
        )
    return x


def groups_of(groups: object, count: int) -> npt.NDArray[Any] | None:
    """The names of the subgroups of the test points, (n,): texts or whole numbers.

    Raises:
        InvalidInputError: another count than the points, or other names.
    """
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
