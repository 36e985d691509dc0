"""Rows that tie programs to their past, pieces and tightened ranges: sound, never looser, mutants caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside, with_all_ranges
from checks_encoding import check_encoding, encode_operation
from checks_rules import random_coefficients
from instances import INSTANCES
from mutants import MutantEncoder, moderate
from test_nesting import case as problem_case

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.linear.linearized_step import LinearizedStep, linearize_step
from milp_agt.bounds.program import selection_rows, tightening
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.encoder import Encoder
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.core.results import Limits
from milp_agt.core.strengthening import Strengthening
from milp_agt.errors import InvalidInputError
from milp_agt.runfile.certify_table import CertifyTable
from milp_agt.solvers import get_solver
from milp_agt.threats import SeparatePoisoning

TIGHT = Strengthening(obbt_seconds=60.0)
OPTIONS = program.SolveOptions(get_solver("highs"), Limits())


def _attacked(problem: Problem, boxes: Any, attacks: int = 200) -> None:
    replay, generator = Replay(problem), torch.Generator().manual_seed(0)
    for corners in (True, False):
        assert_inside(boxes, replay.run(replay.random(attacks, generator, corners)))


@pytest.mark.parametrize(
    ("level", "strengthening"),
    [
        ("lp", Strengthening()),
        ("lp", TIGHT),
        ("milp", Strengthening(pieces=2, pieced=4)),
    ],
    ids=["default", "obbt", "pieces"],
)
@pytest.mark.parametrize(
    "threat",
    [agt.FeaturePoisoning(1, 0.1), pytest.param(agt.LabelPoisoning(1), marks=pytest.mark.slow)],
)
def test_attacks_stay_inside(level: str, strengthening: Strengthening, threat: Any) -> None:
    problem = problem_case("bce", threat, epochs=3)
    options: dict[str, Any] = {"inner_bounds": "interval", "program_window": 2}
    result, boxes = problem.certify(relaxation=level, strengthening=strengthening, **options)
    _attacked(problem, boxes)
    assert result.steps[-1].program is not None


def test_rows_of_the_past_only_help() -> None:
    """From one reachable set, a window that is tied to the steps before it lies within one that is not."""
    case, steps = _run(agt.FeaturePoisoning(1, 0.1), 4)
    wide = {n: Interval(b.lower - 10.0, b.upper + 10.0) for n, b in steps[-1].state.items()}
    run = (case.step_graph, case.schedule, steps[3:], case.poison, False)
    bounds = []
    for past in ([], steps[:3]):
        found, report = program.bound_state(program.encode_window(*run, past=past), wide, OPTIONS)
        assert report.solves == report.evidence[0].objectives.gain.size
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
    found = selection_rows.influence_on(
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
    found = selection_rows.influence_on(models.schedule, steps[:3], state, Joint(models.poison))
    budget = np.sort(found.devs, axis=1)[:, -2:].sum(1)
    ends = torch.cat([b.lower.flatten() for b in state.values()])
    ends = torch.cat([ends, -torch.cat([b.upper.flatten() for b in state.values()])]).numpy()
    assert (found.constant - budget >= ends - 1e-6 * np.abs(ends) - 1e-3).all()
    assert np.median(found.constant - budget - ends) > -1e-9


# ------------------------------------------------------------------------- piecewise envelopes


def _pieced(pieces: int, exact: bool = True, kind: str | None = None) -> Encoder:
    encoder = Encoder(exact) if kind is None else MutantEncoder(exact, kind)
    encoder.strengthening = Strengthening(pieces=pieces)
    if pieces > 1:
        encoder.pieced = {"": np.arange(1000)}
    return encoder


@pytest.mark.parametrize("instance", INSTANCES["bilinear"], ids=str)
def test_pieces_hold_products_and_nest(instance: Any) -> None:
    rng = np.random.default_rng(0)
    boxes = moderate(instance, "nested", 0)
    forms = random_coefficients(instance, 3, False, rng)
    least: dict[int, list[float]] = {}
    for pieces in (1, 2, 4):
        encoded = check_encoding(instance, boxes, True, rng, 4, _pieced(pieces))
        some: list[Any] = [None] if encoded.selection is not None else []
        least[pieces] = [
            encoded.watched.minimise([c.numpy(), *[None] * len(boxes), *some]) for c in forms
        ]
    plain = encode_operation(instance, boxes, True, Encoder(True))
    assert encode_operation(instance, boxes, True, _pieced(1)).program.size == plain.program.size
    for looser, tighter in ((1, 2), (2, 4)):
        slack = 1e-6 * (1.0 + np.abs(least[looser]))
        assert (np.array(least[tighter]) >= np.array(least[looser]) - slack).all()


def test_pieces_are_tighter_than_one_envelope() -> None:
    """x y over [-1, 1]^2 with x = y: the envelope allows -1, exact is 0, p pieces about -1/p."""
    found = []
    for pieces in (1, 2, 4):
        encoder = _pieced(pieces)
        x = encoder.columns(-np.ones(1), np.ones(1))
        unit = Interval(
            -torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        )
        op = INSTANCES["bilinear"][0].op.__class__("a,a->a")
        out = encoder.bounded(op.encode(encoder, (x, x), (unit, unit)), unit)
        built = encoder.finish()
        costs = np.zeros(built.lower.size)
        costs[out.matrix.indices] = 1.0
        found.append(get_solver("highs").open(built).minimise(costs, Limits()).dual_bound)
    assert found[0] == pytest.approx(-1.0, abs=1e-6)
    assert found[1] > found[0] + 0.3
    assert found[2] > found[1] + 0.1
    assert found[2] <= 1e-9


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_mutants_of_pieces_are_caught(kind: str) -> None:
    instance = next(i for i in INSTANCES["bilinear"] if i.label == "elementwise")
    caught = 0
    for seed in range(6):
        boxes = moderate(instance, "nested", seed)
        try:
            rng = np.random.default_rng(seed)
            check_encoding(instance, boxes, True, rng, 6, _pieced(3, kind=kind))
        except AssertionError:
            caught += 1
    assert caught


# ------------------------------------------------------------------------------ bound tightening


Case = tuple[Problem, Any, list[LinearizedStep]]


def _case(threat: Any, **options: Any) -> Case:
    """Three steps from a point, with ranges by intervals."""
    problem = problem_case("bce", threat, **({"count": 4, "epochs": 3} | options))
    recorder = MemoryRecorder()
    result, _ = problem.certify(relaxation="lp", inner_bounds="interval", recorder=recorder)
    assert result.models is not None
    return problem, result.models, recorder.steps["lp"]


def _tightened(case: Case, seconds: float | None = None) -> tuple[LinearizedStep, Any]:
    _, models, steps = case
    joint = Joint(models.poison)
    tightener = program.Tightener(
        models.step_graph, models.schedule, models.poison, UNRESTRICTED, joint, []
    )

    def relax(ranges: Any) -> LinearizedStep:
        return linearize_step(models.schedule, steps[-1].state, steps[-1].step, ranges, joint)

    deadline = None if seconds is None else tightening.time.monotonic() + seconds
    return tightener.tighten(steps, relax, replace(OPTIONS, deadline=deadline))


def _outside(case: Case, relaxed: LinearizedStep) -> int:
    """How many values of nodes in the last step of attacked runs lie outside the ranges of their states."""
    problem, models, _ = case
    replay, generator = Replay(problem), torch.Generator().manual_seed(3)
    missed = 0
    for corners in (True, False):
        attacks = replay.random(1000, generator, corners)
        x, y = attacks.features[-1], attacks.labels[-1]
        before = replay.run(attacks)[-2]
        leaves = {**before, "features": x, "labels": y, "selection": torch.zeros_like(y)}
        values = models.schedule.values(leaves)
        moved = _states(models.poison, x, y)
        for node in models.schedule.before:
            if not node.batched or node.name not in values or not node.inputs:
                continue
            box = relaxed.ranges.boxes[node.name].expand_states(models.poison.states)
            samples = torch.arange(moved.shape[1])
            low, high = box.lower[moved, samples], box.upper[moved, samples]
            missed += int(((values[node.name] < low) | (values[node.name] > high)).sum())
    return missed


def _states(poison: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The state of each sample in each attack, (attacks, n)."""
    moved_x = (x != poison.features).any(-1).to(torch.int64)
    moved_y = (y != poison.labels).any(-1).to(torch.int64)
    return moved_x + 2 * moved_y if poison.states > 2 else moved_x | moved_y


