"""Relaxation 'zonotope' from the front door: boxes, questions, checkpoints, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from attacks import assert_sound
from boxes import assert_same, assert_within, resumed
from problems import problem, tiny

import milp_agt as agt
from milp_agt.bounds.zonotope import Cause, charges, engine, least
from milp_agt.certification import level_plan, loop, planning, sizes
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.restriction import Restriction
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.properties.accuracy import AccuracyTable
from milp_agt.properties.property_table import PickedPoints


@pytest.mark.parametrize(
    ("loss", "kind", "training", "hidden"),
    [
        ("bce", "features", {"epochs": 5}, (4,)),
        ("cross_entropy", "features", {"epochs": 4, "batch_size": 4, "momentum": 0.5}, (4,)),
        ("mse", "both", {"learning_rate": 0.1}, (3, 3)),
        ("hinge", "features", {}, (4,)),
        ("bce", "features", {"l1": 0.05, "epochs": 5}, (4,)),
        ("bce", "features", {"projection": (-0.4, 0.4), "epochs": 5, "momentum": 0.5}, (4,)),
        ("bce", "features", {"clip": 0.5}, (3,)),
        ("bce", "features", {"clip": 0.2, "clip_mode": "clamp"}, (3,)),
        ("cross_entropy", "labels", {}, (4,)),
    ],
)
def test_attacks_leave_no_box_and_no_property(loss, kind, training, hidden) -> None:
    case, test, labels = problem(loss, kind, training, hidden, radius=0.05)
    result = assert_sound(case, test, labels, relaxation="zonotope")
    assert result.relaxation == "zonotope"
    assert all(step.relaxation == "zonotope" for step in result.steps)
    assert all(set(step.chains) == {"interval", "zonotope"} for step in result.steps)
    assert not result.fallbacks


def test_it_is_tighter_than_intervals_and_within_them() -> None:
    case, test, labels = problem("bce", "features", {"epochs": 6}, (4,), radius=0.02, budget=1)
    wide, boxes = case.certify(relaxation="interval")
    tight, inner = case.certify(relaxation="zonotope")
    for outer, box in zip(boxes, inner, strict=True):
        assert_within(box, outer)
    assert tight.reachable.mean_width < 0.45 * wide.reachable.mean_width
    lows = [result.margins(test, labels) for result in (wide, tight)]
    wide_by, tight_by = (high - low for low, high in lows)
    assert (tight_by <= wide_by).all()
    assert tight_by.mean() < 0.7 * wide_by.mean()


def test_levels_know_their_order() -> None:
    assert Relaxation.ZONOTOPE.chain() == (Relaxation.INTERVAL, Relaxation.ZONOTOPE)
    assert not Relaxation.ZONOTOPE.uses_programs
    assert Relaxation.LINEAR.chain() == (*Relaxation.ZONOTOPE.chain(), Relaxation.LINEAR)


def test_suspects_are_those_that_can_do_something() -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.05, samples=[1, 2]), epochs=4)
    result, _ = case.certify(relaxation="zonotope")
    named = result.suspects(4)
    assert {each.sample for each in named} <= {1, 2}
    assert named[0].width > 0


STEPWISE = {"static": False, "scope": "batch"}


@pytest.mark.parametrize(
    ("loss", "kind", "training", "threat"),
    [
        ("cross_entropy", "features", {"epochs": 4, "batch_size": 4, "momentum": 0.5}, {}),
        ("hinge", "features", {"batch_size": 2}, STEPWISE),
        ("cross_entropy", "labels", {}, {}),
    ],
)
def test_causes_add_up_to_the_bound(loss, kind, training, threat) -> None:
    """Of both ends of all parameters, one by one, and of the width as users see it."""
    case, _, _ = problem(loss, kind, training, (4,), radius=0.05, **threat)
    result, _ = case.certify(relaxation="zonotope")
    (reached,) = result.models.carried
    forward = reached.forward
    assert forward is not None
    assert forward.zonotope.flips.rows
    assert forward.zonotope.flips.limits
    rows = result.models.on_parameters(reached, result.models.parameter_rows(reached))
    found, low = charges(forward, rows), least(forward, rows)
    flat = torch.cat([rows[name].flatten(1) for name in forward.layout.slices], 1)
    distance = flat @ forward.zonotope.centre - low
    parts = found.by_cause
    assert torch.allclose(sum(parts.values()), distance, rtol=1e-12, atol=1e-14)  # type: ignore[arg-type]
    assert parts[Cause.ROUNDING].max() < 1e-9 * distance.max()
    assert min(parts[Cause.NOISE].min(), parts[Cause.ROUNDING].min()) >= 0
    assert all(part.abs().max() > 0 for part in parts.values())
    seen = result.suspects()
    assert seen.total == pytest.approx(-2 * float(low.mean()), rel=1e-9)
    assert [c.value for c in parts] == list(seen.to_dict()["causes"])


def test_moves_alone_are_all_there_is_where_nothing_flips() -> None:
    """A small change of targets of a linear model: no unit flips, nothing is curved."""
    case, _, _ = problem("mse", "labels", {"learning_rate": 0.1}, (), budget=1)
    found = case.certify(relaxation="zonotope")[0].suspects()
    assert found.causes is not None
    assert found.causes[Cause.MOVES] == pytest.approx(found.width, rel=1e-6)


def test_flips_are_told_apart_by_who_is_poisoned() -> None:
    """In the first step only poisoned samples flip units; a poisoned target flips none of its own."""
    first, _, _ = problem("cross_entropy", "features", {"epochs": 1}, (4,), seed=3, radius=0.05)
    once = {"epochs": 1, "batch_size": 2}
    later, _, _ = problem("mse", "labels", once, (4,), seed=2, budget=1, samples=[0])
    cases = (
        (first, Cause.OWN_FLIPS, Cause.OTHER_FLIPS),
        (later, Cause.OTHER_FLIPS, Cause.OWN_FLIPS),
    )
    for case, there, not_there in cases:
        found = case.certify(relaxation="zonotope")[0].suspects()
        assert found.causes is not None
        assert found.causes[there] > 0.2 * found.width
        assert found.causes[not_there] < 1e-12


@pytest.mark.parametrize("relaxation", ["zonotope", "linear"])
def test_suspects_of_a_question_are_those_of_its_margins(relaxation: str) -> None:
    case, test, labels = problem("bce", "features", {"epochs": 5}, (4,), radius=0.05)
    result, _ = case.certify(relaxation=relaxation, carried="zonotope")
    at = PickedPoints(np.arange(2), test[:2].numpy(), labels[:2].numpy(), None)
    found = result.suspects(6, (AccuracyTable(kind="accuracy"), at))
    low, high = result.margins(*at[1:3])
    assert found.total is not None
    assert found.width == pytest.approx((high - low).mean(), rel=1e-6)
    assert found.total == pytest.approx(found.width, rel=1e-6)
    assert found.causes is not None
    assert found.causes[Cause.PREDICTION] >= 0
    heaviest = found[0].sample
    only = agt.FeaturePoisoning(1, 0.05, samples=[heaviest])
    alone, _ = dataclasses.replace(case, threat=only).certify(
        relaxation=relaxation, carried="zonotope"
    )
    low, high = alone.margins(*at[1:3])
    assert found[0].width == pytest.approx((high - low).mean(), rel=0.25)


def test_suspects_of_a_question_need_a_zonotope() -> None:
    case, test, labels = problem("bce", "features", {}, (4,), radius=0.05)
    at = PickedPoints(np.arange(2), test[:2].numpy(), labels[:2].numpy(), None)
    without, _ = case.certify(relaxation="linear", carried="none")
    with pytest.raises(InvalidInputError, match="no zonotope that bounds") as caught:
        without.suspects(6, (AccuracyTable(kind="accuracy"), at))
    assert "bounds of a question" in caught.value.asked
    assert "relaxation='zonotope'" in caught.value.remedy


def test_a_run_goes_on_from_its_checkpoint_to_the_same_numbers(tmp_path) -> None:
    case = tiny(agt.FeaturePoisoning(2, 0.05), epochs=6)
    data = (case.features, case.labels)
    arguments = (case.model, data, case.training, case.threat)
    certify = functools.partial(agt.certify, *arguments, relaxation="zonotope")
    whole, again = certify(), resumed(certify, tmp_path / "kept", 3)
    assert_same(whole.reachable, again.reachable)
    margins = [r.margins(case.features, case.labels) for r in (whole, again)]
    assert np.array_equal(margins[0], margins[1])


def test_a_zonotope_that_explodes_leaves_the_rest_to_intervals(monkeypatch) -> None:
    monkeypatch.setattr(engine, "WILD", 0.005)
    case, test, labels = problem("bce", "features", {"epochs": 4}, (4,), radius=0.1)
    result = assert_sound(case, test, labels, relaxation="zonotope")
    assert any("the zonotope reaches beyond" in line for line in result.fallbacks)
    assert result.steps[-1].relaxation == "interval"


def test_what_has_no_rule_is_refused_by_name() -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.1, scope="batch"))
    case = replace(case, restriction=Restriction(frozenset({1})))
    with pytest.raises(UnsupportedOperationError) as caught:
        case.certify(relaxation="zonotope")
    assert "zonotope" in caught.value.asked
    assert "known to be poisoned, with a budget in each batch" in caught.value.found
    assert "linear" in caught.value.remedy


def test_listed_selections_need_linear_forms() -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.1))
    with pytest.raises(InvalidInputError):
        case.certify(relaxation="zonotope", selections="enumerated")


@pytest.mark.parametrize("static", [True, False])
def test_linear_forms_are_met_with_the_zonotope_beside_them(
    static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "IDLE_STEPS", 5)
    case, test, labels = problem("bce", "features", {"epochs": 5}, (4,), radius=0.1, static=static)
    met, boxes = case.certify(relaxation="linear", carried="zonotope", selections="joint")
    alone, inner = case.certify(relaxation="zonotope")
    assert set(met.steps[-1].chains) == {"interval", "zonotope", "linear"}
    for box, outer in zip(boxes, inner, strict=True):
        assert_within(box, outer)
    low, high = alone.margins(test, labels)
    least, most = met.margins(test, labels)
    assert (least >= low - 1e-12).all()
    assert (most <= high + 1e-12).all()


def test_linear_forms_end_where_they_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is what the zonotope proves by itself; one that is not narrower keeps them."""
    monkeypatch.setattr(loop, "IDLE_STEPS", 2)
    case, _, _ = problem("bce", "features", {"epochs": 6}, (4,), radius=0.1)
    result, boxes = case.certify(relaxation="linear", carried="zonotope", selections="joint")
    _, others = case.certify(relaxation="zonotope")
    box, alone = boxes[-1], others[-1]
    used = [step.relaxation for step in result.steps]
    end = used.index("zonotope")
    assert used == ["linear"] * end + ["zonotope"] * (6 - end)
    assert any(f"step {end}: linear forms end here" in note for note in result.notes)
    assert_same(box, alone)
    monkeypatch.setattr(loop, "WIDER", torch.inf)
    result, _ = case.certify(relaxation="linear", carried="zonotope", selections="joint")
    assert "linear" in result.steps[-1].chains


