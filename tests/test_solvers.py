"""Contract of every back end, and the proof of the safe bound against exact rationals."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from milp_agt.core.program import Array, Curve, Function, Program
from milp_agt.core.results import Limits, SolveResult, Termination
from milp_agt.errors import EncodingError, SolverUnavailableError, SoundnessError
from milp_agt.solvers import Capability, available_solvers, choose, get_solver, solver_table
from milp_agt.solvers.base import _REGISTRY
from milp_agt.solvers.safe import clip_multipliers, safe_bound
from milp_agt.solvers.session import Answer, ProgramSession, scale_exponent, without_tiny

# Tolerances, all relative to max(1, |optimum|) unless said otherwise. A dual bound has none: it is
# compared exactly.
LOOSE = 1e-6  # a dual bound may lose this much: widening of trees, interior point and simplex
LOOSE_FIRST_ORDER = 1e-3  # first-order solvers stop at 1e-7 in their own norms
FOUND = 1e-6  # an incumbent may undercut by its feasibility tolerance
TIGHT = 1e-9  # a safe bound from optimal simplex multipliers
ROUNDING = 1e-12  # a safe bound against its exact formula, relative to the sum of magnitudes

INF = math.inf
BACK_ENDS = (*_REGISTRY, "cvxpy:HIGHS", "cvxpy:SCS")
FIRST_ORDER = ("cvxpy:SCS",)


def program(
    lower: Sequence[float] | Array,
    upper: Sequence[float] | Array,
    rows: Sequence[Sequence[float]] = (),
    row_lower: Sequence[float] | Array = (),
    row_upper: Sequence[float] | Array = (),
    integer: Sequence[int] = (),
) -> Program:
    n = len(lower)
    whole = np.zeros(n, dtype=bool)
    whole[list(integer)] = True
    return Program(
        np.array(lower, dtype=float),
        np.array(upper, dtype=float),
        whole,
        sp.csr_matrix(np.array(rows, dtype=float).reshape(len(rows), n)),
        np.array(row_lower, dtype=float),
        np.array(row_upper, dtype=float),
    )


@dataclass(frozen=True)
class Case:
    name: str
    program: Program
    objective: Sequence[float]
    optimum: float | None  # None: infeasible


RANGES = program([-10, -10], [10, 10], [[1, 1], [1, -1]], [-1, 2], [1, 3])
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
    Case(
        "degenerate",
        program([0, 0], [9, 9], [[1, 1], [2, 2], [1, 2], [2, 1]], [1, 2, 1, 1], [INF] * 4),
        [1, 1],
        1.0,
    ),
    Case("infeasible", program([0, 0], [1, 1], [[1, 1]], [3], [INF]), [1, 1], None),
    Case(
        "infeasible integers",
        program([0, 0], [1, 1], [[2, 2]], [1], [1], integer=[0, 1]),
        [1, 1],
        None,
    ),
    Case(
        "integers",
        program([0] * 3, [3] * 3, [[2, 3, 4]], [7], [INF], integer=[0, 1, 2]),
        [3, 4, 5.5],
        9.5,
    ),
    Case(
        "mixed integers",  # x >= 0.5 b, b >= 1.5 - x
        program([0, 0], [2, 1], [[1, -0.5], [1, 1]], [0, 1.5], [INF, INF], integer=[1]),
        [1, 0.25],
        0.75,
    ),
    Case("large", program([0, 0], [1e8, 1e8], [[1, 1]], [1e8], [INF]), [2e8, 3e8], 2e16),
    Case("small", program([0, 0], [1e-3, 1e-3], [[1, 1]], [1e-3], [INF]), [2e-8, 3e-8], 2e-11),
    Case("no rows", program([-1, 2], [1, 3]), [1, -1], -4.0),
    Case(
        "zero row and column",
        program([0, 1], [1, 2], [[0, 0], [1, 0]], [-1, 0.5], [1, 1]),
        [1, 0],
        0.5,
    ),
    Case("zero objective", program([0, 0], [1, 1], [[1, 1]], [1], [INF]), [0, 0], 0.0),
    Case("fixed columns", program([1, 2], [1, 2], [[1, 1]], [3], [3]), [1, 1], 3.0),
    Case("no columns", program([], [], [[]], [-1], [1]), [], 0.0),
    Case("no columns, infeasible", program([], [], [[]], [1], [2]), [], None),
)


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


def minimise(
    name: str, p: Program, objective: Sequence[float] | Array, limits: Limits | None = None
) -> SolveResult:
    session = get_solver(name).open(p)
    try:
        return session.minimise(np.array(objective, dtype=float), limits or Limits())
    finally:
        session.close()


def random_lp(
    rng: np.random.Generator, columns: int, rows: int, integer: bool = False
) -> tuple[Program, Array]:
    """A feasible program with all kinds of row sides, and a feasible point of it."""
    matrix = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < min(1, 6 / columns))
    lower = rng.integers(-3, 1, columns).astype(float)
    upper = lower + rng.integers(1, 4, columns).astype(float)
    point = np.round(rng.uniform(lower, upper)) if integer else rng.uniform(lower, upper)
    activity = matrix @ point
    kind = rng.integers(0, 4, rows)
    slack = 0.2 * rng.random(rows)
    row_lower = np.where(kind == 0, -INF, activity - np.where(kind == 3, 0.0, slack))
    row_upper = np.where(kind == 1, INF, activity + np.where(kind == 3, 0.0, slack))
    # without this an equality may miss the point by a rounding error
    row_lower, row_upper = row_lower - 1e-12, row_upper + 1e-12
    whole = np.full(columns, integer)
    return Program(lower, upper, whole, sp.csr_matrix(matrix), row_lower, row_upper), point


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
    assert result.dual_bound is not None
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
    weight, value = rng.integers(5, 40, 25), rng.integers(10, 90, 25)
    best = np.zeros(201, dtype=int)
    for w, v in zip(weight, value, strict=True):
        best[w:] = np.maximum(best[w:], best[:-w] + v)
    p = program([0] * 25, [1] * 25, [weight.tolist()], [-INF], [200], integer=range(25))
    for limits in (Limits(gap=0.5), Limits(gap=0.02), Limits(nodes=1), Limits(gap=0.0)):
        result = minimise(back_end, p, -value.astype(float), limits)
        assert result.termination in (Termination.OPTIMAL, Termination.BOUND_ONLY)
        assert result.dual_bound is not None
        assert result.dual_bound <= -best[200]
        if result.primal_bound is not None:
            assert result.primal_bound >= -best[200] - FOUND * best[200]


@pytest.mark.parametrize("integer", [False, True])
def test_time_limit_zero(back_end: str, integer: bool) -> None:
    p, point = random_lp(np.random.default_rng(4), 30, 20, integer)
    c = np.random.default_rng(5).normal(size=30)
    result = minimise(back_end, p, c, Limits(time=0.0))
    assert result.termination in (Termination.BOUND_ONLY, Termination.OPTIMAL)
    assert result.dual_bound is not None
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
        assert warm.dual_bound is not None
        assert fresh.dual_bound is not None
        assert warm.dual_bound == pytest.approx(fresh.dual_bound, abs=10 * loose * size)
        assert warm.dual_bound <= exact_value(c, point)
    session.close()


def test_tree_is_at_least_as_tight_as_relaxation(back_end: str) -> None:
    p, _ = random_lp(np.random.default_rng(7), 12, 10, integer=True)
    relaxed = replace(p, integer=np.zeros(12, dtype=bool))
    for c in np.random.default_rng(8).normal(size=(4, 12)):
        tree, lp = minimise(back_end, p, c), minimise(back_end, relaxed, c)
        assert tree.dual_bound is not None
        assert lp.dual_bound is not None
        assert tree.dual_bound >= lp.dual_bound - TIGHT * max(1.0, abs(lp.dual_bound))


def test_small_coefficients_cut_off_nothing(back_end: str) -> None:
    # x <= 5e8 through a coefficient that HiGHS and SCIP drop by default
    p = program([0, 0], [1e9, 1], [[1e-10, 1], [1e-13, 0]], [0.05, 0], [0.05, 1], integer=[1])
    for c, optimum in (([-1.0, 0.0], -5e8), ([1.0, 0.0], 5e8)):
        result = minimise(back_end, p, c)
        assert result.termination is not Termination.INFEASIBLE
        assert result.dual_bound is not None
        assert result.dual_bound <= optimum


def test_unlisted_status_is_failed(back_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = _REGISTRY[back_end.partition(":")[0]]
    if back_end == "highs":
        module = "milp_agt.solvers.highs_relaxation"
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


class Lying(ProgramSession):
    """A back end whose every answer is scripted; the tree's bound is in units of C."""

    primal_tolerance = 1e-9
    dual_tolerance = 1e-9

    def __init__(self, p: Program, lp: Answer, tree: Answer) -> None:
        super().__init__(p)
        self.lp, self.tree = lp, tree

    def solve_lp(self, costs: Array, time: float | None) -> Answer:
        return self.lp

    def solve_tree(self, costs: Array, limits: Limits) -> Answer:
        return replace(self.tree, bound=float(np.ldexp(self.tree.bound, -scale_exponent(C))))

    def close(self) -> None: ...


