"""Sums with a budget of poisoned terms: cut anyhow, the same box, and memory in proportion to the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from milp_agt.bounds.adversary.sums import Masks, PoisonedSum
from milp_agt.bounds.adversary.two_budgets import top_k, worst_sum
from milp_agt.core.interval import Interval

SAMPLES = 120


def _terms() -> Interval:
    """Boxes of two states, (2, n, 3, 2), some of which poison does not move."""
    rng = np.random.default_rng(3)
    clean = np.sort(rng.normal(size=(2, SAMPLES, 3, 2)), axis=0)
    moved = rng.exponential(size=(2, SAMPLES, 3, 2)) * (rng.random((2, SAMPLES, 3, 2)) < 0.6)
    lower = np.stack([clean[0], clean[0] - moved[0]])
    upper = np.stack([clean[1], clean[1] + moved[1]])
    return Interval(torch.from_numpy(lower), torch.from_numpy(upper))


def _sorted(ends: Tensor, budget: int) -> Tensor:
    """The sum of the clean ends and of the ``budget`` largest differences, by sorting them all."""
    hurt = (ends[1] - ends[0]).clamp(min=0.0).sort(dim=0, descending=True).values
    return ends[0].sum(0) + hurt[:budget].sum(0)


@pytest.mark.parametrize("budget", [1, 2, 7, 59, 60, 119, 120, 500])
@pytest.mark.parametrize("pieces", [1, 3, 40])
def test_the_box_does_not_depend_on_the_pieces(budget: int, pieces: int) -> None:
    terms, total = _terms(), PoisonedSum((budget,), SAMPLES)
    held = 0
    for part in np.array_split(np.arange(SAMPLES), pieces):
        index = torch.from_numpy(part)
        total.add(Interval(terms.lower[:, index], terms.upper[:, index]), Masks())
        held = max([held, *(sum(h.shape[1] for h in p) for p in total._largest)])
    box, _ = total.result()
    # Both are within the widening of the sum, which is what the difference may be.
    lower, upper = -_sorted(-terms.lower, budget), _sorted(terms.upper, budget)
    assert bool((box.lower[0] <= lower).all() & (box.upper[0] >= upper).all())
    assert torch.allclose(box.lower[0], lower, rtol=1e-12, atol=1e-12)
    assert torch.allclose(box.upper[0], upper, rtol=1e-12, atol=1e-12)
    assert held == 0 if budget >= SAMPLES else held <= 4 * budget


def test_a_budget_of_the_whole_batch_leaves_out_what_is_known_to_be_clean() -> None:
    terms, total = _terms(), PoisonedSum((SAMPLES,), SAMPLES)
    outside = torch.arange(SAMPLES) % 3 == 0
    inside = torch.arange(SAMPLES) % 3 == 1
    total.add(terms, Masks(inside, outside))
    box, _ = total.result()
    upper = _sorted(terms.upper[:, ~outside], SAMPLES) + terms.upper[0][outside].sum(0)
    assert torch.allclose(box.upper[0], upper, rtol=1e-12, atol=1e-12)
    assert bool((box.upper[0] >= upper).all())


@pytest.mark.parametrize("shape", [(50,), (50, 4), (50, 3, 2)])
@pytest.mark.parametrize("count", [1, 7, 49])
def test_the_largest_are_found_and_the_values_stay(shape: tuple[int, ...], count: int) -> None:
    values = torch.from_numpy(np.random.default_rng(4).exponential(size=shape))
    turned = values.flatten(1).T if values.dim() > 1 else values
    for given in (values, turned.contiguous().T if values.dim() > 1 else turned):
        before = given.clone()
        found = top_k(given, count)
        known = given.sort(dim=0, descending=True).values[:count]
        assert torch.equal(found.sort(dim=0, descending=True).values, known)
        assert torch.equal(given, before)


def test_the_largest_of_blown_up_values_are_never_finite() -> None:
    values = torch.ones(9, 3, dtype=torch.float64)
    values[4, 0], values[5, 1] = torch.inf, torch.nan
    total = worst_sum(values, 2)
    assert not torch.isfinite(total[:2]).any()
    assert total[2] == 2.0
