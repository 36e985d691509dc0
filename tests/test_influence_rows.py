"""Rows that tie programs over a window to the steps before it: sound, never looser, mutants caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attacks import Replay, with_all_ranges
from test_nesting import case as problem_case

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.program import move_columns
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.solvers import get_solver

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
