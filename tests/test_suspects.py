"""Which samples carry the bound."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from attacks import Problem, network

import milp_agt as agt
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.linear.gaps import Window
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.window_bounds import bound_forms
from milp_agt.certification.bound_step import Bounder
from milp_agt.core.graph import Cause


def problem(threat, **run) -> Problem:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (8,), generator=generator)
    training = agt.Training(loss="bce", **({"learning_rate": 0.3, "epochs": 2} | run))
    return Problem(network((2, 3, 1), seed=1), x, y, training, threat)


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_what_a_sample_is_worth_is_what_it_reaches_alone(selections: str) -> None:
    """With one sample open to poison, it carries about the whole width; the others nothing."""
    case = problem(agt.FeaturePoisoning(1, 1e-4, samples=(5,)))
    result, _ = case.certify(selections=selections)
    (only,) = result.suspects()
    assert only.sample == 5
    assert only.width == pytest.approx(result.reachable.mean_width, rel=0.05)
    assert only.share == pytest.approx(only.width / result.reachable.mean_width)


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_the_order_is_that_of_runs_with_one_sample_open(selections: str) -> None:
    case = problem(agt.FeaturePoisoning(1, 1e-4))
    found = case.certify(selections=selections)[0].suspects(8)
    alone = [
        problem(agt.FeaturePoisoning(1, 1e-4, samples=(s.sample,))).certify()[0] for s in found
    ]
    widths = [r.reachable.mean_width for r in alone]
    assert np.allclose([s.width for s in found], widths, rtol=0.1)
    assert [s.width for s in found] == sorted((s.width for s in found), reverse=True)


@pytest.mark.parametrize(
    "threat",
    [
        agt.LabelPoisoning(2),
        agt.FeatureLabelPoisoning(1, 0.01),
        agt.FeaturePoisoning(1, 0.01, static=False, scope="batch"),
        agt.FeaturePoisoning(1, 0.01, scope="batch"),
    ],
    ids=str,
)
def test_every_adversary_has_suspects(threat) -> None:
    result, _ = problem(threat, batch_size=4).certify()
    found = result.suspects(3)
    assert len(found) == 3
    assert all(s.width > 0 for s in found)


def test_without_forms_there_is_no_answer(tmp_path) -> None:
    case = problem(agt.FeaturePoisoning(1, 0.01))
    result, _ = case.certify(relaxation="linear")
    result.save(tmp_path / "r.npz")
    for bare in (case.certify(relaxation="interval")[0], agt.load(tmp_path / "r.npz")):
        with pytest.raises(agt.errors.InvalidInputError) as refusal:
            bare.suspects()
        for part in ("carry the bound", "keeps no linear forms", "relaxation='linear'"):
            assert part in str(refusal.value)


LABELS = agt.LabelPoisoning(1)
SMOOTH = torch.nn.Tanh
RUNS = {
    "features": (agt.FeaturePoisoning(2, 0.02), {}, {}),
    "smooth": (agt.FeaturePoisoning(2, 0.02), {"activation": SMOOTH}, {}),
    "labels": (LABELS, {}, {}),
    "short window": (agt.FeaturePoisoning(1, 0.02), {"momentum": 0.5}, {"window": 1}),
    "adaptive batches": (
        agt.FeatureLabelPoisoning(1, 0.02, static=False, scope="batch"),
        {"batch_size": 4, "weight_decay": 0.1},
        {},
    ),
    "static batches": (agt.FeaturePoisoning(1, 0.02, scope="batch"), {"batch_size": 3}, {}),
    "adaptive": (agt.FeaturePoisoning(2, 0.02, static=False), {"batch_size": 4}, {}),
    "projected": (agt.FeaturePoisoning(1, 0.02), {"projection": (-0.5, 0.5), "l1": 0.01}, {}),
    "each selection": (agt.FeaturePoisoning(2, 0.02), {}, {"selections": "enumerated"}),
    "each label": (LABELS, {}, {"selections": "enumerated"}),
}


def certified(name: str) -> agt.Result:
    threat, run, options = RUNS[name]
    case = problem(threat, **{"epochs": 3, **{k: v for k, v in run.items() if k != "activation"}})
    if "activation" in run:
        case = dataclasses.replace(case, model=network((2, 3, 1), run["activation"], seed=1))
    return case.certify(**options)[0]


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize("name", RUNS)
def test_the_pieces_of_every_form_add_up_to_its_distance_from_the_nominal(name: str) -> None:
    models = certified(name).models
    for reached in models.reached:
        start = Forms.start(models.on_parameters(reached, models.parameter_rows(reached)))
        steps = (models.step_graph, models.schedule, reached.window)
        window = Window.of(*steps, reached.adversary)
        found = window.gaps(start)
        bounds = bound_forms(*steps[1:], start, reached.adversary)
        assert torch.allclose(found.bound, bounds, rtol=1e-9, atol=1e-12)
        pieces = torch.stack(list(found.gaps.values()))
        assert pieces.min() >= -1e-12
        total = pieces.sum(0) + found.worst_case
        assert torch.allclose(total, found.reference - found.bound, rtol=1e-9, atol=1e-12)
        if name not in ("short window", "each label"):
            nominal = torch.cat([models.nominal[n].flatten() for n in models.step_graph.parameters])
            here = torch.cat([nominal, -nominal])
            assert torch.allclose(found.reference[:, 0], here, rtol=1e-12)


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize("name", RUNS)
def test_the_causes_add_up_to_the_width_that_forms_prove(name: str) -> None:
    result = certified(name)
    found, models = result.suspects(), result.models
    assert found.causes is not None
    assert set(found.causes) == set(Cause)
    assert min(found.causes.values()) >= -1e-12
    ends = []
    for reached in models.reached:
        start = Forms.start(models.on_parameters(reached, models.parameter_rows(reached)))
        steps = (models.step_graph, models.schedule, reached.window)
        bounds = bound_forms(*steps[1:], start, reached.adversary)
        ends.append(bounds.amin(1))
    low, negated = torch.stack(ends).amin(0).chunk(2)
    assert found.total == pytest.approx(float((-negated - low).mean()), rel=1e-9)
    assert found.total >= result.reachable.mean_width * (1 - 1e-9)
    assert found.width == pytest.approx(result.reachable.mean_width, rel=1e-12)


@pytest.mark.usefixtures("unlisted")
def test_each_cause_is_found_where_it_acts() -> None:
    relu, smooth = certified("features").suspects().causes, certified("smooth").suspects().causes
    for causes in (relu, smooth):
        assert causes[Cause.MOVES] > max(causes[Cause.ROUNDING], 1e-9)
        assert causes[Cause.PRODUCTS] > 1e-9
        assert causes[Cause.SELECTION] > 1e-9
        assert causes[Cause.START] < 1e-12
        assert 0 <= causes[Cause.ROUNDING] < 1e-9
    assert smooth[Cause.FLIPS] == 0 < relu[Cause.FLIPS]
    # A tanh bends more than the sigmoid of the loss does alone.
    assert smooth[Cause.CURVATURE] > relu[Cause.CURVATURE] > 0
    assert certified("short window").suspects().causes[Cause.START] > 1e-6
    labels = certified("each label").suspects().causes
    assert labels[Cause.MOVES] > 1e-3
    assert labels[Cause.FLIPS] + labels[Cause.PRODUCTS] + labels[Cause.CURVATURE] < 1e-9


def test_one_sample_that_may_move_leaves_no_choice() -> None:
    case = problem(agt.FeaturePoisoning(1, 0.02, samples=(5,)))
    causes = case.certify()[0].suspects().causes
    assert abs(causes[Cause.SELECTION]) < 1e-12
    assert causes[Cause.MOVES] > 1e-6


SEPARATE = agt.SeparatePoisoning(agt.FeaturePoisoning(1, 0.01), agt.LabelPoisoning(1))


@pytest.mark.parametrize("threat", [agt.Removal(1), SEPARATE], ids=["removal", "separate"])
def test_without_one_budget_there_are_suspects_but_no_split(threat: object) -> None:
    found = problem(threat).certify()[0].suspects()
    assert len(found) > 0
    assert found.causes is found.total is None
    assert "cause" not in str(found)


def test_enumerated_budgets_apart_are_split() -> None:
    result, _ = problem(SEPARATE).certify(selections="enumerated")
    found = result.suspects()
    assert found.total == pytest.approx(result.reachable.mean_width, rel=0.2)
    assert min(found.causes.values()) >= -1e-12


def test_both_tables_are_printed() -> None:
    found = certified("features").suspects(3)
    text = str(found)
    assert text.splitlines()[2].split()[0] == str(found[0].sample)
    assert len(found[:2]) == 2
    for cause in Cause:
        assert cause.value in text


def test_fragments_strips_and_cuts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walks of large batches, forced on a small one."""
    case = problem(agt.FeaturePoisoning(2, 0.02), epochs=3)
    plain = case.certify()[0].suspects().causes
    relax = Bounder.relax

    def cut(bounder: Bounder, *arguments) -> LinearizedStep:
        bounder.plan = dataclasses.replace(bounder.plan, walk_fragment=3, cuts=True)
        return relax(bounder, *arguments)

    monkeypatch.setattr(Bounder, "relax", cut)
    result, _ = case.certify()
    window = result.models.reached[0].window
    assert all(len(r.chunks) == 3 and len(r.cuts) == 3 for r in window)
    found = result.suspects().causes
    assert found is not None
    for cause in Cause:
        assert found[cause] == pytest.approx(plain[cause], rel=0.1, abs=1e-9)
