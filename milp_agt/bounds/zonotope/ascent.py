"""Multipliers of a bound: where a search starts, and Adam from there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.dual import (
    Bound,
    Directions,
    Multipliers,
    Opened,
    closed,
    gathered,
    prices_of,
)
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.lagrangian import Lagrangian
from milp_agt.bounds.zonotope.samples import SampleGenerators

# Adam, with the scale of a step falling geometrically from the first to the last.
FIRST, LAST, MEAN, SQUARE = 0.15, 0.0045, 0.8, 0.98
# A search is looked at after so many steps, and compared with itself so many looks ago.
LOOKED, LOOKED_BACK = 4, 2
# How many flips C3 may admit where it is taken at the start of an ascent: the best per direction counts.
COVERS = (1.0, 2.0, 4.0, torch.inf)


def starts(d: Directions, flips: Flips) -> Iterator[tuple[Tensor, Tensor]]:
    """Multipliers of rows and of limits without a search.

    The price of a flip is paid on C3 where few flips fit in; else half of it on C1, if there is one. How
    few is a choice that no rule makes well for all directions: one after the other.
    """
    few = flips.cover <= flips.cover.new_tensor(COVERS)[:, None]
    each = zip(few.sum(1).tolist(), few, strict=True)
    choices = dict(each).values()  # different ones: each holds those before it
    if not flips.rows:
        bends = flips.largest[flips.limited] * d.on_bend[:, flips.limited].clamp(min=0.0)
        prices = (d.on_phase[:, flips.limited] + bends).clamp(min=0.0)
        for few in choices:
            yield d.base.new_zeros(2, d.rows, 0), torch.where(few, prices, 0.0)
        return
    prices = prices_of(d, flips)
    for few in choices:
        limits = torch.where(few, prices[:, flips.limited], 0.0)
        covered = flips.alone.clone()
        covered[flips.limited[few]] = True
        first = torch.where(covered, 0.0, 0.5 * prices)[:, flips.column]
        yield torch.stack([first, torch.zeros_like(first)]), limits


def tried(
    d: Directions, flips: Flips, samples: SampleGenerators
) -> Iterator[tuple[Multipliers, Bound]]:
    """The multipliers of :func:`starts`, and their bounds."""
    opened = None
    for rows, limits in starts(d, flips):
        alpha = Multipliers.of(rows, limits, flips)
        if opened is None or flips.rows:
            opened = gathered(d, flips, rows, samples)
        yield alpha, closed(opened, flips, alpha)


def start(d: Directions, flips: Flips, samples: SampleGenerators) -> Multipliers:
    """The best of :func:`starts` for each direction."""
    best = Multipliers.none(d.rows, flips)
    if not flips.rows and not flips.limits:
        return best
    least = d.base.new_full((d.rows,), torch.inf)
    for alpha, found in tried(d, flips, samples):
        value = found.total(samples)
        best = alpha.where(value < least, best)
        least = torch.minimum(value, least)
    return best


def warm(old: Multipliers, d: Directions, flips: Flips, samples: SampleGenerators) -> Multipliers:
    """Multipliers of an earlier ascent, with those of :func:`start` for flips that are new."""
    if old.rows.shape[-1] == flips.rows and old.limits.shape[1] == flips.limits:
        return Multipliers.of(old.rows, old.limits, flips)
    fresh = start(d, flips, samples)
    fresh.rows[..., : old.rows.shape[-1]] = old.rows
    fresh.limits[:, : old.limits.shape[1]] = old.limits
    return Multipliers.of(fresh.rows, fresh.limits, flips)


def ascend(
    d: Directions,
    flips: Flips,
    samples: SampleGenerators,
    alpha: Multipliers,
    steps: int,
    free: Tensor | None = None,
    still: float = 0.0,
) -> Multipliers:
    """Better multipliers by projected subgradient steps (Adam) from ``alpha``; the best iterate of each row.

    The search is in float32: any multipliers are valid, and bounds are evaluated in float64 afterwards.

    Args:
        free: mask of the samples that may be poisoned for each direction, (r, m) as numbers; None for all.
        still: the search ends where in some steps no bound has got better by this share of it.
    """
    if not (flips.rows or flips.limits) or not d.rows or steps == 0:
        return alpha
    lagrangian = Lagrangian(d, flips, samples, free)
    at = lagrangian.scaled(alpha)
    largest = (at * lagrangian.scale).amax(1)
    scale = torch.maximum(prices_of(d, flips).amax(1).clamp(min=1e-12).to(at), largest)
    climb = Climb(at, scale[:, None] / lagrangian.scale)
    best, least = at, at.new_full((d.rows,), torch.inf)
    seen = [least] * (1 + LOOKED_BACK)
    for number in range(1, steps + 2):
        value, slopes = lagrangian.at(at)
        best = torch.where((value < least)[:, None], at, best)
        least = torch.minimum(value, least)
        if number > steps:
            break
        if still and number % LOOKED == 1:
            seen.append(least)
            gained = seen[-1 - LOOKED_BACK] - least
            if bool((gained <= still * least.abs()).all()):
                break
        at = climb.moved(slopes, FIRST * (LAST / FIRST) ** ((number - 1) / steps), number)
    return lagrangian.multipliers(best, flips)


class Climb:
    """Adam on some multipliers; ``scale`` of a step, by row or by entry."""

    def __init__(self, start: Tensor, scale: Tensor) -> None:
        self.at, self.scale = start, scale
        self.mean, self.square = torch.zeros_like(start), torch.zeros_like(start)

    def moved(self, slope: Tensor, rate: float, number: int) -> Tensor:
        self.mean.lerp_(slope, 1.0 - MEAN)
        self.square.mul_(SQUARE).addcmul_(slope, slope, value=1.0 - SQUARE)
        unbiased = (1.0 - SQUARE**number) ** 0.5
        root = self.square.sqrt().add_(1e-12 * unbiased).div_(self.scale)
        share = rate * unbiased / (1.0 - MEAN**number)
        self.at = torch.addcdiv(self.at, self.mean, root, value=-share).clamp_(min=0.0)
        return self.at


def maximiser(
    opened: Opened, flips: Flips, samples: SampleGenerators, alpha: Multipliers, dev: Tensor
) -> tuple[Tensor, Tensor]:
    """Who is poisoned, (r, m), and which phases are flipped, (r, f), where the Lagrangian is largest, as
    numbers; ``dev`` is that of the bound."""
    paid = samples.chosen(dev) if samples.count else dev
    paid = paid * (dev > 0.0)
    costs, alone = opened.costs, flips.paid_alone
    if flips.limits:
        costs = costs.clone()
        costs[:, flips.limited] -= alpha.limits
    happens = (costs > 0.0).to(dev)
    if len(alone):
        happens[:, alone] *= paid[:, flips.own[alone]]
    return paid, happens
