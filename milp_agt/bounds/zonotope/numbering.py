"""Which samples have generators, in which steps, their units and groups, and what budgets buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.threats.poison import Poison, Whole
from milp_agt.threats.sets import Box


def moving(poison: Poison) -> Poison:
    """The moves of generators: those of the data or, of a sample that is removed or replaced, a number that
    is 1 if it is, out of [0, 1]."""
    if poison.whole not in (Whole.REMOVED, Whole.SUBSTITUTED):
        return poison
    one = torch.ones_like(poison.labels[:, :1])
    return replace(poison, feature_moves=Box(torch.zeros_like(one), one))


def numbered_part(
    open_: Tensor, poison: Poison, steps: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Of the samples in a mask (N,): the columns, numbers and units of their generators, and the group of
    each unit, all from 0; and how many of them the first steps meet."""
    first = torch.full(open_.shape, len(steps), dtype=torch.int64, device=open_.device)
    for index in reversed(range(len(steps))):
        first[steps[index]] = index
    if poison.static:
        columns = open_.nonzero()[:, 0]
        columns = columns[first[columns].argsort(stable=True)]
        numbers = _numbered(open_, [columns])
        met = [int((first[columns] <= index).sum()) for index in range(len(steps))]
    else:
        own = [step[open_[step]] for step in steps]
        columns = torch.cat(own)
        numbers = _numbered(open_, own)
        met = [sum(map(len, own[: index + 1])) for index in range(len(steps))]
    unit = torch.arange(len(columns), device=open_.device)
    groups = torch.zeros_like(columns)
    if not poison.static and not poison.per_batch:
        chosen, unit = columns.unique(return_inverse=True)
        groups = torch.zeros_like(chosen)
    elif poison.per_batch and poison.static:
        groups = first[columns]
    elif poison.per_batch:
        sizes = torch.tensor([int(open_[step].sum()) for step in steps], device=open_.device)
        groups = torch.arange(len(steps), device=open_.device).repeat_interleave(sizes)
    return columns, numbers, unit, groups.unique(return_inverse=True)[1], tuple(met)


def behind(each: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Numbers of several parts, those of each behind ``counts`` of the parts before; -1 stays."""
    first, found = 0, []
    for numbers, count in zip(each, counts, strict=True):
        found.append(torch.where(numbers >= 0, numbers + first, numbers))
        first += count
    return found


def members_of(groups: Tensor) -> Tensor:
    """The units of each group, (groups, largest), padded with their number; (1, 0) without any."""
    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    if not len(sizes):
        return groups.new_zeros(1, 0)
    order = group.argsort(stable=True)
    within = torch.arange(len(order), device=order.device)
    within = within - (sizes.cumsum(0) - sizes)[group[order]]
    members = torch.full((len(sizes), int(sizes.max())), len(groups), device=order.device)
    members[group[order], within] = order
    return members


def _numbered(open_: Tensor, met: Sequence[Tensor]) -> Tensor:
    """The number of each sample among all that are met, step by step, (steps, N), -1 elsewhere."""
    numbers = torch.full((max(1, len(met)), len(open_)), -1, dtype=torch.int64, device=open_.device)
    first = 0
    for index, samples in enumerate(met):
        numbers[index, samples] = first + torch.arange(len(samples), device=open_.device)
        first += len(samples)
    return numbers


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
