"""Contract of every back end, and the proof of the safe bound against exact rationals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np
import pytest
import scipy.sparse as sp
from checks_programs import (
    BACK_ENDS,
    FIRST_ORDER,
    FOUND,
    INF,
    LOOSE,
    LOOSE_FIRST_ORDER,
    RANGES,
    TIGHT,
    exact_value,
    minimise,
    program,
    random_lp,
)
from pairs import every_pair

from milp_agt.core.program import Array, Curve, Function, Program
from milp_agt.core.results import Limits, Termination
from milp_agt.errors import EncodingError, SolverUnavailableError
from milp_agt.solvers import get_solver
from milp_agt.solvers.safe import clip_multipliers, safe_bound
from milp_agt.solvers.session import Session, SolverAnswer, scale_exponent
from milp_agt.solvers.solver import back_ends


@dataclass(frozen=True)
class Case:
    name: str
    program: Program
    objective: Sequence[float]
    optimum: float | None  # None: infeasible


DUPLICATES = replace(
    RANGES, matrix=sp.csr_matrix(([0.5, 0.5, 1.0, 1.0, -1.0], [0, 0, 1, 0, 1], [0, 3, 5]), (2, 2))
)
CASES = (
    Case("plain", program([0, 0], [3, 3], [[1, 1]], [-INF], [4]), [-1, -2], -7.0),
    Case(
        "row signs",  # an equality, an upper side and a range
        program([-1, -2], [3, 4], [[1, 1], [1, -1], [2, 1]], [1, -INF, -3], [1, 2, 5]),
        [1, 2],
        0.5,
    ),
    Case("ranges", RANGES, [1, 0.5], -0.25),
    Case("duplicate entries", DUPLICATES, [1, 0.5], -0.25),
    Case("degenerate",
         program([0, 0], [9, 9], [[1, 1], [2, 2], [1, 2], [2, 1]], [1, 2, 1, 1], [INF] * 4), [1, 1],
         1.0),
    Case("infeasible", program([0, 0], [1, 1], [[1, 1]], [3], [INF]), [1, 1], None),
    Case("infeasible integers", program([0, 0], [1, 1], [[2, 2]], [1], [1], integer=[0, 1]), [1, 1],
         None),
    Case("integers", program([0] * 3, [3] * 3, [[2, 3, 4]], [7], [INF], integer=[0, 1, 2]),
         [3, 4, 5.5], 9.5),
    Case(
        "mixed integers",  # x >= 0.5 b, b >= 1.5 - x
        program([0, 0], [2, 1], [[1, -0.5], [1, 1]], [0, 1.5], [INF, INF], integer=[1]),
        [1, 0.25],
        0.75,
    ),
    Case("large", program([0, 0], [1e8, 1e8], [[1, 1]], [1e8], [INF]), [2e8, 3e8], 2e16),
    Case("small", program([0, 0], [1e-3, 1e-3], [[1, 1]], [1e-3], [INF]), [2e-8, 3e-8], 2e-11),
    Case("no rows", program([-1, 2], [1, 3]), [1, -1], -4.0),
    Case("zero row and column", program([0, 1], [1, 2], [[0, 0], [1, 0]], [-1, 0.5], [1, 1]),
         [1, 0], 0.5),
    Case("zero objective", program([0, 0], [1, 1], [[1, 1]], [1], [INF]), [0, 0], 0.0),
    Case("fixed columns", program([1, 2], [1, 2], [[1, 1]], [3], [3]), [1, 1], 3.0),
    Case("no columns", program([], [], [[]], [-1], [1]), [], 0.0),
    Case("no columns, infeasible", program([], [], [[]], [1], [2]), [], None),
)  # fmt: skip


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest) -> str:
    """Each back end of the registry; a missing or unlicensed one is skipped with the reason."""
    name: str = request.param
    try:
        solver = get_solver(name)
        solver.check_available()
        solver.open(RANGES).close()
    except SolverUnavailableError as error:
        pytest.skip(str(error))
    return name


# --- contract of the back ends --------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_known_answers(back_end: str, case: Case) -> None:
    result = minimise(back_end, case.program, case.objective)
    if case.optimum is None:
        assert result.termination is Termination.INFEASIBLE
        assert result.dual_bound is None
        assert result.primal_bound is None
        return
    scale = abs(case.optimum) or 1.0
    assert result.dual_bound <= case.optimum
    loose = LOOSE_FIRST_ORDER if back_end in FIRST_ORDER else LOOSE
    assert result.termination is Termination.OPTIMAL
    assert result.dual_bound >= case.optimum - loose * scale
    if back_end not in FIRST_ORDER:
        assert result.primal_bound is not None
        assert result.point is not None
        assert result.primal_bound == pytest.approx(case.optimum, abs=FOUND * scale)
        assert case.program.violation(result.point) <= FOUND * max(
            1.0, float(np.abs(case.program.upper).max(initial=0.0))
        )
    if result.multipliers is not None:  # the evidence reproduces the bound
        c = np.array(case.objective, dtype=float)
        assert safe_bound(case.program, c, result.multipliers) <= result.dual_bound
        assert np.all(clip_multipliers(case.program, result.multipliers) == result.multipliers)


def test_knapsack_with_a_large_gap(back_end: str) -> None:
    rng = np.random.default_rng(3)
    weight, value = rng.integers(5, 40, 18), rng.integers(10, 90, 18)
    best = np.zeros(201, dtype=int)
    for w, v in zip(weight, value, strict=True):
        best[w:] = np.maximum(best[w:], best[:-w] + v)
    p = program([0] * 18, [1] * 18, [weight.tolist()], [-INF], [200], integer=range(18))
    for limits in (Limits(gap=0.5), Limits(gap=0.02), Limits(nodes=1), Limits(gap=0.0)):
        result = minimise(back_end, p, -value.astype(float), limits)
        assert result.termination in (Termination.OPTIMAL, Termination.BOUND_ONLY)
        assert result.dual_bound <= -best[200]
        if result.primal_bound is not None:
            assert result.primal_bound >= -best[200] - FOUND * best[200]


@pytest.mark.parametrize("integer", [False, True])
def test_time_limit_zero(back_end: str, integer: bool) -> None:
    p, point = random_lp(np.random.default_rng(4), 30, 20, integer)
    c = np.random.default_rng(5).normal(size=30)
    result = minimise(back_end, p, c, Limits(time=0.0))
    assert result.termination in (Termination.BOUND_ONLY, Termination.OPTIMAL)
    assert result.dual_bound <= exact_value(c, point)


@pytest.mark.parametrize("integer", [False, True])
def test_objectives_in_place_equal_fresh_solves(back_end: str, integer: bool) -> None:
    rng = np.random.default_rng(6)
    p, point = random_lp(rng, 12, 10, integer)
    session = get_solver(back_end).open(p)
    objectives = [rng.normal(size=12) * scale for scale in (1.0, 1.0, 1e-6, 1e6, 1.0)]
    objectives += [-objectives[0], np.zeros(12), np.eye(12)[0], objectives[0]]
    loose = LOOSE_FIRST_ORDER if back_end in FIRST_ORDER else LOOSE
    for c in objectives:
        size = max(float(np.abs(c).max()), 1e-30)
        warm, fresh = session.minimise(c, Limits()), minimise(back_end, p, c)
        assert fresh.dual_bound is not None
        assert warm.dual_bound == pytest.approx(fresh.dual_bound, abs=10 * loose * size)
        assert warm.dual_bound <= exact_value(c, point)
    session.close()


def test_tree_is_at_least_as_tight_as_relaxation(back_end: str) -> None:
    p, _ = random_lp(np.random.default_rng(7), 12, 10, integer=True)
    relaxed = replace(p, integer=np.zeros(12, dtype=bool))
    for c in np.random.default_rng(8).normal(size=(4, 12)):
        tree, lp = minimise(back_end, p, c), minimise(back_end, relaxed, c)
        assert tree.dual_bound >= lp.dual_bound - TIGHT * max(1.0, abs(lp.dual_bound))


def test_small_coefficients_cut_off_nothing(back_end: str) -> None:
    # x <= 5e8 through a coefficient that HiGHS and SCIP drop by default
    p = program([0, 0], [1e9, 1], [[1e-10, 1], [1e-13, 0]], [0.05, 0], [0.05, 1], integer=[1])
    for c, optimum in (([-1.0, 0.0], -5e8), ([1.0, 0.0], 5e8)):
        result = minimise(back_end, p, c)
        assert result.termination is not Termination.INFEASIBLE
        assert result.dual_bound <= optimum


def test_a_row_with_a_huge_coefficient_is_left_out(back_end: str) -> None:
    """HiGHS refuses the whole program for one of them: a run with a rate of 1e16 had no bound."""
    rows = [[1, 1], [1, -1], [1e16, 1]]
    p = program([-10, -10], [10, 10], rows, [-1, 2, -1e18], [1, 3, 1e18])
    objective = [1.0, 0.5]
    plain, found = (minimise(back_end, each, objective) for each in (RANGES, p))
    assert found.dual_bound is not None
    assert found.dual_bound == pytest.approx(plain.dual_bound, abs=1e-3)


def test_unlisted_status_is_failed(back_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = back_ends()[back_end.partition(":")[0]].__module__
    monkeypatch.setattr(import_module(module), "STATUS", {})
    for case in CASES[:2] + CASES[7:8]:
        result = minimise(back_end, case.program, case.objective)
        assert result.termination is Termination.FAILED
        assert result.dual_bound is None
        assert result.primal_bound is None
        assert result.raw_status


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [INF, 1.0], [1.0], [[1.0, 1.0]]])
def test_bad_objectives_raise(back_end: str, bad: Sequence[float]) -> None:
    with pytest.raises(EncodingError, match="objective"):
        minimise(back_end, RANGES, bad)


def test_nothing_is_printed(back_end: str, capfd: pytest.CaptureFixture[str]) -> None:
    for case in (CASES[0], CASES[7]):
        minimise(back_end, case.program, case.objective)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_highs_time_limit_is_per_solve() -> None:
    pytest.importorskip("highspy")
    limit = 0.5  # far above one of these solves, below their sum
    rng = np.random.default_rng(9)
    p, _ = random_lp(rng, 150, 150)
    session = get_solver("highs").open(p)
    start_over = 0.0
    for _ in range(2000):
        result = session.minimise(rng.normal(size=150), Limits(time=limit))
        assert result.termination is Termination.OPTIMAL
        start_over += result.seconds
        if start_over > 3 * limit:
            break
    assert session._relaxation._model.getRunTime() > limit  # type: ignore[attr-defined]


def test_gurobi_licence_limit_names_the_counts() -> None:
    if not get_solver("gurobi").available():
        pytest.skip("gurobipy is not installed")
    n = 2100
    p = program([0.0] * n, [1.0] * n)
    message = ""
    try:
        get_solver("gurobi").open(p).close()
    except SolverUnavailableError as error:
        message = str(error)
    if not message:
        pytest.skip("this licence has no such limit")
    assert "2100 columns" in message
    assert "2000" in message


# --- what all sessions share ----------------------------------------------------------------------


C = np.array([3.0, 4.0, 5.5])  # the objective of the case "integers"


class Lying(Session):
    """A back end whose every answer is scripted; the tree's bound is in units of C."""

    primal_tolerance = 1e-9
    dual_tolerance = 1e-9

    def __init__(self, p: Program, lp: SolverAnswer, tree: SolverAnswer) -> None:
        super().__init__(p)
        self.lp, self.tree = lp, tree

    def solve_lp(self, costs: Array, time: float | None) -> SolverAnswer:
        return self.lp

    def solve_tree(self, costs: Array, limits: Limits) -> SolverAnswer:
        return replace(self.tree, bound=float(np.ldexp(self.tree.bound, -scale_exponent(C))))

    def close(self) -> None: ...


