"""Training runs on poisoned data, many at once and differentiable in the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.bounds.step import NodeOrder, step_at_points, velocity_of
from milp_agt.threats.poison import Poison, Whole
from milp_agt.threats.sets import Box, MoveSet, Vertices
from milp_agt.training.exchanged import with_absences
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Training, UpdateRule

State = dict[str, Tensor]  # parameters and velocities of many runs, (attacks, *shape)
Batch = tuple[Tensor, Tensor, Tensor | None]  # features, labels, who is there (None: all)
SOME = 5  # runs that are timed at once
# New samples lie within the data's largest distance from their middle, times this. They may be
# anything; clipping makes of farther ones only other directions of the same length.
REACH = 16.0


@dataclass(frozen=True)
class Poisoning:
    """The data of many poisoned runs: every *entry* that an adversary chooses.

    A static adversary has one entry for each sample of the data set; an adaptive one has the samples
    of the batches, step after step.

    Attributes:
        features: (attacks, entries, *shape).
        labels: (attacks, entries, width).
        there: 1 for samples that are there and 0 for others, (attacks, entries); None where all are.
    """

    features: Tensor
    labels: Tensor
    there: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> Poisoning:
        """These attacks only."""
        return self.map(lambda tensor: tensor[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Poisoning:
        there = None if self.there is None else change(self.there)
        return Poisoning(change(self.features), change(self.labels), there)

    @staticmethod
    def cat(parts: Sequence[Poisoning], dim: int = 0) -> Poisoning:
        there = [part.there for part in parts if part.there is not None]
        return Poisoning(
            torch.cat([part.features for part in parts], dim),
            torch.cat([part.labels for part in parts], dim),
            torch.cat(there, dim) if there else None,
        )


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
        step_graph: the graph of one step; one in which samples may be absent, where any may.
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
        """The run under a threat, or under the part of it that can be searched: see :data:`REACH`.

        ``step_graph`` as it was traced, without exchanges of samples.
        """
        device = poison.features.device
        order = training.batch_order(len(poison.features))
        batches = tuple(torch.from_numpy(batch).to(device) for batch in order)
        run = Unrolled(step_graph, poison, batches, training.update_rules(len(batches)))
        return run if poison.whole is None else run._exchanged(poison.whole)

    def _exchanged(self, whole: Whole) -> Unrolled:
        """The threat to whole samples as one to a data set whose samples move, come or go."""
        poison, count = self.poison, len(self.poison.features)
        device = poison.features.device
        middle = 0.5 * (poison.features.amin(0) + poison.features.amax(0))
        if whole is Whole.SUBSTITUTED:
            return replace(self, poison=_movable(self.step_graph, poison), middle=middle)
        graph = with_absences(self.step_graph.to(device))
        present = torch.ones(count, dtype=torch.float64, device=device)
        if whole is Whole.REMOVED:
            return replace(
                self, step_graph=graph, poison=replace(poison, whole=None), present=present
            )
        places = torch.arange(count, count + poison.budget, device=device)
        return replace(
            self,
            step_graph=graph,
            poison=_movable(self.step_graph, _with_places(poison, middle)),
            batches=tuple(torch.cat([batch, places]) for batch in self.batches),
            present=torch.cat([present, present.new_zeros(poison.budget)]),
            middle=middle,
        )

    @cached_property
    def schedule(self) -> NodeOrder:
        return NodeOrder.of(self.step_graph)

    @property
    def quotas(self) -> int:
        """How many budgets the threat has: one, or one for features and one for labels."""
        return len(self.poison.quotas)

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """The entries that an adversary chooses at once: all, or those of each step."""
        sizes = [len(self.poison.features)] if self.poison.static else map(len, self.batches)
        ends = np.cumsum([0, *sizes]).tolist()
        return tuple(slice(a, b) for a, b in pairwise(ends))

    @cached_property
    def cover(self) -> Tensor:
        """The sample of each entry, (entries,)."""
        if not self.poison.static:
            return torch.cat(self.batches)
        return torch.arange(len(self.poison.features), device=self.poison.features.device)

    @cached_property
    def span(self) -> Tensor:
        """The number of the span of each entry, (entries,)."""
        sizes = torch.tensor([s.stop - s.start for s in self.spans], device=self.cover.device)
        return torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)

    @cached_property
    def places(self) -> tuple[slice | Tensor, ...]:
        """The entries of the batch of each step."""
        if not self.poison.static:
            return self.spans
        whole = slice(None)
        return tuple(whole if torch.equal(b, self.cover) else b for b in self.batches)

    @cached_property
    def moves(self) -> Poison:
        """The admissible moves of each entry."""
        return self.poison.take(self.cover)

    @cached_property
    def given_there(self) -> Tensor | None:
        """Which entries are there in the data as given, (entries,); None where none come or go."""
        return None if self.present is None else self.present[self.cover]

    def nominal(self, attacks: int) -> Poisoning:
        """The data as given."""
        given = Poisoning(self.moves.features, self.moves.labels, self.given_there)
        return given.map(lambda tensor: tensor.expand(attacks, *tensor.shape))

    def changed(self, data: Poisoning) -> tuple[Tensor, Tensor]:
        """Whose features and whose labels differ from the data as given, (attacks, entries) each.

        Where samples come or go, both say which do.
        """
        if data.there is not None:
            return (self.turned(data),) * 2
        own = self.moves
        return _differs(data.features, own.features), _differs(data.labels, own.labels)

    def turned(self, data: Poisoning) -> Tensor:
        """Which entries have come or gone, (attacks, entries)."""
        if data.there is None or self.given_there is None:
            shape = len(data), len(self.cover)
            return torch.zeros(shape, dtype=torch.bool, device=self.cover.device)
        return data.there != self.given_there

    def decoded(self, encoded: Tensor) -> npt.NDArray[Any]:
        """Classes (n,) or targets (n, outputs) of encoded labels (n, width)."""
        graph = self.step_graph
        if not graph.loss.is_classification:
            return np.asarray(encoded.cpu().numpy().copy())
        vertices = graph.loss.vertices(graph.outputs).to(encoded)
        return np.asarray((encoded[:, None] - vertices).abs().sum(-1).argmin(-1).cpu().numpy())

    def start(self, attacks: int) -> State:
        """The initial parameters, and velocities 0 if there is momentum."""
        device = self.poison.features.device
        initial = {n: v.to(device) for n, v in self.step_graph.initial.items()}
        state = {n: v.expand(attacks, *v.shape) for n, v in initial.items()}
        if self.updates[0].has_momentum:
            state |= {velocity_of(n): torch.zeros_like(state[n]) for n in initial}
        return state

    def batch(self, data: Poisoning, step: int) -> Batch:
        """What a step trains on: features, labels, and which samples are there, (attacks, batch, ...)."""
        place = self.places[step]
        there = None if data.there is None else data.there[:, place]
        return data.features[:, place], data.labels[:, place], there

    def stepped(self, state: Mapping[str, Tensor], step: int, batch: Batch) -> State:
        """The states after a step on a batch."""
        x, y, there = batch
        update = self.updates[step]
        return step_at_points(self.step_graph, self.schedule, state, x, y, update, there)

    def path(self, data: Poisoning, start: Mapping[str, Tensor] | None = None) -> list[State]:
        """The states after every step."""
        state: Mapping[str, Tensor] = self.start(len(data)) if start is None else start
        states = []
        for step in range(len(self.updates)):
            states.append(self.stepped(state, step, self.batch(data, step)))
            state = states[-1]
        return states

    def run(self, data: Poisoning, start: Mapping[str, Tensor] | None = None) -> State:
        """The final states."""
        return self.path(data, start)[-1]

    def gradient(
        self, data: Poisoning, score: Callable[[State], Tensor], start: State | None = None
    ) -> tuple[State, Poisoning]:
        """Final states, and the gradient of each attack's ``score`` (attacks,) in its data.

        A gradient that is not a number (a run that diverged) is returned as 0; so is that of features that
        no sample can move.
        """
        # Of single batches: through the data set, each step would fill a gradient as large as the data set.
        state = self.start(len(data)) if start is None else start
        batches: list[Batch] = []
        for step in range(len(self.updates)):
            x, y, there = self.batch(data, step)
            own = _leaf(x) if self._moves_features else x
            batches.append((own, _leaf(y), None if there is None else _leaf(there)))
            state = self.stepped(state, step, batches[-1])
        total = score(state).sum()
        pulls: dict[int, Tensor | None] = {}
        if total.requires_grad:
            known = [v for each in batches for v in each if v is not None and v.requires_grad]
            found = torch.autograd.grad(total, known, allow_unused=True)
            pulls = dict(zip(map(id, known), found, strict=True))
        of = [[pulls.get(id(v)) for v in kind] for kind in zip(*batches, strict=True)]
        gradient = Poisoning(
            self._summed(data.features, of[0]),
            self._summed(data.labels, of[1]),
            None if data.there is None else self._summed(data.there, of[2]),
        )
        return {name: value.detach() for name, value in state.items()}, gradient

    def _summed(self, like: Tensor, pulls: Sequence[Tensor | None]) -> Tensor:
        """The gradient in all entries from those in the batches of all steps."""
        if all(pull is None for pull in pulls):
            return torch.zeros_like(like[:, :1]).expand(like.shape)
        found = torch.zeros_like(like, memory_format=torch.contiguous_format)
        entries = torch.arange(like.shape[1], device=like.device)
        for place, pull in zip(self.places, pulls, strict=True):
            if pull is not None:
                own = torch.nan_to_num(pull, posinf=0.0, neginf=0.0)
                found.index_add_(1, entries[place], own)
        return found

    @property
    def _moves_features(self) -> bool:
        return self.poison.feature_moves is not None

    def pace(self) -> Pace:
        """Seconds of runs, measured by the first step of one run and of some at once."""
        seconds = []
        for attacks in (1, 1, SOME):  # the first is slow in a new process
            data = self.nominal(attacks)
            begun = monotonic()
            with torch.no_grad():
                self.stepped(self.start(attacks), 0, self.batch(data, 0))
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
        moving = self.moves.labels.numel()
        if self._moves_features:
            moving += self.moves.features.numel()
        # The data themselves, their gradient and the moves that it favours.
        return 16 * sum(each * len(batch) + shared for batch in self.batches) + 24 * moving

    def bytes_of_outputs(self, points: int) -> int:
        """Memory of the outputs of one model on test points, about."""
        nodes = self.step_graph.graph.needed_for([self.step_graph.output])
        return 16 * points * sum(node.signature.size for node in nodes if node.batched)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _differs(data: Tensor, nominal: Tensor) -> Tensor:
    """Which samples differ from the data as given, (attacks, n)."""
    if same(data, nominal.expand(data.shape)):
        return torch.zeros(data.shape[:2], dtype=torch.bool, device=data.device)
    return (data != nominal).flatten(2).any(-1)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one and the same memory, seen in the same way."""
    where = one.data_ptr(), one.shape, one.stride()
    return where == (other.data_ptr(), other.shape, other.stride())


