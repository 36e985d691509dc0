"""Selections that carry the union: bounded by themselves, optimised, and holding all their attacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside, assert_sound
from test_alpha import problem
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.adversary.enumerated import Enumerated, ListedSelections
from milp_agt.bounds.linear import alpha
from milp_agt.bounds.signed_entries import entry_bounds, forms_of_entries
from milp_agt.certification import critical, optimising
from milp_agt.certification.chains import ENUMERATED, OPTIMISED, ChainPart
from milp_agt.certification.critical import CriticalSelections
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.interval import Interval
from milp_agt.core.reachable import ReachableSet
from milp_agt.errors import SoundnessError

FEATURES = agt.FeaturePoisoning(1, 0.15)
CASES: dict[str, Problem] = {
    "features": problem(FEATURES, epochs=4),
    "two samples": problem(agt.FeaturePoisoning(2, 0.1)),
    "labels": problem(agt.LabelPoisoning(1)),
    "both": problem(agt.FeatureLabelPoisoning(1, 0.1), "cross_entropy"),
    "apart": problem(
        agt.SeparatePoisoning(agt.FeaturePoisoning(1, 0.1), agt.LabelPoisoning(1)), hidden=(2,)
    ),
    "momentum": problem(FEATURES, "mse", momentum=0.4, weight_decay=0.01),
    "batches": problem(FEATURES, batch_size=2, shuffle_seed=1, epochs=2),
    "clamped": problem(FEATURES, clip=0.1, clip_mode="clamp", l1=0.01, projection=(-0.6, 0.6)),
    "removal": problem(agt.Removal(1)),
    "emptied": problem(agt.Removal(1), batch_size=1, epochs=1),
    "window": problem(FEATURES, epochs=4),
}


def options(name: str) -> dict[str, Any]:
    return {"selections": "enumerated"} | ({"window": 2} if name == "window" else {})


QUICK = ("features", "labels", "momentum")


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_attacks_stay_inside_and_no_bound_is_looser(name: str) -> None:
    case = CASES[name]
    result = assert_sound(
        case,
        case.features + 0.2,
        case.labels,
        attacks=32,
        iterations=2,
        alpha_steps=2,
        **options(name),
    )
    default, _ = case.certify(**options(name))
    for end in result.reachable.lower:
        assert (result.reachable.lower[end] >= default.reachable.lower[end]).all()
        assert (result.reachable.upper[end] <= default.reachable.upper[end]).all()
    chains = result.steps[-1].chains
    assert chains is not None
    assert chains[OPTIMISED] <= chains[ENUMERATED] == default.steps[-1].mean_width


@pytest.mark.usefixtures("linear_alone")
def test_the_union_gets_tighter() -> None:
    result, _ = CASES["features"].certify(alpha_steps=6, **options("features"))
    chains = result.steps[-1].chains
    assert chains is not None
    assert chains[OPTIMISED] < 0.99 * chains[ENUMERATED]
    assert any("selections that carry the union" in line for line in result.notes)


def as_set(state: Any, case: int) -> ReachableSet:
    low, high = (
        {n: getattr(b, end)[case].numpy() for n, b in state.items()} for end in ("lower", "upper")
    )
    return ReachableSet(low, high, low, tuple(low))


def assert_each_holds(case: Problem, **certify: Any) -> float:
    """Every selection's own box holds what attacks on this sample reach; returns their mean width."""
    result, _ = case.certify(**options("features"), **certify)
    (reached,) = result.models.reached
    for sample in range(len(case.features)):
        threat = agt.FeaturePoisoning(1, 0.15, samples=[sample])
        run = Replay(replace(case, threat=threat))
        generator = torch.Generator().manual_seed(sample)
        box = as_set(reached.state, sample + 1)
        for attack in run.all(generator, case.features, case.labels, 32, 3):
            assert_inside([box], [run.run(attack)[-1]])
    return float(torch.cat([b.width[1:].flatten(1) for b in reached.state.values()], 1).mean())


def test_every_selection_holds_its_own_attacks() -> None:
    case = CASES["features"]
    assert assert_each_holds(case, alpha_steps=4) < 0.998 * assert_each_holds(case)


def test_ends_are_numbered_alike_with_momentum() -> None:
    """States keep the order of their tensors through a step, velocities among them."""
    case, recorder = CASES["momentum"], MemoryRecorder()
    case.certify(alpha_steps=1, recorder=recorder, **options("momentum"))
    orders = {tuple(relaxed.state) for relaxed in recorder.steps[OPTIMISED]}
    assert len(orders) == 1
    assert len(next(iter(orders))) == 8


def test_the_wrong_selection_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: the boxes of one selection are taken from another."""
    honest = ListedSelections.single
    monkeypatch.setattr(
        ListedSelections, "single", lambda own, case: honest(own, 1 + case % (len(own) - 1))
    )
    with pytest.raises((AssertionError, SoundnessError)):
        assert_each_holds(CASES["features"], alpha_steps=2)


def test_bounds_that_are_too_tight_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: 1 % less than one flipped label, whose run is one point, moves the parameters."""
    honest = entry_bounds

    def mutant(state: Any) -> Tensor:
        ends = honest(state)
        if len(ends) == 1:
            low, high = ends.chunk(2, 1)
            toward = torch.cat([centre, -centre])
            ends = ends + 0.01 * (toward - torch.cat([low, high], 1))
        return ends

    case = CASES["labels"]
    nominal, _ = case.certify(selections="enumerated")
    centre = torch.cat([torch.from_numpy(v).flatten() for v in nominal.reachable.nominal.values()])
    monkeypatch.setattr(optimising, "entry_bounds", mutant)
    with pytest.raises((AssertionError, SoundnessError)):
        assert_sound(
            case, case.features, case.labels, attacks=64, alpha_steps=1, selections="enumerated"
        )


