"""Training runs on poisoned data, many at once and differentiable in the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.attacks.whole import Exchanged
from milp_agt.bounds.step import NodeOrder, step_at_points, velocity_of
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Training, UpdateRule

State = dict[str, Tensor]  # parameters and velocities of many runs, (attacks, *shape)


@dataclass(frozen=True)
class Poisoning:
    """The data of many poisoned runs, one entry for each *leaf*.

    A static adversary has one leaf, the data set; an adaptive one has a leaf for every step, its
    batch.

    Attributes:
        features: (attacks, samples of the leaf, *shape) each.
        labels: (attacks, samples of the leaf, width) each.
        there: 1 for samples that are there and 0 for others, (attacks, samples of the leaf) each;
            empty where all are.
    """

    features: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    there: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.labels[0])

    def rows(self, index: Tensor) -> Poisoning:
        """These attacks only."""
        return self.map(lambda tensor: tensor[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Poisoning:
        kinds = (self.features, self.labels, self.there)
        return Poisoning(*(tuple(map(change, leaves)) for leaves in kinds))

    @staticmethod
    def cat(parts: Sequence[Poisoning]) -> Poisoning:
        kinds = ([p.features for p in parts], [p.labels for p in parts], [p.there for p in parts])
        return Poisoning(*(tuple(map(torch.cat, zip(*k, strict=True))) for k in kinds))


@dataclass(frozen=True)
class Unrolled:
    """One training run as a function of its data, for many poisonings at once.

    Attributes:
        step_graph: the graph of one step.
        poison: the threat, bound to the data set, as moves of samples.
        batches: indices of the samples of each step.
        updates: the optimiser step of each training step.
        present: where samples come or go: which are there in the data as given, (N,), 1 or 0. A poisoned
            sample is there if it was not, and the other way round. Places of samples that may be
            inserted stand behind those of the data set, and in every batch.
        middle: around which new samples are drawn, (*shape); None where samples only move.
    """

    step_graph: StepGraph
    poison: Poison
    batches: tuple[Tensor, ...]
    updates: tuple[UpdateRule, ...]
    present: Tensor | None = None
    middle: Tensor | None = None

    @staticmethod
    def of(step_graph: StepGraph, training: Training, poison: Poison) -> Unrolled:
        """The run under a threat; ``step_graph`` as it was traced, without exchanges of samples."""
        device = poison.features.device
        order = training.batch_order(len(poison.features))
        batches = [torch.from_numpy(batch).to(device) for batch in order]
        own = Exchanged.of(step_graph, poison, batches)
        updates = training.update_rules(len(batches))
        return Unrolled(own.step_graph, own.poison, own.batches, updates, own.present, own.middle)

    @cached_property
    def schedule(self) -> NodeOrder:
        return NodeOrder.of(self.step_graph)

    @cached_property
    def covers(self) -> tuple[Tensor, ...]:
        """Indices of the samples of each leaf."""
        if not self.poison.static:
            return self.batches
        return (torch.arange(len(self.poison.features), device=self.poison.features.device),)

    @cached_property
    def leaf_poisons(self) -> tuple[Poison, ...]:
        """The admissible moves of each leaf."""
        return tuple(self.poison.take(cover) for cover in self.covers)

    def nominal(self, attacks: int) -> Poisoning:
        """The data as given."""
        return Poisoning(
            tuple(p.features.expand(attacks, *p.features.shape) for p in self.leaf_poisons),
            tuple(p.labels.expand(attacks, *p.labels.shape) for p in self.leaf_poisons),
            tuple(present.expand(attacks, -1) for present in self.leaf_present),
        )

    @cached_property
    def leaf_present(self) -> tuple[Tensor, ...]:
        """Which samples of each leaf are there in the data as given; empty where none come or go."""
        return () if self.present is None else tuple(self.present[c] for c in self.covers)

    def changed(self, data: Poisoning) -> tuple[tuple[Tensor, Tensor], ...]:
        """Whose features and whose labels differ from the data as given, (attacks, n) for each leaf.

        Where samples come or go, both say which do.
        """
        if data.there:
            leaves = zip(data.there, self.leaf_present, strict=True)
            return tuple((t != present,) * 2 for t, present in leaves)
        return tuple(
            ((x != own.features).flatten(2).any(-1), (y != own.labels).any(-1))
            for x, y, own in zip(data.features, data.labels, self.leaf_poisons, strict=True)
        )

    def decoded(self, encoded: Tensor) -> npt.NDArray[Any]:
        """Classes (n,) or targets (n, outputs) of encoded labels (n, width)."""
        graph = self.step_graph
        if not graph.loss.is_classification:
            return np.asarray(encoded.cpu().numpy().copy())
        vertices = graph.loss.vertices(graph.outputs).to(encoded)
        return np.asarray((encoded[:, None] - vertices).abs().sum(-1).argmin(-1).cpu().numpy())

    def encoded(self, labels: npt.NDArray[Any]) -> Tensor:
        """What :meth:`decoded` was made of, (n, width)."""
        graph = self.step_graph
        if not graph.loss.is_classification:
            return torch.from_numpy(np.asarray(labels, dtype=np.float64))
        return graph.loss.vertices(graph.outputs)[torch.from_numpy(np.asarray(labels))]

    def start(self, attacks: int) -> State:
        """The initial parameters, and velocities 0 if there is momentum."""
        device = self.poison.features.device
        initial = {n: v.to(device) for n, v in self.step_graph.initial.items()}
        state = {n: v.expand(attacks, *v.shape) for n, v in initial.items()}
        if self.updates[0].has_momentum:
            state |= {velocity_of(n): torch.zeros_like(state[n]) for n in initial}
        return state

    def batch_data(self, poisoning: Poisoning, step: int) -> tuple[Tensor, Tensor]:
        """Features and labels that a step trains on, (attacks, batch, ...)."""
        if not self.poison.static:
            return poisoning.features[step], poisoning.labels[step]
        batch = self.batches[step]
        if torch.equal(batch, self.covers[0]):
            return poisoning.features[0], poisoning.labels[0]
        return poisoning.features[0][:, batch], poisoning.labels[0][:, batch]

    def batch_present(self, poisoning: Poisoning, step: int) -> Tensor | None:
        """Which samples of the batch of a step are there, (attacks, batch); None for all."""
        if not poisoning.there:
            return None
        static = self.poison.static
        return poisoning.there[0][:, self.batches[step]] if static else poisoning.there[step]

    def path(self, poisoning: Poisoning, start: Mapping[str, Tensor] | None = None) -> list[State]:
        """The states after every step."""
        state: Mapping[str, Tensor] = self.start(len(poisoning)) if start is None else start
        states = []
        for step, update in enumerate(self.updates):
            x, y = self.batch_data(poisoning, step)
            there = self.batch_present(poisoning, step)
            step_graph, schedule = self.step_graph, self.schedule
            states.append(step_at_points(step_graph, schedule, state, x, y, update, there))
            state = states[-1]
        return states

    def run(self, poisoning: Poisoning, start: Mapping[str, Tensor] | None = None) -> State:
        """The final states."""
        return self.path(poisoning, start)[-1]

    def gradient(
        self, poisoning: Poisoning, score: Callable[[State], Tensor], start: State | None = None
    ) -> tuple[State, Poisoning]:
        """Final states, and the gradient of each attack's ``score`` (attacks,) in its data.

        A gradient that is not a number (a run that diverged) is returned as 0.
        """
        leaf = poisoning.map(lambda tensor: tensor.detach().clone().requires_grad_())
        final = self.run(leaf, start)
        total = score(final).sum()
        wanted = [*leaf.features, *leaf.labels, *leaf.there]
        pulls: Sequence[Tensor | None] = [None] * len(wanted)
        if total.requires_grad:
            pulls = torch.autograd.grad(total, wanted, allow_unused=True)
        found = [
            torch.zeros_like(v) if g is None else torch.nan_to_num(g, posinf=0.0, neginf=0.0)
            for v, g in zip(wanted, pulls, strict=True)
        ]
        leaves = len(leaf.features)
        detached = {name: value.detach() for name, value in final.items()}
        kinds = found[:leaves], found[leaves : 2 * leaves], found[2 * leaves :]
        return detached, Poisoning(*map(tuple, kinds))

    @cached_property
    def bytes_per_attack(self) -> int:
        """Memory of one attack while a gradient is taken, about."""
        nodes = self.schedule.all
        each = sum(node.signature.size for node in nodes if node.batched)
        shared = sum(node.signature.size for node in nodes if not node.batched)
        return 16 * sum(each * len(batch) + shared for batch in self.batches)

    def bytes_of_outputs(self, points: int) -> int:
        """Memory of the outputs of one model on test points, about."""
        nodes = self.step_graph.graph.needed_for([self.step_graph.output])
        return 16 * points * sum(node.signature.size for node in nodes if node.batched)
