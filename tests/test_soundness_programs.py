"""Attacks stay inside the bounds of programs."""

from __future__ import annotations

import pytest
from attacks import assert_sound
from problems import problem
from torch import nn

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


@pytest.mark.parametrize("options", PROGRAM_CASES)
@pytest.mark.parametrize("scope", ["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
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
