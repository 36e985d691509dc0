"""Boxes with influences: how far each poisoned sample moves them, added up over the poisoned samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.rounding import TINY, gamma


@dataclass(frozen=True)
class Influence:
    """For every admissible set S of poisoned samples, ``v`` lies in ``base + sum_{j in S} [-down_j, up_j]``.

    S is any set of at most ``budget`` samples, one for the whole run. Interactions between samples are
    part of the influences (a product of two deviations is split between the samples that cause them),
    so influences simply add up and the worst S takes the ``budget`` largest. Errors that cannot
    sensibly be charged to single samples are in the base.

    Attributes:
        base: box that holds if no sample is poisoned, (1, [n], *shape).
        down, up: influences >= 0 of each sample that can be poisoned, (columns, [n], *shape).
        budget: largest size of S.
        own: the column of each sample of the batch, (n,), -1 for samples that cannot be poisoned; None
            for a node without a sample axis.
    """

    base: Interval
    down: Tensor
    up: Tensor
    budget: int
    own: Tensor | None = None

    @staticmethod
    def of(columns: Interval, budget: int, own: Tensor | None) -> Influence:
        """From a box with leading axis (1 + columns): the base, and the base moved by one sample."""
        base = columns.clean
        down, up = base.lower - columns.lower[1:], columns.upper[1:] - base.upper
        return Influence(base, charge_of(down), charge_of(up), budget, own)

    def columns(self) -> Interval:
        """The inverse of :meth:`of`."""
        lower, upper = self.base.lower, self.base.upper
        return Interval(torch.cat([lower, lower - self.down]), torch.cat([upper, upper + self.up]))

    def worst(self, influences: Tensor) -> Tensor:
        """Sum of the ``budget`` largest, rounded up, (*shape)."""
        return worst_of(influences, self.budget)

    def hull(self) -> Interval:
        """The box of v over all S, (1, *shape)."""
        return self._moved(self.down, self.up)

    def hull_if_own_is_clean(self) -> Interval:
        """The box of v over the sets S that do not contain the sample itself."""
        if self.own is None:
            return self.hull()
        return self._moved(self._without_own(self.down), self._without_own(self.up))

    def _moved(self, down: Tensor, up: Tensor) -> Interval:
        lower, upper = self.base.lower - self.worst(down), self.base.upper + self.worst(up)
        error = gamma(8) * torch.maximum(lower.abs(), upper.abs()) + TINY
        return Interval(lower, upper).widen(error)

    def _without_own(self, influences: Tensor) -> Tensor:
        return torch.where(self.is_own, 0.0, influences)

    @property
    def is_own(self) -> Tensor:
        """Mask of the entries (column, sample) where the column is the sample's own, (columns, n, 1...)."""
        assert self.own is not None
        columns = torch.arange(len(self.down), device=self.own.device).unsqueeze(1)
        mask = columns == self.own
        return mask.reshape(*mask.shape, *[1] * (self.down.dim() - 2))

    def reach(self, influences: Tensor) -> Tensor:
        """How far v may move if S contains column j: its influence plus the ``budget - 1`` worst others.

        Example: influences (3, 1, 2) and budget 2 give (5, 4, 5).
        """
        if self.budget == 1 or len(influences) == 1:
            return influences
        count = min(self.budget, len(influences))
        largest = influences.topk(count, dim=0).values
        fewer = largest[: self.budget - 1].sum(0)
        alone = influences + fewer
        if count == self.budget:
            alone = torch.where(influences >= largest[-1], fewer + largest[-1], alone)
        else:
            alone = fewer.expand_as(influences)
        return alone * (1.0 + gamma(4 * count + 8))

    def settled(self, size: Tensor, operations: float) -> Influence:
        """The same, with rounding added to the base.

        Args:
            size: sum of the sizes of all terms of the operation for any S, (*shape).
            operations: length of the chain of roundings, in the run and here.
        """
        moved = self.worst(torch.maximum(self.down, self.up))
        return Influence(
            # Each conversion between ends and influences rounds once more per poisoned sample.
            self.base.widen(gamma(operations + 8.0 * self.budget) * (size + 4.0 * moved) + TINY),
            self.down,
            self.up,
            self.budget,
            self.own,
        )

    def better(self, other: Influence) -> Influence:
        """The bound of one node with the smaller hull, chosen for each element and side.

        The two sets of influences of one element must not be mixed: each is valid only as a whole. For
        instance ``base - 1 * [1 in S]`` and ``base - 1 * [2 in S]`` do not imply ``base`` for S = {1, 2}.
        """
        lower = other.base.lower - other.worst(other.down) > self.base.lower - self.worst(self.down)
        upper = other.base.upper + other.worst(other.up) < self.base.upper + self.worst(self.up)
        return Influence(
            Interval(
                torch.where(lower, other.base.lower, self.base.lower),
                torch.where(upper, other.base.upper, self.base.upper),
            ),
            torch.where(lower[CLEAN], other.down, self.down),
            torch.where(upper[CLEAN], other.up, self.up),
            self.budget,
            self.own,
        )


def worst_of(influences: Tensor, budget: int) -> Tensor:
    """Sum of the ``budget`` largest along axis 0, rounded up."""
    if len(influences) == 0 or budget == 0:
        return influences.new_zeros(influences.shape[1:])
    if budget >= len(influences):
        total = influences.sum(0)
    elif budget == 1:
        return influences.amax(0)
    else:
        total = influences.topk(budget, dim=0, sorted=False).values.sum(0)
    return total * (1.0 + gamma(2 * min(budget, len(influences)) + 8))


def charge_of(difference: Tensor) -> Tensor:
    """A difference of two ends as an influence; NaN (from infinite ends) becomes infinite."""
    return difference.nan_to_num(nan=torch.inf, posinf=torch.inf).clamp(min=0.0)
