"""Forms beyond their window: through the ends of earlier states, with nothing left to any sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, assert_sound, network
from torch import nn

import milp_agt as agt
from milp_agt.bounds.forms import Forms
from milp_agt.certification import planning
from milp_agt.errors import SoundnessError

THREATS = {
    "features": lambda **own: agt.FeaturePoisoning(2, 0.1, **own),
    "labels": lambda **own: agt.LabelPoisoning(1, radius=0.3, **own),
    "both": lambda **own: agt.FeatureLabelPoisoning(1, 0.1, label_radius=0.2, **own),
    "separate": lambda **own: agt.SeparatePoisoning(
        agt.FeaturePoisoning(2, 0.1, **own), agt.LabelPoisoning(1, radius=0.3, **own)
    ),
}


def case(
    kind: str = "both", epochs: int = 4, **own: Any
) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(8, width))) for width in (2, 1))
    training = agt.Training(
        loss="mse",
        learning_rate=0.2,
        epochs=epochs,
        batch_size=4,
        shuffle_seed=1,
        momentum=own.pop("momentum", 0.0),
    )
    model = network((2, 3, 1), nn.ReLU, seed=0)
    return Problem(model, x, y, training, THREATS[kind](**own)), x[:3], y[:3]


def planned(past: int, patch: pytest.MonkeyPatch) -> None:
    """Have all runs keep this many steps of the past at most."""
    honest = planning.make_plan

    def plan(*arguments: Any, **named: Any) -> planning.Plan:
        found = honest(*arguments, **named)
        return replace(found, past=min(past, found.past))

    patch.setattr(planning, "make_plan", plan)


@pytest.mark.parametrize("scope", ["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
@pytest.mark.parametrize("kind", ["features", "labels", "both", "separate"])
def test_no_attack_leaves_a_run_that_has_a_past(kind: str, static: bool, scope: str) -> None:
    problem, test, labels = case(kind, static=static, scope=scope)
    assert_sound(problem, test, labels, relaxation="linear", window=1)


def test_no_attack_leaves_a_run_with_momentum() -> None:
    problem, test, labels = case(momentum=0.5, static=False)
    assert_sound(problem, test, labels, relaxation="linear", window=2)


@pytest.mark.parametrize("window", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_past_only_tightens_and_every_step_of_it_counts(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, test, labels = case(epochs=6, static=False, scope="batch")
    widths, losses = [], []
    for past in (0, window + 1, 12):
        with pytest.MonkeyPatch.context() as patch:
            planned(past, patch)
            result, _ = problem.certify(relaxation="linear", window=window, selections="joint")
        widths.append(result.reachable.mean_width)
        losses.append(result.loss(test.numpy(), labels.numpy()).upper)
    assert widths[0] > widths[1] > widths[2]
    assert losses[0] > losses[1] > losses[2]


def test_a_run_through_all_of_its_steps_needs_no_past(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[planning.Plan] = []
    honest = planning.make_plan

    def plan(*arguments: Any, **named: Any) -> planning.Plan:
        plans.append(honest(*arguments, **named))
        return plans[-1]

    monkeypatch.setattr(planning, "make_plan", plan)
    problem, *_ = case(epochs=2)
    for options in ({"window": None}, {"window": 1}, {"window": 1, "memory": 1024}):
        problem.certify(relaxation="linear", **options)
    assert [p.past for p in plans] == [0, 3, 0]


@pytest.mark.parametrize("kind", ["unpaid", "shrunk"])
def test_mutants_of_the_past_are_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Forms.paying

    def paying(forms: Forms, worst_case: torch.Tensor) -> Forms:
        return honest(forms, (0.0 if kind == "unpaid" else 0.3) * worst_case)

    monkeypatch.setattr(Forms, "paying", paying)
    problem, test, labels = case("labels", epochs=6, static=False, scope="batch")
    with pytest.raises((AssertionError, SoundnessError)):
        assert_sound(problem, test, labels, relaxation="linear", window=1)
