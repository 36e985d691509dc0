"""Nodes of large programs, by simplex from the last basis, fall back to interior point and lose nothing."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
from checks_programs import program, random_lp

from milp_agt.core.program import Array
from milp_agt.core.results import Limits, SolveResult, Termination
from milp_agt.solvers import get_solver, highs_relaxation
from milp_agt.solvers.highs_relaxation import HighsRelaxation


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
        used["simplex" if options is highs_relaxation._SIMPLEX else "other"] += 1
        usual(self, options, model)

    seeds = range(2)
    small = [knapsacks(seed) for seed in seeds]
    monkeypatch.setattr(highs_relaxation, "LARGE", 0)
    monkeypatch.setattr(highs_relaxation, "WARM_ITERATIONS", iterations)
    monkeypatch.setattr(HighsRelaxation, "_use", counted)
    large = [knapsacks(seed) for seed in seeds]
    assert used["simplex"] > 20  # most nodes begin with a basis
    for one, other in zip(chain(*small), chain(*large), strict=True):
        assert one.termination is other.termination is Termination.OPTIMAL
        assert one.dual_bound is not None
        assert other.dual_bound <= one.primal_bound + 1e-9
        assert other.dual_bound == pytest.approx(one.dual_bound, abs=1e-5)


def test_a_basis_serves_the_costs_that_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(highs_relaxation, "LARGE", 0)
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
    assert runs == [None, highs_relaxation.WARM_ITERATIONS] * 2
    warm.close()
