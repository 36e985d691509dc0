"""Attacks stay inside at the edges of threats and data, and on kinks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attacks import Problem, assert_sound, network
from pairs import every_pair
from problems import EXPENSIVE, problem
from torch import nn

import milp_agt as agt
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


@pytest.mark.parametrize("relaxation", ["interval", "linear", EXPENSIVE])
@pytest.mark.parametrize("options", list(EDGES.values()), ids=list(EDGES))
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


@pytest.mark.parametrize("relaxation", ["interval", "linear", EXPENSIVE])
@pytest.mark.parametrize("change", list(DATA.values()), ids=list(DATA))
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