@pytest.mark.parametrize("bound", [math.nan, INF, -INF, 1e300, 9.5, 9.0])
@pytest.mark.parametrize("y", [None, [math.nan], [INF], [-5.0], [1e308], [1.0, 2.0], [4 / 3]])
@pytest.mark.parametrize("x", [None, [math.nan] * 3, [0, 1, 1], [0, 0, 0], [0, 1.5, 1], [0.0]])
def test_answers_are_not_trusted(
    bound: float, y: Sequence[float] | None, x: Sequence[float] | None
) -> None:
    case = next(c for c in CASES if c.name == "integers")
    multipliers = None if y is None else np.array(y)
    point = None if x is None else np.array(x, dtype=float)
    lp = Answer(Termination.OPTIMAL, "optimal", multipliers)
    tree = Answer(Termination.OPTIMAL, "optimal", bound=bound, point=point)
    result = Lying(case.program, lp, tree).minimise(C, Limits())
    assert result.dual_bound is not None
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
    lp = Answer(Termination.OPTIMAL, "optimal", np.array([1 / 3]))
    tree = Answer(Termination.OPTIMAL, "optimal", bound=12.0, point=np.array([0.0, 1.0, 1.0]))
    result = Lying(case.program, lp, tree).minimise(C, Limits())
    assert result.dual_bound is not None
    assert 9.5 - LOOSE <= result.dual_bound < 9.5


