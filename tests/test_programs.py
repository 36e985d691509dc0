"""Functionals by programs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from attacks import Replay
from test_nesting import case

import milp_agt as agt
from milp_agt.bounds.program import final_window
from milp_agt.errors import SolverUnavailableError

Array = npt.NDArray[np.float64]

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
