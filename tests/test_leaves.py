"""Programs choice by choice: sound against attacks, tighter than looser bounds, branching that is exact."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from attacks import Problem, Replay, assert_inside
from test_cases import THREATS, problem

import milp_agt as agt
from milp_agt.bounds.program import by_choice
from milp_agt.bounds.program.solves import Objectives, SolveOptions
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.expression import Array
from milp_agt.core.program import Program
from milp_agt.errors import SoundnessError
from milp_agt.solvers import get_solver
from milp_agt.solvers.safe import safe_bound
from milp_agt.threats import SeparatePoisoning

OPTIONS: dict[str, Any] = {
    "selections": "enumerated",
    "program_window": 2,
    "inner_bounds": "interval",
}
CASES: dict[str, tuple[str, Any]] = {
    "features": ("bce", agt.FeaturePoisoning(1, 0.3)),
    "two": ("hinge", agt.FeaturePoisoning(2, 0.3, samples=(0, 1, 2))),
    "both": ("bce", THREATS["both"]),
    "adaptive": ("bce", agt.FeaturePoisoning(1, 0.3, static=False)),
    "labels": ("bce", agt.LabelPoisoning(1)),
    "targets": ("mse", agt.LabelPoisoning(2, 0.1)),
    "apart": ("bce", SeparatePoisoning(agt.FeaturePoisoning(1, 0.05), agt.LabelPoisoning(1))),
}


def _case(name: str, **run: Any) -> Problem:
    loss, threat = CASES[name]
    return problem(threat, loss, (2,), samples=4, **({"epochs": 2} | run))


def _attacked(case: Problem, boxes: Any) -> None:
    replay, generator = Replay(case), torch.Generator().manual_seed(0)
    for corners in (True, False):
        assert_inside(boxes, replay.run(replay.random(300, generator, corners)))


@pytest.mark.parametrize("level", ["lp", pytest.param("milp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("features", "labels") else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
    ],
)
def test_attacks_stay_inside(name: str, level: str) -> None:
    case = _case(name)
    result, boxes = case.certify(relaxation=level, **OPTIONS)
    assert result.steps[-1].program is not None
    assert result.steps[-1].program["solves"] > 0
    _attacked(case, boxes)


@pytest.mark.slow
def test_attacks_stay_inside_batches_with_momentum_and_a_projection() -> None:
    case = _case("features", batch_size=2, momentum=0.5, projection=(-1.0, 1.0))
    _attacked(case, case.certify(relaxation="lp", **OPTIONS)[1])


def test_choices_are_tighter_than_all_at_once_and_than_their_linear_bounds() -> None:
    case = _case("features", epochs=3)
    recorder = MemoryRecorder()
    result, _ = case.certify(relaxation="lp", recorder=recorder, **OPTIONS)
    joint, _ = case.certify(relaxation="lp", **(OPTIONS | {"selections": "joint"}))
    linear, _ = case.certify(relaxation="linear", **OPTIONS)
    widths = [r.reachable.mean_width for r in (result, joint, linear)]
    assert widths[0] < 0.99 * widths[1]
    assert widths[0] < 0.99 * widths[2]
    # What counts is proved by multipliers, or known of the choice before.
    report = recorder.programs["lp"][2]
    assert report.solves == sum(len(e.multipliers) for e in report.evidence)
    assert {e.choice for e in report.evidence} <= set(range(5))


def test_choices_that_move_one_percent_less_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a point, one step and a small radius: the programs are almost exact."""
    loss, _ = CASES["features"]
    case = problem(agt.FeaturePoisoning(1, 1e-4), loss, (2,), samples=4, epochs=1)
    original = by_choice._poison_of

    def timid(own: Any) -> Any:
        poison = original(own)
        moves = poison.feature_moves
        if moves is None:
            return poison
        less = replace(moves, low=0.99 * moves.low, high=0.99 * moves.high)
        return replace(poison, feature_moves=less)

    _attacked(case, case.certify(relaxation="lp", **OPTIONS)[1])
    monkeypatch.setattr(by_choice, "_poison_of", timid)
    with pytest.raises(SoundnessError, match="must hold for every training run"):
        case.certify(relaxation="lp", **OPTIONS)


