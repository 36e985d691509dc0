"""Presolve, and functionals by programs."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
import torch
from attacks import Replay
from hypothesis import given
from hypothesis import strategies as st
from test_nesting import case

import milp_agt as agt
from milp_agt.bounds.program import final_window
from milp_agt.core import presolve as room
from milp_agt.core.presolve import presolve
from milp_agt.core.program import Program
from milp_agt.core.results import Limits
from milp_agt.errors import SolverUnavailableError
from milp_agt.solvers import get_solver

Array = npt.NDArray[np.float64]


def _instance(seed: int) -> tuple[Program, Array]:
    """A program with constants, single entries, repeated rows, and a point that many rows touch."""
    rng = np.random.default_rng(seed)
    columns, rows = int(rng.integers(2, 7)), int(rng.integers(1, 9))
    scale = 10.0 ** rng.integers(-6, 4, columns)
    low = rng.normal(size=columns) * scale
    width = np.abs(rng.normal(size=columns)) * scale
    width *= rng.choice([1.0, 1e-14, 0.0], columns, p=[0.5, 0.4, 0.1])
    high = low + width
    point = np.clip(low + width * rng.choice([0.0, 1.0, rng.random()], columns), low, high)
    dense = rng.normal(size=(rows, columns)) * rng.choice([0.0, 1.0], (rows, columns), p=[0.4, 0.6])
    dense[rng.random(rows) < 0.3, 1:] = 0.0
    dense = dense[rng.integers(0, rows, 2 * rows)]
    lower, upper = np.empty(2 * rows), np.empty(2 * rows)
    for i, row in enumerate(dense):
        value = sum(
            (Fraction(a) * Fraction(x) for a, x in zip(row, point, strict=True)), Fraction()
        )
        room_left = rng.choice([0.0, 0.0, 1.0], 2) * np.abs(rng.normal(size=2)) * scale.max()
        lower[i] = _rounded(value - Fraction(room_left[0]), -np.inf)
        upper[i] = _rounded(value + Fraction(room_left[1]), np.inf)
    lower[rng.random(2 * rows) < 0.4] = -np.inf
    integer = np.zeros(columns, dtype=np.bool_)
    matrix = sp.csr_matrix(dense)
    return Program(low, high, integer, matrix, lower, upper, lazy=rng.random(2 * rows) < 0.5), point


def _rounded(value: Fraction, towards: float) -> float:
    near = float(value)
    beyond = Fraction(near) > value if towards < 0 else Fraction(near) < value
    return float(np.nextafter(near, towards)) if beyond else near


def _holds(program: Program, point: Array) -> bool:
    """Whether the point satisfies bounds and rows, exactly."""
    exact = [Fraction(x) for x in point]
    inside = (program.lower <= point).all() and (point <= program.upper).all()
    matrix = program.matrix
    for i, (low, high) in enumerate(zip(program.row_lower, program.row_upper, strict=True)):
        entries = range(matrix.indptr[i], matrix.indptr[i + 1])
        total = sum(
            (Fraction(matrix.data[k]) * exact[matrix.indices[k]] for k in entries), Fraction()
        )
        inside &= low == -np.inf or Fraction(low) <= total
        inside &= high == np.inf or total <= Fraction(high)
    return bool(inside)


@given(st.integers(0, 2**32 - 1))
def test_no_point_is_lost(seed: int) -> None:
    program, point = _instance(seed)
    assert _holds(program, point)
    least, kept = presolve(program, np.arange(0))
    assert _holds(least, point[kept])


def test_a_charge_that_is_left_out_loses_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the charge for what constants differ by, it does."""
    monkeypatch.setattr(room, "gamma", lambda _: 0.0)
    monkeypatch.setattr(room, "_spread_of", lambda picked, width: 0.0 * (abs(picked) @ width))
    found = [_instance(seed) for seed in range(300)]
    assert not all(
        _holds(least, point[kept])
        for program, point in found
        for least, kept in [presolve(program, np.arange(0))]
    )


@given(st.integers(0, 2**32 - 1))
def test_no_bound_is_lost(seed: int) -> None:
    program, _ = _instance(seed)
    columns = np.arange(program.lower.size)
    least, kept = presolve(program, columns)
    assert (kept == columns).all()
    costs = np.random.default_rng(seed).normal(size=columns.size)
    solver = get_solver("highs")
    whole, part = (solver.open(p).minimise(costs, Limits()).dual_bound for p in (program, least))
    if whole is not None and part is not None:
        size = float(np.abs(costs) @ np.maximum(np.abs(program.lower), np.abs(program.upper)))
        # Solvers stop at absolute tolerances of 1e-7: bounds of tiny programs differ by shares of it.
        assert part == pytest.approx(whole, abs=1e-6 * size + 1e-8)


