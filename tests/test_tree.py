"""Branch and bound of our own: what it proves holds whatever the solver of its relaxations says."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from checks_programs import program, random_lp
from hypothesis import given, settings
from hypothesis import strategies as st

from milp_agt.core.program import Array, Curve, Function, Program
from milp_agt.core.results import Limits, SolveResult, Termination
from milp_agt.solvers import get_solver, highs
from milp_agt.solvers.curves import Curves, Envelopes
from milp_agt.solvers.highs import HighsRelaxation
from milp_agt.solvers.safe import farkas_ray, safe_bound
from milp_agt.solvers.session import SolverAnswer
from milp_agt.solvers.tree import Tree

pytest.importorskip("highspy")
INF = math.inf
VALUES = {
    Function.EXP: np.exp,
    Function.SIGMOID: lambda x: 1.0 / (1.0 + np.exp(-x)),
    Function.TANH: np.tanh,
}
SEEDS = st.integers(0, 2**32 - 1)


def dyadic(rng: np.random.Generator, size: int, least: int = -16, most: int = 17) -> Array:
    """Eighths, whose sums and products of two are exact."""
    return rng.integers(least, most, size) / 8.0


def drawn(rng: np.random.Generator, terms: int = 3) -> tuple[Program, Array]:
    """A program with integer columns, bilinear terms (squares, chains) and a point that satisfies all
    of it exactly."""
    free = int(rng.integers(2, 6))
    point = list(dyadic(rng, free))
    integer = rng.random(free) < 0.4
    point = [float(round(v)) if whole else v for v, whole in zip(point, integer, strict=True)]
    products = []
    for _ in range(int(rng.integers(0, terms + 1))):
        a, b = rng.integers(0, len(point), 2).tolist()
        products.append((len(point), a, b))
        point.append(point[a] * point[b])
    x = np.array(point)
    n = x.size
    room = 1.0 + rng.integers(0, 3, (2, n))
    whole = np.concatenate([integer, np.zeros(n - free, dtype=bool)])
    rows = int(rng.integers(0, 6))
    dense = dyadic(rng, rows * n).reshape(rows, n) * (rng.random((rows, n)) < 0.6)
    activity = dense @ x
    slack = rng.integers(0, 5, (2, rows)) / 4.0
    upper = np.where(rng.random(rows) < 0.5, INF, activity + slack[1])
    made = Program(
        x - room[0], x + room[1], whole, sp.csr_matrix(dense), activity - slack[0], upper,
        products=np.array(products, dtype=np.int64).reshape(-1, 3),
    )  # fmt: skip
    return made, x


def value(costs: Array, point: Array) -> Fraction:
    return sum((Fraction(c) * Fraction(x) for c, x in zip(costs, point, strict=True)), Fraction(0))


def by_highs(_: Program) -> Callable[[Program, Array, float], SolverAnswer]:
    def relax(node: Program, costs: Array, time: float) -> SolverAnswer:
        relaxation = HighsRelaxation(node)
        answer = relaxation.solve(costs, time)
        relaxation.close()
        return answer

    return relax


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_no_point_is_cut_off(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own, point = drawn(rng)
    costs = dyadic(rng, point.size)
    found = get_solver("highs").open(own).minimise(costs, Limits(time=10.0, nodes=300))
    assert found.dual_bound is not None
    assert Fraction(found.dual_bound) <= value(costs, point)
    if found.primal_bound is not None and found.termination is Termination.OPTIMAL:
        assert found.dual_bound >= found.primal_bound - 1e-5 * max(1.0, abs(found.primal_bound))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_lying_solver_cannot_break_a_bound(seed: int) -> None:
    """Random multipliers, points, rays and verdicts in place of the solver's."""
    rng = np.random.default_rng(seed)
    own, point = drawn(rng)
    costs = dyadic(rng, point.size)

    def lie(node: Program, _: Array, __: float) -> SolverAnswer:
        rows = rng.normal(size=node.row_lower.size) * 10.0 ** rng.integers(-3, 4)
        said = rng.choice(np.array(list(Termination), dtype=object))
        guess = node.lower + (node.upper - node.lower) * rng.normal(size=point.size)
        rows[rng.random(rows.size) < 0.05] = rng.choice([np.nan, np.inf, -np.inf, 1e200, -1e305])
        guess[rng.random(guess.size) < 0.05] = rng.choice([np.nan, np.inf, 1e300])
        return SolverAnswer(said, "a lie", rows, bound=1e9, point=guess)

    answer = Tree(own, lie, costs, Limits(nodes=40)).search()
    assert answer.termination is not Termination.INFEASIBLE
    assert Fraction(answer.bound) <= value(costs, point)