def test_multipliers_that_prove_infeasibility() -> None:
    p = program([0, 0], [1, 1], [[1, 1]], [3], [INF])
    for y, termination in ((10.0, Termination.INFEASIBLE), (0.1, Termination.BOUND_ONLY)):
        stopped = Answer(Termination.BOUND_ONLY, "limit", np.array([y]))
        result = Lying(p, stopped, stopped).minimise(np.ones(2), Limits())
        assert result.termination is termination


@pytest.mark.parametrize("c", [[0.0], [1.0], [-3.0, 1e-8], [1e300], [5e-324]])
def test_scaling_is_a_power_of_two(c: Sequence[float]) -> None:
    scaled = np.ldexp(np.array(c), -scale_exponent(np.array(c)))
    assert not any(c) or 1.0 <= np.abs(scaled).max() < 2.0


# --- the safe bound -------------------------------------------------------------------------------


def exact_value(c: Array, x: Array) -> Fraction:
    return sum((Fraction(a) * Fraction(b) for a, b in zip(c, x, strict=True)), Fraction(0))


def exact_bound(p: Program, c: Array, y: Array) -> tuple[Fraction, Fraction]:
    """The formula of safe_bound for clipped y in rationals, and the sum of its magnitudes."""
    dense = p.matrix.toarray()
    total, size = Fraction(0), Fraction(0)
    for i, multiplier in enumerate(y):
        if multiplier:
            side = p.row_lower[i] if multiplier > 0 else p.row_upper[i]
            term = Fraction(multiplier) * Fraction(side)
            total, size = total + term, size + abs(term)
    for j, cost in enumerate(c):
        products = [Fraction(dense[i, j]) * Fraction(y[i]) for i in range(len(y))]
        d = Fraction(cost) - sum(products, Fraction(0))
        total += min(d * Fraction(p.lower[j]), d * Fraction(p.upper[j]))
        reach = max(abs(Fraction(p.lower[j])), abs(Fraction(p.upper[j])))
        size += (abs(Fraction(cost)) + sum(map(abs, products), Fraction(0))) * reach
    return total, size


