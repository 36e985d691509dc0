"""What an attack aims at: parameters, loss, predictions, a backdoor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from milp_agt import inputs
from milp_agt.attacks.predictions import Predictions, Trigger
from milp_agt.attacks.trained import Models
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.loss import Loss as TrainingLoss
from milp_agt.tracing import FEATURES, StepGraph

Direction = Literal["max", "min"]


class Goal(Protocol):
    """An objective bound to a model: quantities of the trained model, to be raised and lowered."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each quantity is."""
        ...

    def values(self, models: Models) -> Tensor:
        """Exact values, (attacks, quantities)."""
        ...

    def surrogate(self, models: Models, quantity: Tensor, sign: Tensor, trial: Tensor) -> Tensor:
        """Differentiable, larger where ``sign * quantity`` is (or will be), (attacks,).

        Attack a aims at ``quantity[a]``; ``trial[a]`` numbers its attempts, for scales to vary.
        """
        ...


class Objective(ABC):
    """What to reach; :meth:`bind` checks it against a model."""

    @abstractmethod
    def bind(self, step_graph: StepGraph) -> Goal:
        """The quantities for this model.

        Raises:
            InvalidInputError: names, shapes or classes that do not fit the model.
        """

    @property
    @abstractmethod
    def directions(self) -> tuple[Direction, ...]:
        """Which ends of each quantity are aimed at."""

    def describe(self, goal: Goal, directions: tuple[Direction, ...]) -> str:
        """For people: ``max loss``."""
        return f"{' and '.join(directions)} {goal.names[0]}"


@dataclass(frozen=True)
class Envelope(Objective):
    """Every trainable parameter from both sides: the box around all that is reached."""

    def bind(self, step_graph: StepGraph) -> Goal:
        return _Parameters(parameter_names(step_graph))

    def describe(self, goal: Goal, directions: tuple[Direction, ...]) -> str:
        return f"envelope of {len(goal.names)} parameters"

    @property
    def directions(self) -> tuple[Direction, ...]:
        return ("min", "max")


@dataclass(frozen=True, eq=False)
class Functional(Objective):
    """``c . theta``: coefficients by the names of ``state_dict()``; other parameters count 0.

    ``Functional.parameter("0.weight", (1, 0))`` is a single parameter.
    """

    coefficients: Mapping[str, inputs.ArrayLike]
    direction: Direction = "max"

    @staticmethod
    def parameter(name: str, index: tuple[int, ...], direction: Direction = "max") -> _Single:
        """One entry of one parameter."""
        return _Single(name, index, direction)

    @property
    def directions(self) -> tuple[Direction, ...]:
        return (_direction(self.direction),)

    def bind(self, step_graph: StepGraph) -> Goal:
        parts = []
        unknown = sorted(set(self.coefficients) - set(step_graph.parameters))
        if unknown or not self.coefficients:
            raise InvalidInputError(
                "A functional needs coefficients of trainable parameters",
                f"{unknown or 'none at all'}, where there are {list(step_graph.parameters)}",
                "use the names of model.state_dict()",
            )
        for name in step_graph.parameters:
            shape = step_graph.graph[name].shape
            given = torch.as_tensor(np.asarray(self.coefficients.get(name, np.zeros(shape))))
            if tuple(given.shape) != shape or not bool(torch.isfinite(given).all()):
                raise InvalidInputError(
                    f"Coefficients of '{name}' need shape {shape} and finite numbers",
                    f"shape {tuple(given.shape)}",
                    "match the shape of the parameter",
                )
            parts.append(given.to(torch.float64).flatten())
        return _Linear("c . theta", torch.cat(parts))


@dataclass(frozen=True)
class _Single(Objective):
    name: str
    index: tuple[int, ...]
    direction: Direction

    @property
    def directions(self) -> tuple[Direction, ...]:
        return (_direction(self.direction),)

    def bind(self, step_graph: StepGraph) -> Goal:
        names = parameter_names(step_graph)
        asked = f"{self.name}[{', '.join(map(str, self.index))}]"
        if asked not in names:
            raise InvalidInputError(
                f"An attack on parameter {asked} was asked for",
                f"parameters {names[0]} to {names[-1]}",
                "use a name of model.state_dict() and an index within its shape",
            )
        coefficients = torch.zeros(len(names), dtype=torch.float64)
        coefficients[names.index(asked)] = 1.0
        return _Linear(asked, coefficients)


@dataclass(frozen=True, eq=False)
class Loss(Objective):
    """Mean training loss over test points."""

    features: inputs.ArrayLike
    labels: inputs.ArrayLike
    direction: Direction = "max"

    @property
    def directions(self) -> tuple[Direction, ...]:
        return (_direction(self.direction),)

    def bind(self, step_graph: StepGraph) -> Goal:
        x = point_features(self.features, step_graph)
        y = inputs.labels_of(
            self.labels, len(x), step_graph.loss, step_graph.outputs, "Test labels"
        )
        return _MeanLoss(step_graph.loss, x, y)


@dataclass(frozen=True, eq=False)
class Accuracy(Objective):
    """Share of test points that are classified as labelled; a tie counts as wrong."""

    features: inputs.ArrayLike
    labels: inputs.ArrayLike
    direction: Direction = "min"

    @property
    def directions(self) -> tuple[Direction, ...]:
        return (_direction(self.direction),)

    def bind(self, step_graph: StepGraph) -> Goal:
        x = point_features(self.features, step_graph)
        return Predictions("accuracy", x, _one_class(self.labels, len(x), step_graph))


