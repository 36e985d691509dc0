"""Rows on phases, products of rows, cuts on the last state, equal samples in order: sound, never looser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Attacks, Problem, Replay
from test_nesting import case as problem_case
from test_strengthening import OFF, OPTIONS, _attacked, _run, _width, least_slack

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.program import phases, symmetry
from milp_agt.bounds.program.move_columns import MoveColumns
from milp_agt.core.encoder import Encoder
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.core.strengthening import Strengthening

EVERY = Strengthening(cuts=True, phases=True, rlt=True, symmetry=True, selection_first=True)


@pytest.mark.parametrize("level", ["lp", pytest.param("milp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "threat",
    [
        agt.FeaturePoisoning(2, 0.3),
        pytest.param(
            agt.FeaturePoisoning(1, 0.3, static=False, scope="dataset"), marks=pytest.mark.slow
        ),
        pytest.param(agt.FeatureLabelPoisoning(1, 0.2), marks=pytest.mark.slow),
    ],
)
def test_attacks_stay_inside(level: str, threat: Any) -> None:
    problem = problem_case("bce", threat, epochs=3)
    _, boxes = problem.certify(
        relaxation=level, strengthening=EVERY, inner_bounds="interval", program_window=2
    )
    _attacked(problem, boxes)


def test_trees_keep_runs_where_rows_hold_with_equality() -> None:
    """From a point, the cuts on the state after a step are met by attacks to the last digits; a tree by
    HiGHS with presolve, and rows as they are, cuts such runs off."""
    problem = problem_case("bce", agt.FeatureLabelPoisoning(1, 0.2), epochs=1)
    _, boxes = problem.certify(
        relaxation="milp",
        strengthening=Strengthening(cuts=True),
        selections="joint",
        solver="highs",
    )
    _attacked(problem, boxes)


def test_switches_only_help() -> None:
    """From one reachable set; every attack on the data takes part in every row."""
    case, steps = _run(agt.FeaturePoisoning(2, 0.3), 4)
    wide = {n: Interval(b.lower - 10.0, b.upper + 10.0) for n, b in steps[-1].state.items()}
    base = replace(OFF, influence=True)
    bounds = {}
    for name, switches in {
        "base": base,
        "cuts": replace(base, cuts=True),
        "phases": replace(base, phases=True),
        "rlt": replace(base, phases=True, rlt=True),
    }.items():
        encoded = program.encode_window(
            case.step_graph,
            case.schedule,
            steps[2:],
            case.poison,
            False,
            past=steps[:2],
            strengthening=switches,
        )
        bounds[name], report = program.bound_state(encoded, wide, OPTIONS)
        bounds[name + " rows"] = report.size["rows"]
    for looser, tighter in (("base", "cuts"), ("base", "phases"), ("phases", "rlt")):
        for name, box in bounds[tighter].items():
            assert bool((box.lower >= bounds[looser][name].lower - 1e-7).all())
            assert bool((box.upper <= bounds[looser][name].upper + 1e-7).all())
        assert bounds[tighter + " rows"] > bounds[looser + " rows"]
    assert _width(bounds["cuts"]) < _width(bounds["base"]) - 1e-6
    assert _width(bounds["phases"]) < _width(bounds["base"]) - 1e-6


def _slack(threat: Any, share: float) -> float:
    """The least of ``+-z - constant + share * sum_{i in S} dev_i`` over attacks, for all units of a step."""
    models, steps = _run(threat, 3)
    node = next(n for n in models.schedule.before if n.op.key == "step")
    z = next(n for n in models.schedule.before if n.name == node.inputs[0])
    last = steps[2]
    count = last.step.size * z.signature.size
    moves = MoveColumns(Encoder(False), models.poison, UNRESTRICTED)
    found = phases.influence_inside(models.schedule, steps[:2], last, z, np.arange(count), moves)
    replay = Replay(problem_case("bce", threat, count=5, epochs=3))

    def arguments(attacks: Attacks) -> torch.Tensor:
        x, y = attacks.features[2], attacks.labels[2]
        leaves = {**replay.run(attacks)[-2], "features": x, "labels": y}
        values = models.schedule.values({**leaves, "selection": torch.zeros_like(y)})
        return values[z.name].flatten(1)

    return least_slack(replay, found, arguments, share)


@pytest.mark.parametrize(
    "threat", [agt.FeaturePoisoning(2, 0.1), agt.FeatureLabelPoisoning(1, 0.1)]
)
def test_influence_inside_a_step_holds_for_every_selection(threat: Any) -> None:
    assert _slack(threat, 1.0) >= 0.0


def test_influence_inside_that_charges_one_percent_less_is_caught() -> None:
    threat = agt.FeaturePoisoning(1, 1e-4)
    assert _slack(threat, 1.0) >= 0.0
    assert _slack(threat, 0.99) < 0.0


def test_phases_that_are_tied_too_tightly_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flip that nobody needs to pay for loses attacked runs."""
    problem = problem_case("bce", agt.FeaturePoisoning(1, 2.0), count=3, epochs=2)
    options: dict[str, Any] = {
        "relaxation": "lp",
        "strengthening": EVERY,
        "inner_bounds": "interval",
        "program_window": 2,
    }
    _attacked(problem, problem.certify(**options)[1])
    original = phases.influence_inside

    def free(*arguments: Any) -> Any:
        found = original(*arguments)
        return replace(found, devs=0.0 * found.devs)

    monkeypatch.setattr(phases, "influence_inside", free)
    with pytest.raises((AssertionError, agt.MilpAgtError)):
        _attacked(problem, problem.certify(**options)[1])


def _twins(**run: Any) -> Problem:
    problem = problem_case("bce", agt.FeaturePoisoning(1, 0.3), count=2, epochs=2, **run)
    twice = torch.tensor([0, 0, 1, 1])
    return replace(problem, features=problem.features[twice], labels=problem.labels[twice])


def test_equal_samples_are_poisoned_in_order() -> None:
    problem = _twins()
    found = {}
    for on in (False, True):
        result, boxes = problem.certify(
            relaxation="milp",
            strengthening=Strengthening(symmetry=on),
            inner_bounds="interval",
            window=2,
        )
        _attacked(problem, boxes, 100)
        assert result.steps[-1].program is not None
        found[on] = result
    rows = [found[on].steps[-1].program["rows"] for on in (False, True)]
    assert rows[1] == rows[0] + 2
    assert found[True].reachable.mean_width == pytest.approx(
        found[False].reachable.mean_width, rel=1e-5
    )


def test_samples_are_equal_only_where_nothing_tells_them_apart() -> None:
    problem = _twins()
    models = problem.certify(relaxation="linear")[0].models
    _, steps = _run(agt.FeaturePoisoning(1, 0.3), 2)
    every = [replace(s.step, samples=torch.arange(4)) for s in steps]
    poison = models.poison
    assert len(set(symmetry._alike(poison, every).tolist())) == 2
    apart = [every[0], replace(every[1], samples=torch.tensor([0, 2, 3]))]
    assert len(set(symmetry._alike(poison, apart).tolist())) == 3
    shut = replace(poison, open=torch.tensor([True, True, True, False]))
    assert len(set(symmetry._alike(shut, every).tolist())) == 3
    moves = poison.feature_moves
    high = moves.high.clone()
    high[1] *= 0.5
    other = replace(poison, feature_moves=replace(moves, high=high))
    assert len(set(symmetry._alike(other, every).tolist())) == 3
