"""Flips without rows: what they cost their samples, or everyone, still holds every real run."""

from __future__ import annotations

from typing import Any

import pytest
from pairs import every_pair
from problems import problem, tiny
from zonotope_runs import Passed, assert_generators, assert_in_boxes, attacks_of

import milp_agt as agt
from milp_agt.bounds.zonotope import work
from milp_agt.bounds.zonotope.work import Work

RUNS: dict[str, Any] = {
    "one layer": ("bce", {"epochs": 4}, (4,), {}),
    "two layers": ("bce", {"epochs": 4}, (3, 3), {}),
    "batches": ("cross_entropy", {"epochs": 4, "batch_size": 4}, (4,), {"budget": 1}),
}


def checked(radius: float, run: Any) -> Passed:
    loss, training, hidden, options = run
    case, _, _ = problem(loss, "features", training, hidden, seed=1, radius=radius, **options)
    passed = Passed.of(case)
    for attacks in attacks_of(passed, 1):
        assert_in_boxes(passed, attacks)
        assert_generators(passed, attacks)
    return passed


@every_pair(most=[0, 1], run=RUNS, radius=[0.05, 0.2])
def test_few_phases_get_rows(monkeypatch, most: int, run: Any, radius: float) -> None:
    monkeypatch.setattr(Work, "most_new", lambda self, rows, steps: most)
    flips = checked(radius, run).last.zonotope.flips
    steps = run[1]["epochs"] * (2 if "batch_size" in run[1] else 1)
    assert flips.rows <= most * steps
    assert flips.rows < flips.count


@pytest.mark.parametrize("run", list(RUNS.values()), ids=list(RUNS))
def test_rows_go_when_there_are_too_many(monkeypatch, run: Any) -> None:
    monkeypatch.setattr(work, "MOST_ROWS", 3)
    monkeypatch.setattr(work, "FEWEST_ROWS", 3)
    assert all(s.zonotope.flips.rows <= 3 for s in checked(0.1, run).sets)


def test_rows_make_sets_smaller(monkeypatch) -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.02), epochs=8)
    width = sum(float(b.width.sum()) for b in Passed.of(case).last.state().values())
    monkeypatch.setattr(Work, "most_new", lambda self, rows, steps: 0)
    loose = sum(float(b.width.sum()) for b in Passed.of(case).last.state().values())
    assert width < 0.99 * loose
