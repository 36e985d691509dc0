"""Errors of univariate functions charged to the samples that can cause them."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from milp_agt.core.influence import Influence, charge_of
from milp_agt.core.interval import CLEAN, Interval


class HasSecants(Protocol):
    """A univariate function whose errors can be charged."""

    def secants(self, base: Interval, down: Tensor, up: Tensor) -> tuple[Interval, Interval]: ...

    def residual(self, slope: Tensor | float, box: Interval) -> Interval: ...


def charged(
    op: HasSecants, argument: Influence, slope_lower: Tensor, slope_upper: Tensor
) -> tuple[Influence, Influence]:
    """Lower side of ``f(x) - slope_lower x`` and upper side of ``f(x) - slope_upper x``, charged.

    With ``x = c + d``, c in the base, the error moves by ``(s - m) d`` where s is a secant slope of f
    from c; ``|d|`` is at most the sum of the influences of S towards that side. So sample j is charged
    ``max((s_right - m)^+ up_j, (m - s_left)^+ down_j)`` at the top, with the steepest secants within
    its reach, and never more than the whole error; at the bottom alike. A flip at distance m
    from the kink costs ``min(1, up_j / m)``.

    Where charges cost more than the error itself (many samples near a kink), the extreme over all
    reachable points goes into the base, except the part that only the sample's own poison can reach. Only
    the lower end of the first result and the upper end of the second are meant to be used.
    """
    base, down, up = argument.base, argument.down, argument.up
    left, right = op.secants(base, argument.reach(down), argument.reach(up))
    above = torch.maximum(
        _times(right.upper - slope_upper, up), _times(slope_upper - left.lower, down)
    )
    below = torch.maximum(
        _times(slope_lower - right.lower, up), _times(left.upper - slope_lower, down)
    )
    boxes = (base, argument.hull_if_own_is_clean(), argument.hull())
    lowest = [-op.residual(slope_lower, box).lower for box in boxes]
    highest = [op.residual(slope_upper, box).upper for box in boxes]
    lower, upper = _cheaper(argument, below, *lowest), _cheaper(argument, above, *highest)
    return replace(lower, base=Interval(-lower.base.upper, -lower.base.lower)), upper


def _cheaper(
    argument: Influence, charge: Tensor, nobody: Tensor, others: Tensor, anybody: Tensor
) -> Influence:
    """The extreme of an error as an influence, in the cheaper of two forms, chosen for each element.

    Charged: the base is ``nobody``, the extreme without poison, and every sample has its charge. Absorbed:
    the base is ``others``, the extreme over the sets without the own sample, and only the own sample is
    charged, up to ``anybody``, the extreme over all sets. Both are valid.

    Example with two samples, budget 2, no own sample, ``nobody`` = 0 and ``others`` = ``anybody`` = 1:
    charges (0.3, 0.4) cost at most 0.7 and are kept; (0.9, 0.8) would cost 1.7, so 1 is absorbed.
    """
    own = charge_of(anybody - others)
    charge = torch.minimum(charge, charge_of(anybody - nobody))
    # NaN compares false, so unknown errors fall back to the absorbed bound.
    absorbed = (1.0 + 1e-9) * (others - nobody + own)[CLEAN]  # a tie is charged
    charged_is_less = argument.worst(charge) <= absorbed
    alone = torch.zeros_like(charge)
    if argument.own is not None:
        alone = torch.where(argument.is_own, own, alone)
    end = torch.where(charged_is_less, nobody, others)
    moved = torch.where(charged_is_less, charge, alone)
    return Influence(Interval(end, end), moved, moved, argument.budget, argument.own)


def _times(slope: Tensor, influence: Tensor) -> Tensor:
    """``max(slope, 0) * influence``, and 0 for no influence, however steep the slope."""
    return torch.where(influence > 0, charge_of(slope) * influence, 0.0)


def between(*slopes: Tensor) -> Interval:
    """The smallest range of slopes that contains all of these; infinite where one is NaN."""
    stacked = torch.stack(torch.broadcast_tensors(*slopes))
    bad = torch.isnan(stacked).any(0)
    return Interval(
        torch.where(bad, -torch.inf, stacked.amin(0)), torch.where(bad, torch.inf, stacked.amax(0))
    )


def unknown_where(mask: Tensor, slopes: Interval) -> Interval:
    """Slopes with infinite ranges where the mask holds."""
    return Interval(
        torch.where(mask, -torch.inf, slopes.lower), torch.where(mask, torch.inf, slopes.upper)
    )
