"""Test points that the box of the parameters decides are not walked; all others are as tight as ever."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, network

import milp_agt as agt
from milp_agt.bounds.linear import window_bounds
from milp_agt.properties import models as models_room
from milp_agt.properties.accuracy import AccuracyQuestion

N, TEST = 20, 40


@functools.cache
def certified(selections: str) -> tuple[agt.Result, torch.Tensor, torch.Tensor]:
    """A run whose box decides some of the test points, and whose walks decide more of them."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N + TEST, 3, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).long()
    training = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=5, batch_size=10)
    threat = agt.FeaturePoisoning(budget=1, radius=0.01)
    run = Problem(network([3, 4, 2], seed=0), x[:N], y[:N], training, threat)
    result, _ = run.certify(relaxation="linear", window=None, selections=selections)
    return result, x[N:], y[N:]


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_answers_are_those_of_walking_every_point(selections: str) -> None:
    result, x, y = certified(selections)
    answer, (low, high) = result.accuracy(x, y), result.margins(x, y)
    points = answer.points
    decided = points.lower == points.upper
    assert 0 < int(decided.sum()) < TEST
    assert np.array_equal(points.lower, low > 0)
    assert np.array_equal(points.upper, ~(high < 0))
    # Walked in other company: the same up to the last digits of matrix products.
    assert np.allclose(points.score_lower[~decided], low[~decided], rtol=1e-12)
    assert np.allclose(points.score_upper[~decided], high[~decided], rtol=1e-12)
    assert (points.score_lower <= low + 1e-12).all()
    assert (points.score_upper >= high - 1e-12).all()
    assert (points.score_lower <= points.score_nominal).all()
    assert (points.score_nominal <= points.score_upper).all()


def test_only_open_points_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    result, x, y = certified("joint")
    question = AccuracyQuestion.of(result.models, x, torch.eye(2).double()[y])
    box = question.evaluate([result.models.bound_in_box(question.decision.forms)]).value
    open_ = int((box.lower != box.upper).any(0).sum())
    rows: list[int] = []
    walk = window_bounds.propagate_backward

    def counted(*arguments: Any, **named: Any) -> Any:
        rows.append(arguments[2].rows)
        return walk(*arguments, **named)

    monkeypatch.setattr(window_bounds, "propagate_backward", counted)
    question.bounds(result.models)
    steps = len(result.models.reached[0].window)
    assert 0 < open_ < TEST
    assert sum(rows) == 2 * open_ * steps  # both ends of one form for two classes


def test_walks_keep_to_the_rows_that_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    result, x, y = certified("joint")
    few = replace(result, models=replace(result.models, rows=3))
    rows: list[int] = []
    walk = window_bounds.propagate_backward

    def counted(*arguments: Any, **named: Any) -> Any:
        rows.append(arguments[2].rows)
        return walk(*arguments, **named)

    monkeypatch.setattr(window_bounds, "propagate_backward", counted)
    margins = few.margins(x[:4], y[:4])
    few.functional({"0.weight": np.ones((4, 3))})
    assert max(rows) == 3
    assert np.allclose(margins, result.margins(x[:4], y[:4]), rtol=1e-12)
    assert max(rows) > 3
    rows.clear()
    replace(few, models=replace(few.models, beside=None)).suspects()
    assert max(rows) <= 3


def test_questions_say_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    result, x, y = certified("joint")
    monkeypatch.setattr(models_room, "POINTS_AT_ONCE", 16)
    told: list[tuple[int, int]] = []
    watched = result.watched(lambda done, total: told.append((done, total)))
    watched.margins(x, y)
    assert told == [(16, TEST), (32, TEST), (40, TEST)]
    told.clear()
    watched.accuracy(x, y)
    assert told[-1][0] == told[-1][1] < TEST
