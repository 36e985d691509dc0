"""The largest of many numbers, column by column: the sum over the worst samples."""

from __future__ import annotations

import torch
from torch import Tensor

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
