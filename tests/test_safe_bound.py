"""Bounds that hold in floating point whatever a solver claims; which back ends there are."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from checks_programs import (
    FOUND,
    INF,
    LOOSE,
    RANGES,
    ROUNDING,
    TIGHT,
    exact_value,
    minimise,
    program,
    random_lp,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from milp_agt.core.program import Array, Program
from milp_agt.errors import EncodingError, SolverUnavailableError, SoundnessError
from milp_agt.solvers import available_solvers, choose, solver_table
from milp_agt.solvers.safe import clip_multipliers, safe_bound
from milp_agt.solvers.session import HUGE, without_extremes
from milp_agt.solvers.solver import back_ends


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
@given(programs(-60, 60), st.floats(0, 1))
def test_without_extremes_keeps_every_point(data: tuple[Program, Array, Array], at: float) -> None:
    p, _, _ = data
    threshold = 1e-9
    x = np.clip(p.lower + at * (p.upper - p.lower), p.lower, p.upper)
    activity = [exact_value(row, x) for row in p.matrix.toarray()]
    matrix, lower, upper = without_extremes(p, threshold)
    assert ((np.abs(matrix.data) > threshold) & (np.abs(matrix.data) < HUGE)).all()
    rows = zip(matrix.toarray(), p.row_lower, activity, p.row_upper, lower, upper, strict=True)
    for row, low, value, high, new_low, new_high in rows:
        relaxed = exact_value(row, x)
        assert not low <= value or new_low <= relaxed
        assert not value <= high or relaxed <= new_high


def test_choose() -> None:
    assert available_solvers(), "no solver is installed"
    for name in (None, "auto", " AUTO "):
        assert choose(name).name == available_solvers()[0]
    assert choose("Highs").name == "highs"
    for name in ("cplex", "highs:x", "cvxpy:NOPE"):
        with pytest.raises(SolverUnavailableError, match="What to do") as raised:
            choose(name)
        assert isinstance(raised.value, ImportError)
    with pytest.raises(SolverUnavailableError, match=r"highs.*milp_agt\[gurobi\]"):
        choose("cplex")


def test_choose_without_any_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milp_agt.solvers.solver.find_spec", lambda module: None)
    assert available_solvers() == ()
    with pytest.raises(SolverUnavailableError, match="pip install highspy"):
        choose(None)
    with pytest.raises(SolverUnavailableError, match=r"installed are none.*milp_agt\[scip\]"):
        choose("scip")


def test_solver_table() -> None:
    rows = {row.name: row for row in solver_table()}
    assert tuple(rows) == tuple(back_ends())
    assert "2000" in rows["gurobi"].note
    for row in rows.values():
        assert bool(row.version()) == row.available()


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_importing_and_listing_import_no_solver() -> None:
    found = run_python(
        "import sys, milp_agt.solvers as s; s.solver_table(); s.available_solvers()\n"
        "s.choose(None)\n"
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