@every_pair(
    x=[None, [math.nan] * 3, [0, 1, 1], [0, 0, 0], [0, 1.5, 1], [0.0]],
    y=[None, [math.nan], [INF], [-5.0], [1e308], [1.0, 2.0], [4 / 3]],
    bound=[math.nan, INF, -INF, 1e300, 9.5, 9.0],
)
def test_answers_are_not_trusted(
    bound: float, y: Sequence[float] | None, x: Sequence[float] | None
) -> None:
    case = next(c for c in CASES if c.name == "integers")
    multipliers = None if y is None else np.array(y)
    point = None if x is None else np.array(x, dtype=float)
    lp = SolverAnswer(Termination.OPTIMAL, "optimal", multipliers)
    tree = SolverAnswer(Termination.OPTIMAL, "optimal", bound=bound, point=point)
    result = Lying(case.program, lp, tree).minimise(C, Limits())
    assert result.dual_bound <= 9.5
    if x == [0, 1, 1]:
        assert result.primal_bound == 9.5  # the one feasible point, which caps any bound
        assert result.dual_bound < 9.5
    else:
        assert result.point is None
        assert result.primal_bound is None
    if bound == 9.0:
        assert 9.0 - LOOSE <= result.dual_bound <= 28 / 3
    if bound == 9.5:
        assert 9.5 - LOOSE <= result.dual_bound < 9.5
    if bound not in (9.0, 9.5) and (x != [0, 1, 1] or math.isnan(bound)):
        assert result.multipliers is not None  # the tree's bound is discarded


