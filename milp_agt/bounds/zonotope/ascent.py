"""Multipliers of a bound: where a search starts, and Adam from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TypeVar

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
from milp_agt.bounds.zonotope.samples import SampleGenerators

Parts = TypeVar("Parts", Directions, Flips, Multipliers)

# Adam, with the scale of a step falling geometrically from the first to the last.
FIRST, LAST, MEAN, SQUARE = 0.15, 0.0045, 0.8, 0.98
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
    prices = prices_of(d, flips)
    for most in COVERS:
        few = flips.cover <= most
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
) -> Multipliers:
    """Better multipliers by projected subgradient steps (Adam) from ``alpha``; the best iterate of each row.

    The search is in float32: any multipliers are valid, and bounds are evaluated in float64 afterwards.

    Args:
        free: mask of the samples that may be poisoned for each direction, (r, m) as numbers; None for all.
    """
    if not (flips.rows or flips.limits) or not d.rows or steps == 0:
        return alpha
    given, d, flips, samples, alpha = flips, single(d), single(flips), samples.single, single(alpha)
    free = None if free is None else free.to(torch.float32)
    scale = prices_of(d, flips).amax(1).clamp(min=1e-12)
    for part in (alpha.rows.amax(0), alpha.limits):
        scale = torch.maximum(scale, part.amax(1)) if part.shape[1] else scale
    climbs = [Climb(part, scale[:, None]) for part in (alpha.rows, alpha.limits)]
    best, least = alpha, d.base.new_full((d.rows,), torch.inf)
    opened = None
    for number in range(1, steps + 2):
        if opened is None or flips.rows:
            opened = gathered(d, flips, alpha.rows, samples)
        value, *slopes = _value_and_slopes(opened, flips, samples, alpha, free)
        best = alpha.where(value < least, best)
        least = torch.minimum(value, least)
        if number > steps:
            break
        rate = FIRST * (LAST / FIRST) ** ((number - 1) / steps)
        rows, limits = (
            climb.moved(slope, rate, number) for climb, slope in zip(climbs, slopes, strict=True)
        )
        alpha = Multipliers.of(rows, limits, flips)
    return Multipliers.of(best.rows.to(torch.float64), best.limits.to(torch.float64), given)


def single(parts: Parts) -> Parts:
    """A dataclass with its numbers in float32."""
    found = {
        name: part.to(torch.float32)
        for name, part in ((f.name, getattr(parts, f.name)) for f in fields(parts))
        if isinstance(part, Tensor) and part.dtype == torch.float64
    }
    return replace(parts, **found)  # type: ignore[arg-type]


class Climb:
    """Adam on some multipliers."""

    def __init__(self, start: Tensor, scale: Tensor) -> None:
        self.at, self.scale = start, scale
        self.mean, self.square = torch.zeros_like(start), torch.zeros_like(start)

    def moved(self, slope: Tensor, rate: float, number: int) -> Tensor:
        self.mean = MEAN * self.mean + (1.0 - MEAN) * slope
        self.square = SQUARE * self.square + (1.0 - SQUARE) * slope * slope
        root = (self.square / (1.0 - SQUARE**number)).sqrt() + 1e-12
        move = self.mean / (1.0 - MEAN**number) / root
        self.at = (self.at - rate * self.scale * move).clamp(min=0.0)
        return self.at


def _value_and_slopes(
    opened: Opened,
    flips: Flips,
    samples: SampleGenerators,
    alpha: Multipliers,
    free: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The bound and a subgradient of it in the multipliers of rows and of limits."""
    found = closed(opened, flips, alpha)
    dev = found.dev if free is None else found.dev * free
    value = found.rest + samples.worst(dev)
    if not flips.rows:
        paid = samples.chosen(dev) * (dev > 0.0) if samples.count else dev
        happens = (opened.limited > alpha.limits).to(dev)
        return value, dev.new_zeros(2, len(dev), 0), paid @ flips.threshold.T - happens
    paid, happens = maximiser(opened, flips, samples, alpha, dev)
    return value, *slopes_of(opened, flips, samples, paid, happens)


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


def slopes_of(
    opened: Opened, flips: Flips, samples: SampleGenerators, paid: Tensor, happens: Tensor
) -> tuple[Tensor, Tensor]:
    """A subgradient of the dual function in the multipliers of rows and of limits.

    Args:
        paid: 1 where the maximiser poisons a generator, (r, m).
        happens: 1 where it flips a phase, (r, f).
    """
    by_limit = paid @ flips.threshold.T - happens[:, flips.limited]
    if not flips.rows:
        return happens.new_zeros(2, len(happens), 0), by_limit
    bent = happens * flips.largest * (opened.bends > 0.0)
    moves = samples.maximise(opened.moves) * paid.unsqueeze(-1)
    by_difference = moves.flatten(1) @ flips.on_moves.flatten(1).T
    by_difference = by_difference + happens @ flips.on_phase.T + bent @ flips.on_bend.T
    happens = happens[:, flips.column]
    by_total = happens @ flips.charge.T
    first = by_difference + by_total + paid @ flips.up.T
    first = (first + (flips.quiet - flips.margin + flips.above)) / flips.least - happens
    second = by_total - by_difference + paid @ flips.down.T
    second = (second + (flips.margin + flips.below)) / flips.beyond + happens
    return torch.stack([first, second]), by_limit
