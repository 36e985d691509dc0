"""Bounds of directions over a hybrid zonotope: a Lagrangian dual, any multipliers of which are valid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.multipliers import Multipliers
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.rounding import TINY, gamma

Parts = TypeVar("Parts", "Directions", Flips, Multipliers)

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
        supports: support functions of ``on_moves``, (r, m), if they are known.
    """

    on_moves: Tensor
    on_phase: Tensor
    on_bend: Tensor
    charge: Tensor
    up: Tensor
    base: Tensor
    size: Tensor
    operations: float
    supports: Tensor | None = None

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

    def if_clean(self, samples: SampleGenerators, own: Tensor) -> Tensor:
        """The first of :meth:`given`, (r,): the units of generators ``own`` (r, parts) are clean."""
        return self._up(self.rest + samples.worst(samples.others(self.dev, own)[0]))

    def given(self, samples: SampleGenerators, own: Tensor) -> Tensor:
        """The bound if a sample, with generators ``own`` (r, parts), is clean, and if it may be poisoned,
        (states, r).

        Clean: the budget is spent on the others. Poisoned in some parts: what it has there is paid in full,
        one less is left for the others. The last state may be any.
        """
        others, paid = samples.others(self.dev, own)
        found = [self._up(self.rest + samples.worst(others))]
        for state in range(1, samples.states):
            chosen = torch.tensor([bool(state >> p & 1) for p in range(samples.parts)])
            chosen = chosen.to(own.device)
            least = samples.worst(others, torch.where(chosen, own, -1))
            poisoned = self._up(self.rest + (paid * chosen).sum(-1) + least)
            found.append(torch.maximum(found[0], poisoned))
        found[-1] = torch.stack(found).amax(0)
        return torch.stack(found)

    def _up(self, value: Tensor) -> Tensor:
        value = value + self.slack
        return value + gamma(4) * value.abs()


@dataclass(frozen=True)
class Added:
    """What multipliers of C1 and C2 add to directions: linear in the multipliers, (r, ...) as in Opened."""

    moves: Tensor
    extra: Tensor
    bends: Tensor
    costs: Tensor
    rest: Tensor
    size: Tensor

    @staticmethod
    def of(flips: Flips, rows: Tensor) -> Added:
        first, second = rows
        by_least, by_largest = first / flips.least, second / flips.beyond
        difference, total = by_least - by_largest, by_least + by_largest
        costs = difference @ flips.on_phase
        costs[:, flips.column] += total @ flips.charge - first + second
        rest = by_least @ (flips.quiet - flips.margin + flips.above)
        return Added(
            (difference @ flips.on_moves.flatten(1)).unflatten(1, flips.on_moves.shape[1:]),
            by_least @ flips.up + by_largest @ flips.down,
            difference @ flips.on_bend,
            costs,
            rest + by_largest @ (flips.margin + flips.below),
            total @ (flips.size + flips.least + flips.beyond) + (first + second).sum(1),
        )

    def mixed(self, weights: Tensor, index: Tensor) -> Added:
        """Sums with nonnegative weights (k, i) of the directions ``index`` (i,), for k directions."""
        parts = (getattr(self, name) for name in self.__dataclass_fields__)
        return Added(*(torch.tensordot(weights, part[index], 1) for part in parts))


