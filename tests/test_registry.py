"""Which back ends there are, how one is chosen, and that none is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from milp_agt.errors import SolverUnavailableError
from milp_agt.solvers import available_solvers, choose, solver_table
from milp_agt.solvers.solver import back_ends


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
        assert bool(row.version) == row.available


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