def _with_places(poison: Poison, middle: Tensor) -> Poison:
    """The data with places for as many samples as may be inserted; these alone are open."""

    def extended(values: Tensor, new: Tensor) -> Tensor:
        return torch.cat([values, new.expand(poison.budget, *values.shape[1:])])

    closed = torch.zeros_like(poison.open)
    return replace(
        poison,
        features=extended(poison.features, middle),
        labels=extended(poison.labels, poison.labels[:1]),
        open=torch.cat([closed, closed.new_ones(poison.budget)]),
    )


def _movable(step_graph: StepGraph, poison: Poison) -> Poison:
    """Open samples may become any others within reach, with any label."""
    loss, labels = step_graph.loss, poison.labels
    moves: MoveSet = _within_reach(labels)
    if loss.is_classification:
        moves = Vertices(loss.vertices(step_graph.outputs).to(labels)[None] - labels[:, None])
    return replace(
        poison,
        feature_moves=_within_reach(poison.features.flatten(1)).only(poison.open),
        label_moves=moves.only(poison.open),
        whole=None,
    )


def _within_reach(values: Tensor) -> Box:
    """Moves of (N, size) into the box around all values, stretched from its middle."""
    low, high = values.amin(0), values.amax(0)
    middle = 0.5 * (low + high)
    reach = REACH * (high - middle).clamp(min=1e-3)
    return Box(middle - reach - values, middle + reach - values)
