"""Schedules and batches against torch's own, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checks_steps import mlp
from refusals import refused
from same_run import assert_same_run, data_for
from test_config import GOOD, build
from torch.optim import lr_scheduler

import milp_agt as agt
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.training.schedules import InverseTimeDecay, Schedule
from milp_agt.training.training import Training

EPOCHS, BATCH, SAMPLES = 4, 3, 7  # three steps in an epoch, the last with one sample
Build = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]

CASES: dict[str, tuple[Schedule, Build]] = {
    "step": (agt.StepDecay(2, 0.3), lambda o: lr_scheduler.StepLR(o, 2, gamma=0.3)),
    "milestones": (
        agt.Milestones([1, 3], 0.5),
        lambda o: lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.5),
    ),
    "exponential": (agt.ExponentialDecay(0.8), lambda o: lr_scheduler.ExponentialLR(o, 0.8)),
    "inverse time": (
        agt.InverseTimeDecay(0.5),
        lambda o: lr_scheduler.LambdaLR(o, lambda t: 1.0 / (1.0 + 0.5 * t)),
    ),
}


def rates(schedule: Schedule) -> list[float]:
    run = agt.Training(
        loss="mse", learning_rate=0.4, epochs=EPOCHS, batch_size=BATCH, schedule=schedule
    )
    return [rule.rate for rule in run.update_rules(len(run.batch_order(SAMPLES)))]


def of_torch(scheduler: Build, unit: str) -> list[float]:
    """The rate of every step of a usual training loop."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    schedule, found = scheduler(optimiser), []
    for _ in range(EPOCHS):
        for _ in range(math.ceil(SAMPLES / BATCH)):
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            if unit == "step":
                schedule.step()
        if unit == "epoch":
            schedule.step()
    return found


@pytest.mark.parametrize("unit", ["step", "epoch"])
@pytest.mark.parametrize("name", list(CASES))
def test_the_rates_are_those_of_torch(name: str, unit: str) -> None:
    ours, theirs = CASES[name]
    found = rates(replace(ours, unit=unit))
    assert found == pytest.approx(of_torch(theirs, unit), rel=1e-13)
    assert len(set(found)) > 1


@pytest.mark.parametrize(("unit", "end"), [("step", 12), ("epoch", 4)])
def test_cosine_is_that_of_torch(unit: str, end: int) -> None:
    theirs = of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, end, eta_min=0.05), unit)
    assert rates(agt.CosineDecay(0.05, unit=unit)) == pytest.approx(theirs, rel=1e-12)
    short = rates(agt.CosineDecay(0.05, period=2, unit=unit))
    theirs = of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, 2, eta_min=0.05), unit)
    each = 12 // end
    assert short[: 3 * each] == pytest.approx(theirs[: 3 * each], rel=1e-12)
    assert short[2 * each :] == [0.05] * (12 - 2 * each)


