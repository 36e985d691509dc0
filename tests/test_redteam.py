"""Whole runs drawn at random, attacked and attacked again, and what such runs have found."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem
from drawn_runs import assert_attacked, problems, programs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from milp_agt.bounds.adversary import outer_sum
from milp_agt.bounds.linear import window_bounds
from milp_agt.certification import planning
from milp_agt.core.encoder import Encoder
from milp_agt.core.influence import Influence
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.formulations import interval_products
from milp_agt.formulations.elu import Elu, EluSlope
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.gelu import Gelu, GeluSlope
from milp_agt.formulations.gelu_tanh import GeluTanh, GeluTanhSlope
from milp_agt.formulations.hardtanh import Hardtanh
from milp_agt.formulations.heaviside import Heaviside
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.silu import Silu, SiluSlope
from milp_agt.formulations.softplus import Softplus, SoftplusSlope
from milp_agt.formulations.tanh import Tanh
from milp_agt.formulations.univariate import Univariate
from milp_agt.solvers import Capability, available_solvers, get_solver

EXACT = [n for n in available_solvers() if Capability.FUNCTIONS in get_solver(n).capabilities]
# Sizes at which work is cut into pieces or done in another way: here all of it is, on the smallest runs.
PIECES: tuple[tuple[Any, str, tuple[Any, ...]], ...] = (
    (planning, "THREADED_ELEMENTS", (1,)),
    (planning, "_pays", (lambda sizes, moved, window, memory: window > 1, lambda *_: False)),
    (planning, "FEWEST_SAMPLES", (1, 2)),
    (planning, "SAMPLES_OF_UNITS", (2,)),
    (planning, "BOXED_ELEMENTS", (1, 50)),
    (planning, "ROWS_AT_ONCE", (1, 5)),
    (planning, "PAST_SECONDS", (0.0, 100.0)),
    (window_bounds, "CACHED_ELEMENTS", (1, 64)),
    (window_bounds, "ROWS_OF_SHORTCUTS", (3,)),
    (interval_products, "THICK", (0,)),
    (interval_products, "EXACT_PRODUCTS_LIMIT", (0, 8, 64)),
    (outer_sum, "HELD", (1, 40)),
    (outer_sum, "AT_ONCE", (1, 7)),
)


@given(problems())
@settings(max_examples=6, deadline=None, derandomize=True)
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


# --------------------------------------------------------------- influences, point by point

UNIVARIATE = (
    *(Relu(slope) for slope in (0.0, 0.2, 1.7, -0.5)),
    *(Heaviside(), Sigmoid(), Tanh(), Exponential(), Quadratic(-1.0, 1.0, 0.0)),
    *(Gelu(), GeluSlope(), GeluTanh(), GeluTanhSlope(), Silu(), SiluSlope(), Elu(), Elu(0.3)),
    *(EluSlope(), Softplus(), Softplus(5.0, 4.0), SoftplusSlope(), Hardtanh(-1.0, 1.0)),
)


def _influences(generator: torch.Generator, columns: int, budget: int, count: int) -> Influence:
    """Bases and influences of sizes from 1e-15 to 1e4, many of which begin or end at a kink."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def sizes(low: float, high: float, *shape: int) -> Tensor:
        return 10.0 ** (low + (high - low) * uniform(*shape)) * (uniform(*shape) < 0.7)

    scale = 10.0 ** (11.0 * uniform(count) - 7.0)
    centre = scale * torch.randn(count, generator=generator, dtype=torch.float64)
    low, high = centre - scale * sizes(-9, 0, count), centre + scale * sizes(-9, 0, count)
    at_kink = uniform(count)
    low = torch.where(at_kink < 0.1, 0.0, low)
    high = torch.where((at_kink > 0.9) | (at_kink < 0.05), 0.0, high)
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    down, up = (scale * sizes(-8, 1, columns, count) for _ in range(2))
    down[0] = torch.where((low > 0) & (uniform(count) < 0.2), low, down[0])
    own = torch.randint(-1, columns, (count,), generator=generator)
    return Influence(Interval(low[None], high[None]), down, up, budget, own)


@pytest.mark.parametrize("op", UNIVARIATE, ids=lambda op: repr(op))
def test_influences_hold_for_every_choice_of_samples(op: Univariate) -> None:
    generator, columns = torch.Generator().manual_seed(5), 3
    for budget in (1, 2, 4):
        argument = _influences(generator, columns, budget, 2000)
        image, planes = op.influence(argument), op.relax_influence(argument)
        for size in range(min(budget, columns) + 1):
            for chosen in map(list, itertools.combinations(range(columns), size)):
                share = torch.rand(2, 2000, generator=generator, dtype=torch.float64)
                share[0, ::3], share[1, ::2] = share[0, ::3].round(), 1.0
                low, high = argument.base.lower[0], argument.base.upper[0]
                x = torch.minimum(low + share[0] * (high - low), high)
                rises = torch.rand(2000, generator=generator) < 0.5
                moved = torch.where(rises, argument.up, -argument.down)[chosen].sum(0)
                x = x + share[1] * moved
                value = op.value(x)
                assert (image.base.lower[0] - image.down[chosen].sum(0) <= value).all()
                assert (value <= image.base.upper[0] + image.up[chosen].sum(0)).all()
                above, below = planes.upper, planes.lower
                assert above is not None
                assert below is not None
                most = above[0] + (above[1:] - above[0])[chosen].sum(0)
                least = below[0] - (below[0] - below[1:])[chosen].sum(0)
                # Evaluated here, planes are rounded as well.
                size_of = value.abs() + planes.magnitude + most.abs() + least.abs()
                one = torch.ones_like(x)
                steepest, flattest = (
                    planes.backward(one[None])[0][0],
                    -planes.backward(-one[None])[0][0],
                )
                assert (steepest * x + least <= value + 2.0**-50 * size_of).all()
                assert (value <= flattest * x + most + 2.0**-50 * size_of).all()


def test_slopes_of_a_leaky_relu_are_those_of_float64() -> None:
    """0.2 was rounded to float32 for short moves: charges were too small by 1e-8 of the move."""
    move = torch.full((1, 1), 1e-9, dtype=torch.float64)
    left, right = Relu(0.2).secants(Interval.point(torch.zeros_like(move)), move, move)
    assert (float(left.lower), float(right.upper)) == (0.2, 1.0)


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
        assert bound is not None
        assert bound <= sign * end
    session.close()
