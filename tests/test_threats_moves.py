"""Sets of moves: box, support function, best move, projection, samples and program rows agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from beyond import excess
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import every_pair
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression
from milp_agt.threats.sets import (
    Ball,
    Box,
    BoxOrFill,
    Halfspaces,
    MoveSet,
    Product,
    Sparse,
    Vertices,
    move_sets,
)

N, SIZE = 3, 4


def _numbers(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.random(shape))


def box(seed: int, whole: tuple[int, ...] = (), size: int = SIZE) -> Box:
    rng = _numbers(seed)
    low, high = -_draw(rng, N, size), _draw(rng, N, size)
    low[:, 0] = 0.0
    columns = list(whole)
    low[:, columns], high[:, columns] = (5 * low[:, columns]).ceil(), (5 * high[:, columns]).floor()
    return Box(low, high, whole)


def ball(order: int, capped: bool, seed: int, whole: tuple[int, ...] = ()) -> Ball:
    rng = _numbers(seed)
    radius = _draw(rng, N, SIZE) + 0.01
    radius[0, 1] = 0.0
    if whole:
        radius = 5 * radius
    low, high = -radius, radius
    if capped:
        low, high = low * _draw(rng, N, SIZE), high * _draw(rng, N, SIZE)
        high[1, 0] = 0.0
    columns = list(whole)
    low, high = low.clone(), high.clone()
    low[:, columns], high[:, columns] = low[:, columns].ceil(), high[:, columns].floor()
    return Ball(order, radius, low, high, capped or bool(whole), whole)


def fills(seed: int, whole: tuple[int, ...] = ()) -> BoxOrFill:
    jumps = 4 * _draw(_numbers(seed + 1), N, SIZE) - 2
    jumps[:, 2] = 0.0
    return BoxOrFill(box(seed, whole), jumps)


def vertices(seed: int, size: int = SIZE) -> Vertices:
    points = _draw(_numbers(seed), N, 3, size) - 0.4
    points[:, 1] = 0.0
    return Vertices(points)


def product(seed: int, first: MoveSet | None = None) -> Product:
    """Columns 0, 2 by a box (or another set), 1, 3, 4 by vertices."""
    return Product(((0, 2), (1, 3, 4)), (first or box(seed, (), 2), vertices(seed + 1, 3)))


def rows(seed: int, base: MoveSet) -> Halfspaces:
    rng = _numbers(seed + 2)
    return Halfspaces(base, rng.normal(size=(2, base.size)), 0.3 * _draw(rng, N, 2))


SETS: dict[str, Callable[[int], MoveSet]] = {
    "box": box,
    "whole numbers": lambda s: box(s, (1, 3)),
    "fill": fills,
    "fill with whole numbers": lambda s: fills(s, (1, 2)),
    "vertices": vertices,
    "ball 1": lambda s: ball(1, False, s),
    "ball 2": lambda s: ball(2, False, s),
    "ball 1 in a box": lambda s: ball(1, True, s),
    "ball 2 in a box": lambda s: ball(2, True, s),
    "ball 1, whole numbers": lambda s: ball(1, False, s, (0, 2)),
    "ball 2, whole numbers": lambda s: ball(2, True, s, (0, 1, 2, 3)),
    "product": product,
    "sparse": lambda s: Sparse(box(s), 2),
    "sparse with fills": lambda s: Sparse(fills(s), 1),
    "sparse with groups": lambda s: Sparse(product(s), 2),
    "box with rows": lambda s: rows(s, box(s)),
    "ball with rows": lambda s: rows(s, ball(2, True, s)),
    "groups with rows": lambda s: rows(s, product(s)),
    "some samples": lambda s: ball(2, True, s).only(torch.tensor([True, False, True])),
}


def test_every_kind_of_set_is_tested_and_in_the_table() -> None:
    tested = {type(made(0)) for made in SETS.values()}
    assert tested == set(move_sets())


def coefficients(moves: MoveSet, seed: int, count: int = 5) -> Tensor:
    """Normal, with zeros, equal entries and entries that dwarf others."""
    rng = _numbers(seed + 7)
    values = torch.from_numpy(rng.normal(size=(count, N, moves.size)))
    values[0] = torch.round(values[0])
    values[1] = torch.sign(values[1])
    values[2] = values[2] ** 9
    return values


def samples(moves: MoveSet, seed: int, count: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([moves.sample(generator, count, corners) for corners in (False, True)])


SEEDS = st.integers(0, 2**20)
EVERY = pytest.mark.parametrize("name", SETS)


@EVERY
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_samples_are_admissible_and_lie_in_the_box(name: str, seed: int) -> None:
    moves = SETS[name](seed)
    drawn = samples(moves, seed)
    assert drawn.shape == (400, N, moves.size)
    assert float(excess(moves, drawn).max()) <= 1e-16
    assert bool(((moves.lower <= drawn) & (drawn <= moves.upper)).all())
    assert bool((moves.lower <= 0).all() and (moves.upper >= 0).all())
    assert float(excess(moves, torch.zeros(1, N, moves.size, dtype=torch.float64)).max()) == 0.0


@EVERY
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_nothing_beats_the_support_and_the_best_move_attains_it(name: str, seed: int) -> None:
    moves = SETS[name](seed)
    c = coefficients(moves, seed)
    support = moves.support(c)
    slack = 1e-13 * (1 + support)
    best = moves.maximise(c)
    assert float(excess(moves, best).max()) <= 1e-15
    attained = (c * best).sum(-1)
    assert bool((attained <= support + slack).all())
    if moves.is_exact:
        assert bool((attained >= support - 1e-12 * (1 + support)).all())
    for drawn in samples(moves, seed, 50):
        assert bool(((c * drawn).sum(-1) <= support + slack).all())
    assert torch.allclose(moves.gains(c).sum(-1), support, rtol=1e-13, atol=1e-300)


@EVERY
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_spread_is_the_best_support_of_coefficients_within_a_radius(name: str, seed: int) -> None:
    moves = SETS[name](seed)
    radius = coefficients(moves, seed).abs()
    spread = moves.radius_support(radius)
    slack = 1e-13 * (1 + spread)
    rng = _numbers(seed)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(2**7, 1, *radius.shape[1:])))
    inner = torch.from_numpy(rng.uniform(-1, 1, size=(20, 1, *radius.shape[1:])))
    corners = (signs * radius).flatten(0, 1)
    best = moves.support(corners).reshape(2**7, *spread.shape).amax(0)
    assert bool((best <= spread + slack).all())
    within = (inner * radius).flatten(0, 1)
    assert bool((moves.support(within).reshape(20, *spread.shape) <= spread + slack).all())
    signed = torch.where(moves.upper >= -moves.lower, radius, -radius)
    if name not in ("vertices", "product") and "groups" not in name:
        assert bool((moves.support(signed) >= spread - 1e-12 * (1 + spread)).all())
    assert bool((moves.radius_support(radius * 0) == 0).all())


@EVERY
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_projection_is_admissible_and_leaves_admissible_moves(name: str, seed: int) -> None:
    moves = SETS[name](seed)
    far = 3 * torch.from_numpy(_numbers(seed).normal(size=(30, N, moves.size)))
    near = moves.project(far)
    assert float(excess(moves, near).max()) <= 1e-15
    again = moves.project(near)
    assert torch.allclose(again, near, rtol=1e-13, atol=1e-15)
    drawn = samples(moves, seed, 20)
    assert torch.allclose(moves.project(drawn), drawn, rtol=1e-13, atol=1e-15)
    if name in ("box", "fill", "vertices", "product"):  # of the others it is near, not the nearest
        closest, away = ((far - each).norm(dim=-1) for each in (near, drawn[:, None]))
        assert bool((closest <= away + 1e-12).all())


@EVERY
def test_parts_of_the_samples_are_those_of_the_whole(name: str) -> None:
    moves = SETS[name](3)
    c, index = coefficients(moves, 3), torch.tensor([2, 0])
    part = moves.take(index)
    assert torch.equal(part.lower, moves.lower[index])
    assert torch.allclose(part.support(c[:, index]), moves.support(c)[:, index], rtol=1e-14)
    assert torch.equal(part.maximise(c[:, index]), moves.maximise(c)[:, index])
    nobody = moves.only(torch.zeros(N, dtype=torch.bool))
    assert float(nobody.support(c).max()) == 0.0
    assert float(samples(nobody, 0, 5).abs().max()) == 0.0


class Watched(Encoder):
    """An encoder whose program is solved by scipy."""

    def optimum(self, objective: Expression) -> float:
        """The largest value of an expression of one element."""
        program = self.finish()
        width = program.matrix.shape[1]
        cost = np.zeros(width)
        cost[: objective.matrix.shape[1]] = objective.matrix.toarray()[0]
        found = milp(
            -cost,
            integrality=program.integer.astype(int),
            bounds=Bounds(program.lower, program.upper),
            constraints=LinearConstraint(program.matrix, program.row_lower, program.row_upper),
            options={"mip_rel_gap": 0.0},
        )
        assert found.status == 0, found.message
        return float(-found.fun + objective.constant[0])


def encoded(moves: MoveSet, exact: bool, selected: Any) -> tuple[Watched, Expression]:
    encoder = Watched(exact)
    values = np.asarray(selected, dtype=np.float64)
    selection = encoder.columns(values, values)
    expression = moves.encode(encoder, selection)
    assert expression.shape == (N, moves.size)
    return encoder, expression


def form(expression: Expression, c: Tensor) -> Expression:
    """``sum c . e`` over all samples, as one element."""
    weights = c.numpy().reshape(1, -1)
    return expression.apply(sp.csr_matrix(weights), (1,))


# How far rows may exceed the set: norm 2 by tangents, 0.12 % for each level of the tree of pairs.
LOOSE = {"ball 2": 1.003, "ball 2 in a box": 1.003, "some samples": 1.003}
HULLS = {"box", "fill", "vertices", "ball 1", "ball 1 in a box", "product", *LOOSE}


@pytest.mark.parametrize("exact", [False, True], ids=["lp", "milp"])
@EVERY
def test_rows_hold_every_move_and_no_more_than_they_should(name: str, exact: bool) -> None:
    for seed in range(2):
        moves = SETS[name](seed)
        # The optimum over the rows is at least that of the set, in every direction.
        for c in coefficients(moves, seed, 3):
            encoder, expression = encoded(moves, exact, np.ones(N))
            optimum = encoder.optimum(form(expression, c))
            drawn = samples(moves, seed, 300)
            reached = float((c * drawn).sum((-1, -2)).max())
            support = float(moves.support(c[None]).sum())
            slack = 1e-6 * (1 + abs(support))
            assert optimum >= reached - slack
            if moves.is_exact:
                assert optimum >= support - slack
            if name in HULLS or (exact and moves.is_exact):
                assert optimum <= support * LOOSE.get(name, 1.0) + slack
            if isinstance(moves, Halfspaces):
                assert optimum <= float(moves.base.support(c[None]).sum()) * 1.003 + slack


@pytest.mark.parametrize("exact", [False, True], ids=["lp", "milp"])
@EVERY
def test_rows_hold_sampled_moves_one_by_one(name: str, exact: bool) -> None:
    """Every sampled move, fixed in the program, leaves it feasible."""
    for seed in range(2):
        moves = SETS[name](seed)
        for drawn in samples(moves, seed, 1):
            encoder, expression = encoded(moves, exact, np.ones(N))
            encoder.rows(expression, drawn.numpy() - 1e-9, drawn.numpy() + 1e-9)
            encoder.optimum(form(expression, torch.zeros_like(drawn)))


@EVERY
def test_an_unselected_sample_does_not_move(name: str) -> None:
    moves = SETS[name](5)
    for c in coefficients(moves, 5, 3):
        encoder, expression = encoded(moves, False, np.zeros(N))
        assert abs(encoder.optimum(form(expression, c))) <= 1e-6


@pytest.mark.parametrize("name", ["box with rows", "ball with rows", "groups with rows"])
def test_linear_rows_are_kept_by_programs(name: str) -> None:
    """The rows of the user bind in the direction of a row itself."""
    for seed in range(4):
        moves = SETS[name](seed)
        assert isinstance(moves, Halfspaces)
        c = torch.from_numpy(moves.matrix[0]).expand(N, -1)
        encoder, expression = encoded(moves, True, np.ones(N))
        optimum = encoder.optimum(form(expression, c))
        assert optimum <= float(moves.limits[:, 0].sum()) + 1e-6
        assert optimum < float(moves.base.support(c[None]).sum())


def _best_of_grid(moves: MoveSet, c: Tensor, grid: int) -> Tensor:
    """The best admissible point of a grid over the box of two coordinates, (rows, N)."""
    ticks = torch.linspace(0, 1, grid, dtype=torch.float64)
    shares = torch.cartesian_prod(ticks, ticks)[:, None]
    points = moves.lower + shares * (moves.upper - moves.lower)
    inside = excess(moves, points) <= 1e-12
    values = torch.einsum("pnd,rnd->rpn", points, c)
    return torch.where(inside, values, 0.0).amax(1)


@every_pair(seed=range(3), capped=[False, True], order=[1, 2])
def test_balls_against_a_grid(order: int, capped: bool, seed: int) -> None:
    rng = _numbers(seed)
    radius = _draw(rng, N, 2) + 0.1
    low, high = -radius, radius
    if capped:
        low, high = low * _draw(rng, N, 2), high * _draw(rng, N, 2)
    moves = Ball(order, radius, low, high, capped)
    c = torch.from_numpy(rng.normal(size=(5, N, 2)))
    support, best = moves.support(c), _best_of_grid(moves, c, 161)
    assert bool((best <= support + 1e-12).all())
    assert bool((support <= best + 0.02 * (c.abs() * radius).sum(-1)).all())


def test_sparse_against_enumeration() -> None:
    rng = _numbers(0)
    base = product(0)
    moves = Sparse(base, 2)
    for c in torch.from_numpy(rng.normal(size=(10, N, 5))):
        gains = base.gains(c[None])[0]
        pairs = [gains[:, list(p)].sum(-1) for p in itertools.combinations(range(3), 2)]
        best = torch.stack(pairs).amax(0)
        assert torch.allclose(moves.support(c[None])[0], best, rtol=1e-14)


def test_tiny_and_huge_coefficients_keep_their_support() -> None:
    """No square underflows: a bound of 0 for a form of 1e-170 would be unsound."""
    for name in ("ball 2", "ball 2 in a box"):
        moves = SETS[name](1)
        c = coefficients(moves, 1)
        whole = moves.support(c)
        for scale in (1e-170, 1e-250, 1e150):
            assert torch.allclose(moves.support(scale * c) / scale, whole, rtol=1e-12)