def test_where_it_has_no_rule_a_note_says_so_and_linear_forms_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "refusal", lambda *_: "lunar phases")
    result, _ = tiny(agt.FeaturePoisoning(1, 0.1)).certify(carried="zonotope")
    assert any("no rule for lunar phases" in note for note in result.notes)
    assert "zonotope" not in result.steps[-1].chains
    assert not result.fallbacks


def test_a_zonotope_that_linear_forms_beat_by_far_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milp_agt.certification.loop.HOPELESS", 1.1)
    case, test, labels = problem("bce", "features", {"epochs": 4}, (4,), radius=0.1)
    result = assert_sound(
        case, test, labels, relaxation="linear", carried="zonotope", selections="joint"
    )
    assert "zonotope" in result.steps[0].chains
    assert all("zonotope" not in step.chains for step in result.steps[1:])
    assert any("the zonotope is left out from here on" in note for note in result.notes)


def test_linear_forms_by_themselves() -> None:
    """``carried="none"``: what linear forms prove alone, and a note that says so."""
    case, _, _ = problem("bce", "features", budget=1, radius=0.05)
    alone, _ = case.certify(relaxation="linear", carried="none")
    beside, _ = case.certify(relaxation="linear", carried="zonotope")
    assert "zonotope" in beside.steps[-1].chains
    assert "zonotope" not in alone.steps[-1].chains
    assert "no zonotope is carried along: carried = 'none'" in alone.notes
    assert beside.reachable.mean_width < alone.reachable.mean_width


