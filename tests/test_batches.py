"""Batches and learning rates of every step."""

from __future__ import annotations

import numpy as np
import pytest
from checks_steps import mlp
from same_run import assert_same_run, data_for

from milp_agt.training.schedules import InverseTimeDecay
from milp_agt.training.training import Training


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
