"""The worst samples of a budget, by sorting; of budgets of features and labels apart, by two multipliers."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.core.rounding import TINY, gamma

# Tells equal values apart; negligible beside any number that matters.
SMALLEST = 1e-290


def worst_sum(hurt: Tensor, budget: int) -> Tensor:
    """The largest sum over ``budget`` samples: top-k sum of ``hurt >= 0`` (n, ...) on axis 0."""
    if budget <= 0 or len(hurt) == 0:
        return torch.zeros_like(hurt.sum(0))
    if budget >= len(hurt):
        return hurt.sum(0)
    return hurt.amax(0) if budget == 1 else top_k(hurt, budget).sum(0)


def top_k(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest of each column of ``values`` (n, ...), in any order, (count, ...)."""
    if values.is_cuda:
        return values.topk(count, dim=0, sorted=False).values
    columns = values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)
    rows = top_k_of_rows(columns.T.clone(memory_format=torch.contiguous_format), count)
    return rows.T.reshape(count, *values.shape[1:])


def top_k_of_rows(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest along the last axis, in any order; a contiguous tensor is overwritten.

    They are at most n * 1e-290 too large, for n values in a row. On a CPU numpy selects several times
    faster than torch, unless many values are equal (inactive units), so equal values are shifted apart.
    """
    if count == 0 or values.is_cuda:
        return values.topk(count, dim=-1, sorted=False).values
    rows = values.contiguous()
    size = rows.shape[-1]
    rows.sub_(SMALLEST * torch.arange(size, dtype=torch.float64))
    rows.numpy().partition(size - count, axis=-1)
    return rows[..., -count:] + SMALLEST * size


# Most evaluations of the dual; every one gives a bound, and most rows need few.
EVALUATIONS = 24
# Stop once the bound is within this share of the least dual value.
GAP = 1e-10


def worst_of_both(hurt: Tensor, budgets: tuple[int, int], forced: Tensor | None = None) -> Tensor:
    """An upper bound of the worst sum over samples with separate budgets for features and labels.

    Sample i adds ``x_i``, ``y_i`` or ``b_i`` if its features, its label or both are poisoned; at most
    ``k_x`` samples have poisoned features and at most ``k_y`` poisoned labels. For all multipliers
    p, q >= 0 the sum is at most

        p k_x + q k_y + sum_i max(0, x_i - p, y_i - q, b_i - p - q),

    where the 0 is left out for a sample known to be poisoned in some way. With the best p for a given q
    this is ``q k_y + sum_i a_i + sum of the k_x largest max(0, c_i - a_i)``, with
    ``a_i = max(0, y_i - q)`` and ``c_i = max(x_i, b_i - q)``: a convex, piecewise linear function of q,
    whose minimum is found by tangents (Kelley 1960). The minimum is the value of the linear relaxation
    of the choice. No split ``u_i >= x_i, v_i >= y_i, u_i + v_i >= b_i`` into two budgets gives less.

    Args:
        hurt: x, y and b, all >= 0, (3, n, ...); -inf for impossible choices.
        budgets: k_x and k_y.
        forced: mask of the samples known to be poisoned, (n, ...).

    Returns:
        Bounds (...), rounding included.
    """
    if not hurt.shape[1]:
        return hurt.new_zeros(hurt.shape[2:])
    dual = _Dual(hurt, budgets, forced)
    low = torch.zeros_like(hurt[0, 0])
    high = torch.maximum(hurt[1], hurt[2] - hurt[0].clamp(min=0.0)).amax(0).clamp(min=0.0)
    at_low, falling = dual(low)
    at_high, rising = dual(high)
    best = torch.minimum(at_low, at_high)
    for _ in range(EVALUATIONS):
        open_ = (falling < 0) & (rising > 0)
        crossing = (at_low - at_high + rising * high - falling * low) / (rising - falling)
        crossing = torch.where(open_, crossing, low)
        crossing = torch.minimum(torch.maximum(crossing, low), high)
        if bool((best <= (at_low + falling * (crossing - low)) * (1.0 + GAP) + TINY)[open_].all()):
            break
        value, slope = dual(crossing)
        best = torch.minimum(best, value)
        left, right = open_ & (slope <= 0), open_ & (slope >= 0)
        low, at_low = torch.where(left, crossing, low), torch.where(left, value, at_low)
        high, at_high = torch.where(right, crossing, high), torch.where(right, value, at_high)
        falling, rising = torch.where(left, slope, falling), torch.where(right, slope, rising)
    return best


class _Dual:
    """The bound as a function of the multiplier of the labels, with a subgradient."""

    def __init__(self, hurt: Tensor, budgets: tuple[int, int], forced: Tensor | None) -> None:
        self.hurt = hurt
        self.features, self.labels = (max(0, k) for k in budgets)
        zero = torch.zeros_like(hurt[0])
        self.floor = zero if forced is None else torch.where(forced, -torch.inf, zero)
        self.top = min(self.features, hurt.shape[1])

    def __call__(self, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        x, y, both = self.hurt
        without = torch.maximum(self.floor, y - multiplier)
        more = (torch.maximum(x, both - multiplier) - without).clamp(min=0.0)
        best = more.topk(self.top, dim=0, sorted=False)
        terms = torch.cat([without, best.values])
        paid = self.labels * multiplier
        count = terms.shape[0] + 8
        # Every term carries a few roundings of the multiplier and of itself.
        error = gamma(2.0 * count) * (paid + terms.abs().sum(0) + count * multiplier) + TINY
        chosen = torch.zeros_like(more, dtype=torch.bool)
        chosen = chosen.scatter(0, best.indices, best.values > 0)
        poisoned = torch.where(chosen, both - multiplier > x, y - multiplier > self.floor)
        slope = self.labels - poisoned.sum(0)
        return paid + terms.sum(0) + error, slope.to(multiplier.dtype)


def contenders(hurt: Tensor, count: int) -> Tensor:
    """The samples that matter if at most ``count`` are poisoned: (3, at most 3 count, ...).

    A best choice, fractions of samples included, poisons in each of the three ways only the ``count``
    worst samples of that way: any other sample can be exchanged for one of them that is unused. A
    sample among the worst in several ways is kept once; its other places are -inf.
    """
    if 3 * count >= hurt.shape[1]:
        return hurt
    index = torch.cat([own.topk(count, dim=0, sorted=False).indices for own in hurt])
    index = index.sort(dim=0).values
    again = torch.zeros_like(index, dtype=torch.bool)
    again[1:] = index[1:] == index[:-1]
    picked = hurt.gather(1, index.expand(3, *index.shape))
    return torch.where(again, -torch.inf, picked)