def with_schedule(text: str) -> str:
    return GOOD.replace("learning_rate = 0.5", f"learning_rate = 0.5\nschedule = {{ {text} }}")


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ('kind = "step", every = 3, factor = 0.5', agt.StepDecay(3, 0.5)),
        ('kind = "milestones", at = [2, 5], unit = "epoch"', agt.Milestones([2, 5], 0.1, "epoch")),
        ('kind = "exponential", factor = 0.9', agt.ExponentialDecay(0.9)),
        ('kind = "cosine", floor = 0.01, period = 7', agt.CosineDecay(0.01, 7)),
        ('kind = "inverse_time", decay = 2, unit = "epoch"', agt.InverseTimeDecay(2, 0.0, "epoch")),
    ],
)
def test_schedules_in_a_run_file(tmp_path: Path, text: str, schedule: Schedule) -> None:
    assert build(tmp_path, with_schedule(text)).training.schedule == schedule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('kind = "cosine", flor = 0.1', ["[training.schedule] unknown key 'flor'", "use 'floor'"]),
        ('kind = "cosin"', ["kind = 'cosin'", "give one of"]),
        ('kind = "step", every = 0', ["every", "greater than or equal to 1"]),
        ('kind = "step", every = 2, decay = 1', ["'decay', which kind = 'step' does not have"]),
        ("decay = 0.1", ["without the key 'schedule.kind'", "add 'kind'"]),
    ],
)
def test_bad_schedules_in_a_run_file(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        build(tmp_path, with_schedule(text))
    assert all(word in str(caught.value) for word in words), str(caught.value)


REFUSED = {
    "decay": lambda: agt.InverseTimeDecay(-1.0),
    "floor": lambda: agt.CosineDecay(math.nan),
    "factor": lambda: agt.StepDecay(2, -0.5),
    "every": lambda: agt.StepDecay(0),
    "at": lambda: agt.Milestones([1.5]),
    "period": lambda: agt.CosineDecay(period=True),
    "unit": lambda: agt.ExponentialDecay(0.5, "month"),
    "finite rates": lambda: rates(agt.ExponentialDecay(1e200)),
    "rates up to 1e+30": lambda: agt.Training(
        loss="mse", learning_rate=1e29, momentum=100.0
    ).update_rules(1),
    "no 2 epochs of one length": lambda: agt.Training(
        loss="mse", epochs=2, schedule=agt.StepDecay(1, unit="epoch")
    ).update_rules(3),
}


@pytest.mark.parametrize("word", list(REFUSED))
def test_bad_schedules_are_refused(word: str) -> None:
    with refused(said=word):
        REFUSED[word]()


@pytest.mark.parametrize("name", ["adam", "AdamW", "rmsprop", "lbfgs", "sam"])
def test_other_optimisers_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    toml = GOOD.replace("learning_rate = 0.5", f'learning_rate = 0.5\noptimizer = "{name}"')
    for ask in (lambda: agt.Training(loss="mse", optimizer=name), lambda: build(tmp_path, toml)):
        reason = {"lbfgs": "line search", "sam": "no rule"}.get(name, "divides by the size")
        with refused(name, reason, "sgd", kind=UnsupportedOperationError):
            ask()


def test_incomplete_last_batch_has_its_own_size() -> None:
    training = Training(loss="bce", learning_rate=0.3, epochs=2, batch_size=3, momentum=0.9)
    expected = [[0, 1, 2], [3, 4, 5], [6]] * 2
    assert [b.tolist() for b in training.batch_order(7)] == expected
    assert_same_run(mlp(2, 3, 1), data_for("bce", 1), training, expected)


def test_shuffled_batches_are_a_new_permutation_in_each_epoch() -> None:
    training = Training(loss="bce", epochs=3, batch_size=4, shuffle_seed=8)
    generator = np.random.default_rng(8)
    expected: list[list[int]] = []
    for _ in range(3):
        order = generator.permutation(7).tolist()
        expected += [order[:4], order[4:]]
    assert [b.tolist() for b in training.batch_order(7)] == expected
    assert expected[0] != expected[2]
    assert_same_run(mlp(2, 3, 1), data_for("bce", 1), training, expected)


def test_recorded_batches() -> None:
    batches = [[3, 1], [0, 6, 5, 2], [4]]
    training = Training(loss="hinge", learning_rate=0.2, batches=batches, momentum=0.5)
    assert_same_run(mlp(2, 3, 1), data_for("hinge", 1), training, batches)


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    assert [b.tolist() for b in Training(loss="mse", batch_size=9).batch_order(3)] == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (None, [0.4] * 4),
        (InverseTimeDecay(0.5), [0.4, 0.4 / 1.5, 0.4 / 2.0, 0.4 / 2.5]),
        (InverseTimeDecay(0.5, floor=0.25), [0.4, 0.4 / 1.5, 0.25, 0.25]),
        ([0.1, 0.4, 0.2, 0.3], [0.1, 0.4, 0.2, 0.3]),
    ],
    ids=["constant", "decay", "floor", "list"],
)
def test_learning_rate_schedules(schedule: object, rates: list[float]) -> None:
    run = {"learning_rate": 0.4, "epochs": 4, "momentum": 0.9, "nesterov": True}
    training = Training("cross_entropy", schedule=schedule, **run)
    assert_same_run(mlp(2, 3, 3), data_for("cross_entropy", 3), training, rates=rates)
