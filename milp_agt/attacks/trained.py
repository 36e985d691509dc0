"""Trained models, many at once: what an objective may ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from milp_agt.core.graph import evaluate
from milp_agt.training.tracing import FEATURES, StepGraph


class TrainedModels(Protocol):
    """The ends of many training runs."""

    @property
    def parameters(self) -> Tensor:
        """All trainable parameters one after the other, (attacks, P)."""
        ...

    def outputs(self, features: Tensor) -> Tensor:
        """Outputs (attacks, n, outputs) on features (n, *shape), or (attacks, n, *shape)."""
        ...


@dataclass(frozen=True)
class GraphModels:
    """Models as values of the step graph; differentiable in their parameters."""

    step_graph: StepGraph
    state: Mapping[str, Tensor]

    @property
    def parameters(self) -> Tensor:
        return torch.cat([self.state[n].flatten(1) for n in self.step_graph.parameters], 1)

    def outputs(self, features: Tensor) -> Tensor:
        names = self.step_graph.parameters
        if features.dim() == 1 + len(self.step_graph.graph[FEATURES].shape):
            features = features.expand(len(self.state[names[0]]), *features.shape)
        leaves = {n: self.state[n] for n in names} | {FEATURES: features}
        nodes = self.step_graph.graph.needed_for([self.step_graph.output])
        return evaluate(nodes, leaves)[self.step_graph.output]
