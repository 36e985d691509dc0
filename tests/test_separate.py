"""Budgets of features and labels apart: against every choice of both, by attacks, and with mutants."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Attacks, Problem, Replay, assert_inside, assert_sound, network
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

import milp_agt as agt
from milp_agt import selections
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.chains import CHARGED
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.engines import adversary, relaxed, separate
from milp_agt.engines.adversary import open_debt
from milp_agt.engines.cases import Enumerated, count_cases, enumerate_cases
from milp_agt.engines.separate import SeparateSum, contenders, worst_of_both
from milp_agt.engines.step import Step
from milp_agt.errors import InvalidThreatModelError, SoundnessError
from milp_agt.formulations.loss import get_loss
from milp_agt.journal import Remarks
from milp_agt.poison import Poison
from milp_agt.sweeps import resized
from milp_agt.training import UpdateRule

States = tuple[int, ...]  # of each sample: bit 0 for features, bit 1 for labels
BUDGETS = [(1, 1), (2, 1), (1, 2), (2, 2), (5, 1), (5, 5)]


def admissible(
    count: int, budgets: tuple[int, int], restriction: Restriction = UNRESTRICTED
) -> list[States]:
    """Every admissible state of every sample."""
    found = []
    for states in itertools.product(range(4), repeat=count):
        spent = [sum(s >> p & 1 for s in states) for p in (0, 1)]
        known = all(states[i] for i in restriction.inside if i < count)
        known &= not any(states[i] for i in restriction.outside if i < count)
        if spent[0] <= budgets[0] and spent[1] <= budgets[1] and known:
            found.append(states)
    return found


def drawn_hurt(count: int, seed: int, extra: float) -> Tensor:
    """x, y and b >= max(x, y) of some samples; b beyond their sum where ``extra`` > 1."""
    generator = torch.Generator().manual_seed(seed)
    x, y, share = torch.rand(3, count, generator=generator, dtype=torch.float64)
    x, y = x.round(decimals=1), y.round(decimals=1)  # ties are where tangents go astray
    least = torch.maximum(x, y)
    return torch.stack([x, y, least + share * (extra * (x + y) - least).clamp(min=0.0)])


def total(hurt: Tensor, states: States) -> float:
    return sum(float(hurt[s - 1, i]) for i, s in enumerate(states) if s)


def linear_relaxation(hurt: Tensor, budgets: tuple[int, int]) -> float:
    """The best fractional choice."""
    count = hurt.shape[1]
    one_state = np.tile(np.eye(count), 3)
    costs = np.kron([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], np.ones(count))
    limits = [1.0] * count + list(budgets)
    rows = np.vstack([one_state, costs])
    return -float(linprog(-hurt.numpy().reshape(-1), A_ub=rows, b_ub=limits, bounds=(0, 1)).fun)


def split_spent(hurt: Tensor, budgets: tuple[int, int], share: float) -> float:
    """Two top-k sums of one split of the damage: u >= x, v >= y, u + v >= b."""
    x, y, both = hurt
    missing = (both - x - y).clamp(min=0.0)
    u, v = x + share * missing, y + (1.0 - share) * missing
    parts = zip((u, v), budgets, strict=True)
    return sum(float(c.topk(min(k, len(c))).values.sum()) for c, k in parts)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 5), st.sampled_from(BUDGETS), st.integers(0, 10**6), st.sampled_from([1.0, 1.5])
)
def test_the_bound_is_the_linear_relaxation_of_the_choice(
    count: int, budgets: tuple[int, int], seed: int, extra: float
) -> None:
    hurt = drawn_hurt(count, seed, extra)
    best = max(total(hurt, states) for states in admissible(count, budgets))
    bound = float(worst_of_both(hurt, budgets))
    assert best <= bound
    relaxed_value = linear_relaxation(hurt, budgets)
    assert bound == pytest.approx(relaxed_value, abs=1e-9)
    for share in (0.0, 0.5, 1.0):
        assert bound <= split_spent(hurt, budgets, share) * (1.0 + 1e-9)


@pytest.mark.parametrize("budgets", BUDGETS, ids=str)
def test_only_contenders_matter(budgets: tuple[int, int]) -> None:
    many = torch.stack([drawn_hurt(40, seed, 1.3) for seed in range(8)], -1)
    some = contenders(many, sum(budgets))
    assert some.shape[1] <= 3 * sum(budgets)
    torch.testing.assert_close(
        worst_of_both(some, budgets), worst_of_both(many, budgets), rtol=1e-9, atol=0.0
    )


def test_enough_budget_is_everything() -> None:
    hurt = drawn_hurt(5, 0, 1.5)
    everything = float(hurt.amax(0).sum())
    assert everything <= float(worst_of_both(hurt, (5, 5))) <= everything * (1.0 + 1e-12)
    assert float(worst_of_both(hurt[:, :0], (1, 1))) == 0.0


def check_sum(seed: int, budgets: tuple[int, int], restriction: Restriction) -> None:
    """Every admissible choice of states gives a sum inside the box."""
    count = 4
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(1, count, 2))
    radius = rng.random((4, count, 2)) * np.array([0.1, 0.5, 0.5, 1.0])[:, None, None]
    lower, upper = torch.from_numpy(middle - radius), torch.from_numpy(middle + radius)
    summed = SeparateSum(budgets)
    index = torch.arange(count)
    inside, outside = (
        torch.isin(index, torch.tensor(sorted(chosen))) if chosen else None
        for chosen in (restriction.inside, restriction.outside)
    )
    for part in index.split(3):
        masks = (None if m is None else m[part] for m in (inside, outside))
        summed.add(Interval(lower[:, part], upper[:, part]), *masks)
    box, size = summed.result()
    assert bool((size >= torch.maximum(upper, -lower).amax(0).sum(0)).all())
    reached = []
    for states in admissible(count, budgets, restriction):
        at = torch.tensor(states)
        low, high = lower[at, index].sum(0), upper[at, index].sum(0)
        assert bool(((box.lower[0] <= low) & (high <= box.upper[0])).all())
        reached.append((low, high))
    # At most the gap of the linear relaxation, one part of the damage of one sample.
    lowest = torch.stack([low for low, _ in reached]).amin(0)
    most = (lower[:1] - lower[1:]).clamp(min=0.0).amax(0).amax(0)
    assert bool((lowest - box.lower[0] <= 0.51 * most + 1e-9).all())


@pytest.mark.parametrize("restriction", [(), (0,), (0, 3)], ids=str)
@pytest.mark.parametrize("budgets", BUDGETS[:4], ids=str)
def test_sums_hold_every_choice(budgets: tuple[int, int], restriction: tuple[int, ...]) -> None:
    limits = Restriction(frozenset(restriction[:1]), frozenset(restriction[1:]))
    for seed in range(4):
        check_sum(seed, budgets, limits)


# --------------------------------------------------------------------------------------- debts


def bound_poison(budgets: tuple[int, int], static: bool, scope: str, loss: str = "bce") -> Poison:
    """Five samples; the features of sample 1 and the labels of sample 3 cannot be poisoned."""
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.normal(size=(5, 2)))
    y = torch.from_numpy(rng.integers(2, size=(5, 1)).astype(np.float64))
    threat = separately(
        budgets, static=static, scope=scope, samples=([0, 2, 3, 4], [0, 1, 2, 4]), loss=loss
    )
    return threat.bind(x, y, get_loss(loss))


def separately(
    budgets: tuple[int, int],
    radius: Any = 0.1,
    samples: tuple[Any, Any] = (None, None),
    loss: str = "bce",
    **options: Any,
) -> agt.SeparatePoisoning:
    return agt.SeparatePoisoning(
        agt.FeaturePoisoning(budgets[0], radius, samples=samples[0], **options),
        agt.LabelPoisoning(
            budgets[1], 0.3 if loss == "mse" else None, samples=samples[1], **options
        ),
    )


def check_debt_apart(
    budgets: tuple[int, int], static: bool, scope: str, restriction: Restriction, seed: int = 0
) -> None:
    """No admissible choice takes more than is owed, given the state of one sample or not."""
    poison = bound_poison(budgets, static, scope)
    batches = ((0, 1, 2), (3, 4), (2, 0, 4))
    rng = np.random.default_rng(seed)
    rows, count = 3, 5
    debt = open_debt(poison, rows, restriction)
    own = torch.tensor([0, 1, 2])
    taken = np.zeros((len(batches), rows, count, 4))  # by the samples in each state
    on_x, on_y = np.zeros((rows, count, 2)), np.zeros((rows, count, 1))
    for t, batch in enumerate(batches):
        samples = torch.tensor(batch)
        step = Step(t, samples, poison.take(samples), UpdateRule(0.1, 0.0, 0.0, False), False)
        x = torch.from_numpy(rng.normal(size=(rows, len(batch), 2)))
        y = torch.from_numpy(rng.normal(size=(rows, len(batch), 1)))
        charges = torch.from_numpy(0.2 * rng.random((rows, len(batch), 3)))
        if t == 0:
            eye = torch.eye(3, dtype=torch.float64)[..., None]
            x, y, charges = x * eye, y * eye, charges * eye
        (debt.add if t else debt.add_own)(step, x, y, charges)
        taken[t][:, list(batch), 1:] += charges.numpy()
        on_x[:, list(batch)] += x.numpy()
        on_y[:, list(batch)] += y.numpy()
        if not static:
            _settle(poison, taken[t], on_x, on_y)
            on_x[:], on_y[:] = 0.0, 0.0
    if static:
        _settle(poison, taken[0], on_x, on_y)
    choices = [
        states
        for states in admissible(count, (count, count), restriction)
        if not states[1] & 1 and not states[3] & 2
    ]
    best = np.full((rows, 5), -np.inf)
    for states in choices if scope == "dataset" or static else ():
        groups = batches if scope == "batch" else (range(count),)
        if any(sum(states[i] >> p & 1 for i in g) > budgets[p] for g in groups for p in (0, 1)):
            continue
        gain = taken[:, :, np.arange(count), list(states)].sum((0, 2))
        for row in range(rows):
            state = states[int(own[row])]
            best[row, 4] = max(best[row, 4], gain[row])
            best[row, state] = max(best[row, state], gain[row])
    if scope == "batch" and not static:  # a fresh choice in every batch
        best = sum(_best_of_batch(taken[t], b, budgets, own, t == 0) for t, b in enumerate(batches))
    given, worst = debt.owed_given(own).numpy(), debt.worst().numpy()
    assert given.shape == (rows, 4)
    assert (worst >= best[:, 4] - 1e-12).all()
    assert (given >= best[:, :4] - 1e-12).all()


def _settle(poison: Poison, taken: Any, on_x: Any, on_y: Any) -> None:
    """Add what moves take: the box of features, the one flip of a label."""
    assert poison.feature_moves is not None
    assert poison.label_moves is not None
    x = np.einsum("rnd,nd->rn", np.abs(on_x), poison.feature_moves.upper.numpy())
    flips = poison.label_moves.lower.numpy() + poison.label_moves.upper.numpy()
    y = np.maximum(-(on_y * flips).sum(-1), 0.0)
    taken[..., 1] += x
    taken[..., 2] += y
    taken[..., 3] += x + y


def _best_of_batch(
    taken: Any, batch: tuple[int, ...], budgets: tuple[int, int], own: Tensor, first: bool
) -> Any:
    best = np.full((len(own), 5), -np.inf)
    for states in admissible(len(batch), budgets):
        at = dict(zip(batch, states, strict=True))
        if at.get(1, 0) & 1 or at.get(3, 0) & 2:
            continue
        gain = sum(taken[:, i, s] for i, s in at.items())
        for row, sample in enumerate(own.tolist()):
            possible = {4} | ({at[sample]} if first else set(range(4)))
            for state in possible:
                best[row, state] = max(best[row, state], gain[row])
    return best


@pytest.mark.parametrize("restriction", [(), (2,), (2, 0)], ids=str)
@pytest.mark.parametrize("scope", ["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
@pytest.mark.parametrize("budgets", [(1, 1), (2, 1)], ids=str)
def test_no_choice_takes_more_than_is_owed(
    budgets: tuple[int, int], static: bool, scope: str, restriction: tuple[int, ...]
) -> None:
    if scope == "batch" and not static and restriction:
        pytest.skip("a fresh selection in every batch is not branched on")
    limits = Restriction(frozenset(restriction[:1]), frozenset(restriction[1:]))
    for seed in range(3):
        check_debt_apart(budgets, static, scope, limits, seed)


# ---------------------------------------------------------------------------------------- runs

OUTPUTS = {"mse": 2, "bce": 1, "cross_entropy": 3}


def problem(loss: str, threat: Any, count: int = 6, seed: int = 0, **run: Any) -> Any:
    outputs = OUTPUTS[loss]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * count, 2, generator=generator, dtype=torch.float64)
    y: Tensor = torch.randint(max(outputs, 2), (2 * count,), generator=generator)
    if loss == "mse":
        y = torch.randn(2 * count, outputs, generator=generator, dtype=torch.float64)
    training = agt.Training(loss=loss, **({"learning_rate": 0.3, "epochs": 3} | run))
    case = Problem(network((2, 3, outputs), seed=seed), x[:count], y[:count], training, threat)
    return case, x[count:], y[count:]


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("scope", ["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy"])
def test_attacks_stay_inside(loss: str, static: bool, scope: str, relaxation: str) -> None:
    threat = separately((2, 1), loss=loss, static=static, scope=scope)
    run = {"batch_size": 4, "epochs": 2, "shuffle_seed": 1}
    case, test, labels = problem(loss, threat, **run)
    inner = None if relaxation == "interval" else "linear"
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
    for name in found[0].lower:
        np.testing.assert_array_equal(found[0].lower[name], found[1].lower[name])
        np.testing.assert_array_equal(found[0].upper[name], found[1].upper[name])


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_two_budgets_hold_the_paired_one(relaxation: str) -> None:
    """What poisons k samples in both ways poisons k in either, at every budget."""
    for k in (1, 2):
        paired, _, _ = problem("bce", agt.FeatureLabelPoisoning(k, 0.1))
        apart = replace(paired, threat=separately((k, k)))
        small, large = (case.certify(relaxation=relaxation)[1] for case in (paired, apart))
        replay = Replay(paired)
        generator = torch.Generator().manual_seed(k)
        assert_inside(large, replay.run(replay.random(64, generator, corners=True)))
        for a, b in zip(small, large, strict=True) if relaxation == "interval" else ():
            for name in a.lower:
                assert (b.lower[name] <= a.lower[name] + 1e-12).all()
                assert (a.upper[name] - 1e-12 <= b.upper[name]).all()
        # Alone, either threat is inside as well.
        for alone in (agt.FeaturePoisoning(k, 0.1), agt.LabelPoisoning(k)):
            own = Replay(replace(paired, threat=alone))
            assert_inside(large, own.run(own.random(32, generator, corners=True)))


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_with_every_sample_in_both_budgets_it_is_the_paired_threat(relaxation: str) -> None:
    paired, _, _ = problem("bce", agt.FeatureLabelPoisoning(6, 0.02))
    apart = replace(paired, threat=separately((6, 6), 0.02))
    a, b = (case.certify(relaxation=relaxation)[0].reachable for case in (paired, apart))
    for name in a.lower:
        np.testing.assert_allclose(b.lower[name], a.lower[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(b.upper[name], a.upper[name], rtol=1e-9, atol=1e-12)


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
    poisoning = Poisoning((torch.stack(xs),), (torch.stack(ys),))
    return Attacks(unrolled, poisoning, unrolled.start(len(xs)))


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
@pytest.mark.parametrize("budgets", [(1, 1), (1, 2), (2, 1)], ids=str)
def test_every_poisoning_of_a_tiny_run_is_inside(budgets: tuple[int, int], selections: str) -> None:
    case, _, _ = problem("bce", separately(budgets, 0.05), count=4, learning_rate=0.5)
    case = replace(case, model=network((2, 2, 1), seed=5))
    everything = every_poisoning(case)
    states = Replay(case).run(everything)
    result, boxes = case.certify(selections=selections, inner_bounds="linear")
    assert_inside(boxes, states)
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


# --------------------------------------------------------------------------------------- cases


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
def test_the_list_of_cases_is_complete(loss: str, static: bool) -> None:
    case, _, _ = problem(loss, separately((1, 2), loss=loss, static=static))
    poison = Replay(case).poison
    for limits in (UNRESTRICTED, Restriction(outside=frozenset([2]))):
        listed = enumerate_cases(poison, limits)
        assert len(listed) == count_cases(poison, limits)
        exposure = Enumerated(poison, listed)
        assert not exposure.mask[0].any()
        assert not exposure.label_mask[0].any()
        generator = torch.Generator().manual_seed(0)
        picked = poison.sample_selection(generator, 100)
        picked = picked[~picked[:, list(limits.outside)].flatten(1).any(1)]
        _, moved = poison.sample_moves(generator, picked, True)
        for chosen, own in zip(picked, moved, strict=True):
            fits = (exposure.mask | ~chosen[:, 0]).all(1)
            if listed.label_moves is None:
                fits &= (exposure.label_mask | ~chosen[:, 1]).all(1)
            else:
                fits &= (exposure.labels(torch.arange(6)) == own).all(-1).all(-1)
            assert bool(fits.any())


@pytest.mark.parametrize(("loss", "static"), [("bce", True), ("mse", True), ("bce", False)])
def test_attacks_stay_inside_the_union_of_all_cases(loss: str, static: bool) -> None:
    threat = separately((1, 1), 0.1, loss=loss, static=static)
    case, test, labels = problem(loss, threat, momentum=0.3)
    assert_sound(case, test, labels, selections="enumerated")


# -------------------------------------------------------------------------------------- attacks


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
    assert certified.sandwich is not None
    assert certified.sandwich.reached <= certified.reachable.mean_width


# -------------------------------------------------------------------------------------- mutants


def caught(check: Any, seeds: int = 8) -> bool:
    """Whether some seed shows that a bound is too tight."""
    for seed in range(seeds):
        try:
            check(seed)
        except (AssertionError, SoundnessError):
            return True
    return False


def _shrunk(honest: Any) -> Any:
    return lambda *arguments: 0.99 * honest(*arguments)


@pytest.mark.parametrize("budgets", [(1, 1), (2, 1)], ids=str)
def test_debts_and_sums_one_per_cent_too_small_are_caught(
    budgets: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adversary, "worst_of_both", _shrunk(worst_of_both))
    assert caught(lambda seed: check_debt_apart(budgets, True, "dataset", UNRESTRICTED, seed))
    monkeypatch.setattr(separate, "worst_of_both", _shrunk(worst_of_both))
    assert caught(lambda seed: check_sum(seed, budgets, UNRESTRICTED))


@pytest.mark.parametrize("state", [1, 2, 3])
def test_charges_of_one_state_one_per_cent_too_small_are_caught(
    state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = adversary._dev_apart

    def small(*arguments: Any) -> Tensor:
        hurt = honest(*arguments).clone()
        hurt[..., state - 1] *= 0.99
        if state < 3:
            hurt[..., 2] = 0.0  # otherwise both at once hides that one alone is too cheap
        return hurt

    monkeypatch.setattr(adversary, "_dev_apart", small)
    assert caught(lambda seed: check_debt_apart((1, 1), True, "dataset", UNRESTRICTED, seed), 16)


@pytest.mark.parametrize("kind", ["budget of labels", "both as one", "box"])
def test_attacks_catch_a_threat_that_is_too_small(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, test, labels = problem("mse", separately((1, 1), 0.05, loss="mse"), epochs=1)
    case = replace(case, model=torch.nn.Sequential(torch.nn.Linear(2, 2).double()))
    assert_sound(case, test, labels, relaxation="linear")
    if kind == "budget of labels":
        left = Poison.budgets_given
        monkeypatch.setattr(
            Poison, "budgets_given", lambda p, s: (left(p, s)[0], left(p, s)[1] - 1)
        )
    elif (
        kind == "both as one"
    ):  # whoever poisons features must poison the labels of the same sample
        spend = adversary._spend_apart
        monkeypatch.setattr(
            adversary,
            "_spend_apart",
            lambda hurt, budgets, inside: spend(
                torch.stack([0 * hurt[0], 0 * hurt[1], hurt[2]]), budgets, inside
            ),
        )
    else:
        box = Poison.label_box
        monkeypatch.setattr(Poison, "label_box", lambda p: _tight(box(p)))
    levels = ("linear", "interval")
    assert caught(lambda i: assert_sound(case, test, labels, relaxation=levels[i]), 2)


def _tight(box: Interval) -> Interval:
    lower, upper = box.lower.clone(), box.upper.clone()
    lower[2:], upper[2:] = lower[:1], upper[:1]
    return Interval(lower, upper)


def test_attacks_catch_dropped_charges(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = relaxed.Offsets._charges
    monkeypatch.setattr(relaxed.Offsets, "_charges", lambda *a: torch.zeros_like(honest(*a)))

    def check(seed: int) -> None:
        case, test, labels = problem("bce", separately((2, 1), 0.5), seed=seed, learning_rate=1.0)
        assert_sound(case, test, labels, attacks=64, in_torch=False)

    assert caught(check)


# --------------------------------------------------------------------------------------- errors


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


def test_other_budgets_cannot_be_swept() -> None:
    with pytest.raises(agt.MilpAgtError, match="a threat without a budget"):
        resized(separately((1, 1)), 2, None)


def test_two_budgets_are_never_charged_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case, test, labels = problem("bce", separately((1, 1)))
    with pytest.raises(agt.MilpAgtError, match="budgets of features and labels apart"):
        case.certify(selections="charged")
    # As if they were too many to list, which is where one budget is charged unasked.
    none = selections.Selections(), Remarks()
    monkeypatch.setattr(selections._Work, "listed", lambda *_arguments: none)
    result = assert_sound(case, test, labels, selections=None)
    assert not any("charged" in note for note in (*result.notes, *result.fallbacks))
    assert CHARGED not in result.steps[-1].chains
    one = problem("bce", agt.LabelPoisoning(1))[0].certify(selections=None)[0]
    assert CHARGED in one.steps[-1].chains
