"""Two budgets: the sums and worst cases of a step cover every choice of samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import every_pair
from scipy.optimize import linprog
from separate_runs import States, admissible, check_separate_worst_case, check_sum
from torch import Tensor

from milp_agt.bounds.adversary.two_budgets import contenders, worst_of_both
from milp_agt.core.restriction import Restriction

BUDGETS = [(1, 1), (2, 1), (1, 2), (2, 2), (5, 1), (5, 5)]


def drawn_hurt(count: int, seed: int, extra: float) -> Tensor:
    """x, y and b >= max(x, y) of some samples; b beyond their sum where ``extra`` > 1."""
    generator = torch.Generator().manual_seed(seed)
    x, y, share = torch.rand(3, count, generator=generator, dtype=torch.float64)
    x, y = x.round(decimals=1), y.round(decimals=1)  # ties are where tangents go astray
    least = torch.maximum(x, y)
    return torch.stack([x, y, least + share * (extra * (x + y) - least).clamp(min=0.0)])


def total(hurt: Tensor, states: States) -> float:
    return sum(float(hurt[s - 1, i]) for i, s in enumerate(states) if s)


def linear_relaxation(hurt: Tensor, budgets: tuple[int, int]) -> float:
    """The best fractional choice."""
    count = hurt.shape[1]
    one_state = np.tile(np.eye(count), 3)
    costs = np.kron([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], np.ones(count))
    limits = [1.0] * count + list(budgets)
    rows = np.vstack([one_state, costs])
    return -float(linprog(-hurt.numpy().reshape(-1), A_ub=rows, b_ub=limits, bounds=(0, 1)).fun)


def split_spent(hurt: Tensor, budgets: tuple[int, int], share: float) -> float:
    """Two top-k sums of one split of the damage: u >= x, v >= y, u + v >= b."""
    x, y, both = hurt
    missing = (both - x - y).clamp(min=0.0)
    u, v = x + share * missing, y + (1.0 - share) * missing
    parts = zip((u, v), budgets, strict=True)
    return sum(float(c.topk(min(k, len(c))).values.sum()) for c, k in parts)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 5), st.sampled_from(BUDGETS), st.integers(0, 10**6), st.sampled_from([1.0, 1.5])
)
def test_the_bound_is_the_linear_relaxation_of_the_choice(
    count: int, budgets: tuple[int, int], seed: int, extra: float
) -> None:
    hurt = drawn_hurt(count, seed, extra)
    best = max(total(hurt, states) for states in admissible(count, budgets))
    bound = float(worst_of_both(hurt, budgets))
    assert best <= bound
    relaxed_value = linear_relaxation(hurt, budgets)
    assert bound == pytest.approx(relaxed_value, abs=1e-9)
    for share in (0.0, 0.5, 1.0):
        assert bound <= split_spent(hurt, budgets, share) * (1.0 + 1e-9)


@pytest.mark.parametrize("budgets", BUDGETS, ids=str)
def test_only_contenders_matter(budgets: tuple[int, int]) -> None:
    many = torch.stack([drawn_hurt(40, seed, 1.3) for seed in range(8)], -1)
    some = contenders(many, sum(budgets))
    assert some.shape[1] <= 3 * sum(budgets)
    torch.testing.assert_close(
        worst_of_both(some, budgets), worst_of_both(many, budgets), rtol=1e-9, atol=0.0
    )


def test_enough_budget_is_everything() -> None:
    hurt = drawn_hurt(5, 0, 1.5)
    everything = float(hurt.amax(0).sum())
    assert everything <= float(worst_of_both(hurt, (5, 5))) <= everything * (1.0 + 1e-12)
    assert float(worst_of_both(hurt[:, :0], (1, 1))) == 0.0


@pytest.mark.parametrize("restriction", [(), (0,), (0, 3)], ids=str)
@pytest.mark.parametrize("budgets", BUDGETS[:4], ids=str)
def test_sums_hold_every_choice(budgets: tuple[int, int], restriction: tuple[int, ...]) -> None:
    limits = Restriction(frozenset(restriction[:1]), frozenset(restriction[1:]))
    for seed in range(4):
        check_sum(seed, budgets, limits)


@every_pair(
    budgets=[(1, 1), (2, 1)],
    static={"static": True, "adaptive": False},
    scope=["dataset", "batch"],
    restriction=[(), (2,), (2, 0)],
)
def test_no_choice_takes_more_than_is_owed(
    budgets: tuple[int, int], static: bool, scope: str, restriction: tuple[int, ...]
) -> None:
    if scope == "batch" and not static and restriction:
        pytest.skip("a fresh selection in every batch is not branched on")
    limits = Restriction(frozenset(restriction[:1]), frozenset(restriction[1:]))
    for seed in range(3):
        check_separate_worst_case(budgets, static, scope, limits, seed)