def test_envelopes_that_are_too_tight_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a hundred, taken off their sides."""

    def envelopes(self: Envelopes, lower: Array, upper: Array) -> tuple[Array, Array]:
        data, sides = plain(self, lower, upper)
        return data, sides + 0.01

    plain = Envelopes._of_terms
    monkeypatch.setattr(Envelopes, "_of_terms", envelopes)
    broken = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        own, point = drawn(rng)
        own = replace(own, lower=point - 0.0)
        costs = np.abs(dyadic(rng, point.size))
        costs[own.products[:, 0]] += 1.0
        answer = Tree(own, by_highs(own), costs, Limits(nodes=100)).search()
        lost = answer.termination is Termination.INFEASIBLE
        broken += lost or Fraction(answer.bound) > value(costs, point)
    assert broken > 0


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_envelopes_hold_on_their_box(seed: int) -> None:
    """Exactly, at the corners and inside, for products and squares, on boxes of any float."""
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.normal(size=(2, 2)) * 10.0 ** rng.integers(-9, 9, (1, 2)), axis=0)
    lower, upper = np.array([-INF, *ends[0]]), np.array([INF, *ends[1]])
    big = 1e30
    base = program([-big, *ends[0]], [big, *ends[1]])
    base = replace(base, products=np.array([[0, 1, 2], [0, 1, 1]]))
    node = Envelopes(base).over(base.lower, base.upper)
    assert node.matrix.shape == (8, 3)
    rows = node.matrix.toarray()
    inside = ends[0] + (ends[1] - ends[0]) * rng.random((4, 2))
    inside = np.clip(inside, lower[1:], upper[1:])
    for x, y in [*itertools.product(*ends.T), *inside]:
        for first, z in ((0, Fraction(x) * Fraction(y)), (4, Fraction(x) ** 2)):
            for row in range(first, first + 4):
                activity = (
                    Fraction(rows[row, 0]) * z
                    + Fraction(rows[row, 1]) * Fraction(x)
                    + Fraction(rows[row, 2]) * Fraction(y)
                )
                assert activity >= Fraction(node.row_lower[row])


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from(list(Function)))
def test_lines_of_functions_hold_on_their_box(seed: int, function: Function) -> None:
    """Against extended precision; and each line meets the function where it should."""
    rng = np.random.default_rng(seed)
    a, b = np.sort(rng.uniform(-8.0, 8.0, 2)) * 10.0 ** rng.integers(-6, 1)
    curves = Curves((Curve(function, 0, 1),))
    slopes, low, high = curves.lines(np.array([a]), np.array([b]))
    x = np.clip(np.concatenate([[a, b], rng.uniform(a, b, 50)]), a, b).astype(np.longdouble)
    value = VALUES[function](x)
    rest = value[:, None] - slopes.astype(np.longdouble) * x[:, None]
    assert bool((rest >= low).all())
    assert bool((rest <= high).all())
    gap = np.concatenate([rest[:2] - low, high - rest[:2]])
    if function is Function.EXP or a * b >= 0.0:  # convex or concave: tangents and chord meet it
        assert float(gap.min(0).max()) <= 1e-13 * (1.0 + float(abs(value).max()))


def test_functions_are_solved_to_global_optimality() -> None:
    """The least of ``f(x) - 0.1 x^2 + 0.05 x`` on [-4, 4], by a fine grid."""
    for function in Function:
        terms = {"products": np.array([[2, 1, 1]]), "curves": (Curve(function, 0, 1),)}
        own = replace(program([-1, -4, -16], [60, 4, 16]), **terms)
        costs = np.array([1.0, 0.05, -0.1])
        found = get_solver("highs").open(own).minimise(costs, Limits())
        x = np.linspace(-4.0, 4.0, 800_001)
        exact = float((VALUES[function](x) + 0.05 * x - 0.1 * x * x).min())
        assert found.termination is Termination.OPTIMAL
        assert found.dual_bound is not None
        assert found.dual_bound <= exact
        assert found.dual_bound == pytest.approx(exact, abs=1e-5)


def test_envelopes_are_tight_at_the_corners() -> None:
    base = replace(program([-9, -1, 2], [9, 3, 3]), products=np.array([[0, 1, 2]]))
    node = Envelopes(base).over(base.lower, base.upper)
    for x, y in itertools.product((-1.0, 3.0), (2.0, 3.0)):
        slack = node.matrix @ np.array([x * y, x, y]) - node.row_lower
        assert sorted(slack)[:2] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_multipliers_of_the_least_violation_prove_that_there_is_no_point() -> None:
    rows = [[1, 1], [1, -1], [1e-9, 0]]
    own = program([0, 0], [1, 1], rows, [1.8, -INF, -INF], [INF, -0.5, 5])

    def solve(loose: Program, costs: Array) -> Array | None:
        return HighsRelaxation(loose).solve(costs, None).multipliers

    assert safe_bound(own, np.zeros(2), farkas_ray(own, solve)) > 0.0
    feasible = replace(own, row_upper=np.array([INF, 0.5, 5.0]))
    assert safe_bound(feasible, np.zeros(2), farkas_ray(feasible, solve)) <= 0.0
    found = HighsRelaxation(own).solve(np.zeros(2), None)
    assert found.termination is Termination.INFEASIBLE
    assert safe_bound(own, np.zeros(2), found.multipliers) > 0.0


def test_an_empty_box_counts_only_if_that_is_proved() -> None:
    """Without rays a box stays, with the bound of the box that it was cut from."""
    own = program([0, 0], [1, 1], [[2, 2]], [0.9], [1.1], integer=[0, 1])
    whole = by_highs(own)

    def silent(node: Program, costs: Array, time: float) -> SolverAnswer:
        answer = whole(node, costs, time)
        hide = answer.termination is Termination.INFEASIBLE
        return replace(answer, multipliers=None) if hide else answer

    costs = np.array([1.0, 0.5])
    assert Tree(own, whole, costs, Limits()).search().termination is Termination.INFEASIBLE
    still = replace(own, integer=np.zeros(2, bool))
    answer = Tree(still, silent, costs, Limits()).search()
    assert answer.bound == pytest.approx(0.225, abs=1e-7)


def test_limits_leave_a_bound_that_more_nodes_raise() -> None:
    rng = np.random.default_rng(3)
    n = 12
    weights = rng.integers(3, 30, n).astype(float)
    half = weights.sum() / 2 + 0.25
    own = program(np.zeros(n), np.ones(n), weights[None], [half], [INF], integer=range(n))
    costs = weights + rng.random(n)
    exact = min(
        float(costs @ x)
        for x in map(np.array, itertools.product((0.0, 1.0), repeat=n))
        if weights @ x >= half
    )
    bounds = []
    for nodes in (1, 20, None):
        found = get_solver("highs").open(own).minimise(costs, Limits(nodes=nodes, gap=0.0))
        assert found.dual_bound is not None
        assert found.termination is (Termination.BOUND_ONLY if nodes else Termination.OPTIMAL)
        assert found.multipliers is None or nodes == 1
        bounds.append(found.dual_bound)
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(exact, rel=1e-9)
    assert bounds[-1] <= exact


@pytest.mark.parametrize("name", ["scip", "gurobi"])
def test_other_solvers_agree(name: str) -> None:
    if not get_solver(name).available():
        pytest.skip(f"{name} is not installed")
    for seed in range(12):
        rng = np.random.default_rng(seed)
        own, point = drawn(rng, terms=4)
        costs = dyadic(rng, point.size) + 0.01
        first, second = (
            get_solver(n).open(own).minimise(costs, Limits(time=20.0)) for n in ("highs", name)
        )
        assert first.termination is second.termination is Termination.OPTIMAL
        assert first.dual_bound is not None
        assert second.dual_bound == pytest.approx(first.dual_bound, abs=2e-5)


# -----------------------------------------------------------------------------
# Nodes of large programs, by simplex from the last basis, fall back to interior point and lose nothing.


def knapsacks(seed: int) -> list[SolveResult]:
    """Two objectives over 16 binaries and 6 budgets: trees of some tens of nodes."""
    rng = np.random.default_rng(seed)
    weights = rng.random((6, 16))
    budgets = 0.4 * weights.sum(1)
    own = program(np.zeros(16), np.ones(16), weights, np.full(6, -np.inf), budgets, range(16))
    session = get_solver("highs").open(own)
    found = [session.minimise(-rng.random(16), Limits()) for _ in range(2)]
    session.close()
    return found


@pytest.mark.parametrize("iterations", [0, 1, 1000])
def test_trees_of_large_programs_end_like_those_of_small_ones(
    iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: Counter[str] = Counter()
    usual = HighsRelaxation._use

    def counted(self: HighsRelaxation, options: dict[str, object], model: Any = None) -> None:
        used["simplex" if options is highs._SIMPLEX else "other"] += 1
        usual(self, options, model)

    seeds = range(2)
    small = [knapsacks(seed) for seed in seeds]
    monkeypatch.setattr(highs, "LARGE", 0)
    monkeypatch.setattr(highs, "WARM_ITERATIONS", iterations)
    monkeypatch.setattr(HighsRelaxation, "_use", counted)
    large = [knapsacks(seed) for seed in seeds]
    assert used["simplex"] > 20  # most nodes begin with a basis
    for one, other in zip(chain(*small), chain(*large), strict=True):
        assert one.termination is other.termination is Termination.OPTIMAL
        assert one.dual_bound is not None
        assert other.dual_bound <= one.primal_bound + 1e-9
        assert other.dual_bound == pytest.approx(one.dual_bound, abs=1e-5)


def test_a_basis_serves_the_costs_that_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs, "LARGE", 0)
    own, _ = random_lp(np.random.default_rng(1), 10, 12)
    warm, runs = HighsRelaxation(own, warm=True), []
    usual = HighsRelaxation._run

    def noted(self: HighsRelaxation, costs: Array, time: float | None, most: Any = None) -> str:
        runs.append(most)
        return usual(self, costs, time, most)

    monkeypatch.setattr(HighsRelaxation, "_run", noted)
    one, other = np.random.default_rng(2).normal(size=(2, 10))
    for costs in (one, one, other, other):
        assert warm.solve(costs, None).termination is Termination.OPTIMAL
    assert runs == [None, highs.WARM_ITERATIONS] * 2
    warm.close()
