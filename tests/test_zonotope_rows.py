"""Programs on the rows of a hybrid zonotope: real runs are points of them, and their bounds are nested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attacks import Replay, assert_inside
from problems import problem, tiny
from test_zonotope_breadth import choices
from zonotope_runs import ROUNDING, Generators, Passed, attacks_of

import milp_agt as agt
from milp_agt.bounds.program import FinalZonotope, SolveOptions
from milp_agt.bounds.program.zonotope_rows import ZonotopeRows
from milp_agt.bounds.zonotope import ZonotopePass, least
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.core.results import Limits
from milp_agt.errors import InvalidInputError
from milp_agt.solvers.solver import get_solver

RUNS = {
    "one sample": {"budget": 1, "radius": 0.1, "training": {"epochs": 5}},
    "two samples": {"radius": 0.05, "training": {"epochs": 5}},
    "batches with momentum": {
        "radius": 0.1,
        "training": {"epochs": 3, "batch_size": 4, "momentum": 0.5},
    },
    "clipped": {"radius": 0.1, "training": {"clip": 0.2, "clip_mode": "clamp"}},
    "deep": {"radius": 0.1, "hidden": (3, 3), "training": {"epochs": 3}},
}


def passed_of(name: str, seed: int = 0) -> Passed:
    options = {"hidden": (4,), "seed": seed, **RUNS[name]}
    return Passed.of(problem("bce", "features", **options)[0])


def check_points(change: Callable[[Flips], Flips] = lambda flips: flips) -> None:
    """The generators of every attack satisfy all rows, and forms hold its states with their noise."""
    crossed = 0
    for name in RUNS:
        passed = passed_of(name)
        last = changed(passed.last, change)
        rows = ZonotopeRows.of(last, exact=True)
        state = rows.forms(torch.eye(last.zonotope.size, dtype=torch.float64))
        for attacks in attacks_of(passed, attacks=32):
            own = Generators.of(passed, attacks)
            crossed += int(own.happens.any(1).sum())
            parts = (own.chosen, own.happens, own.bends, own.moves.flatten(1))
            points = torch.cat(parts, 1).numpy()
            assert points.shape[1] == rows.program.lower.size
            assert max(map(rows.program.violation, points)) <= ROUNDING
            value = torch.cat([own.path[-1][n].flatten(1) for n in last.layout.slices], 1).numpy()
            assert (state.below.at(points) - state.error <= value + ROUNDING).all()
            assert (state.above.at(points) + state.error >= value - ROUNDING).all()
    assert crossed > 100


def changed(forward: ZonotopePass, change: Callable[[Flips], Flips]) -> ZonotopePass:
    zonotope = forward.zonotope
    return replace(forward, zonotope=replace(zonotope, flips=change(zonotope.flips)))


def test_every_run_is_a_point_of_the_program() -> None:
    check_points()


WRONG: dict[str, Callable[[Flips], Flips]] = {
    "margin": lambda f: replace(f, margin=1.01 * f.margin),
    "offset": lambda f: replace(f, quiet=0.8 * f.quiet),
    "largest": lambda f: replace(f, largest=0.9 * f.largest),
    "sign of moves": lambda f: replace(f, on_moves=-f.on_moves),
    "threshold": lambda f: replace(f, threshold=0.5 * f.threshold),
    "noise of flips": lambda f: replace(f, charge=-f.charge, above=0.0 * f.above, below=-f.below),
    "own": lambda f: replace(f, own=f.own.roll(1)),
}


@pytest.mark.parametrize("rule", WRONG)
def test_rows_that_are_too_tight_are_caught(rule: str) -> None:
    with pytest.raises(AssertionError):
        check_points(WRONG[rule])


def ends_by(forward: ZonotopePass, exact: bool) -> tuple[torch.Tensor, Any]:
    options = SolveOptions(get_solver("highs"), Limits(time=20.0))
    final = FinalZonotope(options, forward=forward, exact=exact)
    state, report = final.bound_state(forward.state())
    assert report.solves > 0
    return torch.cat([box.width.flatten() for box in state.values()]), state


@pytest.mark.parametrize(
    "poison",
    [
        agt.FeaturePoisoning(2, 0.1),
        agt.FeaturePoisoning(1, 0.3, static=False),
        agt.LabelPoisoning(2),
    ],
    ids=["features", "anew in each step", "labels"],
)
def test_programs_are_nested_and_hold_every_corner_of_a_tiny_run(poison: Any) -> None:
    passed = Passed.of(tiny(poison, epochs=4))
    widths, states = zip(*(ends_by(passed.last, exact) for exact in (False, True)), strict=True)
    dual = torch.cat([box.width.flatten() for box in passed.last.state().values()])
    assert (widths[0] <= dual).all()
    assert (widths[1] <= widths[0] * (1.0 + 1e-9)).all()
    case, generator = passed.replay.problem, torch.Generator().manual_seed(0)
    if poison.static:
        tried = [choices(case, poison.budget)]
    else:
        tried = list(passed.replay.all(generator, case.features, case.labels, 32, 3))
    for attacked in tried:
        runs = passed.replay.run(attacked)[-1]
        for state in states:
            for name, box in state.items():
                assert bool(((runs[name] >= box.lower) & (runs[name] <= box.upper)).all())


def test_binary_columns_gain_and_forms_of_questions_do_too() -> None:
    """The relaxation gains over the dual, binary columns gain over the relaxation."""
    passed = passed_of("two samples", seed=1)
    forward = passed.last
    dual = torch.cat([box.width.flatten() for box in forward.state().values()])
    (relaxed, _), (exact, _) = (ends_by(forward, kind) for kind in (False, True))
    assert exact.sum() < 0.99 * relaxed.sum() <= 0.99 * dual.sum()
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        for name, shape in forward.layout.shapes.items()
    }
    known = least(forward, drawn)
    options = SolveOptions(get_solver("highs"), Limits(time=20.0))
    final = FinalZonotope(options, forward=forward, exact=True)
    found = final.least(drawn, known)
    assert (found >= known).all()
    assert found.sum() > known.sum()
    assert final.incumbents
    for attacks in attacks_of(passed):
        state = passed.replay.run(attacks)[-1]
        value = sum(state[n].flatten(1) @ on.flatten(1).T for n, on in drawn.items())
        assert (value >= found - 1e-12).all()


def test_runs_by_programs_have_them_and_attacks_stay_inside() -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.3))
    options: dict[str, Any] = {"relaxation": "milp", "window": 1, "selections": "joint"}
    plain, _ = case.certify(relaxation="zonotope")
    result, boxes = case.certify(refute="none", **options)
    for state, box in zip(Replay(case).run(choices(case, 1)), boxes, strict=True):
        assert_inside([box], [state])
    first = next(iter(result.models.nominal))
    row = {first: torch.ones(1, *result.models.nominal[first].shape, dtype=torch.float64)}
    known, narrower = (r.models.bound_parameters(row) for r in (plain, result))
    assert (narrower.width < 0.99 * known.width).all()
    rows = result.models.beside.rows
    assert rows.exact
    assert rows.of_state
    assert rows.reports  # of questions
    found, dual = ([s.chains["zonotope"] for s in r.steps] for r in (result, plain))
    assert found[:-1] == dual[:-1]
    assert found[-1] < 0.9 * dual[-1]


def test_programs_on_the_rows_alone() -> None:
    """``program_window = 0`` solves no step program; what it cannot do is refused by name."""
    case = tiny(agt.FeaturePoisoning(1, 0.3))
    result, _ = case.certify(refute="none", relaxation="milp", program_window=0)
    assert [record.relaxation for record in result.steps] == ["linear", "linear", "milp"]
    assert [record.program is None for record in result.steps] == [True, True, False]
    assert result.models.program is None
    assert "milp" not in result.steps[-1].chains
    for options, found in (
        ({"relaxation": "miqp"}, "exact products"),
        ({"relaxation": "lp", "carried": "none"}, "carried = 'none'"),
        ({"relaxation": "milp", "precision": "float32"}, "float32"),
    ):
        with pytest.raises(InvalidInputError, match=found):
            case.certify(program_window=0, **options)