def test_the_recorded_slopes_replay_the_bounds() -> None:
    """Steps and slopes of a selection by itself give bounds that its box does not beat."""
    case, recorder = CASES["features"], MemoryRecorder()
    result, _ = case.certify(alpha_steps=3, recorder=recorder, **options("features"))
    run = Replay(case)
    (reached,) = result.models.reached
    assert isinstance(reached.adversary, Enumerated)
    labels = [name for name in recorder.optimised if name != OPTIMISED]
    assert labels
    met = 0
    for label in labels:
        number = int(label.split()[-1])
        adversary = Enumerated(reached.adversary.poison, reached.adversary.listed.single(number))
        found = alpha.Problem(run.schedule, recorder.steps[label], adversary)
        for ends, slopes in recorder.optimised[label][3]:
            bound = found.bound(forms_of_entries(reached.state, ends), slopes)[:, 0]
            kept = entry_bounds(reached.state)[number, ends]
            assert bool((kept >= bound).all())
            met += int((kept == bound).sum())
    assert met > 3


@pytest.mark.slow
def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(_result: Any, step: int, _steps: int) -> None:
        if step == 2:
            raise Stop

    case = CASES["features"]
    arguments = (case.model, case.data, case.training, case.threat)
    asked: dict[str, Any] = {"selections": "enumerated", "alpha_steps": 2, "alpha_every": 2}
    whole = agt.certify(*arguments, **asked)
    with pytest.raises(Stop):
        agt.certify(*arguments, checkpoint=tmp_path, on_step=stop, **asked)
    resumed = agt.certify(*arguments, checkpoint=tmp_path, **asked)
    for name, low in whole.reachable.lower.items():
        assert low.tobytes() == resumed.reachable.lower[name].tobytes()
    assert whole.steps[-1].chains == resumed.steps[-1].chains


@pytest.mark.slow
def test_groups_of_selections_share_one_union(monkeypatch: pytest.MonkeyPatch) -> None:
    """Critical selections are sought in all groups together."""
    from milp_agt.certification import selection_plan

    case = CASES["features"]
    whole, _ = case.certify(alpha_steps=2, **options("features"))
    monkeypatch.setattr(selection_plan, "MOST_CASES", 3)
    cut, _ = case.certify(alpha_steps=2, **options("features"))
    assert len(cut.models.reached) > 1
    for name, low in whole.reachable.lower.items():
        assert np.allclose(low, cut.reachable.lower[name], rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------- what is worked on


def union_of(bounds: list[list[float]]) -> CriticalSelections:
    """Selections with these lower and upper ends of parameters around a clean run at 0."""
    table = torch.tensor(bounds, dtype=torch.float64)
    low, high = table.chunk(2, 1)
    part = ChainPart("all", _Cases(len(table)), {"w": Interval(low, high)})  # type: ignore[arg-type]
    return CriticalSelections.of([part], torch.arange(table.shape[1]))


class _Cases:
    def __init__(self, cases: int) -> None:
        self.cases = cases


def test_the_heaviest_selection_comes_first_and_no_end_twice() -> None:
    union = union_of([[0, 0, 0, 0], [-3, 0, 0, 5], [-1, 0, 0, 6], [0, -0.01, 0.01, 0]])
    done: list[Any] = []

    def alone(number: int) -> Tensor:
        done.append(number)
        return union.bounds[number] * 0.9

    def optimised(number: int, ends: Tensor) -> Tensor:
        done.append((number, ends.tolist()))
        return union.bounds[number, ends] * 0.5

    assert not union.improve(alone, optimised, lambda: False)
    assert done == [2, (2, [3]), 1, (1, [0, 3])]
    union.settle()
    state = union.parts[0].state["w"]
    assert torch.allclose(state.lower[:, 0], torch.tensor([0, -1.35, -0.9, 0], dtype=torch.float64))
    assert torch.allclose(state.upper[:, 1], torch.tensor([0, 2.25, 2.7, 0], dtype=torch.float64))


def test_work_ends_with_the_time_and_with_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[0.0, 0.0]] + [[-1.0 - k / 100, 0.0] for k in range(5)]
    late = union_of(rows)
    assert late.improve(lambda n: late.bounds[n], lambda n, e: late.bounds[n, e], lambda: True)
    assert not late.tried
    monkeypatch.setattr(critical, "MOST", 2)
    few = union_of(rows)

    def better(number: int, ends: Tensor | None = None) -> Tensor:
        found = few.bounds[number] * 0.5
        return found if ends is None else found[ends]

    assert not few.improve(better, better, lambda: False)
    assert sorted(few.tried) == [4, 5]


def test_looser_results_are_ignored() -> None:
    union = union_of([[0, 0], [-1, 1]])
    before = union.bounds.clone()
    union.improve(lambda n: before[n] - 1, lambda n, e: before[n, e] - 1, lambda: False)
    assert torch.equal(union.bounds, before)
