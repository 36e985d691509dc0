"""Goals of attacks on trained models: parameters, the loss, and what every goal can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.graph import evaluate
from milp_agt.core.rounding import gamma
from milp_agt.formulations.loss import LossFunction
from milp_agt.training.tracing import FEATURES, StepGraph


@dataclass(frozen=True)
class TrainedModels:
    """Many trained models by the step graph, differentiable in their ``state`` (attacks, *shape) by name."""

    step_graph: StepGraph
    state: Mapping[str, Tensor]

    @property
    def parameters(self) -> Tensor:
        """All trainable parameters one after the other, (attacks, P)."""
        return torch.cat([self.state[n].flatten(1) for n in self.step_graph.parameters], 1)

    def outputs(self, features: Tensor) -> Tensor:
        """Outputs (attacks, n, outputs) on features (n, *shape), or (attacks, n, *shape)."""
        names = self.step_graph.parameters
        if features.dim() == 1 + len(self.step_graph.graph[FEATURES].shape):
            features = features.expand(len(self.state[names[0]]), *features.shape)
        leaves = {n: self.state[n] for n in names} | {FEATURES: features}
        nodes = self.step_graph.graph.needed_for([self.step_graph.output])
        return evaluate(nodes, leaves)[self.step_graph.output]


class Goal(ABC):
    """An objective bound to a model: quantities of the trained model, to be raised or lowered.

    Attributes:
        names: what each quantity is.
        points: how many test points every model is evaluated on.
    """

    names: tuple[str, ...]
    points: int = 0

    @abstractmethod
    def values(self, models: TrainedModels) -> Tensor:
        """Exact values, (attacks, quantities)."""

    def rounding(self, models: TrainedModels) -> float:
        """How far the largest value may be from the exact one: by nothing where its bounds cover that."""
        return 0.0

    def scores(self, models: TrainedModels) -> Tensor:
        """What attacks are ranked by, (attacks, quantities): the values, or what tells more attacks apart."""
        return self.values(models)

    def surrogate(
        self, models: TrainedModels, quantity: Tensor, sign: Tensor, trial: Tensor
    ) -> Tensor:
        """Differentiable, larger where ``sign * quantity`` is (or soon will be), (attacks,).

        Attack a aims at ``quantity[a]``; ``trial[a]`` numbers its attempts, for scales to vary.
        """
        return sign * self.values(models).gather(1, quantity[:, None])[:, 0]


class Parameters(Goal):
    """Every trainable parameter."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def values(self, models: TrainedModels) -> Tensor:
        return models.parameters


class LinearForm(Goal):
    """``c . theta + constant``, coefficients (P,)."""

    def __init__(self, name: str, coefficients: Tensor, constant: float = 0.0) -> None:
        self.names, self.coefficients, self.constant = (name,), coefficients, constant

    def values(self, models: TrainedModels) -> Tensor:
        theta = models.parameters
        return (theta @ self.coefficients.to(theta) + self.constant)[:, None]

    def rounding(self, models: TrainedModels) -> float:
        size = models.parameters.abs() @ self.coefficients.to(models.parameters).abs()
        return gamma(2 * len(self.coefficients) + 8) * (float(size.max()) + abs(self.constant))


class MeanLossGoal(Goal):
    """Mean loss over test points with encoded labels (n, width)."""

    names = ("loss",)

    def __init__(self, loss: LossFunction, features: Tensor, encoded: Tensor) -> None:
        self.loss, self.features, self.encoded = loss, features, encoded
        self.points = len(features)

    def values(self, models: TrainedModels) -> Tensor:
        out = models.outputs(self.features.to(models.parameters))
        encoded = self.encoded.to(out).expand(len(out), *self.encoded.shape)
        return self.loss.value(out, encoded).mean(-1, keepdim=True)


def parameter_names(step_graph: StepGraph) -> tuple[str, ...]:
    """``0.weight[1, 0]`` for every entry of every trainable parameter, in order."""
    return tuple(
        f"{name}[{', '.join(map(str, index))}]"
        for name in step_graph.parameters
        for index in np.ndindex(*step_graph.graph[name].shape)
    )
