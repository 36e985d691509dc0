"""Forms beyond their window: through the ends of earlier states; rows that tie programs to their past."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_sound, network, with_all_ranges
from pairs import every_pair
from test_nesting import case as problem_case
from torch import nn

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.program import move_columns
from milp_agt.certification import planning
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.errors import SoundnessError
from milp_agt.solvers import get_solver

THREATS = {
    "features": lambda **own: agt.FeaturePoisoning(2, 0.1, **own),
    "labels": lambda **own: agt.LabelPoisoning(1, radius=0.3, **own),
    "both": lambda **own: agt.FeatureLabelPoisoning(1, 0.1, label_radius=0.2, **own),
    "separate": lambda **own: agt.SeparatePoisoning(
        agt.FeaturePoisoning(2, 0.1, **own), agt.LabelPoisoning(1, radius=0.3, **own)
    ),
}


def case(
    kind: str = "both", epochs: int = 4, **own: Any
) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(8, width))) for width in (2, 1))
    training = agt.Training(
        loss="mse",
        learning_rate=0.2,
        epochs=epochs,
        batch_size=4,
        shuffle_seed=1,
        momentum=own.pop("momentum", 0.0),
    )
    model = network((2, 3, 1), nn.ReLU, seed=0)
    return Problem(model, x, y, training, THREATS[kind](**own)), x[:3], y[:3]


def planned(past: int, patch: pytest.MonkeyPatch) -> None:
    """Have all runs keep this many steps of the past at most."""
    honest = planning.make_plan

    def plan(*arguments: Any, **named: Any) -> planning.Plan:
        found = honest(*arguments, **named)
        return replace(found, past=min(past, found.past))

    patch.setattr(planning, "make_plan", plan)


@every_pair(
    kind=["features", "labels", "both", "separate"],
    static={"static": True, "adaptive": False},
    scope=["dataset", "batch"],
)
def test_no_attack_leaves_a_run_that_has_a_past(kind: str, static: bool, scope: str) -> None:
    problem, test, labels = case(kind, static=static, scope=scope)
    assert_sound(problem, test, labels, relaxation="linear", window=1)


def test_no_attack_leaves_a_run_with_momentum() -> None:
    problem, test, labels = case(momentum=0.5, static=False)
    assert_sound(problem, test, labels, relaxation="linear", window=2)


@pytest.mark.parametrize("window", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_past_only_tightens_and_every_step_of_it_counts(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, test, labels = case(epochs=6, static=False, scope="batch")
    widths, losses = [], []
    for past in (0, window + 1, 12):
        with pytest.MonkeyPatch.context() as patch:
            planned(past, patch)
            result, _ = problem.certify(relaxation="linear", window=window, selections="joint")
        widths.append(result.reachable.mean_width)
        losses.append(result.loss(test.numpy(), labels.numpy()).upper)
    assert widths[0] > widths[1] > widths[2]
    assert losses[0] > losses[1] > losses[2]


def test_a_run_through_all_of_its_steps_needs_no_past(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[planning.Plan] = []
    honest = planning.make_plan

    def plan(*arguments: Any, **named: Any) -> planning.Plan:
        plans.append(honest(*arguments, **named))
        return plans[-1]

    monkeypatch.setattr(planning, "make_plan", plan)
    problem, *_ = case(epochs=2)
    for options in ({"window": None}, {"window": 1}, {"window": 1, "memory": 1024}):
        problem.certify(relaxation="linear", **options)
    assert [p.past for p in plans] == [0, 3, 0]


@pytest.mark.parametrize("kind", ["unpaid", "shrunk"])
def test_mutants_of_the_past_are_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Forms.paying

    def paying(forms: Forms, worst_case: torch.Tensor) -> Forms:
        return honest(forms, (0.0 if kind == "unpaid" else 0.3) * worst_case)

    monkeypatch.setattr(Forms, "paying", paying)
    problem, test, labels = case("labels", epochs=6, static=False, scope="batch")
    with pytest.raises((AssertionError, SoundnessError)):
        assert_sound(problem, test, labels, relaxation="linear", window=1)


# -----------------------------------------------------------------------------
# Rows that tie programs to their past: sound, never looser, mutants caught.


OPTIONS = program.SolveOptions(get_solver("highs"), Limits())


def test_rows_of_the_past_only_help() -> None:
    """From one reachable set, a window that is tied to the steps before it lies within one that is not."""
    case, steps = _run(agt.FeaturePoisoning(1, 0.1), 4)
    wide = {n: Interval(b.lower - 10.0, b.upper + 10.0) for n, b in steps[-1].state.items()}
    run = (case.step_graph, case.schedule, steps[3:], case.poison, False)
    bounds = []
    for past in ([], steps[:3]):
        found, report = program.bound_state(
            program.Window(*run, past=past).program(), wide, OPTIONS
        )
        assert report.solves == report.bounds.size
        bounds.append(found)
    for name, box in bounds[1].items():
        assert bool((box.lower >= bounds[0][name].lower - 1e-8).all())
        assert bool((box.upper <= bounds[0][name].upper + 1e-8).all())
    assert _width(bounds[1]) < _width(bounds[0]) - 1e-6


def _width(state: Any) -> float:
    return float(sum(box.width.sum() for box in state.values()))


def _run(threat: Any, steps: int) -> tuple[Any, list[LinearizedStep]]:
    recorder = MemoryRecorder()
    problem = problem_case("bce", threat, count=5, epochs=steps)
    result, _ = problem.certify(relaxation="linear", inner_bounds="linear", recorder=recorder)
    assert result.models is not None
    return result.models, with_all_ranges(result.models, recorder.steps["linear"])


def _slack_of_influence(threat: Any, share: float) -> float:
    """The least of ``+-theta - constant + share * sum_{i in S} dev_i`` over attacks with known S."""
    models, steps = _run(threat, 3)
    found = move_columns.influence_on(
        models.schedule, steps[:2], steps[2].state, Joint(models.poison)
    )
    replay = Replay(problem_case("bce", threat, count=5, epochs=2))
    generator, least = torch.Generator().manual_seed(1), np.inf
    for corners in (True, False):
        attacks = replay.random(1000, generator, corners)
        chosen = torch.zeros(1000, 5, dtype=torch.bool)
        for x, y in zip(attacks.features, attacks.labels, strict=True):
            chosen |= (x != replay.poison.features).any(-1) | (y != replay.poison.labels).any(-1)
        state = replay.run(attacks)[-1]
        flat = torch.cat([state[n].flatten(1) for n in steps[2].state], 1).numpy()
        paid = share * (chosen.numpy().astype(float) @ found.devs.T)
        least = min(least, float((np.concatenate([flat, -flat], 1) - found.constant + paid).min()))
    return least


@pytest.mark.parametrize(
    "threat",
    [
        agt.FeaturePoisoning(2, 0.1),
        agt.FeaturePoisoning(2, 0.1, static=False, scope="dataset"),
        agt.FeatureLabelPoisoning(1, 0.1),
    ],
)
def test_influence_holds_for_every_selection(threat: Any) -> None:
    assert _slack_of_influence(threat, 1.0) >= 0.0


def test_influence_that_charges_one_percent_less_is_caught() -> None:
    """Where moves are small the forms are almost exact, so that nothing can be taken away."""
    threat = agt.FeaturePoisoning(1, 1e-4)
    assert _slack_of_influence(threat, 1.0) >= 0.0
    assert _slack_of_influence(threat, 0.99) < 0.0


@pytest.mark.usefixtures("linear_alone")
def test_influence_is_as_tight_as_the_walk() -> None:
    models, steps = _run(agt.FeaturePoisoning(2, 0.1), 4)
    state = steps[3].state
    found = move_columns.influence_on(models.schedule, steps[:3], state, Joint(models.poison))
    budget = np.sort(found.devs, axis=1)[:, -2:].sum(1)
    ends = torch.cat([b.lower.flatten() for b in state.values()])
    ends = torch.cat([ends, -torch.cat([b.upper.flatten() for b in state.values()])]).numpy()
    assert (found.constant - budget >= ends - 1e-6 * np.abs(ends) - 1e-3).all()
    assert np.median(found.constant - budget - ends) > -1e-9


def test_completed_ranges_hold_all_nodes() -> None:
    """Programs may start from the sets of linear bounds, which keep only some ranges."""
    problem = problem_case("bce", agt.FeaturePoisoning(1, 0.2), count=4, epochs=2)
    recorder = MemoryRecorder()
    result, _ = problem.certify(relaxation="linear", inner_bounds="linear", recorder=recorder)
    models, last = result.models, recorder.steps["linear"][-1]
    joint = Joint(models.poison)
    ranges = bound_propagation.completed(models.schedule, last.state, last.step, joint, last.ranges)
    for name, box in last.ranges.boxes.items():
        found = ranges.boxes[name]
        known = box.expand_states(len(found.lower))
        assert bool((found.lower >= known.lower).all())
        assert bool((found.upper <= known.upper).all())
    assert {n.name for n in models.schedule.all} <= set(ranges.boxes)
