"""Bounds of directions over a hybrid zonotope: a Lagrangian dual, any multipliers of which are valid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.rounding import TINY, gamma

# Adam, with the scale of a step falling geometrically from the first to the last.
FIRST, LAST, MEAN, SQUARE = 0.15, 0.0045, 0.8, 0.98
# How many flips C3 may admit where it is taken at the start of an ascent: the best per direction counts.
COVERS = (1.0, 2.0, 4.0, torch.inf)


@dataclass(frozen=True)
class Directions:
    """Linear forms on the generators, to be bounded from above.

    Attributes:
        on_moves: (r, m, width).
        on_phase, on_bend: (r, f).
        charge: noise that is there if a flip with a row happens, (r, q).
        up: noise that is there if a sample is poisoned, (r, m).
        base: noise of everyone, (r,).
        size: sum of the sizes of all terms, (r,).
        operations: length of the longest chain of roundings behind any number here.
    """

    on_moves: Tensor
    on_phase: Tensor
    on_bend: Tensor
    charge: Tensor
    up: Tensor
    base: Tensor
    size: Tensor
    operations: float

    @property
    def rows(self) -> int:
        return len(self.base)


@dataclass(frozen=True)
class Bound:
    """For every set S of poisoned samples a direction is at most ``rest + sum_{i in S} dev_i + slack``.

    ``dev`` is (r, m), >= 0; ``slack`` covers the rounding of the evaluation, whatever S.
    """

    rest: Tensor
    dev: Tensor
    slack: Tensor

    def total(self, samples: SampleGenerators) -> Tensor:
        """The bound over all S within the budget, (r,)."""
        return self._up(self.rest + samples.worst(self.dev))

    def given(self, samples: SampleGenerators, own: Tensor) -> Tensor:
        """The bound if sample generator ``own`` (r,) is clean, and if it may be poisoned, (2, r).

        Clean: the budget is spent on the others. Poisoned: its own part is paid in full, one less is
        left for the others.
        """
        others, part = samples.others(self.dev, own)
        clean = self._up(self.rest + samples.worst(others))
        poisoned = self._up(self.rest + part + samples.worst(others, own))
        return torch.stack([clean, torch.maximum(clean, poisoned)])

    def _up(self, value: Tensor) -> Tensor:
        value = value + self.slack
        return value + gamma(4) * value.abs()


def bound(d: Directions, flips: Flips, alpha: Tensor, samples: SampleGenerators) -> Bound:
    """Bounds of directions from multipliers ``alpha`` >= 0 of the rows C1, C2 and C3, (3, r, q).

    With ``A1 = alpha_1 / least``, ``A2 = alpha_2 / largest``, ``D = A1 - A2`` every direction g is at most

        base + sum_f A1_f (quiet_f - margin_f + above_f) + A2_f (margin_f + below_f)
          + sum_{i in S} ( support_i(g_i + sum_f D_f a_fi) + up_i + sum_f A1_f up_fi + A2_f down_fi
                           + alpha_3f threshold_fi )
          + sum_f pos( g_f + charge_f + sum_h D_h b_hf + (A1 + A2)_h charge_hf
                       - alpha_1f + alpha_2f - alpha_3f + largest_f pos(bend_f + sum_h D_h r_hf) )

    because nonnegative multiples of valid rows are added to g, and then e, phi in [0, 1] and
    rho in [0, largest phi] are maximised one by one.
    """
    return _evaluate(d, flips, alpha, samples).bound


def on_moves(d: Directions, flips: Flips, alpha: Tensor, samples: SampleGenerators) -> Tensor:
    """The coefficients on moves whose support functions :func:`bound` adds up, (r, m, width)."""
    return _evaluate(d, flips, alpha, samples).moves


@dataclass(frozen=True)
class _Evaluated:
    """A bound with what its subgradient is made of."""

    bound: Bound
    moves: Tensor  # coefficients on moves, (r, m, width)
    costs: Tensor  # of flips, (r, f)
    bends: Tensor  # coefficients on rho, (r, f)


def _evaluate(d: Directions, flips: Flips, alpha: Tensor, samples: SampleGenerators) -> _Evaluated:
    if not flips.count:
        dev = (samples.support(d.on_moves) + d.up).clamp(min=0.0)
        slack = gamma(d.operations) * d.size + TINY
        return _Evaluated(Bound(d.base, dev, slack), d.on_moves, d.on_phase, d.on_bend)
    first, second, third = alpha
    by_least, by_largest = first / flips.least, second / flips.beyond
    difference, total = by_least - by_largest, by_least + by_largest
    moves = d.on_moves + (difference @ flips.on_moves.flatten(1)).reshape(d.on_moves.shape)
    dev = samples.support(moves) + d.up
    dev = dev + by_least @ flips.up + by_largest @ flips.down + third @ flips.threshold
    bends = d.on_bend + difference @ flips.on_bend
    costs = d.on_phase + difference @ flips.on_phase + flips.largest * bends.clamp(min=0.0)
    costs[:, flips.column] += d.charge + total @ flips.charge - first + second - third
    prices = costs.clamp(min=0.0)
    if len(flips.paid_alone):
        dev = dev.index_add(1, flips.own[flips.paid_alone], prices[:, flips.paid_alone])
        prices = prices[:, flips.paid_by_all]
    rest = d.base + by_least @ (flips.quiet - flips.margin + flips.above)
    rest = rest + by_largest @ (flips.margin + flips.below) + prices.sum(1)
    size = d.size + total @ (flips.size + flips.least + flips.beyond)
    size = size + (first + second).sum(1) + third @ (1.0 + flips.cover)
    operations = d.operations + 8.0 * flips.count + 64.0
    return _Evaluated(
        Bound(rest, dev.clamp(min=0.0), gamma(operations) * size + TINY), moves, costs, bends
    )


def prices_of(d: Directions, flips: Flips) -> Tensor:
    """What each flip with a row adds to a direction at most, (r, q)."""
    costs = d.on_phase + flips.largest * d.on_bend.clamp(min=0.0)
    return (costs[:, flips.column] + d.charge).clamp(min=0.0)


def starts(d: Directions, flips: Flips) -> Iterator[Tensor]:
    """Multipliers without a search: the price of a flip on C3 where few flips fit in, else half on C1.

    How few is a choice that no rule makes well for all directions: one after the other.
    """
    prices = prices_of(d, flips)
    for most in COVERS:
        few = flips.cover <= most
        first, third = torch.where(few, 0.0, 0.5 * prices), torch.where(few, prices, 0.0)
        yield torch.stack([first, torch.zeros_like(prices), third])


def start(d: Directions, flips: Flips, samples: SampleGenerators, untried: bool = False) -> Tensor:
    """The best of :func:`starts` for each direction, (3, r, q); the first one where none is to be tried."""
    if untried and flips.rows:
        return next(starts(d, flips))
    best = d.base.new_zeros(3, d.rows, flips.rows)
    least = d.base.new_full((d.rows,), torch.inf)
    for tried in starts(d, flips) if flips.rows else ():
        value = bound(d, flips, tried, samples).total(samples)
        wins = value < least
        best = torch.where(wins[None, :, None], tried, best)
        least = torch.where(wins, value, least)
    return best


def warm(
    old: Tensor, d: Directions, flips: Flips, samples: SampleGenerators, untried: bool = False
) -> Tensor:
    """Multipliers of an earlier ascent, with those of :func:`start` for flips that are new."""
    fresh = start(d, flips, samples, untried)
    fresh[:, :, : old.shape[2]] = old
    return fresh


def ascend(
    d: Directions,
    flips: Flips,
    samples: SampleGenerators,
    alpha: Tensor,
    steps: int,
    free: Tensor | None = None,
) -> Tensor:
    """Better multipliers by projected subgradient steps (Adam) from ``alpha``; the best iterate of each row.

    Args:
        free: mask of the samples that may be poisoned for each direction, (r, m) as numbers; None for all.
    """
    if not flips.rows or not d.rows or steps == 0:
        return alpha
    scale = alpha.amax((0, 2), keepdim=True).clamp(min=1e-12)
    prices = prices_of(d, flips)
    scale = torch.maximum(scale, prices.amax(1, keepdim=True).unsqueeze(0))
    mean, square = torch.zeros_like(alpha), torch.zeros_like(alpha)
    best, least = alpha, alpha.new_full((d.rows,), torch.inf)
    for number in range(1, steps + 2):
        value, slope = _value_and_slope(d, flips, samples, alpha, free)
        wins = value < least
        least = torch.where(wins, value, least)
        best = torch.where(wins[None, :, None], alpha, best)
        if number > steps:
            break
        mean = MEAN * mean + (1.0 - MEAN) * slope
        square = SQUARE * square + (1.0 - SQUARE) * slope * slope
        rate = FIRST * (LAST / FIRST) ** ((number - 1) / steps)
        move = (mean / (1.0 - MEAN**number)) / ((square / (1.0 - SQUARE**number)).sqrt() + 1e-12)
        alpha = (alpha - rate * scale * move).clamp(min=0.0)
    return best


def _value_and_slope(
    d: Directions, flips: Flips, samples: SampleGenerators, alpha: Tensor, free: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The bound and a subgradient of it in the multipliers."""
    found = _evaluate(d, flips, alpha, samples)
    dev = found.bound.dev if free is None else found.bound.dev * free
    value = found.bound.rest + samples.worst(dev)
    paid = samples.chosen(dev) if samples.count else dev
    paid = paid * (dev > 0.0)
    happens = (found.costs > 0.0).to(value)
    if len(flips.paid_alone):
        happens[:, flips.paid_alone] *= paid[:, flips.own[flips.paid_alone]]
    bent = happens * flips.largest * (found.bends > 0.0)
    moves = samples.maximise(found.moves) * paid.unsqueeze(-1)
    by_difference = moves.flatten(1) @ flips.on_moves.flatten(1).T
    by_difference = by_difference + happens @ flips.on_phase.T + bent @ flips.on_bend.T
    happens = happens[:, flips.column]
    by_total = happens @ flips.charge.T
    first = by_difference + by_total + paid @ flips.up.T
    first = (first + (flips.quiet - flips.margin + flips.above)) / flips.least - happens
    second = by_total - by_difference + paid @ flips.down.T
    second = (second + (flips.margin + flips.below)) / flips.beyond + happens
    third = paid @ flips.threshold.T - happens
    return value, torch.stack([first, second, third])