# ----------------------------------------------------------------------- the search by itself


def _boxes(ends: Array) -> list[Objectives]:
    """For each choice the objectives ``x_0`` and ``x_1`` over a box with lower ends (choices, 2)."""
    return [
        Objectives(
            Program(
                low,
                np.full(2, 9.0),
                np.zeros(2, dtype=bool),
                sp.csr_matrix((0, 2)),
                np.zeros(0),
                np.zeros(0),
            ),
            sp.csr_matrix(np.eye(2)),
            np.zeros(2),
            np.zeros(2),
            np.ones(2),
        )
        for low in ends
    ]


HIGHS = SolveOptions(get_solver("highs"))


def test_only_choices_that_can_be_the_worst_are_solved() -> None:
    truth = np.array([[1.0, 4.0], [2.0, 2.0], [3.0, 5.0]])
    known = np.array([[0.0, 3.5], [-1.0, 1.0], [1.5, 4.5]])
    programs, built = _boxes(truth), []

    def build(choice: int) -> Objectives:
        built.append(choice)
        return programs[choice]

    found = by_choice.minimise_leaves(known, np.ones(2), build, HIGHS)
    assert found.least == pytest.approx(truth.min(0), abs=1e-9)
    assert (found.least <= truth.min(0)).all()
    # x_0: choice 1 rises from -1 to 2, choice 0 from 0 to 1, which stays below choice 2.
    # x_1: choice 1 rises from 1 to 2, below all that is known of the others.
    assert built == [1, 0]
    assert found.solves == 3
    for evidence in found.evidence:
        asked = evidence.objectives
        for number, y in evidence.multipliers.items():
            c = asked.matrix[[number]].toarray()[0]
            assert safe_bound(asked.program, c, y) >= found.least[number] - 1e-9


def test_limits_keep_what_is_known() -> None:
    truth, known = np.array([[1.0, 4.0], [2.0, 2.0]]), np.array([[0.0, 3.5], [-1.0, 1.0]])
    programs = _boxes(truth)
    late = replace(HIGHS, deadline=time.monotonic() - 1.0)
    found = by_choice.minimise_leaves(known, np.ones(2), programs.__getitem__, late)
    assert found.least.tolist() == known.min(0).tolist()
    assert (found.solves, found.limited) == (0, 2)
    idle = by_choice.minimise_leaves(known, np.zeros(2), programs.__getitem__, HIGHS)
    assert idle.least.tolist() == known.min(0).tolist()
    assert (idle.solves, idle.skipped, idle.limited) == (0, 2, 0)


def test_phases_of_a_choice_are_branched_on() -> None:
    """``x_0 >= 1 - a`` and ``x_0 >= 2 a - 1``: 1/3 relaxed, 1 with either phase; no ``a = 1`` if b = 0."""
    rows = sp.csr_matrix(np.array([[1.0, 1.0, 0.0], [1.0, -2.0, 0.0], [0.0, -1.0, 1.0]]))
    program = Program(
        np.array([-9.0, 0.0, 0.0]),
        np.array([9.0, 1.0, 0.0]),
        np.array([False, True, False]),
        rows,
        np.array([1.0, -1.0, 0.0]),
        np.full(3, np.inf),
    )
    unit = sp.csr_matrix(np.array([[1.0, 0.0, 0.0]]))
    for upper, relaxed in ((1.0, 1.0 / 3.0), (0.0, 1.0)):
        held = replace(program, upper=np.array([9.0, 1.0, upper]))
        asked = Objectives(held, unit, np.zeros(1), np.zeros(1), np.ones(1))
        loose = replace(asked, program=replace(held, integer=np.zeros(3, dtype=bool)))
        for objectives, value in ((loose, relaxed), (asked, 1.0)):
            found = by_choice.minimise_leaves(
                np.full((1, 1), -9.0), np.ones(1), lambda _, o=objectives: o, HIGHS
            )
            assert found.least == pytest.approx([value], abs=1e-7)
            assert found.least[0] <= value
            assert len(found.evidence) == 1
