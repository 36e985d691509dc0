"""One step of training on small data: intervals, forms and its update, against runs.

Every ``check_*`` function raises AssertionError where a rule breaks its contract, so that a mutant
that is one per cent too tight can be shown to fail the very same check.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from checks_rules import dot
from draws import poisoned
from torch import Tensor, nn

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.adversary.worst_case import open_worst_case
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.interval import bound_propagation as interval_engine
from milp_agt.bounds.linear import window_bounds as linear_engine
from milp_agt.bounds.linear.linearized_step import LinearizedStep, linearize_step
from milp_agt.bounds.step import NodeOrder, State, Step, initial_state, step_at_points, velocity_of
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.core.rounding import TINY, gamma
from milp_agt.threats import ThreatModel
from milp_agt.threats.poison import Poison
from milp_agt.training.inputs import labels_of
from milp_agt.training.tracing import StepGraph, trace
from milp_agt.training.training import Training


@dataclass(frozen=True)
class StepCase:
    """One training step over a box of parameters, ready for every engine."""

    step_graph: StepGraph
    schedule: NodeOrder
    poison: Poison
    state: State
    step: Step
    relaxed: LinearizedStep

    def attacks(self, count: int, seed: int, corners: bool) -> tuple[Tensor, Tensor]:
        """Admissible data of the batch; the first attack is none."""
        generator = torch.Generator().manual_seed(seed)
        selection = poisoned(self.step.poison, generator, count)
        selection[0] = False
        return self.step.poison.sample_moves(generator, selection, corners)

    def states(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Points of the box of states, corners among them."""
        points = {}
        for name, box in self.state.items():
            low, high = box.lower[0], box.upper[0]
            draw = rng.random((count, *low.shape))
            draw[: count // 2] = draw[: count // 2].round()
            point = low + (high - low) * torch.from_numpy(draw)
            points[name] = torch.minimum(torch.maximum(point, low), high)
        return points

    def after(
        self, states: dict[str, Tensor], features: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        return step_at_points(
            self.step_graph, self.schedule, states, features, labels, self.step.update
        )


def step_case(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    training: Training,
    threat: ThreatModel,
    width: float = 0.02,
) -> StepCase:
    """The first step of a run from a box of parameters (and velocities) of the given half-width."""
    features, raw = data
    step_graph = trace(model, training.loss, tuple(features.shape[1:]), training.clipping)
    schedule = NodeOrder.of(step_graph)
    labels = labels_of(raw, len(features), step_graph.loss, step_graph.outputs)
    poison = threat.bind(features, labels, step_graph.loss)
    box = {
        n: Interval((v - width).unsqueeze(0), (v + width).unsqueeze(0))
        for n, v in step_graph.initial.items()
    }
    momentum = training.momentum > 0
    state = initial_state(step_graph, box, momentum)
    if momentum:
        for name in step_graph.parameters:
            still = state[velocity_of(name)]
            state[velocity_of(name)] = Interval(still.lower - width, still.upper + width)
    batch = torch.from_numpy(training.batch_order(len(features))[0])
    step = Step(0, batch, poison.take(batch), training.update_rules(1)[0], momentum)
    joint = Joint(poison)
    ranges = interval_engine.propagate(schedule, state, step, joint, keep=schedule.batched)
    return StepCase(
        step_graph,
        schedule,
        poison,
        state,
        step,
        linearize_step(schedule, state, step, ranges, joint),
    )


def check_step_interval(case: StepCase, rng: np.random.Generator, count: int = 64) -> None:
    """Poisoned steps from the box of states end inside the interval update, without tolerance."""
    box = interval_engine.update(case.step_graph, case.state, case.relaxed.ranges, case.step)
    _check_inside(case, box, rng, count, "interval")


def check_step_linear(case: StepCase, rng: np.random.Generator, count: int = 64) -> None:
    """The same for linear bounds with window 1."""
    box = linear_engine.bound_state(case.schedule, [case.relaxed], Joint(case.poison), chunk=64)
    _check_inside(case, box, rng, count, "linear")


def _check_inside(
    case: StepCase, box: State, rng: np.random.Generator, count: int, what: str
) -> None:
    for corners in (True, False):
        states = case.states(count, rng)
        after = case.after(states, *case.attacks(count, int(rng.integers(2**30)), corners))
        for name, value in after.items():
            gap = torch.maximum(box[name].lower - value, value - box[name].upper)
            assert bool((gap <= 0).all()), f"{what}: '{name}' outside by {float(gap.max()):.3e}"


def check_update(case: StepCase, rng: np.random.Generator, count: int = 64) -> None:
    """The update alone: states and summed gradients at ends of their boxes, in interval arithmetic."""
    ranges = case.relaxed.ranges
    box = interval_engine.update(case.step_graph, case.state, ranges, case.step)
    states = case.states(count, rng)
    for name in case.step_graph.parameters:
        gradient = ranges.boxes[case.step_graph.gradients[name]]
        pick = torch.from_numpy(rng.integers(0, 2, size=(count, *gradient.lower.shape[1:])))
        total = torch.where(pick == 0, gradient.lower[0], gradient.upper[0])
        rule = case.step.update
        direction = total / case.step.size + rule.weight_decay * states[name]
        if case.step.has_velocity:
            velocity = rule.momentum * states[velocity_of(name)] + direction
            assert box[velocity_of(name)].contains(velocity), (
                f"update: velocity of '{name}' outside"
            )
            direction = direction + rule.momentum * velocity if rule.nesterov else velocity
        value = states[name] - rule.rate * direction
        assert box[name].contains(value), f"update: '{name}' outside"


def check_walk_of_update(
    case: StepCase, rng: np.random.Generator, rows: int = 6, count: int = 32
) -> None:
    """The linear walk through one step, plane against runs: forms lie below every sampled run."""
    c = {
        n: torch.from_numpy(rng.normal(size=(rows, *b.lower.shape[1:])))
        for n, b in case.state.items()
    }
    perturbation = open_worst_case(case.poison, rows, UNRESTRICTED)
    forms = linear_engine.propagate_backward(
        case.schedule, case.relaxed, Forms.start(c), perturbation
    )
    states = case.states(count, rng)
    features, labels = case.attacks(count, int(rng.integers(2**30)), True)
    after = case.after(states, features, labels)
    left = sum(dot(c[n].numpy(), after[n].numpy()) for n in case.state)
    right = forms.constant.numpy() + sum(
        dot(forms.coefficients[n].numpy(), states[n].numpy()) for n in case.state
    )
    worst_case = perturbation.worst().numpy()[:, None]
    error = (
        4.0 * gamma(forms.operations + 256) * (forms.magnitude.numpy()[:, None] + worst_case) + TINY
    )
    assert (left >= right - worst_case - error).all(), (
        f"walk above a run by {np.max(right - worst_case - left)}"
    )


def small_data(samples: int, features: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(samples, features)))
    if classes == 0:
        return x, torch.from_numpy(rng.normal(size=samples))
    return x, torch.from_numpy(rng.integers(0, classes, size=samples))


def mlp(*sizes: int, seed: int = 0, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(a, b).double())
        if k < len(sizes) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)