def test_a_tree_is_capped_by_its_incumbent() -> None:
    case = next(c for c in CASES if c.name == "integers")
    lp = SolverAnswer(Termination.OPTIMAL, "optimal", np.array([1 / 3]))
    tree = SolverAnswer(Termination.OPTIMAL, "optimal", bound=12.0, point=np.array([0.0, 1.0, 1.0]))
    result = Lying(case.program, lp, tree).minimise(C, Limits())
    assert 9.5 - LOOSE <= result.dual_bound < 9.5


def test_multipliers_that_prove_infeasibility() -> None:
    p = program([0, 0], [1, 1], [[1, 1]], [3], [INF])
    for y, termination in ((10.0, Termination.INFEASIBLE), (0.1, Termination.BOUND_ONLY)):
        stopped = SolverAnswer(Termination.BOUND_ONLY, "limit", np.array([y]))
        result = Lying(p, stopped, stopped).minimise(np.ones(2), Limits())
        assert result.termination is termination


@pytest.mark.parametrize("c", [[0.0], [1.0], [-3.0, 1e-8], [1e300], [5e-324]])
def test_scaling_is_a_power_of_two(c: Sequence[float]) -> None:
    scaled = np.ldexp(np.array(c), -scale_exponent(np.array(c)))
    assert not any(c) or 1.0 <= np.abs(scaled).max() < 2.0


