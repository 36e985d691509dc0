"""attack <= truth <= certificate, and what happens where it is not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from torch import Tensor

import milp_agt as agt
from milp_agt.attacks import Accuracy, Backdoor, Loss, Sandwich, Search, Stable
from milp_agt.attacks.sandwich import ParameterSandwich
from milp_agt.core.reachable import ReachableSet
from milp_agt.errors import SoundnessError

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
