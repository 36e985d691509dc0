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
from milp_agt.bounds.zonotope.lagrangian import Lagrangian, flat, unflat
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
    if not flips.rows:
        bends = flips.largest[flips.limited] * d.on_bend[:, flips.limited].clamp(min=0.0)
        prices = (d.on_phase[:, flips.limited] + bends).clamp(min=0.0)
        for most in COVERS:
            yield d.base.new_zeros(2, d.rows, 0), torch.where(flips.cover <= most, prices, 0.0)
        return
    prices, done = prices_of(d, flips), -1
    for most in COVERS:
        few = flips.cover <= most
        if int(few.sum()) == done:
            continue
        done = int(few.sum())
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
        if not flips.rows and not flips.limits:
            return


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
    at, scale = flat(alpha), prices_of(d, flips).amax(1).clamp(min=1e-12)
    climb = Climb(at, torch.maximum(scale.to(at), at.amax(1))[:, None])
    best, least = at, at.new_full((d.rows,), torch.inf)
    seen = [least] * (1 + LOOKED_BACK)
    for number in range(1, steps + 2):
        value, slopes = lagrangian.at(at)
        wins = value < least
        best, least = torch.where(wins[:, None], at, best), torch.where(wins, value, least)
        if number > steps:
            break
        if still and number % LOOKED == 1:
            seen.append(least)
            gained = seen[-1 - LOOKED_BACK] - least
            if bool((gained <= still * least.abs()).all()):
                break
        at = climb.moved(slopes, FIRST * (LAST / FIRST) ** ((number - 1) / steps), number)
    return unflat(best, flips)


class Climb:
    """Adam on some multipliers."""

    def __init__(self, start: Tensor, scale: Tensor) -> None:
        self.at, self.scale = start, scale
        self.mean, self.square = torch.zeros_like(start), torch.zeros_like(start)

    def moved(self, slope: Tensor, rate: float, number: int) -> Tensor:
        self.mean.mul_(MEAN).add_(slope, alpha=1.0 - MEAN)
        self.square.mul_(SQUARE).addcmul_(slope, slope, value=1.0 - SQUARE)
        root = self.square.sqrt().add_(1e-12)
        size = rate * (1.0 - SQUARE**number) ** 0.5 / (1.0 - MEAN**number)
        move = self.scale * self.mean
        self.at = self.at.addcdiv(move, root, value=-size).clamp_(min=0.0)
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
