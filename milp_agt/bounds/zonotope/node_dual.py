"""The dual of a direction where some units and phases are known: the bound of a node of a tree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.ascent import Climb
from milp_agt.bounds.zonotope.dual import Directions, Multipliers, Opened, gathered, prices_of
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.rounding import TINY, gamma
from milp_agt.core.stacked import Stacked

# What is known of a unit (poisoned or clean) and of a phase (flipped or not).
OFF, FREE, ON = 0, 1, 2
# How often an ascent goes on twice as far along the way it took.
EXTRAPOLATED = 6


@dataclass(frozen=True)
class Known(Stacked):
    """What nodes know.

    Attributes:
        units: of the choice of poisoned units, (r, units), int8: ``OFF``, ``FREE`` or ``ON``.
        flips: of the phases, (r, f), int8.
    """

    units: Tensor
    flips: Tensor

    @staticmethod
    def nothing(rows: int, flips: Flips, samples: SampleGenerators) -> Known:
        device = samples.known.device
        units = torch.where(samples.known, ON, FREE).to(torch.int8).expand(rows, -1).clone()
        phases = torch.full((rows, flips.count), FREE, dtype=torch.int8, device=device)
        return Known(units, phases)

    def with_side(
        self, variable: Tensor, side: Tensor, flips: Flips, samples: SampleGenerators
    ) -> Known:
        """Each row with one more unit or phase known, and what follows from it.

        Args:
            variable: (r,): number of a unit, or of units plus that of a flip.
            side: (r,) bool.

        A phase that only its own sample can flip is off where that is clean, and where it is on its
        sample is poisoned. Where the budget is spent all other units of the group are clean.
        """
        units, phases = self.units.clone(), self.flips.clone()
        count, rows = units.shape[1], torch.arange(len(units), device=units.device)
        of_unit = variable < count
        value = torch.where(side, ON, OFF).to(torch.int8)
        units[rows[of_unit], variable[of_unit]] = value[of_unit]
        phases[rows[~of_unit], variable[~of_unit] - count] = value[~of_unit]
        alone = flips.paid_alone
        own = samples.unit[flips.own[alone]]
        row, at = (phases[:, alone] == ON).nonzero(as_tuple=True)
        units[row, own[at]] = ON
        spent = samples.left(units == ON) <= 0
        units[spent & (units == FREE)] = OFF
        clean = units[:, own] == OFF
        phases[:, alone] = torch.where(clean, OFF, phases[:, alone]).to(torch.int8)
        return Known(units, phases)


@dataclass(frozen=True)
class Solved:
    """What an ascent found of nodes.

    Attributes:
        value: upper bounds of the directions over all that is known, rounding included, (r,).
        alpha: the multipliers that prove them.
        chosen, happens: how often units and phases were on in the maximisers on the way, shares
            between 0 and 1, (r, units) and (r, f): where a node may be split.
        worth: what a unit and a phase are worth at the end, (r, units + f).
    """

    value: Tensor
    alpha: Multipliers
    chosen: Tensor
    happens: Tensor
    worth: Tensor


def solved(
    d: Directions,
    flips: Flips,
    samples: SampleGenerators,
    known: Known,
    alpha: Multipliers,
    steps: int,
    rate: tuple[float, float],
) -> Solved:
    """Bounds of nodes by projected subgradient steps from ``alpha``, the best iterate of each row.

    As :func:`dual.bound`, with what is known put in: a unit that is clean adds nothing, one that is
    poisoned adds its whole part and leaves one less for the others; a phase that is off costs nothing, and
    one that is on costs its price, also where this is negative. Any multipliers prove a bound.
    """
    prices = prices_of(d, flips)
    scale = prices.amax(1).clamp(min=1e-12) if flips.count else torch.ones_like(d.base)
    climbs = [Climb(part, scale[:, None]) for part in (alpha.rows, alpha.limits)]
    start, best, least = alpha, alpha, d.base.new_full((d.rows,), torch.inf)
    chosen = d.base.new_zeros(known.units.shape)
    happens, averaged = d.base.new_zeros(known.flips.shape), 0
    for number in range(1, steps + 2):
        point = _Point.of(d, flips, samples, known, alpha)
        best = alpha.where(point.value < least, best)
        least = torch.minimum(point.value, least)
        if 2 * number > steps:
            chosen, happens, averaged = chosen + point.units, happens + point.happens, averaged + 1
        if number > steps:
            break
        share = rate[0] * (rate[1] / rate[0]) ** ((number - 1) / steps)
        slopes = point.slopes(flips, samples)
        rows, limits = (
            climb.moved(slope, share, number) for climb, slope in zip(climbs, slopes, strict=True)
        )
        alpha = Multipliers.of(rows, limits, flips)
    ahead = best
    for _ in range(EXTRAPOLATED if steps else 0):
        # In a node that holds no run the dual falls along a ray.
        ahead = ahead.beyond(start, 2.0)
        ahead = Multipliers.of(ahead.rows, ahead.limits, flips)
        further = _Point.of(d, flips, samples, known, ahead).value
        best = ahead.where(further < least, best)
        least = torch.minimum(further, least)
    worth = prices.clone()
    if flips.rows:
        worth[:, flips.column] = torch.maximum(prices[:, flips.column], best.rows.sum(0))
    if flips.limits:
        own = torch.maximum(worth[:, flips.limited], best.limits)
        worth[:, flips.limited] = own
    by_unit = samples.by_unit(point.dev)
    return Solved(
        least, best, chosen / averaged, happens / averaged, torch.cat([by_unit, worth], 1)
    )


@dataclass(frozen=True)
class _Point:
    """The dual function of nodes at some multipliers."""

    opened: Opened
    value: Tensor  # (r,)
    dev: Tensor  # (r, m)
    units: Tensor  # which units the maximiser poisons, as numbers, (r, units)
    happens: Tensor  # which phases it flips, given that its unit is poisoned, (r, f)

    @staticmethod
    def of(
        d: Directions, flips: Flips, samples: SampleGenerators, known: Known, alpha: Multipliers
    ) -> _Point:
        found = gathered(d, flips, alpha.rows, samples)
        costs = found.costs
        if flips.limits:
            costs = costs.clone()
            costs[:, flips.limited] -= alpha.limits
        on, off = known.flips == ON, known.flips == OFF
        happens = (((costs > 0.0) & ~off) | on).to(costs)
        prices = torch.where(happens > 0.0, costs, 0.0)
        dev, alone = found.dev + alpha.paid, flips.paid_alone
        if len(alone):
            dev = dev.index_add(1, flips.own[alone], prices[:, alone])
            prices = prices[:, flips.paid_by_all]
        each = samples.by_unit(dev)
        poisoned = known.units == ON
        paid = torch.where(poisoned, each, 0.0)
        units = samples.largest_units(
            torch.where(known.units == FREE, each, 0.0).clamp(min=0.0), samples.left(poisoned)
        )
        units = units * (known.units == FREE)
        free = (each * units).clamp(min=0.0)
        units = torch.where(poisoned, 1.0, units)
        rest, sure, more = found.rest + prices.sum(1), paid.sum(1), free.sum(1)
        terms = rest.abs() + paid.abs().sum(1) + more
        size = found.size + alpha.limits @ (1.0 + flips.cover)
        slack = gamma(found.operations) * size + gamma(16.0 + 4.0 * len(samples.known)) * terms
        value = rest + sure + more + slack + TINY
        value = torch.where(torch.isnan(value), torch.inf, value)
        if len(alone):
            happens = happens.clone()
            happens[:, alone] *= units[:, samples.unit[flips.own[alone]]]
        return _Point(found, value, dev, units, happens)

    def slopes(self, flips: Flips, samples: SampleGenerators) -> tuple[Tensor, Tensor]:
        """A subgradient in the multipliers of rows and of limits."""
        opened, happens, paid = self.opened, self.happens, self.units[:, samples.unit]
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
