"""Objects and names of torch in place of options: one error at once, which says what to give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
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


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "loss by torch's name": ({"loss": "CrossEntropyLoss"}, "give loss='cross_entropy'"),
    "loss as a class": ({"loss": nn.MSELoss}, "give loss='mse'"),
    "loss as an object": ({"loss": nn.BCEWithLogitsLoss()}, "give loss='bce'"),
    "loss as a function": ({"loss": nn.functional.cross_entropy}, "give loss='cross_entropy'"),
    "smoothed labels": (
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        "train without label_smoothing",
    ),
    "class weights": (
        {"loss": nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 3.0]))},
        "train without pos_weight",
    ),
    "a sum": ({"loss": nn.MSELoss(reduction="sum")}, "train without reduction"),
    "on probabilities": ({"loss": nn.BCELoss()}, "take the last Sigmoid off"),
    "on log probabilities": ({"loss": "nll_loss"}, "take the last LogSoftmax off"),
    "another loss": ({"loss": nn.L1Loss()}, "use one of bce, cross_entropy, hinge, mse"),
    "a function of the user": ({"loss": lambda out, y: out}, "use one of bce"),
    "an optimiser": (
        {"optimizer": optimizer(momentum=0.9, dampening=0.1)},
        "give Training(optimizer='sgd', learning_rate=0.3, momentum=0.9), and train without dampening",
    ),
    "its class": ({"optimizer": torch.optim.SGD}, "use optimizer='sgd', with learning_rate="),
    "upper case": ({"optimizer": "SGD"}, "use 'sgd'"),
    "Adam": ({"optimizer": torch.optim.Adam}, "use optimizer = 'sgd' with momentum"),
    "StepLR": (
        {"schedule": lr_scheduler.StepLR(optimizer(), 3, gamma=0.5)},
        "agt.StepDecay(3, 0.5, unit='epoch')",
    ),
    "MultiStepLR": (
        {"schedule": lr_scheduler.MultiStepLR(optimizer(), [5, 3])},
        "agt.Milestones([3, 5], 0.1, unit='epoch')",
    ),
    "ExponentialLR": (
        {"schedule": lr_scheduler.ExponentialLR(optimizer(), 0.9)},
        "agt.ExponentialDecay(0.9, unit='epoch')",
    ),
    "CosineAnnealingLR": (
        {"schedule": lr_scheduler.CosineAnnealingLR(optimizer(), 7, eta_min=0.01)},
        "agt.CosineDecay(0.01, 7, unit='epoch')",
    ),
    "OneCycleLR": (
        {"schedule": lr_scheduler.OneCycleLR(optimizer(), 0.1, total_steps=10)},
        "the rate of every step as a list",
    ),
    "ReduceLROnPlateau": (
        {"schedule": lr_scheduler.ReduceLROnPlateau(optimizer())},
        "fixed before the run",
    ),
    "a function of time": ({"schedule": lambda t: 0.1}, "the rate of every step as a list"),
    "a class of ours": ({"schedule": agt.StepDecay}, "give an object, agt.StepDecay(...)"),
    "a class of the user": ({"schedule": Shifting}, "give an object"),
    "a loader": (
        {"batches": DataLoader(range(6), batch_size=3)},  # type: ignore[arg-type]
        "[[b.tolist() for b in loader] for _ in range(epochs)]",
    ),
    "a sampler": ({"batches": BatchSampler(range(6), 4, False)}, "b.tolist()"),
    "a generator": ({"batches": (batch for batch in [[0, 1]])}, "b.tolist()"),
    "batches by name": ({"batches": {"first": [0]}}, "b.tolist()"),
    "one batch": ({"batches": [0, 1, 2]}, "give the indices of each step"),
    "batches and epochs": ({"batches": [[0, 1], [[2], [3]]]}, "or these for each epoch"),
    "truth values": ({"batches": [[True, False]]}, "give the indices"),
    "an empty epoch": ({"batches": [[[0]], []]}, "or these for each epoch"),
    "too deep": ({"batches": [[[[0]]]]}, "give the indices"),
    "clipping of the whole batch": (
        {"clip": 1.0, "clip_mode": "total"},
        "or clip_total= for clip_grad_norm_ of the whole batch; clip_grad_value_ is not supported",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_calls_it_is_refused_with_what_to_give(name: str) -> None:
    options, remedy = REFUSED[name]
    with refused(remedy=remedy, kind=(InvalidInputError, UnsupportedOperationError)):
        agt.Training(**({"loss": "cross_entropy"} | options))


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
