"""Bounds of directions over a hybrid zonotope: a Lagrangian dual, any multipliers of which are valid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.rounding import TINY, gamma
from milp_agt.core.stacked import Stacked


@dataclass(frozen=True)
class Multipliers(Stacked):
    """Nonnegative multipliers for r directions.

    Attributes:
        rows: of C1 and C2, (2, r, q).
        limits: of C3, (r, l).
        paid: what samples pay for C3 if they are poisoned, ``limits @ threshold``, (r, m).
    """

    AXES: ClassVar = {"rows": 1}

    rows: Tensor
    limits: Tensor
    paid: Tensor

    @staticmethod
    def of(rows: Tensor, limits: Tensor, flips: Flips) -> Multipliers:
        return Multipliers(rows, limits, limits @ flips.threshold)

    @staticmethod
    def none(directions: int, flips: Flips) -> Multipliers:
        zero = flips.threshold.new_zeros
        m = flips.threshold.shape[1]
        return Multipliers(
            zero(2, directions, flips.rows), zero(directions, flips.limits), zero(directions, m)
        )

    def mixed(self, weights: Tensor) -> Multipliers:
        """Sums with nonnegative weights (k, r), for k directions."""
        paid = self.paid.new_zeros(len(weights), self.paid.shape[1])
        if self.limits.shape[1]:
            paid = weights @ self.paid
        return Multipliers(weights @ self.rows, weights @ self.limits, paid)

    def with_rows(self, keep: Tensor) -> Multipliers:
        return Multipliers(self.rows[..., keep], self.limits, self.paid)

    def with_limits(self, keep: Tensor, flips: Flips) -> Multipliers:
        """Only some of C3; ``flips`` have these alone."""
        return Multipliers.of(self.rows, self.limits[:, keep], flips)

    def beyond(self, start: Multipliers, share: float) -> Multipliers:
        """From ``start`` ``share`` times as far as here, none below 0; ``paid`` is not kept."""
        rows = start.rows + share * (self.rows - start.rows)
        limits = start.limits + share * (self.limits - start.limits)
        return Multipliers(rows.clamp(min=0.0), limits.clamp(min=0.0), self.paid)


@dataclass(frozen=True)
class Directions(Stacked):
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
        squares: what is quadratic in the moves, a part of ``up``, (r, m, width^2 or 0), see squares.py.
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
    squares: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.base)


@dataclass(frozen=True)
class Bound(Stacked):
    """For every set S of poisoned samples a direction is at most ``rest + sum_{i in S} dev_i + slack``.

    ``each`` is (r, m), and ``dev`` the same where it is positive: what is below 0 counts only where it is
    known that a sample is poisoned. ``slack`` covers the rounding of the evaluation, whatever S.
    """

    rest: Tensor
    each: Tensor
    slack: Tensor

    @property
    def dev(self) -> Tensor:
        return self.each.clamp(min=0.0)

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
    return closed(gathered(d, flips, alpha.rows, samples, more), flips, alpha)


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


def closed(opened: Opened, flips: Flips, alpha: Multipliers) -> Bound:
    """The bound with C3, at the price of every flip."""
    rest, dev = opened.settled
    if flips.limits:
        rest = rest + (opened.limited - alpha.limits).clamp(min=0.0).sum(1)
    dev = dev + alpha.paid
    size = opened.size + alpha.limits @ (1.0 + flips.cover)
    slack = gamma(opened.operations) * size + TINY
    return Bound(rest, dev, slack)


def prices_of(d: Directions, flips: Flips) -> Tensor:
    """What each flip adds to a direction at most, (r, f)."""
    costs = d.on_phase + flips.largest * d.on_bend.clamp(min=0.0)
    if flips.rows:
        costs[:, flips.column] += d.charge
    return costs.clamp(min=0.0)


@dataclass(frozen=True)
class Spread(Stacked):
    """Directions of the state on all generators, with the noise towards either side, see Directions."""

    on_moves: Tensor
    on_phase: Tensor
    on_bend: Tensor
    charge: Tensor
    below: Tensor
    above: Tensor
    down: Tensor
    up: Tensor
    size: Tensor
    operations: float
    squares: Tensor | None = None

    def towards(self, sign: Tensor) -> Directions:
        """Each direction times its sign, (r,) of 1 and -1."""
        along = sign > 0
        one, two = sign[:, None], sign[:, None, None]
        return Directions(
            two * self.on_moves,
            one * self.on_phase,
            one * self.on_bend,
            self.charge,
            torch.where(along[:, None], self.up, self.down),
            torch.where(along, self.above, self.below),
            self.size,
            self.operations,
            squares=None if self.squares is None else two * self.squares,
        )

    def both(self, supports: tuple[Tensor, Tensor] | None = None) -> Directions:
        """All directions, then their opposites; with the ``supports`` of both, (r, m), if they are known."""
        one = torch.ones_like(self.size)
        found = Directions.cat([self.towards(one), self.towards(-one)])
        return found if supports is None else replace(found, supports=torch.cat(supports))