def test_what_goes() -> None:
    """One program with one of each: a single entry, a constant, an implied row, a repeated row."""
    rows = np.array([[2.0, 0, 0], [0, 1, 1], [0, 1, -1], [1, 1, 0], [1, 1, 0], [1, 1, 0]])
    program = Program(
        lower=np.array([-1.0, -1.0, 3.0]),
        upper=np.array([1.0, 1.0, 3.0]),
        integer=np.zeros(3, dtype=np.bool_),
        matrix=sp.csr_matrix(rows),
        row_lower=np.array([0.5, -np.inf, -9.0, -0.5, -0.25, -0.75]),
        row_upper=np.array([np.inf, 3.5, 9.0, np.inf, 1.0, np.inf]),
        lazy=np.array([False, False, False, True, False, True]),
    )
    least, kept = presolve(program, np.array([0, 1]))
    assert kept.tolist() == [0, 1]
    # x >= 0.25 and y <= 0.5, both rounded outwards; one of three equal rows, with their best sides.
    assert least.lower[0] == pytest.approx(0.25)
    assert least.lower[0] < 0.25
    assert least.upper[1] == pytest.approx(0.5)
    assert least.upper[1] > 0.5
    assert least.row_lower.size == 1
    assert least.row_lower.tolist() == [-0.25]
    assert least.row_upper.tolist() == [1.0]
    assert not least.lazy.any()


THREAT = agt.FeaturePoisoning(1, 0.1)


@pytest.fixture(scope="module")
def bounded():
    problem = case("bce", THREAT, epochs=2)
    result, _ = problem.certify(relaxation="lp", program_window=2, inner_bounds="interval")
    generator = torch.Generator().manual_seed(5)
    rows = {
        n: torch.randn(6, *p.shape, generator=generator, dtype=torch.float64)
        for n, p in problem.model.state_dict().items()
    }
    return problem, result, rows


def _reached(problem, rows) -> np.ndarray:
    replay, generator = Replay(problem), torch.Generator().manual_seed(0)
    found = []
    for corners in (True, False):
        state = replay.run(replay.random(500, generator, corners))[-1]
        values = [state[n].flatten(1) @ rows[n].flatten(1).T for n in rows]
        found.append(torch.stack(values).sum(0).numpy())
    return np.concatenate(found)


def test_programs_hold_attacks_and_are_tighter_than_linear_forms(bounded) -> None:
    problem, result, rows = bounded
    before = len(result.models.program.reports)
    answers = result.functional(rows)
    assert len(result.models.program.reports) == before + 1
    assert not result.models.program.notes
    values = _reached(problem, rows)
    low, high = (np.array([getattr(a, end) for a in answers]) for end in ("lower", "upper"))
    assert (low <= values).all()
    assert (values <= high).all()
    linear = replace(result, models=replace(result.models, program=None)).functional(rows)
    widths = [np.array([a.upper - a.lower for a in each]) for each in (answers, linear)]
    assert (widths[0] <= widths[1]).all()
    assert widths[0].sum() < 0.999 * widths[1].sum()


def test_bounds_are_near_what_attacks_reach(bounded) -> None:
    problem, result, rows = bounded
    values = _reached(problem, rows)
    answers = result.functional(rows)
    reach = values.max(0) - values.min(0)
    widths = np.array([a.upper - a.lower for a in answers])
    assert (reach > 0.5 * widths).all()


def test_without_a_licence_the_linear_bound_stays(bounded, monkeypatch) -> None:
    _, result, rows = bounded
    linear = replace(result, models=replace(result.models, program=None)).functional(rows)

    def refused(*_: object) -> None:
        raise SolverUnavailableError("a solver", "too small", "another")

    monkeypatch.setattr(final_window, "improved", refused)
    answers = result.functional(rows)
    assert [(a.lower, a.upper) for a in answers] == [(a.lower, a.upper) for a in linear]
    assert "functionals were left" in result.models.program.notes[-1]


def test_bounds_that_are_one_percent_too_tight_are_caught() -> None:
    """Where moves are small the program is almost exact, so that attacks reach its bounds."""
    problem = case("bce", agt.FeaturePoisoning(1, 1e-4), epochs=2)
    result, _ = problem.certify(relaxation="lp", program_window=2)
    rows = {n: torch.ones(1, *p.shape).double() for n, p in problem.model.state_dict().items()}
    (answer,) = result.functional(rows)
    values = _reached(problem, rows)
    slack = 0.01 * (answer.upper - answer.lower)
    assert answer.lower <= values.min()
    assert values.max() <= answer.upper
    assert values.min() < answer.lower + slack or values.max() > answer.upper - slack
