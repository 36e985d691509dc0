"""What an attack may aim at: parameters, loss, predictions, a backdoor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from milp_agt.attacks.goals import (
    Goal,
    LinearForm,
    MeanLossGoal,
    Parameters,
    ShareGoal,
    parameter_names,
)
from milp_agt.attacks.unrolled import Unrolled
from milp_agt.core.arguments import listed
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.properties.accuracy import AccuracyQuestion
from milp_agt.properties.backdoor import BackdoorQuestion
from milp_agt.properties.functional import FunctionalQuestion
from milp_agt.properties.mean_loss import LossTable
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import (
    PickedPoints,
    PropertyTable,
    TableOfParameters,
    TableOfPoints,
)
from milp_agt.properties.question import Question, features_at
from milp_agt.properties.stable import StableQuestion
from milp_agt.properties.targeted import Targets, targeted
from milp_agt.properties.triggers import Trigger, check_trigger
from milp_agt.training import inputs

Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What to reach. ``direction`` is the end of the quantity that is aimed at.

    ``two_sided`` is False where a value of a trained model is found by a search of its own, so that only
    its largest value shows something.
    """

    direction: Direction = "max"
    two_sided: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.direction, str) or self.direction not in ("max", "min"):
            raise InvalidInputError(
                "An objective has a direction",
                f"direction = {self.direction!r:.60}",
                "use 'max' or 'min'",
            )

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The ends of each quantity that are aimed at."""
        return (self.direction,)

    @abstractmethod
    def bind(self, unrolled: Unrolled) -> Goal:
        """The quantities for this training run.

        Raises:
            InvalidInputError: names, shapes or classes that do not fit the model.
        """

    def describe(self, goal: Goal) -> str:
        """For people: ``max loss``."""
        return f"{self.direction} {goal.names[0]}"


@dataclass(frozen=True)
class Envelope(Objective):
    """Every trainable parameter from both sides: the box around all that is reached."""

    @property
    def directions(self) -> tuple[Direction, ...]:
        return ("min", "max")

    def bind(self, unrolled: Unrolled) -> Goal:
        return Parameters(parameter_names(unrolled.step_graph))

    def describe(self, goal: Goal) -> str:
        return f"envelope of {len(goal.names)} parameters"


@dataclass(frozen=True, eq=False)
class Functional(Objective):
    """``c . theta``: coefficients of the shapes and by the names of ``state_dict()``, others 0."""

    coefficients: Mapping[str, inputs.ArrayLike]

    def bind(self, unrolled: Unrolled) -> Goal:
        graph, device = unrolled.step_graph, unrolled.cover.device
        asked = FunctionalQuestion.of(graph, self.coefficients, device)
        if len(asked.constant) != 1:
            raise InvalidInputError(
                "An attack aims at one functional",
                f"{len(asked.constant)} rows of coefficients",
                "attack one row after another",
            )
        return LinearForm("c . theta", asked.flat(graph), float(asked.constant))


@dataclass(frozen=True)
class Parameter(Objective):
    """One entry of one parameter, by its name in ``state_dict()`` and its index."""

    name: str
    index: tuple[int, ...]

    def bind(self, unrolled: Unrolled) -> Goal:
        listed(self.index, (int, np.integer), "The index of a parameter", "give (0, 1), say")
        names = parameter_names(unrolled.step_graph)
        asked = f"{self.name}[{', '.join(map(str, self.index))}]"
        if asked not in names:
            raise InvalidInputError(
                f"An attack on parameter {asked} was asked for",
                f"parameters {names[0]} to {names[-1]}",
                "use a name of model.state_dict() and an index within its shape",
            )
        coefficients = torch.zeros(len(names), dtype=torch.float64)
        coefficients[names.index(asked)] = 1.0
        return LinearForm(asked, coefficients)


@dataclass(frozen=True, eq=False)
class Loss(Objective):
    """Mean training loss over test points."""

    features: inputs.ArrayLike
    labels: inputs.ArrayLike

    def bind(self, unrolled: Unrolled) -> Goal:
        graph = unrolled.step_graph
        x = features_at(self.features, graph)
        encoded = inputs.labels_of(self.labels, len(x), graph.loss, graph.outputs, "Test labels")
        return MeanLossGoal(graph.loss, x, encoded)


@dataclass(frozen=True, eq=False)
class ShareObjective(Objective):
    """The share of test points that a question counts: of safe ones, or of those where harm is done.

    Margins follow from the forms of the question at the trained models; a tie counts for nobody.
    """

    features: inputs.ArrayLike
    needs_classes: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the quantity."""

    @abstractmethod
    def question(self, models: ReachableModels, features: Tensor) -> Question:
        """The question about features (n, *shape)."""

    def bind(self, unrolled: Unrolled) -> Goal:
        graph, device = unrolled.step_graph, unrolled.poison.features.device
        x = features_at(self.features, graph)
        if self.needs_classes and not graph.loss.is_classification:
            raise InvalidInputError(
                "An attack on predictions needs a classifier",
                f"loss '{graph.loss.key}'",
                "aim at the loss, or at a region of outputs with Targeted",
            )
        with torch.no_grad():
            state = unrolled.run(unrolled.nominal(1))
        models = ReachableModels.at(graph, {name: state[name][0] for name in graph.parameters})
        return ShareGoal(self.name, self.question(models, x.to(device)))


