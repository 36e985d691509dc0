"""Training in float32 by plain torch, on data that a threat admits: what float32 certificates are held to."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from attacks import Attacks, Problem, Replay
from drawn_runs import drawn_problem
from draws import Array
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import milp_agt as agt
from milp_agt.certification.result import Result
from milp_agt.core.reachable import ReachableSet

State = dict[str, Tensor]
KERNELS: tuple[dict[str, bool], ...] = ({"foreach": False}, {"foreach": True}, {"fused": True})


def power_of_two(scale: float) -> float:
    """The largest power of two up to a scale."""
    return 2.0 ** math.floor(math.log2(scale))


def on_grid(tensor: Tensor, step: float) -> Tensor:
    """Rounded towards zero to multiples of a power of two: no norm grows, and few bits are used."""
    return (tensor / step).trunc() * step


def in_float32(problem: Problem) -> Problem:
    """A run of float32 numbers: a float32 model, and data and limits with few bits.

    Data are multiples of ``2^-9`` of their scale, so that moves on a finer grid (:func:`poisoned_data`) are
    added without rounding.
    """
    x, y = problem.features.double(), problem.labels
    x = on_grid(x, grid_of(x) * 2.0**5)
    if problem.training.loss == "mse":
        y = on_grid(y.double(), 2.0**-9).float()
    training = problem.training
    if training.clip_mode == "clamp":
        training = replace(training, clip=0.125)
    model = copy.deepcopy(problem.model).float()
    return replace(problem, model=model, features=x.float(), labels=y, training=training)


def in_double(problem: Problem) -> Problem:
    """The same run in float64, from the same numbers."""
    model = copy.deepcopy(problem.model).double()
    labels = problem.labels.double() if problem.training.loss == "mse" else problem.labels
    return replace(problem, model=model, features=problem.features.double(), labels=labels)


def grid_of(features: Tensor) -> float:
    """The grid of poisoned features."""
    return power_of_two(max(float(features.abs().max()), 1e-6)) * 2.0**-14


def poisoned_data(problem: Problem, attacks: Attacks) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and encoded labels of every step of attacks, whose moves are put on a grid, (attacks, n, ...).

    A move that is rounded towards zero stays within a ball of any norm, and the sum is exact in float32.
    """
    features, labels = (t.double() for t in (problem.features, attacks.unrolled.poison.labels))
    grid = grid_of(features)
    for batch, x, y in zip(attacks.unrolled.batches, attacks.features, attacks.labels, strict=True):
        index = torch.as_tensor(batch)
        moved = features[index] + on_grid(x - features[index], grid)
        target = labels[index] + on_grid(y - labels[index], 2.0**-14)
        assert bool((moved.float().double() == moved).all())
        assert bool((target.float().double() == target).all())
        yield moved.float(), target.float()


