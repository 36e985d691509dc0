"""Training runs on poisoned data, many at once and differentiable in the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
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
SOME = 5  # runs that are timed at once


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
class Pace:
    """Predicted seconds of many runs at once: ``first + (runs - 1) * each``."""

    first: float
    each: float

    def seconds(self, runs: int) -> float:
        return self.first + (runs - 1) * self.each

    def runs(self, seconds: float) -> int:
        """How many fit into so many seconds, at least one."""
        if seconds <= self.first:
            return 1
        return 1 + int(min((seconds - self.first) / max(self.each, 1e-9), 1e9))


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
            (_differs(x, own.features), _differs(y, own.labels))
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
        for step in range(len(self.updates)):
            states.append(self._stepped(state, step, self.data_of(poisoning, step)))
            state = states[-1]
        return states

    def data_of(self, poisoning: Poisoning, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features and labels of the batch of a step, and which of its samples are there."""
        return *self.batch_data(poisoning, step), self.batch_present(poisoning, step)

    def _stepped(
        self,
        state: Mapping[str, Tensor],
        step: int,
        data: tuple[Tensor, Tensor, Tensor | None],
    ) -> State:
        x, y, there = data
        update = self.updates[step]
        return step_at_points(self.step_graph, self.schedule, state, x, y, update, there)

    def run(self, poisoning: Poisoning, start: Mapping[str, Tensor] | None = None) -> State:
        """The final states."""
        return self.path(poisoning, start)[-1]

    def gradient(
        self, poisoning: Poisoning, score: Callable[[State], Tensor], start: State | None = None
    ) -> tuple[State, Poisoning]:
        """Final states, and the gradient of each attack's ``score`` (attacks,) in its data.

        A gradient that is not a number (a run that diverged) is returned as 0; so is that of features that
        no sample can move.
        """
        # Of single batches: through the data set, each step would fill a gradient as large as the data set.
        state: Mapping[str, Tensor] = self.start(len(poisoning)) if start is None else start
        wanted: list[tuple[Tensor | None, ...]] = []
        for step in range(len(self.updates)):
            x, y, there = self.data_of(poisoning, step)
            if self._moves_features:
                x = x.detach().clone().requires_grad_()
            y = y.detach().clone().requires_grad_()
            there = None if there is None else there.detach().clone().requires_grad_()
            state = self._stepped(state, step, (x, y, there))
            wanted.append((x if self._moves_features else None, y, there))
        final = dict(state)
        total = score(final).sum()
        known = [v for each in wanted for v in each if v is not None]
        pulls: Sequence[Tensor | None] = [None] * len(known)
        if total.requires_grad:
            pulls = torch.autograd.grad(total, known, allow_unused=True)
        of_each = iter(pulls)
        found = [tuple(None if v is None else next(of_each) for v in each) for each in wanted]
        kinds = (poisoning.features, poisoning.labels, poisoning.there)
        summed = [self._on_leaves(leaves, [f[k] for f in found]) for k, leaves in enumerate(kinds)]
        return {name: value.detach() for name, value in final.items()}, Poisoning(*summed)

    def _on_leaves(
        self, leaves: tuple[Tensor, ...], pulls: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """Gradients in the leaves from those in the batches of all steps."""
        if not leaves or all(pull is None for pull in pulls):
            return tuple(torch.zeros_like(v[:, :1, ...]).expand(v.shape) for v in leaves)
        found = [torch.zeros_like(leaf, memory_format=torch.contiguous_format) for leaf in leaves]
        for step, pull in enumerate(pulls):
            if pull is not None:
                own = torch.nan_to_num(pull, posinf=0.0, neginf=0.0)
                if self.poison.static:
                    found[0].index_add_(1, self.batches[step], own)
                else:
                    found[step] += own
        return tuple(found)

    @cached_property
    def _moves_features(self) -> bool:
        return self.poison.feature_moves is not None

    def pace(self) -> Pace:
        """Seconds of runs, measured by the first step of one run and of some at once."""
        seconds = []
        for attacks in (1, 1, SOME):  # the first is slow in a new process
            data = self.nominal(attacks)
            begun = monotonic()
            with torch.no_grad():
                self._stepped(self.start(attacks), 0, self.data_of(data, 0))
            seconds.append(monotonic() - begun)
        each = max(0.0, seconds[2] - seconds[1]) / (SOME - 1)
        steps = len(self.updates)
        return Pace(steps * seconds[1], steps * each)

    @cached_property
    def bytes_per_attack(self) -> int:
        """Memory of one attack while a gradient is taken, about."""
        nodes = self.schedule.all
        each = sum(node.signature.size for node in nodes if node.batched)
        shared = sum(node.signature.size for node in nodes if not node.batched)
        moving = sum(leaf.labels.numel() for leaf in self.leaf_poisons)
        if self._moves_features:
            moving += sum(leaf.features.numel() for leaf in self.leaf_poisons)
        # The data themselves, their gradient and the moves that it favours.
        return 16 * sum(each * len(batch) + shared for batch in self.batches) + 24 * moving

    def bytes_of_outputs(self, points: int) -> int:
        """Memory of the outputs of one model on test points, about."""
        nodes = self.step_graph.graph.needed_for([self.step_graph.output])
        return 16 * points * sum(node.signature.size for node in nodes if node.batched)


def _differs(data: Tensor, nominal: Tensor) -> Tensor:
    """Which samples differ from the data as given, (attacks, n)."""
    if same(data, nominal.expand(data.shape)):
        return torch.zeros(data.shape[:2], dtype=torch.bool, device=data.device)
    return (data != nominal).flatten(2).any(-1)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one and the same memory, seen in the same way."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and (one.stride() == other.stride())
    )
