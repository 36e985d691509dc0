"""Attacks, and both sides of every number."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from test_attack_search import attacked
from torch import Tensor

import milp_agt as agt
from milp_agt import attacks
from milp_agt.attacks import Accuracy, Backdoor, Loss, Sandwich, Search, Stable
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.sandwich import ParameterSandwich
from milp_agt.attacks.unrolled import Unrolled
from milp_agt.core.reachable import ReachableSet
from milp_agt.errors import SoundnessError, UnsupportedOperationError
from milp_agt.formulations.loss import get_loss
from milp_agt.threats.poison import Poison


def bound(threat: object, loss: str, outputs: int, seed: int, count: int = 5) -> Poison:
    """A threat bound to random data of 3 features."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    chosen = get_loss(loss)
    if chosen.is_classification:
        y = torch.randint(chosen.classes(outputs), (count,), generator=generator)
    else:
        y = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    return threat.bind(x, chosen.encode(y, outputs), chosen)  # type: ignore[attr-defined]


POISONS = {
    "features": lambda s: bound(agt.FeaturePoisoning(2, 0.1), "mse", 2, s),
    "radius by feature": lambda s: bound(
        agt.FeaturePoisoning(2, [0.1, 0.0, 2.0], samples=[0, 3]), "mse", 2, s
    ),
    "classes": lambda s: bound(agt.LabelPoisoning(2), "cross_entropy", 3, s),
    "two classes": lambda s: bound(agt.LabelPoisoning(2), "bce", 1, s),
    "targets": lambda s: bound(agt.LabelPoisoning(2, radius=0.3), "mse", 2, s),
    "both": lambda s: bound(agt.FeatureLabelPoisoning(2, 0.1), "cross_entropy", 3, s),
}


