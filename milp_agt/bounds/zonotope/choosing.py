"""What a budget buys: sums of the largest of some numbers, and what they are if one is out or in."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(reach: Tensor, count: int) -> Tensor:
    """Sum of the ``count`` largest of ``reach`` >= 0 along the last axis."""
    count = min(max(0, count), reach.shape[-1])
    if count == 0:
        return reach.new_zeros(reach.shape[:-1])
    if count == 1:
        return reach.amax(-1)
    return reach.topk(count, -1, sorted=False).values.sum(-1)


def if_clean(total: Tensor, reach: Tensor, count: int) -> Tensor:
    """What a total, in which the ``count`` largest along the last axis are, is without each of them."""
    if count == 0:
        return total.expand_as(reach)
    last, further = _at_the_end(reach, count)
    return torch.where(reach >= last, total - reach + further, total)


def if_poisoned(total: Tensor, reach: Tensor, count: int) -> Tensor:
    """The same if it must be one of them: it takes the place of the smallest."""
    if count == 0:
        return total.expand_as(reach)
    last, _ = _at_the_end(reach, count)
    return torch.where(reach >= last, total, total - last + reach)


def mask_of_largest(reach: Tensor, count: int) -> Tensor:
    index = reach.topk(min(count, reach.shape[-1]), -1, sorted=False).indices
    return torch.zeros_like(reach).scatter_(-1, index, 1.0)


def _at_the_end(reach: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The last of the ``count`` largest, and the one after it, 0 for none."""
    count = min(count, reach.shape[-1])
    ordered = reach.topk(min(count + 1, reach.shape[-1]), -1).values
    return ordered[..., count - 1 : count], ordered[..., count:].sum(-1, keepdim=True)