def floats(low: int, high: int) -> st.SearchStrategy[float]:
    """Signed floats with exponents spread from 2**low to 2**high, zero among them."""
    magnitude = st.builds(
        math.ldexp, st.floats(0.5, 1.0, exclude_max=True), st.integers(low + 1, high)
    )
    return st.one_of(
        st.just(0.0), st.builds(lambda m, s: s * m, magnitude, st.sampled_from([-1.0, 1.0]))
    )


@st.composite
def programs(draw: st.DrawFn, low: int, high: int) -> tuple[Program, Array, Array]:
    """A small program with an objective and clipped-or-not multipliers of any sign."""
    n, m = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    number = floats(low, high)
    ends = np.sort(np.array(draw(st.lists(number, min_size=2 * n, max_size=2 * n))).reshape(n, 2))
    rows = [draw(st.lists(number, min_size=n, max_size=n)) for _ in range(m)]
    sides = np.sort(np.array([[draw(number), draw(number)] for _ in range(m)]).reshape(m, 2))
    for i in range(m):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            sides[i, 0] = -INF
        elif kind == 1:
            sides[i, 1] = INF
        elif kind == 2:
            sides[i, 1] = sides[i, 0]
    p = program(ends[:, 0], ends[:, 1], rows, sides[:, 0], sides[:, 1])
    c = np.array(draw(st.lists(number, min_size=n, max_size=n)))
    y = np.array(draw(st.lists(number, min_size=m, max_size=m)))
    if m and draw(st.booleans()):  # reduced costs that cancel exactly, or to the last digit
        c = p.matrix.T @ y
        c[0] = np.nextafter(c[0], draw(st.sampled_from([-1.0, 1.0])) * 2.0**high)
    return p, c, y


@settings(max_examples=100, deadline=None)
@given(programs(-40, 40))
def test_safe_bound_is_below_the_exact_formula_and_close(
    data: tuple[Program, Array, Array],
) -> None:
    p, c, y = data
    clipped = clip_multipliers(p, y)
    exact, size = exact_bound(p, c, clipped)
    found = safe_bound(p, c, y)
    assert math.isfinite(found)
    assert Fraction(found) <= exact
    assert exact - Fraction(found) <= Fraction(ROUNDING) * size + Fraction(1, 10**300)


@settings(max_examples=60, deadline=None)
@given(programs(-1074, 1020))
def test_safe_bound_at_extreme_scales(data: tuple[Program, Array, Array]) -> None:
    p, c, y = data
    if not np.isfinite(c).all():
        return
    found = safe_bound(p, c, y)
    assert not math.isnan(found)
    assert found < INF
    if math.isfinite(found):
        assert Fraction(found) <= exact_bound(p, c, clip_multipliers(p, y))[0]


@pytest.mark.parametrize("seed", range(20))
def test_safe_bound_where_the_terms_cancel(seed: int) -> None:
    """Half an ulp for each of 40 products, against a sum that is nearly zero."""
    rng = np.random.default_rng(seed)
    c, x = rng.normal(size=41), rng.normal(size=41)
    c[40], x[40] = -1.0, float(exact_value(c[:40], x[:40]))
    found, exact = safe_bound(program(x, x), c), exact_value(c, x)
    assert exact - Fraction(1, 10**13) <= Fraction(found) <= exact
    # the same terms as row sides and multipliers
    matrix = sp.csr_matrix((41, 1))
    rows = Program(np.zeros(1), np.zeros(1), np.zeros(1, dtype=bool), matrix, x, x)
    found = safe_bound(rows, np.zeros(1), c)
    assert exact - Fraction(1, 10**13) <= Fraction(found) <= exact


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_safe_bound_where_products_are_subnormal(sign: float) -> None:
    """Sixteen products of 0.75 * 2**-1074, each rounded to 2**-1074, times a bound of 2**1000."""
    x = sign * 2.0**1000
    p = program([x], [x], [[0.75 * 2.0**-600]] * 16, [0.0] * 16, [0.0] * 16)
    y = np.full(16, 2.0**-474)
    exact, _ = exact_bound(p, np.zeros(1), y)
    assert exact == -12 * Fraction(x) * Fraction(2.0**-1074)
    assert Fraction(safe_bound(p, np.zeros(1), y)) <= exact


