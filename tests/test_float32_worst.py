"""A run whose every rounding in float32 is as bad as its bound: the bounds of all operations at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attacks import Problem, Replay, assert_inside
from float32_runs import in_double, in_float32
from pairs import every_pair
from problems import problem as small
from torch import nn

from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.step import NodeOrder, Step, velocity_of
from milp_agt.core.graph import evaluate
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import FLOAT32
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.training.precision import in_precision
from milp_agt.training.tracing import FEATURES, LABELS, trace


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