def test_it_takes_the_place_of_linear_forms_where_these_are_dearer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.1))
    _, alone = case.certify(relaxation="zonotope")
    for module in (level_plan, planning):
        monkeypatch.setattr(module, "ZONOTOPE_SHARE", 2**40)
    cheaper, _ = case.certify(relaxation="linear", carried="zonotope")
    assert {step.relaxation for step in cheaper.steps} == {"linear"}
    monkeypatch.setattr(sizes, "WALKED_PER_SECOND", 1.0)
    result, boxes = case.certify(relaxation="linear", carried="zonotope")
    assert {step.relaxation for step in result.steps} == {"zonotope"}
    assert any("a zonotope in place of linear forms" in note for note in result.notes)
    assert_same(boxes[-1], alone[-1])
    small, _ = case.certify(relaxation="linear", carried="zonotope", memory=1000)
    assert {step.relaxation for step in small.steps} == {"linear"}


@pytest.mark.parametrize(("kind", "until"), [("labels", 0), ("features", 3)])
def test_a_linear_model_on_data_poisoned_anew_needs_none(kind: str, until: int) -> None:
    """Steps that are linear in the moves are exact by linear forms; products of moves lose little."""
    options = {"epochs": 6, "learning_rate": 0.05}
    case, test, labels = problem("mse", kind, options, (), radius=0.01, static=False)
    result = assert_sound(case, test, labels, relaxation="linear", carried="zonotope")
    assert ["zonotope" in step.chains for step in result.steps] == [True] * until + [False] * (
        6 - until
    )
    beside, _ = case.certify(relaxation="zonotope")
    assert result.reachable.mean_width < 1.02 * beside.reachable.mean_width


@pytest.mark.parametrize("flips", [False, True])
def test_selections_are_listed_beside_a_zonotope_where_labels_flip(flips: bool) -> None:
    threat = agt.FeatureLabelPoisoning(1, 0.1) if flips else agt.FeaturePoisoning(1, 0.1)
    result, _ = tiny(threat).certify(relaxation="linear", carried="zonotope", selections=None)
    assert "zonotope" in result.steps[0].chains
    assert ("linear, each selection" in result.steps[0].chains) is flips