# ------------------------------------------------------------- bilinear terms and exact functions


def exact_program(curves: tuple[Curve, ...] = ()) -> Program:
    """Columns p, a, b: p = a b on [-1, 2] x [-1, 1] with a + b >= -0.5; or p = f(a)."""
    base = program([-4, -1, -1], [4, 2, 1], [[0, 1, 1]], [-0.5], [INF])
    products = np.array([[0, 1, 2]]) if not curves else np.zeros((0, 3), dtype=np.int64)
    return replace(base, products=products, curves=curves)


EXACT = tuple(n for n in BACK_ENDS if n not in FIRST_ORDER)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("objective", "optimum"), [([1, 0, 0], -2.0), ([-1, 0, 0], -2.0), ([1, 1, 1], -1.0)]
)
def test_bilinear_terms_are_solved_to_global_optimality(name, objective, optimum) -> None:
    if not get_solver(name).available():
        pytest.skip(f"{name} is not installed")
    session = get_solver(name).open(exact_program())
    found = session.minimise(np.array(objective, dtype=float), Limits(gap=0.0))
    session.close()
    assert found.termination is Termination.OPTIMAL
    assert found.primal_bound is not None
    assert found.dual_bound <= optimum
    assert found.dual_bound == pytest.approx(optimum, abs=1e-6)
    assert found.multipliers is None


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("function", "value"),
    [
        (Function.EXP, math.exp),
        (Function.SIGMOID, lambda z: 1 / (1 + math.exp(-z))),
        (Function.TANH, math.tanh),
    ],
)
def test_functions_are_exact_where_a_solver_knows_them(name, function, value) -> None:
    if not get_solver(name).available():
        pytest.skip(f"{name} is not installed")
    session = get_solver(name).open(
        replace(
            exact_program((Curve(function, 0, 1),)),
            lower=np.array([-9.0, -1, -1]),
            upper=np.array([9.0, 2, 1]),
        )
    )
    for sign, at in ((1.0, -1.0), (-1.0, 2.0)):
        found = session.minimise(np.array([sign, 0.0, 0.0]), Limits(gap=0.0))
        assert found.dual_bound <= sign * value(at)
        assert found.dual_bound == pytest.approx(sign * value(at), abs=1e-6)
    session.close()


def test_lazy_rows_join_when_they_are_violated() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 6))
    whole = program([-1] * 6, [1] * 6, rows, [-INF] * 60, rng.random(60))
    lazy = replace(whole, lazy=np.arange(60) > 2)
    for seed in range(4):
        c = np.random.default_rng(seed).normal(size=6)
        sessions = [get_solver("highs").open(p) for p in (whole, lazy)]
        first, second = (s.minimise(c, Limits()) for s in sessions)
        assert first.dual_bound == pytest.approx(second.dual_bound, abs=1e-8)
        assert second.multipliers.shape == (60,)
        assert (sessions[1]._relaxation._held.sum()) < 60
