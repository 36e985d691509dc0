"""The claim names the run: optimiser with all its options, batches, schedule and clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import network
from refusals import refused

import milp_agt as agt

X = np.random.default_rng(0).normal(size=(6, 2))
Y = np.array([0, 1, 0, 1, 1, 0])


def certify(**options: Any) -> agt.Result:
    run = agt.Training(**({"loss": "cross_entropy", "learning_rate": 0.5} | options))
    threat = agt.FeaturePoisoning(1, 0.01)
    return agt.certify(network((2, 2, 2)), (X, Y), run, threat, relaxation="interval")


PLAIN = "torch.optim.SGD(lr=0.5, momentum=0.0, dampening=0, weight_decay=0.0, nesterov=False)"
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "plain": (
        {"epochs": 2},
        [PLAIN, "2 epochs of the full data set as one batch", "constant", "are not clipped",
         "the loss 'cross_entropy', log sum_k exp(f_k) - f_y"],
    ),
    "options": (
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        ["SGD(lr=0.5, momentum=0.9, dampening=0, weight_decay=0.01, nesterov=True)", "1 epoch of"],
    ),
    "norm": (
        {"clip": 0.2},
        ["the gradient of every single sample is scaled down to the 2-norm 0.2 before the mean",
         "not clip_grad_norm_, which clips the gradient of the whole batch"],
    ),
    "clamp": (
        {"clip": 0.2, "clip_mode": "clamp"},
        ["every coordinate of the gradient of every single sample is clamped to +-0.2",
         "not clip_grad_value_"],
    ),
    "shuffled": (
        {"epochs": 2, "batch_size": 4, "shuffle_seed": 3,
         "schedule": agt.StepDecay(1, 0.5, unit="epoch")},
        ["2 epochs in batches of 4 samples", "shuffled in each epoch by numpy's default_rng(3)",
         "StepDecay(every=1, factor=0.5, unit='epoch'), from 0.5 in the first step to 0.25 in the last"],
    ),
    "in order": ({"batch_size": 4}, ["1 epoch in batches of 4 samples", "in the order of the data"]),
    "recorded": ({"batches": [[0, 1], [2, 3]]}, ["2 recorded batches;"]),
    "recorded epochs": (
        {"batches": [[[0, 1], [2]], [[3]]], "schedule": agt.CosineDecay(unit="epoch")},
        ["3 recorded batches in 2 epochs", "CosineDecay(", "to 0.25 in the last"],
    ),
    "rates": (
        {"epochs": 2, "schedule": [0.3, 0.1]},
        ["a learning rate given for every step, from 0.3 in the first step to 0.1 in the last"],
    ),
    "penalty": (
        {"l1": 0.01, "projection": (-3, 3)},
        ["a penalty of 0.01 times the sum of |parameters|", "clamped to [-3.0, 3.0] after each step"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_claim_names_the_run(name: str) -> None:
    options, words = CASES[name]
    result = certify(**options)
    assert f"The run: {result.run}." in result.claim
    for word in words:
        assert word in result.run


def test_the_run_is_saved(tmp_path: Path) -> None:
    result = certify(clip=0.2)
    result.save(tmp_path / "r")
    again = agt.load(tmp_path / "r")
    assert again.run == result.run
    assert again.claim == result.claim


@pytest.mark.parametrize(
    "schedule",
    [
        agt.StepDecay(1, 0.1, unit="epoch"),
        agt.CosineDecay(unit="epoch"),
        agt.Milestones([1], unit="epoch"),
        agt.ExponentialDecay(0.5, unit="epoch"),
        agt.InverseTimeDecay(0.5, unit="epoch"),
    ],
)
def test_schedules_by_epochs_need_to_know_the_epochs(schedule: Any) -> None:
    """Recorded batches were one long epoch before, in which no rate ever changed."""
    with refused(
        found="do not say which of them make an epoch",
        remedy="batches=[[batch, ...], [batch, ...], ...]",
    ):
        agt.Training(loss="mse", batches=[[0, 1], [2, 3]], schedule=schedule)
    run = agt.Training(loss="mse", batches=[[[0, 1], [2]], [[3]], [[4]]], schedule=schedule)
    rates = [rule.rate for rule in run.update_rules(4)]
    assert rates == [schedule.rate(0.1, epoch, 3) for epoch in (0, 0, 1, 2)]
    assert len(set(rates)) > 1
    assert [batch.tolist() for batch in run.batch_order(5)] == [[0, 1], [2], [3], [4]]


def test_epochs_of_batches_are_the_run_of_those_batches() -> None:
    flat = certify(batches=[[0, 1], [2], [3, 4]], schedule=[0.5, 0.5, 0.25])
    nested = certify(
        batches=[[[0, 1], [2]], [[3, 4]]], schedule=agt.StepDecay(1, 0.5, unit="epoch")
    )
    for name in flat.reachable.lower:
        assert np.array_equal(flat.reachable.lower[name], nested.reachable.lower[name])
        assert np.array_equal(flat.reachable.upper[name], nested.reachable.upper[name])


@pytest.mark.parametrize(
    ("schedule", "remedy"),
    [
        ([0.5, 0.4], "repeat each as often as its epoch has steps"),
        ([0.5] * 7, "cut the list"),
        ([0.5] * 3, "extend the list"),
        ([True, 0.5, 0.5, 0.5], "give a rate for each step"),
    ],
)
def test_lists_of_rates_are_as_long_as_the_run(schedule: list[float], remedy: str) -> None:
    with refused(remedy=remedy):
        certify(epochs=2, batch_size=3, schedule=schedule)
