"""Real runs on data sets with samples substituted, removed or inserted, many at once, in plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from attacks import Problem
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from milp_agt.formulations.loss import get_loss
from milp_agt.training import inputs

State = dict[str, Tensor]
# Features and encoded labels of the batch of one step, and 1 for the samples that are there.
Batches = list[tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Trainer:
    """Gradient descent as it is written by hand, over runs stacked on the first axis."""

    problem: Problem

    @property
    def outputs(self) -> int:
        return int(
            [m for m in self.problem.model.modules() if isinstance(m, nn.Linear)][-1].out_features
        )

    def encoded(self, labels: Tensor) -> Tensor:
        loss = get_loss(self.problem.training.loss)
        return inputs.labels_of(labels, len(labels), loss, self.outputs)

    def gradients(self, state: State, x: Tensor, y: Tensor) -> State:
        """The gradient of every sample, clipped, (runs, n, *shape)."""
        training, model = self.problem.training, self.problem.model
        loss = get_loss(training.loss).plain

        def of_sample(parameters: State, features: Tensor, label: Tensor) -> Tensor:
            return loss(functional_call(model, parameters, (features[None],)), label[None])

        found = vmap(vmap(grad(of_sample), in_dims=(None, 0, 0)))(state, x, y)
        if training.clip is None:
            return found
        if training.clip_mode == "clamp":
            return {n: g.clamp(-training.clip, training.clip) for n, g in found.items()}
        flat = torch.cat([g.flatten(2) for g in found.values()], 2)
        factor = (training.clip / torch.linalg.vector_norm(flat, dim=2)).clamp(max=1.0)
        return {
            n: g * factor.reshape(*factor.shape, *[1] * (g.dim() - 2)) for n, g in found.items()
        }

    def run(self, batches: Batches) -> list[State]:
        """The parameters after every step. A batch without samples skips its step."""
        training = self.problem.training
        state = {n: p.detach().clone() for n, p in self.problem.model.named_parameters()}
        runs = len(batches[0][2])
        state = {n: p.expand(runs, *p.shape) for n, p in state.items()}
        velocity = {n: torch.zeros_like(p) for n, p in state.items()}
        states = []
        for (x, y, there), update in zip(batches, training.update_rules(len(batches)), strict=True):
            count = there.sum(1)
            new_state, new_velocity = {}, {}
            for n, g in self.gradients(state, x, y).items():
                ones = [1] * (g.dim() - 2)
                kept = torch.where(there.reshape(*there.shape, *ones) > 0, g, 0.0)
                mean = kept.sum(1) / count.clamp(min=1).reshape(-1, *ones)
                mean = mean + update.weight_decay * state[n]
                v = update.momentum * velocity[n] + mean
                step = mean + update.momentum * v if update.nesterov else v
                taken = (count > 0).reshape(-1, *ones)
                new_velocity[n] = torch.where(taken, v, velocity[n])
                new_state[n] = torch.where(taken, state[n] - update.rate * step, state[n])
            state, velocity = new_state, new_velocity
            states.append(state)
        return states

    def order(self) -> list[Tensor]:
        return [
            torch.from_numpy(b)
            for b in self.problem.training.batch_order(len(self.problem.features))
        ]

    def of_data(self, x: Tensor, y: Tensor, there: Tensor) -> Batches:
        """Batches of whole data sets, (runs, N, ...)."""
        return [(x[:, b], y[:, b], there[:, b]) for b in self.order()]

    def removed(self, selections: Sequence[Sequence[int]]) -> list[State]:
        """Runs without these samples."""
        x, y = self.problem.features, self.encoded(self.problem.labels)
        there = torch.ones(len(selections), len(x), dtype=torch.float64)
        for run, gone in enumerate(selections):
            there[run, list(gone)] = 0.0
        shape = (len(selections), *[-1] * x.dim())
        return self.run(self.of_data(x.expand(shape), y.expand(len(selections), *y.shape), there))

    def substituted(
        self, selections: Sequence[Sequence[int]], pool: Tensor, labels: Tensor
    ) -> list[State]:
        """Runs with every choice from the pool in the places of every selection."""
        choices = [
            (places, new)
            for places in selections
            for new in itertools.product(range(len(pool)), repeat=len(places))
        ]
        x = self.problem.features.expand(len(choices), *self.problem.features.shape).clone()
        y = self.encoded(self.problem.labels)
        y, encoded = y.expand(len(choices), *y.shape).clone(), self.encoded(labels)
        for run, (places, new) in enumerate(choices):
            x[run, list(places)], y[run, list(places)] = pool[list(new)], encoded[list(new)]
        return self.run(self.of_data(x, y, torch.ones(x.shape[:2], dtype=torch.float64)))

    def inserted(self, budget: int, pool: Tensor, labels: Tensor) -> list[State]:
        """Runs with up to ``budget`` samples of the pool, the same ones, in every batch."""
        choices = [
            new
            for size in range(budget + 1)
            for new in itertools.combinations_with_replacement(range(len(pool)), size)
        ]
        x, y, encoded = (
            self.problem.features,
            self.encoded(self.problem.labels),
            self.encoded(labels),
        )
        index = torch.tensor([[*new, *[0] * (budget - len(new))] for new in choices])
        more = torch.tensor([[float(s < len(new)) for s in range(budget)] for new in choices])
        index, more = index.reshape(-1, budget), more.double().reshape(-1, budget)
        runs = len(choices)
        batches = []
        for b in self.order():
            there = torch.cat([torch.ones(runs, len(b), dtype=torch.float64), more], 1)
            xs = torch.cat([x[b].expand(runs, *x[b].shape), pool[index]], 1)
            ys = torch.cat([y[b].expand(runs, *y[b].shape), encoded[index]], 1)
            batches.append((xs, ys, there))
        return self.run(batches)


def subsets(count: int, budget: int) -> Iterator[tuple[int, ...]]:
    """All selections of up to ``budget`` samples."""
    for size in range(budget + 1):
        yield from itertools.combinations(range(count), size)
