"""Objectives on many workers: the same bounds, and none unsound when a worker dies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from boxes import assert_within
from refusals import refused
from stand_ins import StandIn, cluster, die
from test_nesting import case

from milp_agt.bounds.program.state_bounds import Objectives, SolveOptions, minimise
from milp_agt.core.program import Array, Program
from milp_agt.core.results import Limits, SolveResult
from milp_agt.errors import EncodingError, SolverUnavailableError
from milp_agt.solvers import Session, get_solver

joblib = pytest.importorskip("joblib", reason="joblib is not installed")


def objectives(gain: Array | None = None) -> Objectives:
    """Six forms over the simplex ``x >= 0, sum x >= 1`` in [0, 1]^3."""
    rng = np.random.default_rng(0)
    program = Program(
        np.zeros(3),
        np.ones(3),
        np.zeros(3, dtype=bool),
        sp.csr_matrix(np.ones((1, 3))),
        np.ones(1),
        np.full(1, np.inf),
    )
    matrix = sp.csr_matrix(rng.random((6, 3)) + 0.1)
    constant = np.arange(6.0)
    return Objectives(
        program, matrix, constant, np.full(6, 1e-12), np.ones(6) if gain is None else gain
    )


def truth() -> Array:
    """The least coefficient of each form, plus its constant."""
    asked = objectives()
    return asked.matrix.toarray().min(1) + asked.constant


@dataclass(frozen=True)
class Fatal:
    """The process dies at the first objective, the first ``deaths`` times."""

    folder: str
    deaths: int

    def __call__(self, objective: Array, solve: Callable[[], SolveResult]) -> SolveResult:
        if np.array_equal(objective, objectives().matrix.toarray()[0]):
            die(self.folder, self.deaths)
        return solve()


def test_workers_find_what_one_process_finds() -> None:
    alone = minimise(objectives(), SolveOptions(get_solver("highs")))
    shared = minimise(objectives(), SolveOptions(get_solver("highs"), workers=2))
    for solved in (alone, shared):
        assert (solved.bounds <= truth()).all()
        assert solved.bounds == pytest.approx(truth(), abs=1e-8)
        assert (solved.solves, solved.skipped, solved.limited, solved.lost) == (6, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [1, 99])
def test_a_dead_worker_is_tried_once_more_and_nothing_else_is_lost(deaths, tmp_path) -> None:
    solved = minimise(objectives(), SolveOptions(StandIn(Fatal(str(tmp_path), deaths)), workers=2))
    assert (solved.bounds <= truth()).all()
    other = np.arange(1, 6, 2)  # the pieces take turns: objective 0 dies with 2 and 4
    assert solved.bounds[other] == pytest.approx(truth()[other], abs=1e-8)
    if deaths == 1:
        assert solved.lost == 0
        assert solved.bounds == pytest.approx(truth(), abs=1e-8)
    else:
        assert solved.lost == 3
        assert np.isneginf(solved.bounds[0])


@pytest.mark.slow
def test_a_dask_cluster_on_this_machine() -> None:
    with cluster():
        solved = minimise(objectives(), SolveOptions(get_solver("highs"), workers=2))
    assert solved.bounds == pytest.approx(truth(), abs=1e-8)
    assert solved.lost == 0


def test_most_to_gain_first_and_what_is_closed_is_skipped() -> None:
    gain = np.array([0.0, 0.3, 0.1, 0.9, 0.0, 0.2])
    solved = minimise(objectives(gain), SolveOptions(get_solver("highs")))
    assert (solved.solves, solved.skipped) == (4, 2)
    assert np.isneginf(solved.bounds[[0, 4]]).all()
    late = minimise(objectives(gain), SolveOptions(get_solver("highs"), deadline=0.0))
    assert (late.solves, late.limited) == (0, 4)
    assert np.isneginf(late.bounds).all()


def test_an_infeasible_program_is_an_error_on_workers_too() -> None:
    asked = objectives()
    asked.program.row_lower[0] = 4.0
    for workers in (1, 2):
        with pytest.raises(EncodingError) as error:
            minimise(asked, SolveOptions(get_solver("highs"), workers=workers))
        assert "feasible" in error.value.asked
        assert "infeasible" in error.value.found.lower()
        assert error.value.remedy


def test_certify_takes_workers() -> None:
    problem = case("bce", count=3, epochs=2)
    alone = problem.certify(relaxation="lp", window=1)[1]
    shared = problem.certify(relaxation="lp", window=1, workers=2)[1]
    for a, b in zip(alone, shared, strict=True):
        assert_within(a, b, 1e-7)
        assert_within(b, a, 1e-7)
    with refused("worker", "workers = 0", "workers should be greater than or equal to 1"):
        problem.certify(relaxation="lp", workers=0)


class TooSmall(StandIn):
    """A solver whose licence admits no program."""

    def open(self, program: Program) -> Session:
        raise SolverUnavailableError("A program", "a small licence", "choose 'highs'")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_licence_that_is_too_small_leaves_the_linear_bounds(workers, monkeypatch) -> None:
    problem = case("bce", count=3, epochs=2)
    linear = problem.certify(relaxation="linear", window=1)[1]
    monkeypatch.setattr(
        "milp_agt.certification.certify.choose", lambda name: TooSmall(Fatal("", 0))
    )
    result, boxes = problem.certify(relaxation="lp", window=1, workers=workers)
    for a, b in zip(boxes, linear, strict=True):
        assert_within(a, b)
    assert result.limit_reached
    assert {step.relaxation for step in result.steps} == {"linear"}
    assert sum("a small licence" in line for line in result.fallbacks) == 2


@pytest.mark.parametrize(
    "limits", [Limits(time=0.0), Limits(time=0.0, nodes=0), Limits(nodes=1)], ids=str
)
def test_limits_leave_a_sound_looser_answer_that_says_so(limits) -> None:
    problem = case("bce", count=3, epochs=2)
    linear = problem.certify(relaxation="linear", window=1)[1]
    result, boxes = problem.certify(relaxation="milp", window=1, solve_limits=limits)
    for a, b in zip(boxes, linear, strict=True):
        assert_within(a, b)
    if limits.time == 0.0:
        assert result.limit_reached
        assert any("met a limit" in line for line in result.fallbacks)
    assert all(0 <= s.program["limited"] <= s.program["solves"] for s in result.steps)