@dataclass(frozen=True, eq=False)
class Targeted(Objective):
    """Share of test points that are given one of their unsafe classes.

    ``unsafe`` is a class for each point, (n,), or a mask of classes, (n, classes) bool.
    """

    features: inputs.ArrayLike
    unsafe: inputs.ArrayLike
    direction: Direction = "max"

    @property
    def directions(self) -> tuple[Direction, ...]:
        return (_direction(self.direction),)

    def bind(self, step_graph: StepGraph) -> Goal:
        x = point_features(self.features, step_graph)
        given = torch.as_tensor(np.asarray(self.unsafe))
        if given.dtype == torch.bool:
            shape = (len(x), _classes(step_graph))
            if tuple(given.shape) != shape:
                raise InvalidInputError(
                    f"A mask of unsafe classes needs shape {shape}",
                    f"shape {tuple(given.shape)}",
                    "give one row for each test point and one column for each class",
                )
            return Predictions("targeted", x, given)
        return Predictions("targeted", x, _one_class(given, len(x), step_graph))


@dataclass(frozen=True, eq=False)
class Backdoor(Objective):
    """Success rate of a backdoor: test inputs carry a trigger, chosen anew for each of them.

    Without ``target`` success is any class but the label. With it, it is that class, counted over
    the test points of other classes.
    """

    features: inputs.ArrayLike
    labels: inputs.ArrayLike
    trigger: Trigger
    target: int | None = None
    direction: Direction = "max"

    @property
    def directions(self) -> tuple[Direction, ...]:
        return (_direction(self.direction),)

    def bind(self, step_graph: StepGraph) -> Goal:
        x = point_features(self.features, step_graph)
        own = _one_class(self.labels, len(x), step_graph)
        if self.target is None:
            return Predictions("backdoor", x, ~own, self.trigger.around(x))
        classes = own.shape[1]
        if not 0 <= self.target < classes:
            raise InvalidInputError(
                f"A backdoor towards class {self.target} was asked for",
                f"classes 0..{classes - 1}",
                "choose one of them",
            )
        wanted = torch.zeros_like(own)
        wanted[:, self.target] = True
        others = ~own[:, self.target]
        if not bool(others.any()):
            raise InvalidInputError(
                f"A backdoor towards class {self.target} counts test points of other classes",
                "none among the test points",
                "choose another target or other test points",
            )
        x, wanted = x[others], wanted[others]
        return Predictions("backdoor", x, wanted, self.trigger.around(x))


@dataclass(frozen=True)
class _Parameters:
    names: tuple[str, ...]

    def values(self, models: Models) -> Tensor:
        return models.parameters

    def surrogate(self, models: Models, quantity: Tensor, sign: Tensor, trial: Tensor) -> Tensor:
        return sign * models.parameters.gather(1, quantity[:, None])[:, 0]


class _Linear:
    def __init__(self, name: str, coefficients: Tensor) -> None:
        self.names, self.coefficients = (name,), coefficients

    def values(self, models: Models) -> Tensor:
        theta = models.parameters
        return (theta @ self.coefficients.to(theta))[:, None]

    def surrogate(self, models: Models, quantity: Tensor, sign: Tensor, trial: Tensor) -> Tensor:
        return sign * self.values(models)[:, 0]


class _MeanLoss:
    names = ("loss",)

    def __init__(self, loss: TrainingLoss, features: Tensor, labels: Tensor) -> None:
        self.loss, self.features, self.encoded = loss, features, labels

    def values(self, models: Models) -> Tensor:
        out = models.outputs(self.features.to(models.parameters))
        encoded = self.encoded.to(out).expand(len(out), *self.encoded.shape)
        return self.loss.value(out, encoded).mean(-1, keepdim=True)

    def surrogate(self, models: Models, quantity: Tensor, sign: Tensor, trial: Tensor) -> Tensor:
        return sign * self.values(models)[:, 0]


def parameter_names(step_graph: StepGraph) -> tuple[str, ...]:
    """``0.weight[1, 0]`` for every entry of every trainable parameter, in order."""
    names = []
    for name in step_graph.parameters:
        for index in np.ndindex(*step_graph.graph[name].shape):
            names.append(f"{name}[{', '.join(map(str, index))}]")
    return tuple(names)


def point_features(values: inputs.ArrayLike, step_graph: StepGraph) -> Tensor:
    """Test features (n, *shape), float64.

    Raises:
        InvalidInputError: another shape than the model takes.
    """
    x = inputs.features_of(values, "Test features")
    wanted = step_graph.graph[FEATURES].shape
    if tuple(x.shape[1:]) != wanted:
        raise InvalidInputError(
            f"Test features need shape {wanted} for each sample",
            f"{tuple(x.shape[1:])}",
            "use the features that the model was trained on",
        )
    return x


def _classes(step_graph: StepGraph) -> int:
    if not step_graph.loss.is_classification:
        raise InvalidInputError(
            "An attack on predictions needs a classifier",
            f"loss '{step_graph.loss.key}'",
            "aim at the loss instead",
        )
    return step_graph.loss.classes(step_graph.outputs)


def _one_class(labels: inputs.ArrayLike, count: int, step_graph: StepGraph) -> Tensor:
    """Masks of one class for each point, (n, classes)."""
    classes = _classes(step_graph)
    loss, outputs = step_graph.loss, step_graph.outputs
    encoded = inputs.labels_of(labels, count, loss, outputs, "Test labels")
    index = (encoded[:, None] == loss.vertices(outputs)).all(-1)
    assert index.shape == (count, classes)
    return index


def _direction(value: Direction) -> Direction:
    if value not in ("max", "min"):
        raise InvalidInputError(
            "An objective has a direction", f"direction = {value!r}", "use 'max' or 'min'"
        )
    return value
