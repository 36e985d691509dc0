"""Tiny runs: every flip and every corner of the poison is trained, and lies inside."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from attacks import (
    Attacks,
    Certified,
    Problem,
    Replay,
    assert_inside,
    assert_properties,
    assert_torch_agrees,
)
from problems import tiny

import milp_agt as agt
from milp_agt.attacks.unrolled import Poisoning


def enumerated(case: Problem, moves: list[list[tuple[Any, Any]]], budget: int) -> Attacks:
    """Every choice of up to ``budget`` samples and of one move for each of them."""
    replay = Replay(case)
    features, labels = [], []
    for count in range(budget + 1):
        for chosen in itertools.combinations(range(len(case.features)), count):
            for combination in itertools.product(*(moves[i] for i in chosen)):
                x, y = replay.poison.features.clone(), replay.poison.labels.clone()
                for sample, (dx, dy) in zip(chosen, combination, strict=True):
                    x[sample] = x[sample] + dx
                    y[sample] = y[sample] + dy
                features.append(x)
                labels.append(y)
    start = replay.start(len(features), torch.Generator())
    poisoning = Poisoning(torch.stack(features), torch.stack(labels))
    return Attacks(replay.unrolled, poisoning, start)


FLIPS = [
    pytest.param(
        budget,
        loss,
        relaxation,
        marks=[pytest.mark.slow]
        if relaxation == "milp" or (relaxation == "lp" and (budget, loss) != (2, "bce"))
        else [],
    )
    for budget in (1, 2)
    for loss in ("bce", "hinge")
    for relaxation in ("interval", "linear", "lp", "milp")
]


@pytest.mark.parametrize(("budget", "loss", "relaxation"), FLIPS)
def test_every_label_flip_of_a_tiny_run(relaxation, loss, budget) -> None:
    case = tiny(agt.LabelPoisoning(budget), loss, epochs=2 if relaxation == "milp" else 3)
    flips = [[(0.0, 1.0 - 2.0 * float(label))] for label in case.labels]
    attacks = enumerated(case, flips, budget)
    result, boxes = case.certify(relaxation=relaxation)
    replay = Replay(case)
    states = replay.run(attacks)
    assert len(states[0]["0.weight"]) == {1: 5, 2: 11}[budget]
    assert_inside(boxes, states)
    assert_properties(replay, Certified.of(result, case.features, case.labels), states[-1])
    assert_torch_agrees(replay, attacks, boxes, range(5))


@pytest.mark.parametrize("relaxation", ["interval", "linear", "lp"])
def test_every_feature_corner_of_a_tiny_run(relaxation) -> None:
    radius = 0.1
    case = tiny(agt.FeaturePoisoning(2, radius))
    signs = list(itertools.product((-radius, radius), repeat=2))
    corners = [[(torch.tensor(s, dtype=torch.float64), 0.0) for s in signs]] * 4
    attacks = enumerated(case, corners, 2)
    result, boxes = case.certify(relaxation=relaxation)
    replay = Replay(case)
    states = replay.run(attacks)
    assert len(states[0]["0.weight"]) == 1 + 4 * 4 + 6 * 16
    assert_inside(boxes, states)
    assert_properties(replay, Certified.of(result, case.features, case.labels), states[-1])