def loss_in_torch(loss: str, outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean loss as users write it, from encoded labels."""
    if loss == "mse":
        return functional.mse_loss(outputs, labels)
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(outputs, labels)
    if loss == "hinge":
        return torch.relu(1.0 - (2.0 * labels - 1.0) * outputs).mean()
    return functional.cross_entropy(outputs, labels.argmax(-1))


@dataclass
class Trainer:
    """One run in float32: a model of the user, ``torch.optim.SGD``, and what comes before and after it."""

    model: nn.Module
    training: agt.Training
    kernel: dict[str, bool]

    def __post_init__(self) -> None:
        self.model = copy.deepcopy(self.model)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 for p in self.trained)
        self.optimiser = torch.optim.SGD(
            self.trained,
            lr=0.1,
            momentum=self.training.momentum,
            nesterov=self.training.nesterov,
            weight_decay=self.training.weight_decay,
            **self.kernel,
        )

    def step(self, x: Tensor, y: Tensor, rate: float) -> State:
        """The parameters after a step."""
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.zero_grad()
        if self.training.clip is None:
            loss = loss_in_torch(self.training.loss, self.model(x), y)
            if self.training.l1:
                loss = loss + self.training.l1 * sum(p.abs().sum() for p in self.trained)
            loss.backward()
        else:
            self._clipped(x, y)
        self.optimiser.step()
        if self.training.projection is not None:
            with torch.no_grad():
                for parameter in self.trained:
                    parameter.clamp_(*self.training.projection)
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def _clipped(self, x: Tensor, y: Tensor) -> None:
        """The mean of the clipped gradients of all samples, in ``grad``."""
        clip = self.training.clip
        assert clip is not None
        totals = [torch.zeros_like(p) for p in self.trained]
        for i in range(len(x)):
            loss = loss_in_torch(self.training.loss, self.model(x[i : i + 1]), y[i : i + 1])
            own = torch.autograd.grad(loss, self.trained)
            if self.training.clip_mode == "clamp":
                own = tuple(g.clamp(-clip, clip) for g in own)
            else:
                norm = torch.stack([torch.linalg.vector_norm(g) for g in own]).norm()
                factor = (clip / norm).clamp(max=1.0)
                own = tuple(g * factor for g in own)
            for total, gradient in zip(totals, own, strict=True):
                total += gradient
        for parameter, total in zip(self.trained, totals, strict=True):
            parameter.grad = total / len(x)


def trained_in_float32(
    problem: Problem, attacks: Attacks, row: int, kernel: dict[str, bool]
) -> tuple[list[State], nn.Module]:
    """Parameters after every step of one poisoned run, and the model."""
    trainer = Trainer(problem.model, problem.training, kernel)
    data = poisoned_data(problem, attacks)
    rates = [update.rate for update in attacks.unrolled.updates]
    states = [trainer.step(x[row], y[row], r) for (x, y), r in zip(data, rates, strict=True)]
    return states, trainer.model


def escaped(box: ReachableSet, state: State) -> list[str]:
    """Parameters outside a box, no tolerance."""
    found = []
    for name, value in state.items():
        array: Array = value.double().numpy()
        low, high = box.lower[name], box.upper[name]
        if not ((low <= array) & (array <= high)).all():
            excess = float(max((low - array).max(), (array - high).max()))
            found.append(f"{name} by {excess:.3e} of a width {float((high - low).max()):.3e}")
    return found


def runs_of(problem: Problem, seed: int = 0, rows: int = 3) -> Iterator[tuple[Attacks, int]]:
    """The nominal run and random, extreme and steepest attacks, by row."""
    replay, generator = Replay(problem), torch.Generator().manual_seed(seed)
    nominal = Attacks(replay.unrolled, replay.unrolled.nominal(1), replay.start(1, generator))
    yield nominal, 0
    attacks = [replay.random(rows, generator, corners) for corners in (False, True)]
    if not replay.poison.is_clean:
        test, labels = problem.features[:2].double(), problem.labels[:2]
        objective, count = replay.objectives(test, labels, 3, generator)
        attacks += itertools.islice(replay.by_gradient(objective, count, generator, 2), 2)
    for attack in attacks:
        yield from ((attack, row) for row in range(rows))


def assert_holds(
    problem: Problem, result: Result, boxes: Sequence[ReachableSet], kernel: dict[str, bool]
) -> None:
    """Every run of torch in float32 lies inside, step by step, and so do the outputs of its model."""
    test = problem.features.float()
    outputs = result.predictions(test)
    for attacks, row in runs_of(problem):
        states, model = trained_in_float32(problem, attacks, row, kernel)
        for t, (box, state) in enumerate(zip(boxes, states, strict=True)):
            assert not escaped(box, state), f"row {row}, step {t + 1}: {escaped(box, state)}"
        with torch.no_grad():
            found = model(test).double().numpy()
        assert (outputs.lower <= found).all()
        assert (found <= outputs.upper).all()


@st.composite
def float32_problems(draw: Any, most: int = 7, hidden: int = 4) -> Problem:
    """A float32 run with a threat to features, labels or both."""
    problem = drawn_problem(draw, most, hidden)
    if isinstance(problem.threat, (agt.Substitution, agt.Removal)):
        radius = 0.1 * max(float(problem.features.abs().max()), 1e-6)
        problem = replace(problem, threat=agt.FeaturePoisoning(1, radius))
    return in_float32(problem)
