"""Runs beside a certification: they are admissible, and a solver that proves too much is found out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, with_all_ranges
from stand_ins import StandIn
from test_cases import THREATS, problem

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.program.witness import check
from milp_agt.bounds.step import State, is_velocity
from milp_agt.certification import certify
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.certification.witnesses import Witnesses
from milp_agt.core.interval import Interval
from milp_agt.core.program import Array
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.results import Limits, SolveResult
from milp_agt.errors import SoundnessError
from milp_agt.solvers import available_solvers, get_solver

RUNS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "features": ("bce", agt.FeaturePoisoning(1, 0.05), {}),
    "labels": ("cross_entropy", agt.LabelPoisoning(1), {"momentum": 0.5}),
    "targets": ("mse", agt.LabelPoisoning(2, 0.1), {"projection": (-0.4, 0.4)}),
    "adaptive": ("bce", THREATS["adaptive"], {"batch_size": 3}),
    "batches": ("bce", agt.FeaturePoisoning(1, 0.05, scope="batch"), {"batch_size": 2}),
    "left out": ("bce", agt.Removal(1, scope="batch"), {"batch_size": 3, "shuffle_seed": 1}),
    "apart": (
        "bce",
        agt.SeparatePoisoning(agt.FeaturePoisoning(1, 0.05), agt.LabelPoisoning(1)),
        {},
    ),
    "removal": ("hinge", agt.Removal(1), {"batch_size": 2, "momentum": 0.5}),
    "substitution": ("bce", agt.Substitution(1), {"clip": 0.1}),
    "insertion": ("bce", agt.Insertion(1), {"clip": 0.1}),
}


def _case(name: str, **run: Any) -> Problem:
    loss, threat, options = RUNS[name]
    return problem(threat, loss, (2,), samples=4, **({"epochs": 2} | options | run))


def _witnesses(case: Problem, **start: Interval) -> Witnesses:
    return Witnesses(Replay(case).unrolled, case.restriction, start)


# ---------------------------------------------------------------------------------------- the runs


@pytest.mark.parametrize("restriction", [UNRESTRICTED, Restriction(frozenset({2}), frozenset({0}))])
@pytest.mark.parametrize("name", RUNS)
def test_runs_stay_inside_every_reachable_set(name: str, restriction: Restriction) -> None:
    if restriction.inside and name in ("apart", "insertion"):
        pytest.skip("not branched on")
    case = replace(_case(name), restriction=restriction)
    _, boxes = case.certify(relaxation="interval")
    witnesses = _witnesses(case)
    for step, box in enumerate(boxes):
        states = witnesses.after(step).states
        assert len(next(iter(states.values()))) > 1
        for key, values in states.items():
            if not is_velocity(key):
                low, high = (torch.from_numpy(end[key]) for end in (box.lower, box.upper))
                assert ((low <= values) & (values <= high)).all()


@pytest.mark.parametrize("seed", range(3))
def test_runs_keep_to_the_budgets_of_batches_to_come(seed: int) -> None:
    """Two samples of two batches of the first epoch may meet in one of the second."""
    threat = agt.FeaturePoisoning(1, 0.05, scope="batch")
    case = problem(threat, "bce", (2,), samples=6, batch_size=3, epochs=2, shuffle_seed=seed)
    witnesses = _witnesses(case)
    witnesses.after(1)
    in_features, _ = witnesses.unrolled.changed(witnesses._data)
    for batch in witnesses.unrolled.batches:
        assert int(in_features[:, batch].sum(1).max()) <= 1


def test_runs_begin_all_over_the_box_of_the_start() -> None:
    case = _case("features")
    centre = Replay(case).step_graph.initial["0.weight"].unsqueeze(0)
    found = _witnesses(case, **{"0.weight": Interval(centre - 0.1, centre + 0.1)}).after(0)
    assert float(found.states["0.weight"].amax(0).sub(centre[0]).amax()) > 0.05
    assert float(found.states["0.weight"].amin(0).sub(centre[0]).amin()) < -0.05


def test_runs_that_are_carried_along_are_those_that_are_trained_anew() -> None:
    case = _case("adaptive", epochs=4)
    witnesses = _witnesses(case)
    for step in range(7):
        found = witnesses.after(step)
        whole = witnesses.unrolled.path(witnesses._data, witnesses._start(len(witnesses._data)))
        for name, values in found.states.items():
            assert torch.equal(values, whole[step][name])


def test_runs_push_further_than_random_ones() -> None:
    """Those that are aimed span most of what a search reaches."""
    case = problem(agt.FeaturePoisoning(1, 0.005), "bce", (2,), samples=4, epochs=4)
    found = _witnesses(case).after(3).states
    search = agt.attacks.Search(pool=64, rounds=1)
    attacked = agt.attack(case.model, case.data, case.training, case.threat, search=search)
    for name, values in found.items():
        width = torch.from_numpy(attacked.upper[name] - attacked.lower[name])
        assert float((values.amax(0) - values.amin(0)).sum()) > 0.7 * float(width.sum())


# --------------------------------------------------------------------------------- lying solvers


def lying(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How far the solvers of a certification lie, as a share of the size of what they prove."""
    lies, honest = [0.0], certify.choose

    def lie(_: Array, solve: Callable[[], SolveResult]) -> SolveResult:
        found = solve()
        return replace(found, dual_bound=found.dual_bound + lies[0] * abs(found.dual_bound))

    monkeypatch.setattr(certify, "choose", lambda *args: StandIn(lie, "liar", honest(*args).name))
    return lies


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return lying(monkeypatch)