@settings(max_examples=100, deadline=None)
@given(programs(-700, -500))
def test_safe_bound_where_products_underflow(data: tuple[Program, Array, Array]) -> None:
    p, c, y = data
    exact, _ = exact_bound(p, c, clip_multipliers(p, y))
    assert Fraction(safe_bound(p, c, y)) <= exact


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_safe_bound_is_below_every_feasible_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, _ = random_lp(rng, 3, 4, integer=True)
    c, y = rng.normal(size=3), rng.normal(size=4) * 10.0 ** rng.integers(-3, 4)
    points = itertools.product(
        *(range(int(a), int(b) + 1) for a, b in zip(p.lower, p.upper, strict=True))
    )
    dense = p.matrix.toarray()
    values = []
    for x in (np.array(point, dtype=float) for point in points):
        activity = [exact_value(row, x) for row in dense]
        sides = zip(p.row_lower, activity, p.row_upper, strict=True)
        if all(low <= a <= high for low, a, high in sides):
            values.append(exact_value(c, x))
    assert values
    assert Fraction(safe_bound(p, c, y)) <= min(values)


def test_a_multiplier_of_the_wrong_sign_is_cleared() -> None:
    p = program([0, 0], [1, 1], [[1, 1], [1, 1], [1, 1]], [-INF, 0.5, 0.5], [1.5, INF, 0.5])
    for bad in (math.nan, INF, -INF):
        assert clip_multipliers(p, np.array([bad] * 3)).tolist() == [0.0] * 3
    assert clip_multipliers(p, np.array([1.0, 1.0, 1.0])).tolist() == [0.0, 1.0, 1.0]
    assert clip_multipliers(p, np.array([-1.0, -1.0, -1.0])).tolist() == [-1.0, 0.0, -1.0]
    box = safe_bound(p, np.array([1.0, -1.0]))
    wrong = safe_bound(p, np.array([1.0, -1.0]), np.array([7.0, -7.0, 0.0]))
    assert -1.0 - ROUNDING <= wrong == box <= -1.0


@pytest.mark.parametrize("seed", range(6))
def test_safe_bound_of_optimal_multipliers_is_tight(seed: int) -> None:
    pytest.importorskip("highspy")
    rng = np.random.default_rng(seed)
    p, _ = random_lp(rng, 40, 60)
    c = rng.normal(size=40) * 10.0 ** rng.integers(-6, 7)
    result = minimise("highs", p, c)
    reference = linprog(
        c,
        A_ub=sp.vstack([p.matrix, -p.matrix])[
            np.isfinite(sides := np.concatenate([p.row_upper, -p.row_lower]))
        ],
        b_ub=sides[np.isfinite(sides)],
        bounds=np.stack([p.lower, p.upper], axis=1),
        options={"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9},
    )
    scale = max(abs(reference.fun), float(np.abs(c).max()))
    assert result.dual_bound is not None
    assert result.primal_bound is not None
    assert abs(result.dual_bound - reference.fun) <= 100 * TIGHT * scale  # linprog's tolerances
    assert result.primal_bound - result.dual_bound <= TIGHT * scale


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-8, 1.0, 1e8]))
def test_dual_bounds_of_random_programs(seed: int, scale: float) -> None:
    pytest.importorskip("highspy")
    rng = np.random.default_rng(seed)
    integer = bool(rng.integers(0, 2))
    p, point = random_lp(rng, int(rng.integers(1, 9)), int(rng.integers(0, 9)), integer)
    c = rng.normal(size=point.size) * scale
    result = minimise("highs", p, c)
    assert result.dual_bound is not None
    assert result.primal_bound is not None
    assert Fraction(result.dual_bound) <= exact_value(c, point)
    assert result.dual_bound <= result.primal_bound + FOUND * scale
    assert result.primal_bound - result.dual_bound <= LOOSE * 10 * max(
        scale, abs(result.primal_bound)
    )


def test_safe_bound_refuses_flushed_subnormals() -> None:
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        with pytest.raises(SoundnessError, match="flushed"):
            safe_bound(RANGES, np.array([1.0, 0.5]))
    finally:
        torch.set_flush_denormal(False)
    assert safe_bound(RANGES, np.array([1.0, 0.5])) <= -15.0


def test_safe_bound_rejects_wrong_shapes() -> None:
    with pytest.raises(EncodingError, match=r"multipliers.*\(2,\)"):
        safe_bound(RANGES, np.zeros(2), np.zeros(3))
    with pytest.raises(EncodingError, match=r"objective.*\(2,\)"):
        safe_bound(RANGES, np.zeros(3))


