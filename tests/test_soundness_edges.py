"""Attacks stay inside at the edges of threats and data, on kinks and in programs; tiny runs are exhausted."""

from __future__ import annotations

import itertools
from dataclasses import replace
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
    assert_sound,
    assert_torch_agrees,
    network,
)
from pairs import every_pair, every_value
from problems import EXPENSIVE, problem, tiny
from torch import nn

import milp_agt as agt
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.training.training import Training

MORE_EXPENSIVE = pytest.param("milp", marks=pytest.mark.slow)
EDGES = {
    "budget 0": {"budget": 0},
    "budget n": {"budget": 6},
    "radius 0": {"radius": 0.0},
    "zeros in the radius": {"radius": [0.0, 0.2]},
    "named samples": {"samples": [1, 4, 5]},
    "one named sample": {"samples": [3], "budget": 1},
    "a huge radius": {"radius": 10.0},
    "a tiny radius": {"radius": 1e-12},
}


@every_value(options=EDGES, relaxation=["linear", "interval", EXPENSIVE])
def test_edges_of_the_threat(options, relaxation) -> None:
    run = {"batch_size": 4, "epochs": 1}
    hidden = (2,) if relaxation == "lp" else (3,)
    for kind in ("features", "both"):
        case, test, labels = problem("bce", kind, run, hidden, **options)
        assert_sound(case, test, labels, attacks=24, iterations=2, relaxation=relaxation)


DATA = {
    "identical samples": lambda x: x[:1].expand(x.shape).clone(),
    "zero features": torch.zeros_like,
    "a constant feature": lambda x: torch.cat([x[:, :1], torch.ones_like(x[:, 1:])], 1),
    "large": lambda x: 1e3 * x,
    "small": lambda x: 1e-9 * x,
    "cancelling": lambda x: torch.cat([x[:3], -x[:3]]),
}


@every_value(change=DATA, relaxation=["linear", "interval", EXPENSIVE])
def test_edges_of_the_data(change, relaxation) -> None:
    hidden = (2,) if relaxation == "lp" else (3,)
    case, test, labels = problem("bce", "both", {"epochs": 2}, hidden, radius=0.01)
    case = replace(case, features=change(case.features))
    assert_sound(case, test, labels, attacks=24, iterations=2, relaxation=relaxation)


@every_pair(
    budget=[0, 1],
    activation=[nn.ReLU, nn.LeakyReLU],
    relaxation=["interval", "linear", "lp", MORE_EXPENSIVE],
)
def test_a_sample_exactly_on_a_kink(relaxation, activation, budget) -> None:
    model = network((2, 2, 1), activation)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -2.0]))
    x = torch.tensor([[1.0, 1.0], [0.5, 0.5], [2.0, 0.0], [0.25, -1.0]], dtype=torch.float64)
    y = torch.tensor([1, 0, 1, 0])
    run = Training(loss="bce", learning_rate=0.5, epochs=2)
    case = Problem(model, x, y, run, agt.FeaturePoisoning(budget, 0.01))
    assert_sound(case, x, y, relaxation=relaxation)


@pytest.mark.parametrize("relaxation", ["interval", "linear", "lp"])
def test_hinge_exactly_on_its_kink(relaxation) -> None:
    model = network((1, 1), nn.ReLU)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
    x = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)
    y = torch.tensor([1, 0, 1])
    run = Training(loss="hinge", learning_rate=0.5, epochs=3)
    case = Problem(model, x, y, run, agt.FeatureLabelPoisoning(1, 0.01))
    assert_sound(case, x, y, relaxation=relaxation)


# -----------------------------------------------------------------------------
# Tiny runs: every flip and every corner of the poison is trained, and lies inside.


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


# -----------------------------------------------------------------------------
# Attacks stay inside the bounds of programs.


PROGRAMS = {
    "lp": {"relaxation": "lp", "window": 1},
    "lp, two steps": {"relaxation": "lp", "window": 2, "program_window": 2},
    "milp": {"relaxation": "milp", "window": 1},
}
PROGRAM_CASES = [
    pytest.param(options, id=name, marks=() if name == "lp" else pytest.mark.slow)
    for name, options in PROGRAMS.items()
]


@pytest.mark.parametrize("options", PROGRAM_CASES)
@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy", "hinge"])
def test_programs_of_every_loss(loss, options) -> None:
    case, test, labels = problem(
        loss, "both", {"epochs": 2}, hidden=(2,), count=3, budget=1, radius=0.05, outputs=None
    )
    assert_sound(case, test, labels, **options)


@every_value(
    static={"static": True, "adaptive": False}, scope=["dataset", "batch"], options=PROGRAM_CASES
)
def test_programs_of_every_threat(static, scope, options) -> None:
    run = {"batch_size": 2, "epochs": 1, "momentum": 0.5, "weight_decay": 0.1, "shuffle_seed": 0}
    case, test, labels = problem(
        "bce", "both", run, hidden=(2,), count=3, budget=1, radius=0.05, static=static, scope=scope
    )
    assert_sound(case, test, labels, **options)


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize(
    ("loss", "inner_bounds"),
    [("bce", "interval"), pytest.param("cross_entropy", "linear", marks=pytest.mark.slow)],
)
def test_programs_of_every_activation(loss, inner_bounds, activation) -> None:
    outputs = 2 if loss == "cross_entropy" else 1
    case, test, labels = problem(
        loss, "features", {"epochs": 2}, (2,), activation, count=3, budget=1, outputs=outputs
    )
    assert_sound(case, test, labels, relaxation="lp", inner_bounds=inner_bounds)