@pytest.mark.parametrize("kind", POISONS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_steepest_moves_are_admissible_and_worth_the_support(kind: str, seed: int) -> None:
    poison = POISONS[kind](seed)
    generator = torch.Generator().manual_seed(seed + 1)
    on_x = torch.randn(4, *poison.features.shape, generator=generator, dtype=torch.float64)
    on_y = torch.randn(4, *poison.labels.shape, generator=generator, dtype=torch.float64)
    best = poison.steepest(on_x, on_y)
    again = poison.project(best.features, best.labels)
    torch.testing.assert_close(again[0], best.features, rtol=0, atol=1e-15)
    torch.testing.assert_close(again[1], best.labels, rtol=0, atol=1e-15)
    gained_x = (on_x * (best.features - poison.features)).flatten(2).sum(-1)
    gained_y = (on_y * (best.labels - poison.labels)).sum(-1)
    torch.testing.assert_close(best.feature_gain, gained_x)
    torch.testing.assert_close(best.label_gain, gained_y)
    torch.testing.assert_close(best.feature_gain + best.label_gain, poison.support(-on_x, -on_y))


@pytest.mark.parametrize("kind", POISONS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_projection_is_the_nearest_admissible_point(kind: str, seed: int) -> None:
    poison = POISONS[kind](seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = poison.features + torch.randn(4, *poison.features.shape, generator=generator).double()
    y = poison.labels + torch.randn(4, *poison.labels.shape, generator=generator).double()
    near = poison.project(x, y)
    everyone = torch.ones(4, len(poison.open), 1, dtype=torch.bool)
    for corners in (False, True):
        others = poison.sample_moves(generator, everyone, corners)
        for point, nearest, other in zip((x, y), near, others, strict=True):
            closest = (point - nearest).flatten(2).norm(dim=-1)
            assert (closest <= (point - other).flatten(2).norm(dim=-1) + 1e-12).all()
    fixed = poison.project(*near)
    assert torch.equal(fixed[0], near[0])
    assert torch.equal(fixed[1], near[1])


def test_a_threat_without_moves_is_refused() -> None:
    class Nameless:
        budget = 1

        def bind(self, features: Tensor, labels: Tensor, loss: Any) -> Poison:
            everyone = torch.ones(len(features), dtype=torch.bool)
            return Poison(features, labels, everyone, 1, static=True, per_batch=False)

        def describe(self) -> str:
            return "anything"

    with refused("attack needs moves", "whole samples", "certify", kind=UnsupportedOperationError):
        attacked(Nameless())


def test_a_run_that_is_best_for_many_ends_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data are as large as the data set: a copy for each of thousands of ends takes longer than it."""
    unpatched, packed = Packed.of, list[int]()

    def counted(data: Any, unrolled: Unrolled) -> Packed:
        packed.append(len(data))
        return unpatched(data, unrolled)

    monkeypatch.setattr(Packed, "of", staticmethod(counted))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)), np.arange(12) % 2
    training = agt.Training(loss="bce", learning_rate=0.3, epochs=2)
    threat = agt.FeaturePoisoning(budget=1, radius=0.3)
    search = Search(pool=4, corners=0, restarts=0, rounds=0)
    found = attacks.attack(network((2, 6, 1), seed=1), (x, y), training, threat, search=search)
    assert found.mean_width > 0.0
    assert len(found.widths) == 25
    assert max(packed) <= 2  # of 50 ends


QUICK = Search(pool=64, restarts=2, rounds=1, iterations=3)


def data(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return x, (x.sum(1) > 0).long()


def certify(threat: Any, attack: Search = QUICK, **options: Any) -> agt.Result:
    training = agt.Training(loss="bce", learning_rate=0.5, epochs=4)
    options = {"attack": attack, "carried": "none"} | options
    return agt.certify(network((2, 3, 1)), data(), training, threat, **options)


@pytest.mark.parametrize(
    "threat",
    [
        pytest.param(kind(*given, static=static), marks=[] if quick else pytest.mark.slow)
        for kind, given, often in (
            (agt.FeaturePoisoning, (2, 0.05), True),
            (agt.LabelPoisoning, (1,), False),
            (agt.FeatureLabelPoisoning, (1, 0.05), True),
        )
        for static, quick in ((often, True), (not often, False))
    ],
    ids=str,
)
def test_every_result_carries_its_other_side(threat: Any) -> None:
    result = certify(threat, attack=Search(pool=32, restarts=1, rounds=0, iterations=2))
    sandwich = result.sandwich
    assert result.attack is not None
    assert 0 < sandwich.reached < sandwich.certified
    assert sandwich.ratio == sandwich.certified / sandwich.reached
    for index in range(len(result.attack.runs)):
        assert result.reachable.contains(result.attack.runs.describe(index).state_dict)
    x, y = data(20, seed=3)
    trigger = agt.BallTrigger(0.1)
    for objective, bounds in (
        (Accuracy(x, y), result.accuracy(x, y)),
        (Loss(x, y), result.loss(x, y)),
        (Stable(x), result.stable(x)),
        (Backdoor(x, y, trigger), result.backdoor(x, y, trigger=trigger)),
    ):
        both = result.against(objective, bounds)
        least = bounds.lower if objective.two_sided else bounds.nominal
        assert both.certified == (least, bounds.upper)
        assert both.ratio >= 1.0


@pytest.mark.parametrize("threat", [agt.LabelPoisoning, agt.FeatureLabelPoisoning])
def test_enumerated_selections_hold_labels_that_change_between_steps(threat: Any) -> None:
    options = {} if threat is agt.LabelPoisoning else {"radius": 0.05}
    adaptive = threat(1, static=False, **options)
    result = certify(adaptive, selections="enumerated")
    labels = [
        {batch[1].tobytes() for batch in result.attack.runs.describe(index).batches}
        for index in range(len(result.attack.runs))
    ]
    assert max(map(len, labels)) > 1


def test_nothing_is_attacked_unless_asked_for() -> None:
    training = agt.Training(loss="bce", epochs=2)
    result = agt.certify(network((2, 3, 1)), data(), training, agt.LabelPoisoning(1))
    assert result.attack is None
    assert result.sandwich is None
    x, y = data()
    assert result.against(Loss(x, y), result.loss(x, y)) is None


def test_a_set_that_is_too_small_is_refused() -> None:
    result = certify(agt.LabelPoisoning(1))
    assert result.attack is not None
    honest = result.reachable
    shrunk = ReachableSet(honest.nominal, honest.nominal, honest.nominal, honest.trainable)
    with pytest.raises(SoundnessError, match=r"parameter '0\.weight'.*outside it by.*report"):
        ParameterSandwich.of(shrunk, result.attack)
    name = "0.bias"
    upper = {**honest.upper, name: np.nextafter(result.attack.upper[name], -np.inf)}
    edge = ReachableSet(honest.lower, upper, honest.nominal, honest.trainable)
    with pytest.raises(SoundnessError, match=r"parameter '0\.bias'"):
        ParameterSandwich.of(edge, result.attack)


@pytest.mark.parametrize("reached", [(0.4, 0.9), (0.6, 1.1), (math.nan, 0.8)])
def test_a_violated_sandwich_is_refused(reached: tuple[float, float]) -> None:
    with pytest.raises(SoundnessError, match=r"'loss' must stay.*reached.*0\.5.*do not use"):
        Sandwich("loss", reached, (0.5, 1.0))


def test_ratios() -> None:
    assert Sandwich("loss", (0.6, 0.8), (0.5, 1.0)).ratio == pytest.approx(2.5)
    assert Sandwich("loss", (0.6, 0.6), (0.5, 1.0)).ratio == math.inf
    assert Sandwich("loss", (0.6, 0.6), (0.6, 0.6)).ratio == 1.0
    assert ParameterSandwich(0.0, 0.0, (0.0, 0.0)).ratio == 1.0
    assert ParameterSandwich(0.0, 1.0, (0.0, 1.0)).ratio == math.inf


def test_a_backdoor_is_compared_above_its_nominal_value() -> None:
    """The rate of a model is itself a search: a low one shows nothing."""
    x, y = data(20, seed=3)
    trigger = agt.BallTrigger(0.3)
    result = certify(agt.LabelPoisoning(1))
    bounds = result.backdoor(x, y, trigger=trigger)
    attack = result.attack.towards(Backdoor(x, y, trigger))
    low = dataclasses.replace(attack, reached=(0.0, 0.0))
    weak = Sandwich.of_property(bounds, low, two_sided=False)
    assert weak.reached == (bounds.nominal, bounds.nominal)
    high = dataclasses.replace(attack, reached=(0.0, bounds.upper + 0.05))
    with pytest.raises(SoundnessError, match="max backdoor"):
        Sandwich.of_property(bounds, high, two_sided=False)
