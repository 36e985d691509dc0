"""Goals on parameters and on the loss; what every goal can do."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from milp_agt.attacks.trained import TrainedModels
from milp_agt.formulations.loss import LossFunction
from milp_agt.training.tracing import StepGraph


class Goal(Protocol):
    """An objective bound to a model: quantities of the trained model, to be raised or lowered."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each quantity is."""
        ...

    @property
    def points(self) -> int:
        """How many test points every model is evaluated on."""
        ...

    def values(self, models: TrainedModels) -> Tensor:
        """Exact values, (attacks, quantities)."""
        ...

    def scores(self, models: TrainedModels) -> Tensor:
        """What attacks are ranked by, (attacks, quantities): the values, or what tells more attacks apart."""
        ...

    def surrogate(
        self, models: TrainedModels, quantity: Tensor, sign: Tensor, trial: Tensor
    ) -> Tensor:
        """Differentiable, larger where ``sign * quantity`` is (or soon will be), (attacks,).

        Attack a aims at ``quantity[a]``; ``trial[a]`` numbers its attempts, for scales to vary.
        """
        ...


class Parameters:
    """Every trainable parameter."""

    points = 0

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def values(self, models: TrainedModels) -> Tensor:
        return models.parameters

    def scores(self, models: TrainedModels) -> Tensor:
        return self.values(models)

    def surrogate(
        self, models: TrainedModels, quantity: Tensor, sign: Tensor, trial: Tensor
    ) -> Tensor:
        return sign * models.parameters.gather(1, quantity[:, None])[:, 0]


class LinearForm:
    """``c . theta + constant``, coefficients (P,)."""

    points = 0

    def __init__(self, name: str, coefficients: Tensor, constant: float = 0.0) -> None:
        self.names, self.coefficients, self.constant = (name,), coefficients, constant

    def values(self, models: TrainedModels) -> Tensor:
        theta = models.parameters
        return (theta @ self.coefficients.to(theta) + self.constant)[:, None]

    def scores(self, models: TrainedModels) -> Tensor:
        return self.values(models)

    def surrogate(
        self, models: TrainedModels, quantity: Tensor, sign: Tensor, trial: Tensor
    ) -> Tensor:
        return sign * self.values(models)[:, 0]


class MeanLossGoal:
    """Mean loss over test points with encoded labels (n, width)."""

    names = ("loss",)

    def __init__(self, loss: LossFunction, features: Tensor, encoded: Tensor) -> None:
        self.loss, self.features, self.encoded = loss, features, encoded
        self.points = len(features)

    def values(self, models: TrainedModels) -> Tensor:
        out = models.outputs(self.features.to(models.parameters))
        encoded = self.encoded.to(out).expand(len(out), *self.encoded.shape)
        return self.loss.value(out, encoded).mean(-1, keepdim=True)

    def scores(self, models: TrainedModels) -> Tensor:
        return self.values(models)

    def surrogate(
        self, models: TrainedModels, quantity: Tensor, sign: Tensor, trial: Tensor
    ) -> Tensor:
        return sign * self.values(models)[:, 0]


def parameter_names(step_graph: StepGraph) -> tuple[str, ...]:
    """``0.weight[1, 0]`` for every entry of every trainable parameter, in order."""
    return tuple(
        f"{name}[{', '.join(map(str, index))}]"
        for name in step_graph.parameters
        for index in np.ndindex(*step_graph.graph[name].shape)
    )
