"""Attacks that train on poisoned data stay inside, whatever the run and the threat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from attacks import assert_sound
from pairs import every_pair, every_value
from problems import EXPENSIVE, problem
from torch import nn

import milp_agt as agt
from milp_agt.certification import bound_step
from milp_agt.core.restriction import Restriction
from milp_agt.formulations import interval_products

LEVELS: dict[str, dict[str, Any]] = {
    "interval": {"relaxation": "interval"},
    "linear": {"inner_bounds": "linear"},
    "linear beside a zonotope": {"carried": "zonotope"},
}


@every_pair(
    loss=["mse", "bce", "cross_entropy", "hinge"],
    kind=["features", "labels", "both"],
    static={"static": True, "adaptive": False},
    scope=["dataset", "batch"],
    level=LEVELS,
)
def test_every_threat_and_loss(loss, kind, static, scope, level) -> None:
    run = {"batch_size": 4, "epochs": 2, "shuffle_seed": 1}
    case, test, labels = problem(loss, kind, run, static=static, scope=scope)
    assert_sound(case, test, labels, **level)


@every_pair(
    activation=[nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh],
    hidden=[(), (3,), (3, 2), (2, 3, 2)],
    relaxation=["interval", "linear"],
)
def test_every_depth_and_activation(activation, hidden, relaxation) -> None:
    case, test, labels = problem(
        "cross_entropy",
        "both",
        hidden=hidden,
        activation=activation,
        outputs=2,
        seed=2,
        radius=0.02,
    )
    assert_sound(case, test, labels, relaxation=relaxation)


OPTIMISERS = {
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "decay": {"weight_decay": 0.1},
    "decay beyond 1 / rate": {"weight_decay": 5.0},
    "decay with momentum": {"weight_decay": 4.0, "momentum": 0.6, "nesterov": True},
    "decay at 1 / rate": {"learning_rate": 0.1, "weight_decay": 10.0},
    "inverse time": {"schedule": agt.InverseTimeDecay(0.5, 0.1)},
    "listed rates": {"schedule": [0.5, 0.1, 0.7, 0.2, 0.3, 0.1], "epochs": 6},
    "mini-batches": {"batch_size": 4, "epochs": 2, "momentum": 0.9},
    "recorded batches": {"batches": [[0, 2, 4], [5], [1, 2, 3, 0]], "epochs": 1},
}


@every_value(
    options=OPTIMISERS,
    static={"static": True, "adaptive": False},
    relaxation=["linear", "interval"],
)
def test_every_optimiser_option(options, relaxation, static) -> None:
    case, test, labels = problem("bce", "both", options, radius=0.05, seed=3, static=static)
    assert_sound(case, test, labels, relaxation=relaxation)


@pytest.mark.parametrize("options", [{"relaxation": "interval"}, {}, {"relaxation": "lp"}], ids=str)
def test_a_box_of_initial_parameters(options) -> None:
    case, test, labels = problem("bce", "features", {"momentum": 0.5}, (2,), count=4, budget=1)
    box = {
        name: (value.detach() - 0.01, value.detach() + (0.02 if "weight" in name else 0.0))
        for name, value in case.model.named_parameters()
    }
    case = replace(case, initial=box)
    assert_sound(case, test, labels, attacks=128, **options)


@every_value(loss=["mse", "bce", "cross_entropy", "hinge"], relaxation=["interval", "linear"])
def test_midpoint_radius_products(loss, relaxation, monkeypatch) -> None:
    monkeypatch.setattr(interval_products, "EXACT_PRODUCTS_LIMIT", 0)
    case, test, labels = problem(loss, "both", {"momentum": 0.5}, (3, 2), radius=0.02)
    assert_sound(case, test, labels, relaxation=relaxation)


@every_pair(
    loss=["mse", "bce", "cross_entropy", "hinge"],
    samples={"all": None, "closed fragments": [4, 5]},
    static={"static": True, "adaptive": False},
)
def test_fragments_of_a_batch_change_nothing(loss, samples, static, monkeypatch) -> None:
    run = {"momentum": 0.5, "epochs": 2}
    case, test, labels = problem(
        loss, "both", run, seed=5, radius=0.02, samples=samples, static=static
    )
    # The walks of inner bounds go through the fragments of past steps, too.
    options = {"relaxation": "linear", "inner_bounds": "linear" if loss == "bce" else "interval"}
    whole, _ = case.certify(**options)
    honest, sizes = bound_step.linearize_step, []

    def cut(*arguments: Any) -> Any:
        sizes.append(len(honest(*arguments[:-1], 2).chunks))
        return honest(*arguments[:-1], 2)

    monkeypatch.setattr(bound_step, "linearize_step", cut)
    pieces = assert_sound(case, test, labels, attacks=24, iterations=2, **options)
    assert set(sizes) == {3}
    for name, low in whole.reachable.lower.items():
        room = 1e-9 * (1 + whole.reachable.upper[name] - low)
        assert (abs(pieces.reachable.lower[name] - low) <= room).all()
        assert (abs(pieces.reachable.upper[name] - whole.reachable.upper[name]) <= room).all()


RESTRICTIONS = [
    Restriction(inside=frozenset({1})),
    Restriction(outside=frozenset({0, 5})),
    Restriction(inside=frozenset({4}), outside=frozenset({2, 3})),
    Restriction(inside=frozenset({0, 3})),
]


@every_pair(
    restriction=RESTRICTIONS,
    relaxation=["interval", "linear", EXPENSIVE],
    static={"static": True, "adaptive": False},
    scope=["dataset", "batch"],
)
def test_restrictions(restriction, relaxation, static, scope) -> None:
    run = {"batch_size": 4, "epochs": 1 if relaxation == "lp" else 2}
    hidden = (2,) if relaxation == "lp" else (3,)
    case, test, labels = problem("bce", "both", run, hidden, static=static, scope=scope)
    case = replace(case, restriction=restriction)
    assert_sound(
        case, test, labels, attacks=24, iterations=2, relaxation=relaxation, in_torch=False
    )
