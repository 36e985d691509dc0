"""Whole samples by programs of single choices: who is removed or replaced is known in each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attacks import assert_inside
from whole_runs import problem, truth

import milp_agt as agt
from milp_agt.bounds.program import OneByOne
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.formulations.exchange import Remove

RUN: dict[str, Any] = {"selections": "enumerated", "program_window": 2, "relaxation": "lp"}
RUNS: dict[str, dict[str, Any]] = {
    "full batch": {"samples": 3, "epochs": 2},
    "mini-batches": {"epochs": 2, "batch_size": 3, "shuffle_seed": 0},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1, "epochs": 2},
    "emptied": {"epochs": 2, "batch_size": 2},
}


@pytest.mark.parametrize(
    "name", [n if n == "full batch" else pytest.param(n, marks=pytest.mark.slow) for n in RUNS]
)
@pytest.mark.parametrize("budget", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["removal", "substitution"])
def test_no_run_leaves_the_programs_of_its_choice(kind: str, budget: int, name: str) -> None:
    case, recorder = problem(kind, budget, **RUNS[name]), MemoryRecorder()
    result, boxes = case.certify(recorder=recorder, **RUN)
    assert_inside(boxes, truth(case))
    (linear, _) = case.certify(**(RUN | {"relaxation": "linear"}))
    assert result.reachable.mean_width <= linear.reachable.mean_width
    choices = {e.choice for r in recorder.programs["lp"].values() for e in r.evidence}
    assert len(choices) > 1
    if name == "full batch":
        program = result.models.program
        assert program is not None
        assert isinstance(program.choices, OneByOne)


def test_choices_are_tighter_than_all_at_once_and_than_linear_bounds() -> None:
    """Of substitutes: removals enumerated are almost points by linear bounds already."""
    case = problem("substitution", 1, samples=3, epochs=2)
    apart, _ = case.certify(**RUN)
    joint, _ = case.certify(**(RUN | {"selections": "joint"}))
    linear, _ = case.certify(**(RUN | {"relaxation": "linear"}))
    widths = [r.reachable.mean_width for r in (apart, joint, linear)]
    assert widths[0] < widths[1]
    assert widths[0] < widths[2]


def test_means_that_are_one_percent_off_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem("removal", 1, samples=3, epochs=1)
    original = Remove.encode

    def timid(self: Remove, encoder: Any, inputs: Any, ranges: Any) -> Any:
        found = original(self, encoder, inputs, ranges)
        gone = ranges[1].upper[0].flatten().numpy() > 0.0
        each = found.size // len(gone)
        return found.scale(np.repeat(np.where(gone, 0.99, 1.0), each).reshape(found.shape))

    monkeypatch.setattr(Remove, "encode", timid)
    with pytest.raises((AssertionError, agt.errors.MilpAgtError)):
        assert_inside(case.certify(**RUN)[1], truth(case))