@settings(max_examples=100, deadline=None)
@given(programs(-60, 20), st.floats(0, 1))
def test_without_tiny_keeps_every_point(data: tuple[Program, Array, Array], at: float) -> None:
    p, _, _ = data
    threshold = 1e-9
    x = np.clip(p.lower + at * (p.upper - p.lower), p.lower, p.upper)
    activity = [exact_value(row, x) for row in p.matrix.toarray()]
    matrix, lower, upper = without_tiny(p, threshold)
    assert (np.abs(matrix.data) > threshold).all()
    rows = zip(matrix.toarray(), p.row_lower, activity, p.row_upper, lower, upper, strict=True)
    for row, low, value, high, new_low, new_high in rows:
        relaxed = exact_value(row, x)
        assert not low <= value or new_low <= relaxed
        assert not value <= high or relaxed <= new_high


# --- the registry ---------------------------------------------------------------------------------


def test_choose() -> None:
    assert available_solvers(), "no solver is installed"
    for name in (None, "auto", " AUTO "):
        assert choose(name, Capability.LP | Capability.MIP).name == available_solvers()[0]
    assert choose("Highs", Capability.LP).name == "highs"
    for name in ("cplex", "highs:x", "cvxpy:NOPE"):
        with pytest.raises(SolverUnavailableError, match="What to do") as raised:
            choose(name, Capability.LP)
        assert isinstance(raised.value, ImportError)
    with pytest.raises(SolverUnavailableError, match=r"highs.*milp_agt\[gurobi\]"):
        choose("cplex", Capability.LP)


def test_choose_without_any_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milp_agt.solvers.base.find_spec", lambda module: None)
    assert available_solvers() == ()
    with pytest.raises(SolverUnavailableError, match="pip install highspy"):
        choose(None, Capability.LP)
    with pytest.raises(SolverUnavailableError, match=r"installed are none.*milp_agt\[scip\]"):
        choose("scip", Capability.LP)


def test_solver_table() -> None:
    rows = {row.name: row for row in solver_table()}
    assert tuple(rows) == tuple(_REGISTRY)
    assert "2000" in rows["gurobi"].note
    for row in rows.values():
        assert row.capabilities.startswith("LP, MIP")
        assert row.capabilities == "LP, MIP, QCP, FUNCTIONS"
        assert bool(row.version) == row.available


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_importing_and_listing_import_no_solver() -> None:
    found = run_python(
        "import sys, milp_agt.solvers as s; s.solver_table(); s.available_solvers()\n"
        "s.choose(None, s.Capability.LP)\n"
        "print([m for m in ('highspy', 'gurobipy', 'pyscipopt', 'cvxpy') if m in sys.modules])"
    )
    assert found.stdout.strip() == "[]", found.stderr


def test_the_folder_cannot_be_imported_under_its_own_name() -> None:
    import milp_agt.solvers

    folder = str(milp_agt.solvers.__path__[0])
    found = run_python(
        f"import sys, os; sys.path.insert(0, os.path.dirname(os.path.realpath({folder!r})))\n"
        "try:\n    import solvers\nexcept ImportError as e: print(e)"
    )
    assert "This package is milp_agt.solvers" in found.stdout or "No module" in found.stdout


def test_highs_beside_a_model_with_more_threads() -> None:
    pytest.importorskip("highspy")
    found = run_python(
        "import highspy, numpy as np, scipy.sparse as sp\n"
        "h = highspy.Highs(); h.silent(); h.setOptionValue('threads', 2)\n"
        "h.addVar(0.0, 1.0); h.addRow(0.0, 1.0, 1, [0], [1.0]); h.run()\n"
        "from milp_agt.core.program import Program\n"
        "from milp_agt.core.results import Limits\n"
        "from milp_agt.solvers import get_solver\n"
        "p = Program(np.zeros(2), np.ones(2), np.array([False, True]), sp.csr_matrix([[1., 1.]]),\n"
        "            np.array([.5]), np.array([2.]))\n"
        "print(get_solver('highs').open(p).minimise(np.ones(2), Limits()).termination.name)"
    )
    assert found.stdout.strip() == "OPTIMAL", found.stderr


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
    assert found.dual_bound is not None
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
        assert found.dual_bound is not None
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
        assert second.multipliers is not None
        assert second.multipliers.shape == (60,)
        assert (sessions[1]._relaxation._held.sum()) < 60
