"""The l1 penalty and the projection on a box: against torch, closed forms, attacks and mutants."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, assert_sound, network
from boxes import assert_same, resumed
from pairs import every_pair, every_value
from problems import EXPENSIVE, problem
from test_config import GOOD, build
from torch import nn

import milp_agt as agt
from milp_agt.training.training import Training

BOX = (-0.5, 0.4)
OPTIONS: dict[str, dict[str, Any]] = {
    "l1": {"l1": 0.1},
    "l1 and decay": {"l1": 0.05, "weight_decay": 0.2},
    "l1, nesterov": {"l1": 0.1, "momentum": 0.6, "nesterov": True},
    "projection": {"projection": BOX},
    "projection, momentum": {"projection": BOX, "momentum": 0.9},
    "all": {"l1": 0.1, "projection": BOX, "momentum": 0.5, "weight_decay": 0.1, "clip": 0.5},
}


@every_value(options=OPTIONS, relaxation=["linear", "interval"])
def test_runs_under_attack(options: dict[str, Any], relaxation: str) -> None:
    """Attacks stay inside, and plain torch (abs().sum() in the loss, clamp_ after the step) agrees."""
    case, test, labels = problem("bce", "both", options, radius=0.05)
    bounds = None if relaxation == "interval" else "linear"
    assert_sound(case, test, labels, attacks=24, relaxation=relaxation, inner_bounds=bounds)


@pytest.mark.parametrize("name", ["l1", "projection, momentum", "all"])
def test_each_selection_by_itself(name: str) -> None:
    case, test, labels = problem("bce", "both", OPTIONS[name], radius=0.05, budget=1)
    options: dict[str, Any] = {"relaxation": "linear", "selections": "enumerated"}
    result = assert_sound(case, test, labels, attacks=24, **options)
    assert "linear, each selection" in result.steps[-1].chains


@every_value(name=["l1", "projection", "all"], window=[1, 2])
def test_windows(name: str, window: int) -> None:
    run = OPTIONS[name] | {"batch_size": 4, "epochs": 2, "shuffle_seed": 1}
    case, test, labels = problem("cross_entropy", "both", run, (3, 2), nn.Tanh, radius=0.05)
    assert_sound(case, test, labels, attacks=24, relaxation="linear", window=window)


@pytest.mark.parametrize("relaxation", ["lp", EXPENSIVE])
@pytest.mark.parametrize("program_window", [1, 2])
def test_programs(program_window: int, relaxation: str) -> None:
    run = {"l1": 0.2, "projection": (-0.3, 0.35), "epochs": 3}
    case, test, labels = problem("bce", "both", run, (), count=4, budget=1, radius=0.3)
    options: dict[str, Any] = {"relaxation": relaxation, "program_window": program_window}
    assert_sound(case, test, labels, attacks=24, **options)


@every_pair(
    options={name: OPTIONS[name] for name in ("l1", "projection", "all")},
    relaxation=["interval", "linear", pytest.param("lp", marks=pytest.mark.slow)],
)
def test_parameters_at_and_across_the_kinks(options: dict[str, Any], relaxation: str) -> None:
    """A box of initial parameters that holds 0 and both ends of the projection, 0 itself among them."""
    model = network((2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.4]]))
        model[0].bias.fill_(-0.5)
    x = torch.tensor([[1.0, -1.0], [0.5, 0.2], [-2.0, 1.0], [0.3, -0.7]], dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0])
    run = Training(loss="bce", learning_rate=0.2, epochs=2, **options)
    for width in (0.05,) if relaxation == "lp" else (0.0, 0.05, 0.6):
        box = {
            n: (v.detach() - width, v.detach() + (width if "bias" in n else 0.5 * width))
            for n, v in model.named_parameters()
        }
        case = Problem(model, x, y, run, agt.FeaturePoisoning(1, 0.1), initial=box)
        assert_sound(case, x, y, attacks=96, relaxation=relaxation)


def test_one_step_of_l1_from_a_point_is_exact() -> None:
    """``theta - rate (g + l1 sign(theta))`` with sign(0) = 0, up to rounding."""
    model = network((2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, -0.3]]))
    x, y = torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.tensor([1])
    run = Training(loss="bce", learning_rate=0.5, l1=0.2)
    result = agt.certify(model, (x, y), run, agt.FeaturePoisoning(0, 0.1))
    p = torch.sigmoid(model(x)).detach()
    theta = {n: v.detach() for n, v in model.named_parameters()}
    gradient = {"0.weight": (p - 1) * x, "0.bias": (p - 1)[0]}
    for name, value in theta.items():
        wanted = value - 0.5 * (gradient[name] + 0.2 * torch.sign(value))
        for end in (result.reachable.lower[name], result.reachable.upper[name]):
            assert np.abs(end - wanted.numpy()).max() <= 1e-13


@pytest.mark.usefixtures("linear_alone")
@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_a_projected_box_is_the_projection_of_the_box(relaxation: str) -> None:
    """One step: clamping is exact, entry by entry, on top of any bound."""
    free, _, _ = problem("bce", "both", {"epochs": 1}, radius=0.5)
    run = Training(loss="bce", learning_rate=0.3, epochs=1, projection=BOX)
    tied = Problem(free.model, free.features, free.labels, run, free.threat)
    wide, narrow = (c.certify(relaxation=relaxation)[0].reachable for c in (free, tied))
    for name, low in wide.lower.items():
        assert np.array_equal(narrow.lower[name], np.clip(low, *BOX))
        assert np.array_equal(narrow.upper[name], np.clip(wide.upper[name], *BOX))


@pytest.mark.usefixtures("linear_alone")
def test_a_projection_that_never_acts_costs_nothing() -> None:
    free, _, _ = problem("bce", "features", {"epochs": 4}, radius=0.02)
    run = Training(loss="bce", learning_rate=0.3, epochs=4, projection=(-100.0, 100.0))
    tied = Problem(free.model, free.features, free.labels, run, free.threat)
    wide, same = (c.certify(relaxation="linear")[0].reachable for c in (free, tied))
    for name, low in wide.lower.items():  # more rounding is charged, that is all
        assert np.abs(same.lower[name] - low).max() <= 1e-10
        assert np.abs(same.upper[name] - wide.upper[name]).max() <= 1e-10


def test_properties_are_of_the_projected_parameters() -> None:
    """A projection to a tiny box bounds every output."""
    run = {"projection": (-1e-3, 1e-3), "epochs": 3, "momentum": 0.5}
    case, test, labels = problem("bce", "both", run, radius=0.5)
    result = assert_sound(case, test, labels, relaxation="linear")
    assert result.reachable.max_width <= 2e-3
    low, high = result.margins(test, labels)
    assert float(np.abs(low).max()) <= 0.01
    assert float(np.abs(high).max()) <= 0.01


def test_a_killed_run_goes_on_with_its_projection(tmp_path: Any) -> None:
    """The window that a checkpoint keeps walks through the projections of its steps."""
    case, _, _ = problem(
        "bce", "features", {"projection": BOX, "epochs": 3, "l1": 0.1}, radius=0.05
    )
    arguments = (case.model, case.data, case.training, case.threat)
    certify = functools.partial(agt.certify, *arguments, relaxation="linear", window=2)
    assert_same(resumed(certify, tmp_path, 2).reachable, certify().reachable)


# ------------------------------------------------------------------------------ run files


def test_both_arrive_from_a_run_file(tmp_path: Any) -> None:
    text = "learning_rate = 0.5\nl1 = 0.01\nprojection = [-1, 2.5]"
    run = build(tmp_path, GOOD.replace("learning_rate = 0.5", text)).training
    assert (run.l1, tuple(run.projection)) == (0.01, (-1.0, 2.5))
    (rule,) = run.update_rules(1)
    assert (rule.l1, rule.projection) == (0.01, (-1.0, 2.5))
