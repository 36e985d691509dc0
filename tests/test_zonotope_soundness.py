"""Real runs lie inside hybrid zonotopes: their boxes without a tolerance, and generator by generator."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from attacks import assert_sound
from problems import problem, tiny
from torch import nn
from zonotope_runs import Passed, assert_generators, assert_in_boxes, attacks_of

import milp_agt as agt

BIASES = agt.ParameterGroup(["*.bias"], weight_decay=0.0)
RUNS = {
    "bce": ("bce", "features", {}, (4,), {}),
    "two classes": ("cross_entropy", "features", {"epochs": 4}, (4,), {"outputs": 2}),
    "three classes": ("cross_entropy", "features", {"epochs": 4}, (3,), {}),
    "mse": ("mse", "features", {"learning_rate": 0.1}, (4,), {}),
    "linear": ("mse", "features", {"learning_rate": 0.1, "epochs": 6}, (), {}),
    "one sample": ("bce", "features", {"epochs": 6}, (4,), {"budget": 1}),
    "deep": ("bce", "features", {"epochs": 4}, (3, 3), {}),
    "all samples": ("bce", "features", {}, (3,), {"budget": 6}),
    "batches": ("bce", "features", {"epochs": 3, "batch_size": 4}, (4,), {}),
    "momentum": ("bce", "features", {"momentum": 0.8, "epochs": 4}, (4,), {}),
    "decay": (
        "bce",
        "features",
        {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
        (4,),
        {},
    ),
    "biases without decay": (
        "bce",
        "features",
        {"momentum": 0.5, "weight_decay": 0.8, "epochs": 4, "groups": (BIASES,)},
        (4,),
        {},
    ),
    "listed rates": ("bce", "features", {"schedule": [0.6, 0.1, 0.4], "epochs": 3}, (4,), {}),
    "norm 2": ("bce", "features", {}, (4,), {"norm": 2}),
    "norm 1": ("bce", "features", {}, (4,), {"norm": 1}),
    "clipped norms": ("bce", "features", {"clip": 0.4}, (3,), {}),
    "clamped": ("bce", "features", {"clip": 0.2, "clip_mode": "clamp"}, (3,), {}),
    "clipped in all": ("bce", "features", {"clip_total": 0.1, "momentum": 0.8}, (4,), {}),
    "clipped in all at times": ("bce", "features", {"clip_total": 0.3, "batch_size": 4}, (4,), {}),
    "hinge": ("hinge", "features", {}, (4,), {}),
    "l1": ("bce", "features", {"l1": 0.05, "momentum": 0.5, "epochs": 5}, (4,), {}),
    "projected": ("bce", "features", {"projection": (-0.4, 0.4), "epochs": 5}, (4,), {}),
    "labels": ("bce", "labels", {"epochs": 3}, (4,), {}),
    "labels of three": ("cross_entropy", "labels", {"epochs": 3}, (3,), {}),
    "targets": ("mse", "labels", {"learning_rate": 0.1}, (4,), {}),
    "both": ("mse", "both", {"learning_rate": 0.1}, (4,), {}),
}


def drawn() -> list[Any]:
    """Every run with phases that flip, every third one without; the rest of the product is slow."""
    rows = itertools.product(enumerate(RUNS), (0.02, 0.2), (0, 1))
    return [
        pytest.param(
            *(name, radius, seed),
            marks=() if (radius, seed) in ((0.2, 1), (0.02, n % 3 and 2)) else pytest.mark.slow,
        )
        for (n, name), radius, seed in rows
    ]


@pytest.mark.parametrize(("name", "radius", "seed"), drawn())
def test_attacks_stay_inside(name: str, radius: float, seed: int) -> None:
    loss, kind, training, hidden, options = RUNS[name]
    case, _, _ = problem(loss, kind, training, hidden, seed=seed, radius=radius, **options)
    passed = Passed.of(case)
    for attacks in attacks_of(passed, seed):
        assert_in_boxes(passed, attacks)
        assert_generators(passed, attacks)


ACTIVATIONS = [nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU]


@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.Hardtanh, nn.ReLU6])
def test_attacks_stay_inside_with_other_activations(activation: type[nn.Module]) -> None:
    case, _, _ = problem("bce", "features", {"epochs": 4}, (4,), activation, radius=0.1)
    passed = Passed.of(case)
    for attacks in attacks_of(passed):
        assert_in_boxes(passed, attacks)
        assert_generators(passed, attacks)


def test_flips_are_there_and_sets_are_no_wider_than_a_few_times_the_attacks() -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.02), epochs=6)
    passed = Passed.of(case)
    width = sum(float(b.width.sum()) for b in passed.last.state().values())
    reached: dict[str, list] = {}
    for attacks in attacks_of(passed):
        for name, value in passed.replay.run(attacks)[-1].items():
            reached.setdefault(name, []).extend([value.amin(0), value.amax(0)])
    spread = sum(
        float((max_ - min_).sum())
        for values in reached.values()
        for min_, max_ in [(_least(values), -_least([-v for v in values]))]
    )
    assert width <= 3.0 * spread


def _least(values: list) -> object:
    out = values[0]
    for value in values[1:]:
        out = out.minimum(value)
    return out


def test_leaky_slopes_are_not_rounded_to_single_precision() -> None:
    """Attacks without a flip reach the bound up to rounding, so that a slope of 0.01 must be exact."""
    run = {"epochs": 2, "learning_rate": 0.6, "momentum": 0.9}
    case, test, labels = problem(
        "hinge", "features", run, (3, 3), nn.LeakyReLU, seed=332, budget=3, radius=0.01
    )
    assert_sound(case, test, labels, attacks=24, relaxation="zonotope")