@dataclass(frozen=True, eq=False)
class Accuracy(ShareObjective):
    """Share of test points that are classified as labelled; a tie counts as wrong."""

    labels: inputs.ArrayLike
    direction: Direction = field(default="min", kw_only=True)
    name = "accuracy"

    def question(self, models: ReachableModels, features: Tensor) -> Question:
        return AccuracyQuestion.of(models, features, _labels(self.labels, features, models))


@dataclass(frozen=True, eq=False)
class Stable(ShareObjective):
    """Share of points that are classified as the model trained on the data as given does."""

    direction: Direction = field(default="min", kw_only=True)
    name = "stable"

    def question(self, models: ReachableModels, features: Tensor) -> Question:
        return StableQuestion.of(models, features)


@dataclass(frozen=True, eq=False)
class Targeted(ShareObjective):
    """Share of test points whose prediction is unsafe; ``targets`` as in ``Result.targeted``."""

    targets: Targets
    needs_classes = False
    name = "targeted"

    def question(self, models: ReachableModels, features: Tensor) -> Question:
        return targeted(models, features, self.targets)


@dataclass(frozen=True, eq=False)
class Backdoor(ShareObjective):
    """Success rate of a backdoor: each test input carries a trigger, chosen anew for every model.

    Without ``target`` success is any class but the label. With it, it is that class, counted over
    the test points of other classes.
    """

    labels: inputs.ArrayLike
    trigger: Trigger
    target: int | None = None
    two_sided: ClassVar[bool] = False
    name = "backdoor"

    def question(self, models: ReachableModels, features: Tensor) -> Question:
        check_trigger(self.trigger)
        labels = _labels(self.labels, features, models)
        return BackdoorQuestion.of(models, features, labels, self.trigger, self.target)


@dataclass(frozen=True, eq=False)
class Asked(ShareObjective):
    """What a property of a run file counts, whatever its kind."""

    asked: TableOfPoints
    labels: inputs.ArrayLike
    needs_classes = False

    @property
    def name(self) -> str:
        return self.asked.kind

    @property
    def two_sided(self) -> bool:  # type: ignore[override]
        return not self.asked.searches_inputs

    def question(self, models: ReachableModels, features: Tensor) -> Question:
        labels = _labels(self.labels, features, models)
        question = self.asked.question(models, features, labels)
        if self.two_sided and any(bool((f.inputs.width > 0).any()) for f in question.forms):
            raise UnsupportedOperationError(
                f"Attack the property '{self.asked.kind}'",
                "test inputs that move as well",
                "set searches_inputs in its table, as that of a backdoor does",
            )
        return question


def objective_of(asked: PropertyTable, at: PickedPoints | None) -> Objective:
    """What an attack on a property of a run file aims at."""
    if at is None:
        assert isinstance(asked, TableOfParameters)
        return Functional(asked.arrays())
    if isinstance(asked, LossTable):
        return Loss(at.features, at.labels)
    assert isinstance(asked, TableOfPoints)
    return Asked(at.features, asked, at.labels, direction="min" if asked.high_is_good else "max")


def _labels(labels: inputs.ArrayLike, features: Tensor, models: ReachableModels) -> Tensor:
    """Encoded labels, (n, width)."""
    graph = models.step_graph
    count, outputs = len(features), graph.outputs
    return inputs.labels_of(labels, count, graph.loss, outputs, "Test labels").to(features.device)
