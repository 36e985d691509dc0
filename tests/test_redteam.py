"""Whole runs drawn at random, attacked and attacked again, and what such runs have found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, network
from drawn_runs import assert_attacked, problems, programs
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import every_value

import milp_agt as agt
from milp_agt.bounds.adversary import sums
from milp_agt.bounds.linear import window_bounds
from milp_agt.certification import planning
from milp_agt.core.encoder import Encoder
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.formulations import interval_products
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.tanh import Tanh
from milp_agt.formulations.univariate import Univariate
from milp_agt.solvers import available_solvers, get_solver

EXACT = available_solvers()
# Sizes at which work is cut into pieces or done in another way: here all of it is, on the smallest runs.
PIECES: tuple[tuple[Any, str, tuple[Any, ...]], ...] = (
    (planning, "THREADED_ELEMENTS", (1,)),
    (planning, "FEWEST_SAMPLES", (1, 2)),
    (planning, "BOXED_ELEMENTS", (1, 50)),
    (planning, "ROWS_AT_ONCE", (1, 5)),
    (planning, "PAST_SECONDS", (0.0, 100.0)),
    (window_bounds, "CACHED_ELEMENTS", (1, 64)),
    (interval_products, "THICK", (0,)),
    (interval_products, "EXACT_PRODUCTS_LIMIT", (0, 8, 64)),
    (sums, "HELD", (1, 40)),
    (sums, "AT_ONCE", (1, 7)),
)


@given(problems())
@settings(max_examples=10, deadline=None, derandomize=True)
def test_no_attack_leaves_any_set(drawn: tuple[Problem, dict[str, Any]]) -> None:
    assert_attacked(*drawn)


@given(problems(), st.data())
@settings(max_examples=3, deadline=None, derandomize=True)
def test_no_attack_leaves_any_set_that_is_made_in_pieces(
    drawn: tuple[Problem, dict[str, Any]], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for room, name, sizes in PIECES:
            patch.setattr(room, name, data.draw(st.sampled_from(sizes)))
        assert_attacked(*drawn)


@pytest.mark.slow
@given(problems())
@settings(max_examples=60, deadline=None)
def test_no_attack_leaves_any_set_in_many_runs(drawn: tuple[Problem, dict[str, Any]]) -> None:
    assert_attacked(*drawn)


@pytest.mark.slow
@given(programs())
@settings(max_examples=20, deadline=None)
def test_no_attack_leaves_any_set_of_many_programs(drawn: tuple[Problem, dict[str, Any]]) -> None:
    assert_attacked(*drawn)


# ----------------------------------------------------------------------------------- programs


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("op", "low", "high"),
    [(Sigmoid(), -1000.0, 50.0), (Tanh(), 0.0, 1000.0), (Exponential(), -1000.0, -900.0)],
    ids=lambda value: getattr(value, "key", None),
)
def test_no_argument_of_a_function_is_cut_off(
    op: Univariate, low: float, high: float, name: str
) -> None:
    """A sigmoid on [-1000, 50] was bounded for z >= -59.6 only, where SCIP's infinity begins."""
    encoder = Encoder(True, exact_products=True)
    ends = (np.array([low]), np.array([high]))
    z = encoder.columns(*ends)
    box = Interval(*(torch.from_numpy(end).unsqueeze(0) for end in ends))
    op.encode(encoder, (z,), (box,))
    program = encoder.finish()
    session = get_solver(name).open(program)
    for sign, end in ((1.0, low), (-1.0, high)):
        objective = np.zeros(program.lower.size)
        objective[0] = sign
        bound = session.minimise(objective, Limits(time=20.0)).dual_bound
        assert bound <= sign * end
    session.close()


# -----------------------------------------------------------------------------
# Data, rates and radii at the ends of float64: every run gets a sound set.


X = torch.tensor([[0.3, -1.2], [1.1, 0.4], [-0.7, 0.9]], dtype=torch.float64)
Y = torch.tensor([0, 1, 1])


def _problem(x: torch.Tensor, radius: float, norm: str | int = "inf", **training: float) -> Problem:
    run = agt.Training("cross_entropy", **({"learning_rate": 0.5, "epochs": 2} | training))  # type: ignore[arg-type]
    return Problem(network((2, 2, 2)), x, Y, run, agt.FeaturePoisoning(1, radius, norm=norm))


PROBLEMS = {
    "large data": _problem(1e8 * X, 1e7),
    "large data, small rate": _problem(1e8 * X, 1e7, learning_rate=1e-16),
    "small data, large rate": _problem(1e-8 * X, 1e-9, learning_rate=1e16),
    "subnormal data": _problem(1e-320 * X, 1e-321),
    "subnormal radius": _problem(X, 5e-324),
    "a radius whose square underflows": _problem(X, 1e-300, norm=2),
    "one sample three times": _problem(X[:1].expand(3, 2).clone(), 0.1),
    "no data": _problem(0.0 * X, 0.1),
    "decay that forgets": _problem(X, 0.1, weight_decay=2.0),
    "clipping to nearly nothing": _problem(X, 0.1, clip=1e-100),
}


@every_value(name=list(PROBLEMS), relaxation=["linear", "lp"])
def test_no_attack_leaves_the_set(name: str, relaxation: str) -> None:
    assert_attacked(PROBLEMS[name], {"relaxation": relaxation})