@pytest.mark.parametrize(
    "threat",
    [
        agt.FeaturePoisoning(1, 0.3),
        agt.FeatureLabelPoisoning(2, 0.1),
        SeparatePoisoning(agt.FeaturePoisoning(1, 0.3), agt.LabelPoisoning(1)),
    ],
    ids=["x", "both", "apart"],
)
def test_tightened_ranges_hold_steps(threat: Any) -> None:
    case = _case(threat)
    relaxed, did = _tightened(case)
    assert did.tightened > 0
    assert did.solves >= did.tightened
    assert _outside(case, relaxed) == 0
    for name, box in relaxed.ranges.boxes.items():
        old = case[2][-1].ranges.boxes[name].expand_states(len(box.lower))
        assert bool((box.lower >= old.lower).all())
        assert bool((box.upper <= old.upper).all())


def test_mutants_of_tightened_ranges_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges that are 1 % too small, or a state that is not charged, lose attacked runs."""
    original = tightening._spread
    # With small steps a sample's own move outweighs what it did to the parameters.
    case = _case(agt.FeaturePoisoning(1, 1e-3), learning_rate=0.02)

    def shrunk(*arguments: Any) -> Interval:
        box = original(*arguments)
        known = torch.isfinite(box.width)
        move = torch.where(known, 0.01 * box.width, 0.0)
        return Interval(box.lower + move, box.upper - move)

    def uncharged(bounds: Any, charge: Any, element: Any, box: Interval) -> Interval:
        return original(bounds, 0.0 * charge, element, box)

    for mutant in (shrunk, uncharged):
        monkeypatch.setattr(tightening, "_spread", mutant)
        assert _outside(case, _tightened(case)[0]) > 0, mutant.__name__
    monkeypatch.setattr(tightening, "_spread", original)
    assert _outside(case, _tightened(case)[0]) == 0


def test_tightening_stops_in_time() -> None:
    case = _case(agt.FeaturePoisoning(1, 0.2))
    relaxed, did = _tightened(case, seconds=0.0)
    assert relaxed is case[2][-1]
    assert did == tightening.Tightening()


def test_a_ruled_out_state_keeps_its_range() -> None:
    problem = problem_case("bce", agt.FeaturePoisoning(1, 0.2), epochs=2)
    for restriction in (
        agt_restriction(inside={1}),
        agt_restriction(outside={0, 1, 2, 3}),
    ):
        restricted = replace(problem, restriction=restriction)
        _, boxes = restricted.certify(relaxation="lp", strengthening=TIGHT, inner_bounds="interval")
        _attacked(restricted, boxes, 50)


def agt_restriction(inside: set[int] | None = None, outside: set[int] | None = None) -> Any:
    return replace(UNRESTRICTED, inside=frozenset(inside or ()), outside=frozenset(outside or ()))


def test_counts_are_in_the_result() -> None:
    problem = problem_case("bce", agt.FeaturePoisoning(1, 0.3), epochs=2)
    result, _ = problem.certify(relaxation="lp", strengthening=TIGHT, inner_bounds="interval")
    counts = [step.program for step in result.steps if step.program]
    assert sum(c["tightened"] for c in counts) > 0
    assert all(c["fixed"] >= 0 for c in counts)


# ---------------------------------------------------------------------------------- the options


def test_a_strengthening_is_checked_and_read_from_files() -> None:
    with pytest.raises(InvalidInputError) as caught:
        Strengthening(pieces=0)
    text = str(caught.value)
    assert "pieces of a strengthening" in text
    assert ">= 1. Found: int 0" in text
    assert "give 1" in text
    table = CertifyTable.model_validate({"strengthening": {"pieces": 3, "obbt_seconds": 2.5}})
    assert table.strengthening == Strengthening(pieces=3, obbt_seconds=2.5)
    assert CertifyTable().strengthening == Strengthening()


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
    whole = replace(last, ranges=ranges)
    assert {n.name for n in models.schedule.all} <= set(ranges.boxes)
    assert _outside((problem, models, [last]), whole) == 0


@pytest.mark.slow
def test_tightening_in_parallel_finds_the_same_ranges() -> None:
    pytest.importorskip("joblib", reason="joblib is not installed")
    problem = problem_case("bce", agt.FeaturePoisoning(1, 0.3), epochs=2)
    found = [
        problem.certify(
            relaxation="lp", strengthening=TIGHT, inner_bounds="interval", workers=workers
        )[0]
        for workers in (1, 2)
    ]
    counts = [[step.program["tightened"] for step in r.steps if step.program] for r in found]
    assert counts[0] == counts[1]
    assert found[0].reachable.mean_width == pytest.approx(found[1].reachable.mean_width, rel=1e-6)