@pytest.mark.parametrize(
    ("name", "level"), [*((name, "lp") for name in RUNS), ("features", "milp"), ("labels", "milp")]
)
def test_a_bound_one_percent_too_tight_is_found_out(
    name: str, level: str, share: list[float]
) -> None:
    case = _case(name, epochs=1)
    options: dict[str, Any] = {"relaxation": level, "inner_bounds": "interval"}
    case.certify(**options)
    share[0] = 0.01
    with pytest.raises(SoundnessError) as caught:
        case.certify(**options)
    error = caught.value
    assert "bound proved by solver 'liar' must hold for every training run" in error.asked
    assert re.search(r"entry of .*0\.weight.* \[\d+\] from", error.found)
    assert "relaxation='lp'" in error.remedy


def test_answers_that_exclude_a_run_are_found_out(share: list[float]) -> None:
    case = problem(agt.LabelPoisoning(1), "cross_entropy", (2,), samples=4, epochs=1)
    result, _ = case.certify(relaxation="lp", inner_bounds="interval")
    functional = {"2.weight": torch.ones(3, 2)}
    share[0] = 0.0
    result.accuracy(*case.data)
    result.functional(functional)
    share[0] = 0.1
    for ask in (
        lambda: result.accuracy(*case.data),
        lambda: result.loss(*case.data),
        lambda: result.functional(functional),
    ):
        with pytest.raises(
            SoundnessError, match=r"solver 'liar' must hold.*(of the outputs|functional) \["
        ):
            ask()


def test_counts_that_exclude_a_run_are_found_out(share: list[float]) -> None:
    """All points are reached by runs, and a solver that proves too much counts fewer."""
    case = problem(agt.LabelPoisoning(4), "bce", (2,), samples=4, epochs=2, learning_rate=4.0)
    result, _ = case.certify(relaxation="lp", inner_bounds="interval", window=1)
    assert result.collective(*case.data).lower == 0.0
    share[0] = 0.5
    with pytest.raises(SoundnessError, match="of 4 test points by the bound"):
        result.collective(*case.data)


# ------------------------------------------------------------------------------ what they found


@pytest.mark.skipif("scip" not in available_solvers(), reason="scip is not installed")
def test_scip_keeps_what_is_feasible_where_rows_hold_with_equality() -> None:
    """Columns as narrow as rounding, and rows that only just hold: SCIP excluded two thirds of the box."""
    case = problem(agt.LabelPoisoning(1), "bce", (2,), samples=4, epochs=2)
    recorder = MemoryRecorder()
    result, _ = case.certify(inner_bounds="interval", recorder=recorder)
    models = result.models
    steps = with_all_ranges(models, recorder.steps["linear"])
    encoded = program.Window(
        models.step_graph, models.schedule, steps, models.poison, True, exact_products=True
    ).program()
    box: State = recorder.states["linear"][-1]
    options = program.SolveOptions(get_solver("scip"), Limits(time=20.0))
    program.bound_state(encoded, box, options, _witnesses(case).after(1))


def test_runs_that_overflow_show_nothing_and_hide_nothing() -> None:
    bounds, lost = np.array([0.0, -np.inf, 1.0]), [-np.inf, np.inf, np.nan]
    error = np.array([[np.inf, np.inf, 0.0]])
    check(bounds, np.array([lost]), error, "x", "liar")
    with pytest.raises(SoundnessError, match="liar"):
        check(
            bounds,
            np.array([lost, [1.0, 1.0, 0.5]]),
            np.vstack([error, np.zeros((1, 3))]),
            "x",
            "liar",
        )
