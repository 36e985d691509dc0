"""Losses in float32, and runs that round as badly as they can."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside
from float32_runs import in_double, in_float32, loss_in_torch
from mutants import is_caught
from pairs import every_pair
from problems import problem as small
from test_float32_rules import U, points
from torch import nn

from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.step import NodeOrder, Step, velocity_of
from milp_agt.core.graph import evaluate
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import ELEMENTARY, FLOAT32, FLOAT64, Precision
from milp_agt.formulations.loss import get_loss, losses
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.training.precision import in_precision
from milp_agt.training.tracing import FEATURES, LABELS, trace

LOSSES = sorted(losses())


def check_loss(loss: str, precision: Precision, seed: int) -> None:
    """Gradients by autograd of torch's loss in float32, times the count of samples, stay within the error."""
    rng = np.random.default_rng(seed)
    outputs = {"mse": 3, "cross_entropy": int(rng.integers(2, 12))}.get(loss, 1)
    n = int(rng.integers(1, 9))
    f = points((n, outputs), rng)
    if loss == "mse":
        y = points((n, outputs), rng)
    else:
        y = get_loss(loss).encode(torch.from_numpy(rng.integers(0, max(2, outputs), n)), outputs)
    grads = []
    for dtype in (torch.float32, torch.float64):
        own = f.to(dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(loss_in_torch(loss, own, y.to(dtype)), own)
        grads.append(gradient.double() * n)
    boxes = [Interval.point(t[None]) for t in (f, y)]
    error = get_loss(loss).run_error(precision, *boxes)[0]
    assert bool(((grads[0] - grads[1]).abs() <= error).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_losses_in_float32(loss: str) -> None:
    for seed in range(100):
        check_loss(loss, FLOAT32, seed)
    less = replace(FLOAT32, unit=FLOAT64.unit)
    assert is_caught(lambda seed: check_loss(loss, less, seed), range(100))


def check_options(precision: Precision, seed: int) -> None:
    """The same with smoothing and weights, times the weights of all labels."""
    rng = np.random.default_rng(seed)
    outputs, n = int(rng.integers(1, 9)), int(rng.integers(1, 9))
    f = points((n, outputs), rng)
    classes = torch.from_numpy(rng.integers(0, max(2, outputs), n))
    weights = torch.from_numpy(10.0 ** rng.uniform(-2, 2, max(2, outputs))).float().double()
    smoothing = float(rng.choice([0.0, 0.1, 0.9]))
    if outputs == 1:
        loss = get_loss("bce").configured(positive_weight=float(weights[0]))
    else:
        own = tuple(weights.tolist()) if seed % 3 else None
        smoothing = smoothing if own else 0.3
        loss = get_loss("cross_entropy").configured(class_weights=own, label_smoothing=smoothing)
    y = loss.encode(classes, outputs)
    divisor = loss.divisor(y)
    grads = []
    for dtype in (torch.float32, torch.float64):
        own_f = f.to(dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(loss.plain(own_f, y.to(dtype)), own_f)
        grads.append(gradient.double() * (n if divisor is None else divisor))
    # By the divisor, a sum over the batch, sizes of the optimiser's step grow.
    slack = precision.gamma(2 * n) * grads[1].abs() + precision.tiny
    error = loss.run_error(precision, *(Interval.point(t[None]) for t in (f, y)))[0]
    assert bool(((grads[0] - grads[1]).abs() <= error + slack).all())


def test_gradients_of_losses_with_options_in_float32() -> None:
    for seed in range(200):
        check_options(FLOAT32, seed)
    less = replace(FLOAT32, unit=FLOAT64.unit)
    assert is_caught(lambda seed: check_options(less, seed), range(100))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_grants_of_losses_are_those_of_their_proofs(loss: str) -> None:
    """At outputs 2 and -1 and the first class: half of a grant is not enough for this test."""
    f = torch.tensor([[2.0, -1.0]]).double()
    y = torch.tensor([[1.0, 0.0]]).double()
    if loss in ("bce", "hinge"):
        f, y = f[:, :1], y[:, :1]
    found = get_loss(loss).run_error(FLOAT32, *(Interval.point(t[None]) for t in (f, y)))[0, 0]
    six = FLOAT32.gamma(6)
    p = torch.tensor([1.0, math.exp(-3.0)], dtype=torch.float64)
    terms = 32.0 + 2.9 + 21.0 * math.log(2)
    expected = {
        "mse": (f.abs() + y)[0] * six,
        "hinge": torch.tensor([FLOAT32.gamma(6)], dtype=torch.float64),
        "bce": torch.sigmoid(f[0]) * U * (2 * ELEMENTARY + 8.0) + 2.0 * six,
        "cross_entropy": p * 1.1 * U * (terms + 6.0 * (2.0 - f[0]) + 4.0) + (p + y[0]) * six,
    }[loss]
    assert torch.allclose(found, expected + FLOAT32.tiny, rtol=1e-9, atol=0.0)


def worst_rounding_run(
    problem: Problem, generator: torch.Generator, signs: str
) -> list[dict[str, Any]]:
    """States of a nominal run whose every rounding is as large as its bound, up or down."""
    replay = Replay(in_double(problem))
    x, y = replay.poison.features, replay.poison.labels
    largest = max(map(len, replay.batches))
    clipping = problem.training.clipping
    shape = tuple(x.shape[1:])
    traced = trace(in_double(problem).model, problem.training.loss, shape, clipping, FLOAT32)
    graph = in_precision(traced, FLOAT32, largest)
    schedule = NodeOrder.of(graph)
    moving = problem.training.momentum > 0
    state = dict(graph.initial)
    if moving:
        state |= {velocity_of(n): torch.zeros_like(v) for n, v in graph.initial.items()}

    def off(size: torch.Tensor) -> torch.Tensor:
        if signs != "mixed":
            return size if signs == "up" else -size
        return size * (2.0 * torch.randint(2, size.shape, generator=generator) - 1.0)

    def rounded(op: RunRounding, *values: torch.Tensor) -> torch.Tensor:
        points = (Interval.point(v[None]) for v in values)
        return values[0] + 0.999 * off(op.error(*points)[0])

    def summed(op: SumSamples, *values: torch.Tensor) -> torch.Tensor:
        axis = values[0].dim() - op.rank - 1
        size = values[0].abs().sum(axis)
        total = Interval.point(values[0].sum(axis))
        return total.lower + 0.999 * off(0.5 * op.widened(total, size).width)

    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunRounding, "value", rounded)
        patch.setattr(SumSamples, "value", summed)
        for index, (batch, update) in enumerate(zip(replay.batches, replay.updates, strict=True)):
            samples = torch.as_tensor(batch)
            step = Step(index, samples, replay.poison.take(samples), update, moving)
            leaves = {**state, FEATURES: x[samples], LABELS: y[samples]}
            values = evaluate(schedule.all, leaves)
            built = UpdateGraph.of(graph.gradient_nodes, step, FLOAT32)
            values |= evaluate(built.nodes, values)
            state = {name: values[node] for name, node in built.outputs.items()}
            for name, node in built.projections.items():
                state[name] = node.op.value(state[name])
            states.append(state)
    return states


@every_pair(
    loss=["mse", "bce", "cross_entropy", "hinge"],
    relaxation=["interval", "linear", pytest.param("lp", marks=pytest.mark.slow)],
    signs=["up", "down", "mixed"],
)
def test_runs_that_round_as_badly_as_they_may_lie_inside(
    loss: str, relaxation: str, signs: str
) -> None:
    """At every level; and boxes of half the width would not hold them: nothing is granted twice over."""
    options = {"momentum": 0.9, "weight_decay": 0.1, "batch_size": 4, "epochs": 2, "l1": 0.01}
    problem = in_float32(small(loss, "features", options, budget=0, activation=nn.Tanh)[0])
    _, boxes = problem.certify(relaxation=relaxation, precision="float32")
    states = worst_rounding_run(problem, torch.Generator().manual_seed(0), signs)
    assert_inside(boxes, states)
    half = [
        replace(
            box,
            lower={n: box.nominal[n] - 0.5 * (box.nominal[n] - v) for n, v in box.lower.items()},
            upper={n: box.nominal[n] + 0.5 * (v - box.nominal[n]) for n, v in box.upper.items()},
        )
        for box in boxes
    ]
    with pytest.raises(AssertionError):
        assert_inside(half, states)
