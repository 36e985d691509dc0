"""Two budgets, one for features and one for labels: runs, their cases and attacks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Attacks, Problem, Replay, assert_inside, assert_sound, network
from boxes import assert_same
from draws import poisoned
from pairs import every_pair
from separate_runs import admissible, bound_poison, problem, separately
from zonotope_runs import Passed, assert_generators, assert_in_boxes, attacks_of

import milp_agt as agt
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.bounds.adversary.enumerated import Enumerated, count_cases, list_selections
from milp_agt.bounds.zonotope.dual import Bound
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.errors import InvalidThreatModelError


@every_pair(
    loss=["mse", "bce", "cross_entropy"],
    static={"static": True, "adaptive": False},
    scope=["dataset", "batch"],
    relaxation=["interval", "zonotope", "linear"],
)
def test_attacks_stay_inside(loss: str, static: bool, scope: str, relaxation: str) -> None:
    threat = separately((2, 1), loss=loss, static=static, scope=scope)
    run = {"batch_size": 4, "epochs": 2, "shuffle_seed": 1}
    case, test, labels = problem(loss, threat, **run)
    inner = "linear" if relaxation == "linear" else None
    assert_sound(case, test, labels, relaxation=relaxation, inner_bounds=inner)


@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy"])
def test_attacks_on_open_samples_stay_inside(loss: str) -> None:
    threat = separately((1, 2), loss=loss, samples=([0, 1, 2], [2, 3, 4, 5]))
    run = {"momentum": 0.5, "weight_decay": 0.05, "epochs": 4}
    case, test, labels = problem(loss, threat, seed=3, **run)
    assert_sound(case, test, labels, window=2, inner_bounds="linear")


@pytest.mark.parametrize(
    ("relaxation", "static", "scope"),
    [
        ("lp", True, "dataset"),
        ("lp", False, "batch"),
        pytest.param("milp", True, "dataset", marks=pytest.mark.slow),
        pytest.param("milp", False, "batch", marks=pytest.mark.slow),
    ],
)
def test_attacks_stay_inside_programs(relaxation: str, static: bool, scope: str) -> None:
    threat = separately((1, 1), 0.05, static=static, scope=scope)
    case, test, labels = problem("bce", threat, count=4, epochs=2)
    case = replace(case, model=network((2, 2, 1), seed=1))
    options: dict[str, Any] = {"relaxation": relaxation, "program_window": 2}
    assert_sound(case, test, labels, attacks=16, iterations=2, in_torch=False, **options)


@pytest.mark.parametrize("fixed", [((0,), ()), ((), (1, 2)), ((3,), (0,))], ids=str)
@pytest.mark.parametrize("relaxation", ["linear", pytest.param("lp", marks=pytest.mark.slow)])
def test_attacks_under_a_restriction_stay_inside(relaxation: str, fixed: Any) -> None:
    case, test, labels = problem("bce", separately((1, 1), 0.05), count=4, epochs=2)
    case = replace(case, restriction=Restriction(*map(frozenset, fixed)))
    assert_sound(case, test, labels, attacks=16, in_torch=False, relaxation=relaxation)


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("void", ["features", "labels"])
def test_a_budget_of_0_leaves_the_other_threat(void: str, relaxation: str) -> None:
    features, labels = agt.FeaturePoisoning(2, 0.1), agt.LabelPoisoning(1)
    if void == "features":
        both: Any = agt.SeparatePoisoning(replace(features, budget=0), labels)
    else:
        both = agt.SeparatePoisoning(features, replace(labels, budget=0))
    alone = labels if void == "features" else features
    found = [
        problem("bce", threat)[0].certify(relaxation=relaxation)[0].reachable
        for threat in (both, alone)
    ]
    assert_same(*found)


@pytest.mark.usefixtures("linear_alone")
@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_with_every_sample_in_both_budgets_it_is_the_paired_threat(relaxation: str) -> None:
    paired, _, _ = problem("bce", agt.FeatureLabelPoisoning(6, 0.02))
    apart = replace(paired, threat=separately((6, 6), 0.02))
    a, b = (case.certify(relaxation=relaxation)[0].reachable for case in (paired, apart))
    assert_same(a, b, rtol=1e-9, atol=1e-12)


def every_poisoning(case: Problem, corners: int = 4) -> Attacks:
    """All flips within the label budget with all corner moves within the feature budget."""
    threat, x, y = case.threat, case.features, case.labels.double()[:, None]
    radius = threat.features.radius
    moves = torch.tensor(list(itertools.product((-radius, radius), repeat=2)), dtype=x.dtype)
    xs, ys = [], []
    for states in admissible(len(x), (threat.features.budget, threat.labels.budget)):
        flipped = torch.tensor([float(s >> 1) for s in states], dtype=x.dtype)[:, None]
        moved = [i for i, s in enumerate(states) if s & 1]
        for choice in itertools.product(range(corners), repeat=len(moved)):
            shifted = x.clone()
            shifted[moved] += moves[list(choice)]
            xs.append(shifted)
            ys.append((y - flipped).abs())
    unrolled = Replay(case).unrolled
    poisoning = Poisoning(torch.stack(xs), torch.stack(ys))
    return Attacks(unrolled, poisoning, unrolled.start(len(xs)))


@pytest.mark.parametrize("loss", ["mse", "hinge"])
def test_generators_of_both_parts_are_what_runs_have(loss: str) -> None:
    """Forms, flips and rows, with hinges that labels flip as well as features."""
    threat = separately((2, 1), 0.1, loss=loss)
    case, _, _ = problem(loss, threat, learning_rate=0.1, batch_size=4)
    passed = Passed.of(case)
    for attacks in attacks_of(passed):
        assert_in_boxes(passed, attacks)
        assert_generators(passed, attacks)
    samples = passed.last.zonotope.samples
    assert samples.states == 4
    assert sorted(samples.columns.tolist()) == sorted(2 * list(range(6)))


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("scope", ["dataset", "batch"])
def test_a_zonotope_spends_either_budget_on_its_own_part(static: bool, scope: str) -> None:
    """Worst cases, and those given one unit, against every choice."""
    poison = bound_poison((2, 1), static, scope)
    samples = SampleGenerators.of(poison, [np.array(b) for b in ([0, 1, 2], [3, 4], [2, 0, 4])])
    drawn = torch.rand(3, samples.count, generator=torch.Generator().manual_seed(0)).double()
    most = samples.budgets
    chosen = [
        c
        for c in itertools.product((0, 1), repeat=len(samples.known))
        if bool((samples._members_of(torch.tensor(c)).sum(-1) <= most).all())
    ]
    taken = torch.tensor(chosen)[:, samples.unit].double()
    sums = drawn @ taken.T
    assert torch.allclose(samples.worst(drawn), sums.amax(1))
    assert torch.allclose((samples.chosen(drawn) * drawn).sum(1), sums.amax(1))
    clean, poisoned = samples.conditional(drawn)
    for column in range(samples.count):
        mine = taken[:, column] > 0
        assert torch.allclose(clean[:, column], sums[:, ~mine].amax(1))
        assert torch.allclose(poisoned[:, column], sums[:, mine].amax(1))
    bound = Bound(torch.zeros(3).double(), drawn, torch.zeros(3).double())
    for own in torch.cartesian_prod(*(torch.arange(samples.count),) * 2):
        if samples.part[own].tolist() != [0, 1]:
            continue
        given = bound.given(samples, own.expand(3, 2))
        for state in range(3):
            alike = (taken[:, own[0]] == (state & 1)) & (taken[:, own[1]] == (state >> 1))
            assert (given[state] >= sums[:, alike].amax(1)).all()
        assert torch.allclose(given[3], sums.amax(1))


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
@pytest.mark.parametrize("budgets", [(1, 1), (1, 2), (2, 1)], ids=str)
def test_every_poisoning_of_a_tiny_run_is_inside(budgets: tuple[int, int], selections: str) -> None:
    case, _, _ = problem("bce", separately(budgets, 0.05), count=4, learning_rate=0.5)
    case = replace(case, model=network((2, 2, 1), seed=5))
    everything = every_poisoning(case)
    states = Replay(case).run(everything)
    result, boxes = case.certify(selections=selections, inner_bounds="linear")
    assert_inside(boxes, states)
    assert_inside(case.certify(relaxation="zonotope")[1], states)
    flat = torch.cat([states[-1][n].flatten(1) for n in sorted(result.reachable.lower)], 1)
    reached = float((flat.amax(0) - flat.amin(0)).mean())
    if selections == "enumerated":  # each case has one set of labels, and small moves
        assert result.reachable.mean_width <= 1.2 * reached


@pytest.mark.slow
def test_programs_hold_every_poisoning_of_a_tiny_run() -> None:
    case, _, _ = problem("bce", separately((1, 1), 0.05), count=4, learning_rate=0.5)
    case = replace(case, model=network((2, 2, 1), seed=5))
    states = Replay(case).run(every_poisoning(case))
    for relaxation in ("lp", "milp"):
        _, boxes = case.certify(relaxation=relaxation, program_window=3)
        assert_inside(boxes, states)


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
def test_the_list_of_cases_is_complete(loss: str, static: bool) -> None:
    case, _, _ = problem(loss, separately((1, 2), loss=loss, static=static))
    poison = Replay(case).poison
    for limits in (UNRESTRICTED, Restriction(outside=frozenset([2]))):
        listed = list_selections(poison, limits)
        assert len(listed) == count_cases(poison, limits)
        adversary = Enumerated(poison, listed)
        assert not adversary.mask[0].any()
        assert not adversary.label_mask[0].any()
        generator = torch.Generator().manual_seed(0)
        picked = poisoned(poison, generator, 100)
        picked = picked[~picked[:, list(limits.outside)].flatten(1).any(1)]
        _, moved = poison.sample_moves(generator, picked, True)
        for chosen, own in zip(picked, moved, strict=True):
            fits = (adversary.mask | ~chosen[:, 0]).all(1)
            if listed.label_moves is None:
                fits &= (adversary.label_mask | ~chosen[:, 1]).all(1)
            else:
                fits &= (adversary.labels(torch.arange(6)) == own).all(-1).all(-1)
            assert bool(fits.any())


@pytest.mark.parametrize(("loss", "static"), [("bce", True), ("mse", True), ("bce", False)])
def test_attacks_stay_inside_the_union_of_all_cases(loss: str, static: bool) -> None:
    threat = separately((1, 1), 0.1, loss=loss, static=static)
    case, test, labels = problem(loss, threat, momentum=0.3)
    assert_sound(case, test, labels, selections="enumerated")


def test_an_attack_uses_both_budgets_apart() -> None:
    case, _, _ = problem("bce", separately((2, 1)))
    search = agt.Search(pool=64, restarts=2, rounds=2, iterations=3)
    found = agt.attack(case.model, case.data, case.training, case.threat, search=search)
    assert not found.exhaustive
    changed = set()
    for index in range(len(found.runs)):
        x, y = found.runs.data_set(index)
        moved = (x != case.features.numpy()).any(-1)
        flipped = y.reshape(-1) != case.labels.numpy()
        assert moved.sum() <= 2
        assert flipped.sum() <= 1
        assert (np.abs(x - case.features.numpy()) <= 0.1 + 1e-12).all()
        changed.add(bool((flipped & ~moved).any()))
    assert True in changed, "no label was flipped of a sample whose features stay"
    alone = [
        agt.attack(case.model, case.data, case.training, part, search=search).mean_width
        for part in (case.threat.features, case.threat.labels)
    ]
    assert found.mean_width > max(alone)
    certified, _ = case.certify(attack=search)
    assert certified.sandwich.reached <= certified.reachable.mean_width


def test_parts_must_agree() -> None:
    features, labels = agt.FeaturePoisoning(1, 0.1), agt.LabelPoisoning(1)
    for part, words in (
        (replace(labels, static=False), ("the same static", "True for features", "alike in both")),
        (replace(labels, scope="batch"), ("the same scope", "'batch' for labels", "alike in both")),
        (features, ("LabelPoisoning for its labels", "labels = Feature", "give labels=")),
    ):
        with pytest.raises(InvalidThreatModelError) as refusal:
            agt.SeparatePoisoning(features, part)  # type: ignore[arg-type]
        for word in words:
            assert word in str(refusal.value)


def test_bad_budgets_are_named() -> None:
    for threat, word in (
        (separately((7, 1)), "FeaturePoisoning may poison 7"),
        (separately((1, 7)), "LabelPoisoning may poison 7"),
        (separately((1, -1)), "LabelPoisoning needs a whole budget"),
    ):
        with pytest.raises(InvalidThreatModelError, match=word):
            problem("bce", threat)[0].certify()


def test_the_claim_names_both_budgets() -> None:
    text = separately((2, 1), 0.1).describe()
    assert "features of up to 2 samples" in text
    assert "chosen apart" in text
    assert "labels of up to 1 sample" in text
    assert text.count("once, before training") == 1
