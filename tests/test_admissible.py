"""Exact admission of poisoned samples: what sets draw is admitted, one part in a billion more is not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from beyond import excess
from test_threats_moves import SETS, N
from torch import Tensor

from milp_agt.threats.sets import MoveSet


def drawn(moves: MoveSet, seed: int) -> tuple[Tensor, Tensor]:
    """Nominal samples that are no round numbers, and moved ones, (4, N, size)."""
    generator = torch.Generator().manual_seed(seed)
    nominal = torch.randint(-8, 8, (N, moves.size), generator=generator).double()
    parts = [moves.sample(generator, 2, corners) for corners in (True, False)]
    return nominal, nominal + torch.cat(parts)


def tightest(moves: MoveSet, nominal: Tensor, given: Tensor, sample: int) -> Tensor | None:
    """The first of the given sample and its shrunk forms that is admitted."""
    for factor in (1.0, 1.0 - 1e-12, 1.0 - 1e-9):
        near = given if factor == 1.0 else moves.shrunk(nominal, given, factor)
        if moves.take(torch.tensor([sample])).admits(0, nominal[0], near[0]):
            return near
    return None


@pytest.mark.parametrize("name", list(SETS))
def test_what_a_set_draws_is_admitted_and_farther_moves_are_not(name: str) -> None:
    refused = 0
    for seed in range(4):
        moves = SETS[name](seed)
        nominal, given = drawn(moves, seed)
        for sample in range(N):
            own = moves.take(torch.tensor([sample]))
            at = nominal[sample : sample + 1]
            assert own.admits(0, at[0], at[0])
            for each in given[:, sample]:
                near = tightest(own, at, each[None], 0)
                assert float((near[0] - each).abs().max()) <= 1e-8
                refused += _beyond(own, at[0], near[0])
    assert refused > 10


def _beyond(own: MoveSet, nominal: Tensor, near: Tensor) -> int:
    """How many of some larger moves are refused; each that is admitted has no excess."""
    count = 0
    for factor in (1.01, 2.5):
        # The excess of the set itself, in floating point, is the judge: below it nothing may be refused.
        farther = nominal + factor * (near - nominal)
        admitted = own.admits(0, nominal, farther)
        beyond = float(excess(own, (farther - nominal)[None, None])[0, 0])
        assert admitted <= (beyond <= 1e-9)
        assert (beyond == 0.0) <= admitted or beyond < 1e-12
        count += not admitted
    return count


def test_shrinking_leaves_jumps_and_whole_numbers_alone() -> None:
    moves = SETS["sparse with groups"](0)
    nominal, given = drawn(moves, 0)
    mask = torch.tensor([False, True, False, True, True])
    assert torch.equal(moves.jumps(nominal, given), mask.expand(given.shape))
    near = moves.shrunk(nominal, given, 0.5)
    assert torch.equal(near[..., mask], given[..., mask])
    assert bool(((near - nominal).abs() <= (given - nominal).abs()).all())


@pytest.mark.parametrize("high", [0.1, 0.30000000000000004, 1e-9])
def test_the_last_float_counts(high: float) -> None:
    """``x + high`` rounds up or down: it is admitted exactly where the real difference is at most high."""
    box = SETS["box"](0)
    low = torch.full_like(box.lower, -high)
    exact = type(box)(low, -low)  # type: ignore[call-arg]
    rng = np.random.default_rng(0)
    found = set()
    for value in rng.normal(size=200) * 10.0 ** rng.integers(-3, 4, size=200):
        nominal = torch.full((exact.size,), float(value), dtype=torch.float64)
        given = nominal.clone()
        given[0] = nominal[0] + high
        truth = Fraction(float(given[0])) - Fraction(float(value)) <= Fraction(high)
        assert exact.admits(0, nominal, given) == truth
        found.add(truth)
    assert found == {True, False}