def bound(
    d: Directions,
    flips: Flips,
    alpha: Multipliers,
    samples: SampleGenerators,
    more: Added | None = None,
) -> Bound:
    """Bounds of directions from multipliers of the rows C1, C2 and C3.

    With ``A1 = alpha_1 / least``, ``A2 = alpha_2 / largest``, ``D = A1 - A2`` every direction g is at most

        base + sum_f A1_f (quiet_f - margin_f + above_f) + A2_f (margin_f + below_f)
          + sum_{i in S} ( support_i(g_i + sum_f D_f a_fi) + up_i + sum_f A1_f up_fi + A2_f down_fi
                           + alpha_3f threshold_fi + sum_{f alone, of i} pos( price_f ) )
          + sum_{f not alone} pos( price_f ),
        price_f = g_f + charge_f + sum_h D_h b_hf + (A1 + A2)_h charge_hf
                  - alpha_1f + alpha_2f - alpha_3f + largest_f pos(bend_f + sum_h D_h r_hf)

    because nonnegative multiples of valid rows are added to g, and then e, phi in [0, 1] and
    rho in [0, largest phi] are maximised one by one; phi_f <= s_i where f is alone.

    ``more`` is what the multipliers of C1 and C2 add, where it is known; those of ``alpha`` are not read.
    """
    return _closed(gathered(d, flips, alpha.rows, samples, more), flips, alpha)


def on_moves(d: Directions, flips: Flips, alpha: Multipliers, samples: SampleGenerators) -> Tensor:
    """The coefficients on moves whose support functions :func:`bound` adds up, (r, m, width)."""
    return gathered(d, flips, alpha.rows, samples).moves


@dataclass(frozen=True)
class Opened:
    """A bound before C3 and the prices of flips: what only multipliers of C1 and C2 change."""

    rest: Tensor  # (r,)
    dev: Tensor  # (r, m)
    moves: Tensor  # coefficients on moves, (r, m, width)
    costs: Tensor  # of flips, (r, f)
    bends: Tensor  # coefficients on rho, (r, f)
    size: Tensor  # (r,)
    operations: float
    flips: Flips

    @cached_property
    def limited(self) -> Tensor:
        """Costs of the flips with C3, (r, l)."""
        return self.costs[:, self.flips.limited]

    @cached_property
    def settled(self) -> tuple[Tensor, Tensor]:
        """``rest`` and ``dev`` with the prices of all flips that have no C3, which nothing else changes."""
        flips, alone = self.flips, self.flips.paid_alone
        dev = self.dev
        if len(alone):
            dev = dev.index_add(1, flips.own[alone], self.costs[:, alone].clamp(min=0.0))
        others = flips.unlimited
        return self.rest + self.costs[:, others].clamp(min=0.0).sum(1), dev


def gathered(
    d: Directions,
    flips: Flips,
    rows: Tensor,
    samples: SampleGenerators,
    more: Added | None = None,
) -> Opened:
    operations = 2.0 * d.operations + 8.0 * flips.count + 64.0
    moves, bends, costs, rest, size = d.on_moves, d.on_bend, d.on_phase, d.base, d.size
    extra, supports = d.up, d.supports
    if flips.rows:
        more = Added.of(flips, rows) if more is None else more
        moves, bends, costs = moves + more.moves, bends + more.bends, costs + more.costs
        costs[:, flips.column] += d.charge
        extra, rest, size = extra + more.extra, rest + more.rest, size + more.size
        supports = None
    costs = costs + flips.largest * bends.clamp(min=0.0)
    dev = (samples.support(moves) if supports is None else supports) + extra
    return Opened(rest, dev, moves, costs, bends, size, operations, flips)


def _closed(opened: Opened, flips: Flips, alpha: Multipliers) -> Bound:
    rest, dev = opened.settled
    if flips.limits:
        rest = rest + (opened.limited - alpha.limits).clamp(min=0.0).sum(1)
    dev = dev + alpha.paid
    size = opened.size + alpha.limits @ (1.0 + flips.cover)
    slack = gamma(opened.operations) * size + TINY
    return Bound(rest, dev.clamp(min=0.0), slack)


def prices_of(d: Directions, flips: Flips) -> Tensor:
    """What each flip adds to a direction at most, (r, f)."""
    costs = d.on_phase + flips.largest * d.on_bend.clamp(min=0.0)
    if flips.rows:
        costs[:, flips.column] += d.charge
    return costs.clamp(min=0.0)


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
        yield alpha, _closed(opened, flips, alpha)
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
    found = _closed(opened, flips, alpha)
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
