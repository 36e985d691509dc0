"""Triggers in certificates: questions about points that are ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified import arr, certified, forged, put, statement_in

from milp_agt.checker import layers, proof, steps, training
from milp_agt.checker.affine import ranged
from milp_agt.checker.boxes import Box
from milp_agt.checker.check import Outcome, check
from milp_agt.checker.layers import Samples
from milp_agt.checker.proof import answer, of_rows, reached

RUN: dict[str, Any] = {
    "relaxation": "linear",
    "properties": '[[property]]\nkind = "backdoor"\nradius = 0.2\n\n[[property]]\nkind = "backdoor"\n'
    "coordinates = [0]\nlow = -1.0\nhigh = 1.0\ntarget = 1\n",
}
FORGERIES = {
    "one point less": put("questions/0/most", lambda v: v - 1),
    "one point less to the target": put("questions/1/most", lambda v: v - 1),
    "more points at least": put("questions/0/least", lambda v: v + 1),
    "wider ranges": arr("upper_points_0.npy", lambda v: v + 2.0),
    "wider ranges below": arr("points_1.npy", lambda v: v - 2.0),
    "ranges upside down": arr("upper_points_0.npy", lambda v: v - 9.0),
    "ranges of fewer points": arr("upper_points_0.npy", lambda v: v[1:].copy()),
    "ranges of another question": put("questions/0/kind", "accuracy"),
    "ranges of a loss": put("questions/0/kind", "loss"),
    "points of training": put("questions/0/on", "train"),
    "no points at all": put("questions/0/upper", None),
}


@pytest.fixture(scope="module")
def triggered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certified(tmp_path_factory.mktemp("triggered"), **RUN)


def test_triggers_are_proved(triggered: Path) -> None:
    report = check(triggered)
    assert report.outcome is Outcome.PROVED, report.items
    assert "for some features in the range of each, get another class" in report.words[3]


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_triggers_are_rejected(triggered: Path, tmp_path: Path, name: str) -> None:
    report = check(forged(triggered, tmp_path / "forged", FORGERIES[name]))
    assert report.outcome is Outcome.REJECTED, report.items


@pytest.mark.parametrize("is_tight", [False, True])
def test_triggers_are_counted(
    is_tight: bool, triggered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of poisoned runs, at inputs in the ranges; a checker that takes middles for ranges is found."""
    if is_tight:
        monkeypatch.setattr(proof, "of_rows", lambda p, s, x, rows: of_rows(p, s, middle(x), rows))
        monkeypatch.setattr(steps, "ranged", lambda box: ranged(middle(box)))
    given, rng, most = statement_in(triggered), np.random.default_rng(0), [0, 0]
    proved = [answer(number, reached(given)) for number in range(2)]
    open_, ends = np.flatnonzero(given.poisoned.open), given.poisoned.samples.x
    for _ in range(10):
        x, chosen = given.samples.x.lo.copy(), rng.choice(open_)
        x[0, chosen] = np.where(rng.random(2) < 0.5, ends.lo[0, chosen], ends.hi[0, chosen])
        samples = Samples(Box.point(x), given.samples.y)
        final = training.train(given.problem, given.initial, samples)
        for number, asked in enumerate(given.questions):
            got = np.zeros(len(asked.encoded), bool)
            for _ in range(30):
                side = rng.random(asked.x.lo.shape) < 0.5
                at = Box.point(np.where(side, asked.x.lo, asked.x.hi)[None])
                f = layers.forward(given.problem, final, at)[-1].lo[0, :, 0]
                wanted = asked.encoded[:, 0] == (1.0 if number else 0.0)
                got |= np.where(wanted, f > 0, f < 0)
            most[number] = max(most[number], int(got.sum()))
    held = [low <= count <= high for count, (low, high) in zip(most, proved, strict=True)]
    assert all(held) is not is_tight, (most, proved)


def middle(box: Box) -> Box:
    return Box.point(0.5 * (box.lo + box.hi))
