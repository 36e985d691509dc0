"""Trainings: what torch calls options is refused with what to give, and the claim names the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from refusals import refused
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader

import milp_agt as agt
from milp_agt.errors import InvalidInputError, MilpAgtError, UnsupportedOperationError


def optimizer(**options: Any) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], **({"lr": 0.3} | options))


class Shifting:
    """A schedule of the user's own, where the object is meant and not the class."""

    unit = "step"

    def rate(self, base: float, time: int, end: int) -> float:
        return base


STEPS, LOADER = (
    "the rate of every step as a list",
    "[[b.tolist() for b in loader] for _ in range(epochs)]",
)
# By option: what is given, and what to give instead.
GIVEN: dict[str, dict[str, tuple[Any, str]]] = {
    "loss": {
        "loss by torch's name": ("CrossEntropyLoss", "give loss='cross_entropy'"),
        "loss as a class": (nn.MSELoss, "give loss='mse'"),
        "loss as an object": (nn.BCEWithLogitsLoss(), "give loss='bce'"),
        "loss as a function": (nn.functional.cross_entropy, "give loss='cross_entropy'"),
        "smoothed labels": (nn.CrossEntropyLoss(label_smoothing=0.1), "train without label_smoothing"),
        "class weights": (nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), "train without pos_weight"),
        "a sum": (nn.MSELoss(reduction="sum"), "train without reduction"),
        "on probabilities": (nn.BCELoss(), "take the last Sigmoid off"),
        "on log probabilities": ("nll_loss", "take the last LogSoftmax off"),
        "another loss": (nn.L1Loss(), "use one of bce, cross_entropy, hinge, mse"),
        "a function of the user": (lambda out, y: out, "use one of bce"),
    },
    "optimizer": {
        "an optimiser": (
            optimizer(momentum=0.9, dampening=0.1),
            "give Training(optimizer='sgd', learning_rate=0.3, momentum=0.9), and train without dampening",
        ),
        "its class": (torch.optim.SGD, "use optimizer='sgd', with learning_rate="),
        "upper case": ("SGD", "use 'sgd'"),
        "Adam": (torch.optim.Adam, "use optimizer = 'sgd' with momentum"),
    },
    "schedule": {
        "StepLR": (lr_scheduler.StepLR(optimizer(), 3, 0.5), "agt.StepDecay(3, 0.5, unit='epoch')"),
        "MultiStepLR": (
            lr_scheduler.MultiStepLR(optimizer(), [5, 3]), "agt.Milestones([3, 5], 0.1, unit='epoch')",
        ),
        "ExponentialLR": (
            lr_scheduler.ExponentialLR(optimizer(), 0.9), "agt.ExponentialDecay(0.9, unit='epoch')",
        ),
        "CosineAnnealingLR": (
            lr_scheduler.CosineAnnealingLR(optimizer(), 7, 0.01), "agt.CosineDecay(0.01, 7, unit='epoch')",
        ),
        "OneCycleLR": (lr_scheduler.OneCycleLR(optimizer(), 0.1, total_steps=10), STEPS),
        "ReduceLROnPlateau": (lr_scheduler.ReduceLROnPlateau(optimizer()), "fixed before the run"),
        "a function of time": (lambda t: 0.1, STEPS),
        "a class of ours": (agt.StepDecay, "give an object, agt.StepDecay(...)"),
        "a class of the user": (Shifting, "give an object"),
    },
    "batches": {
        "a loader": (DataLoader(range(6), batch_size=3), LOADER),  # type: ignore[arg-type]
        "a sampler": (BatchSampler(range(6), 4, False), "b.tolist()"),
        "a generator": ((batch for batch in [[0, 1]]), "b.tolist()"),
        "batches by name": ({"first": [0]}, "b.tolist()"),
        "one batch": ([0, 1, 2], "give the indices of each step"),
        "batches and epochs": ([[0, 1], [[2], [3]]], "or these for each epoch"),
        "truth values": ([[True, False]], "give the indices"),
        "an empty epoch": ([[[0]], []], "or these for each epoch"),
        "too deep": ([[[[0]]]], "give the indices"),
    },
    "clip_mode": {
        "clipping of the whole batch": (
            "total",
            "or clip_total= for clip_grad_norm_ of the whole batch; clip_grad_value_ is not supported",
        ),
    },
}  # fmt: skip
REFUSED = {name: ({o: given}, r) for o, rows in GIVEN.items() for name, (given, r) in rows.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_calls_it_is_refused_with_what_to_give(name: str) -> None:
    options, remedy = REFUSED[name]
    with refused(remedy=remedy, kind=(InvalidInputError, UnsupportedOperationError)):
        agt.Training(**({"loss": "cross_entropy", "clip": 1.0} | options))


def test_the_remedies_are_accepted() -> None:
    epochs = [[b.tolist() for b in DataLoader(range(6), batch_size=4)] for _ in range(2)]  # type: ignore[arg-type]
    schedule = agt.StepDecay(3, 0.5, unit="epoch")
    agt.Training(loss="cross_entropy", optimizer="sgd", batches=epochs, schedule=schedule)
    agt.Training(loss="cross_entropy", schedule=Shifting(), batches=np.arange(6).reshape(1, 2, 3))
    agt.Training(loss="cross_entropy", batches=[torch.tensor([0, 1]), torch.tensor([2])])  # type: ignore[list-item]


def test_all_that_is_wrong_with_a_training_is_said_at_once() -> None:
    with pytest.raises(InvalidInputError) as error:
        agt.Training(
            loss="CrossEntropyLoss", optimizer="adam", nesterov=True, learning_rate=-1.0, clip=0.0
        )
    message = str(error.value)
    lines = message.splitlines()[1:]
    assert len(lines) == len(error.value.problems) == 5
    assert all("Found: " in line and "What to do: " in line for line in lines)
    for words in ("'CrossEntropyLoss'", "'adam'", "Nesterov", "learning_rate = -1.0", "clip = 0.0"):
        assert words in message
    with pytest.raises(UnsupportedOperationError):  # one problem keeps its own class
        agt.Training(loss="cross_entropy", optimizer="adam")


def test_one_message_survives_processes() -> None:
    import pickle

    error = MilpAgtError.of("A", [("b", "c"), ("d", "e"), ("b", "c")])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.problems == (("b", "c"), ("d", "e"))
    assert (again.asked, again.found, again.remedy) == ("A", "b; d", "c; e")


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
