"""Which phases poisoned data may flip: candidates are ascended alone, and become binary generators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from milp_agt.bounds.step import Step
from milp_agt.bounds.zonotope.ascent import ascend, tried
from milp_agt.bounds.zonotope.bounds import StateBounds
from milp_agt.bounds.zonotope.dual import Bound, Multipliers, bound
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.form import Form
from milp_agt.bounds.zonotope.rows import FlipRows, Slots, rows_of, with_flips
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.bounds.zonotope.state import HybridZonotope
from milp_agt.bounds.zonotope.work import Work
from milp_agt.core.rounding import gamma
from milp_agt.core.stacked import Stacked

# Rows are divided by how far a phase goes beyond its kink; a larger number is as valid.
SMALLEST = 1e-9
# What the bounds of candidates gain at least for a search that goes on.
STILL = 0.0015


@dataclass(frozen=True)
class Search:
    """What the flips of a node, whose elements at a kink take the slots from ``first`` on, are found with.

    Attributes:
        form: of the node that the kinks are of.
        zonotope, shared: the state before the step.
        steps: of the ascent of each candidate.
        work, share: how many of them get rows in the whole step, and by the end of this part of it.
    """

    form: Form
    zonotope: HybridZonotope
    shared: StateBounds
    slots: Slots
    first: int
    steps: int
    work: Work
    share: float
    step: Step

    def found(self, known: Flips, near: Tensor) -> Flips:
        """The flips ``known`` of the nodes before it in this step, and those of this one; ``near`` masks the
        elements that may flip, by some other bound, (n, *shape)."""
        columns = self.zonotope.samples.at(self.step)
        for rows in rows_of(self.form, self.zonotope, self.shared, columns, self.slots, near):
            known = _of_rows(self, rows, known)
        return known


def _of_rows(search: Search, rows: FlipRows, known: Flips) -> Flips:
    """The flips among some elements: with rows the most important ones, loose the others."""
    zonotope, samples = search.zonotope, search.zonotope.samples
    centre = search.form.centre.flatten(1)[rows.samples, rows.elements]
    on, margin = centre > 0, centre.abs()
    up, down = rows.both(zonotope, search.shared)
    beyond, back = down.where(on, up), up.where(on, down)
    reach = _rounded_up(beyond.total(samples) - margin, margin)
    some = (~(reach < 0.0)).nonzero()[:, 0]  # NaN is a candidate, too
    most = search.work.most_new(zonotope.flips.rows, search.steps)
    most = max(0, ceil(search.share * most) - known.rows)
    order = some
    if most:
        # Phases that many samples can flip need rows most, then those that get furthest.
        if_clean = beyond.if_clean(samples, rows.own) - margin
        urgency = torch.where(if_clean > 0.0, 1e3, 0.0) + reach
        order = some[urgency[some].argsort(descending=True)]
    for part, has_rows in ((order[:most], True), (order[most:], False)):
        if len(part):
            picked = _Candidates.of(search, rows, on, margin, part.sort().values)
            bounds = [(beyond.take(picked.index),) * 2 + (back.take(picked.index),)]
            if has_rows and zonotope.flips.rows:
                bounds.append(picked.ascended(search.steps))
            known = _added(search, picked, bounds, known, has_rows)
    return known


def _added(
    search: Search,
    picked: _Candidates,
    bounds: Sequence[tuple[Bound, Bound, Bound]],
    known: Flips,
    has_rows: bool,
) -> Flips:
    """Those candidates that can flip, by the best of several bounds: towards the kink, the same if the own
    sample is clean, and away from it."""
    samples, margin, own = search.zonotope.samples, picked.margin, picked.own
    towards, if_clean, back = (list(each) for each in zip(*bounds, strict=True))
    largest = _least(torch.stack([b.total(samples) for b in towards]) - margin, margin)
    clean = _least(torch.stack([b.if_clean(samples, own) for b in if_clean]) - margin, margin)
    clean = torch.minimum(clean, largest)
    # At the kink itself a unit is off: y = 0 is a flip only for those that are on.
    flips = ~torch.where(picked.on, largest < 0.0, largest <= 0.0)
    keep = flips.nonzero()[:, 0]
    if not len(keep):
        return known
    sole = torch.full_like(own, -1)  # the one unit without which it does not flip
    for part in reversed(range(own.shape[1])):
        mine = torch.full_like(own, -1)
        mine[:, part] = own[:, part]
        without = _least(
            torch.stack([b.if_clean(samples, mine) for b in if_clean]) - margin, margin
        )
        needed = torch.where(picked.on, without < 0.0, without <= 0.0) & (mine[:, part] >= 0)
        sole = torch.where(needed[:, None], mine, sole)
    alone = (sole >= 0).any(1)
    most = torch.maximum(largest, clean).clamp(min=SMALLEST)
    columns = _columns(search, picked, most, sole, keep)
    at = (~alone[keep]).nonzero()[:, 0]
    room = search.work.room(search.share, search.zonotope.flips.limits + known.limits)
    if len(at) > room:
        at = at[most[keep[at]].topk(room).indices.sort().values]
    several = keep[at]
    if len(several):
        plain = picked.take(several).plain()
        bounds_ = [*(each.take(several) for each in towards), *plain]
        columns = _limited(columns, at, bounds_, margin[several], samples)
    if has_rows:
        least = _least(torch.stack([b.total(samples) for b in back]) + margin, margin)
        quiet = _least(torch.stack([b.if_clean(samples, sole) for b in back]) + margin, margin)
        quiet = torch.where(alone, torch.minimum(quiet, least), least)
        columns = _with_rows(
            search,
            picked,
            columns,
            known,
            keep,
            least=least.clamp(min=SMALLEST)[keep],
            quiet=quiet.clamp(min=SMALLEST)[keep],
        )
    parts = torch.arange(samples.parts, device=own.device)
    possible = torch.stack(
        [
            ~alone | ((sole >= 0) & (state >> parts & 1).bool()).any(1)
            for state in range(samples.states)
        ]
    )
    reached = torch.stack([clean.clamp(min=SMALLEST), *[most] * (samples.states - 1)])
    search.slots.add(
        search.zonotope.flips.count + known.count,
        columns.place[:, 2],
        picked.rows.samples[keep],
        torch.where(possible, reached, 0.0)[:, keep],
        possible.to(margin)[:, keep],
    )
    return known.joined(columns)


@dataclass(frozen=True)
class _Candidates(Stacked):
    """Rows that may be flips, bounded towards the kink and away from it."""

    zonotope: HybridZonotope
    rows: FlipRows
    on: Tensor
    margin: Tensor
    index: Tensor
    towards: Multipliers
    away: Multipliers

    @staticmethod
    def of(
        search: Search, rows: FlipRows, on: Tensor, margin: Tensor, index: Tensor
    ) -> _Candidates:
        rows, on, margin = rows.take(index), on[index], margin[index]
        upper, lower = search.shared.shared(rows.jacobian)
        towards, away = lower.where(on, upper), upper.where(on, lower)
        return _Candidates(search.zonotope, rows, on, margin, index, towards, away)

    @property
    def sign(self) -> Tensor:
        return torch.where(self.on, -1.0, 1.0).to(self.margin)

    @property
    def own(self) -> Tensor:
        return self.rows.own

    def plain(self) -> list[Bound]:
        """Bounds towards the kink without a search: much of them is paid by samples, little by the rest."""
        directions, flips = self.rows.spread.towards(self.sign), self.zonotope.flips
        samples = self.zonotope.samples
        return [found for _, found in tried(directions, flips, samples)]

    def ascended(self, steps: int) -> tuple[Bound, Bound, Bound]:
        """Bounds towards the kink, the same if the own sample is clean, and away from the kink."""
        samples, count = self.zonotope.samples, len(self.sign)
        spread = self.rows.spread.take(torch.arange(3 * count, device=self.own.device) % count)
        signs = torch.cat([self.sign, self.sign, -self.sign])
        directions = spread.towards(signs)
        free = torch.ones_like(directions.up)
        for own in self.own.T:
            known = (own >= 0).nonzero()[:, 0]
            free[count + known, own[known]] = 0.0
        alpha = Multipliers.cat([self.towards, self.towards, self.away])
        flips = self.zonotope.flips
        alpha = ascend(directions, flips, samples, alpha, steps, free, STILL)
        found = bound(directions, flips, alpha, samples)
        parts = torch.arange(3 * count, device=self.own.device).split(count)
        return found.take(parts[0]), found.take(parts[1]), found.take(parts[2])


def _limited(
    columns: Flips, at: Tensor, bounds: Sequence[Bound], margin: Tensor, samples: SampleGenerators
) -> Flips:
    """C3 for some of the flips, those at ``at``, which have this margin and these bounds towards the kink.

    From ``y <= -margin + b + sum_{i in S} I_i`` with b < margin follows
    ``phi <= sum_{i in S} min(1, I_i / (margin - b))``. Of several such bounds the one that admits least.
    """
    best = margin.new_ones(len(margin), samples.count)
    for each in bounds:
        room = margin - each.rest - each.slack
        room = room - gamma(8) * (margin + each.rest.abs() + each.slack)
        share = each.dev / torch.where(room > 0, room, 1.0)[:, None] * (1.0 + gamma(8))
        share = torch.where((room > 0)[:, None], share.clamp(max=1.0), 1.0)
        less = _admits(share, samples) < _admits(best, samples)
        best = torch.where(less[:, None], share, best)
    says = ((best < 1.0).any(1)).nonzero()[:, 0]
    best = _of_teams(best[says], samples)
    cover = samples.worst(best) * (1.0 + gamma(4 * samples.terms + 64))
    return replace(columns, limited=at[says], threshold=best, cover=cover)


def _of_teams(threshold: Tensor, samples: SampleGenerators) -> Tensor:
    """C3 without the samples that are in no set within the budget whose thresholds add up to 1.

    phi is 0 or 1. A set S in which it is 1 adds up to 1 or more, so that none of its members falls short with
    the largest others, and what is left out here leaves the sum over S as it is.
    """
    _, together = samples.conditional(threshold)
    return torch.where(together < 1.0 - 1e-9, 0.0, threshold)


def _admits(share: Tensor, samples: SampleGenerators) -> Tensor:
    """What thresholds are compared by: the most that they admit, then all of them together."""
    return samples.worst(share) + share.mean(1) if samples.count else share.sum(1)


def _columns(
    search: Search, picked: _Candidates, largest: Tensor, sole: Tensor, keep: Tensor
) -> Flips:
    """New flips without rows; ``sole`` (rows, parts) are the units that they need, -1 for the others."""
    part = Flips.none(search.zonotope.samples)
    alone = (sole >= 0).any(1)
    own = torch.where(alone, sole.amax(1), picked.own.amax(1))
    samples = picked.rows.samples[keep]
    when = torch.full_like(samples, search.step.index)
    slot = search.first + picked.rows.elements[keep]
    return replace(
        part,
        largest=largest[keep],
        own=own[keep],
        alone=alone[keep],
        sign=picked.sign[keep],
        place=torch.stack([when, search.step.samples[samples], slot], 1),
    )


def _with_rows(
    search: Search,
    picked: _Candidates,
    columns: Flips,
    known: Flips,
    keep: Tensor,
    *,
    least: Tensor,
    quiet: Tensor,
) -> Flips:
    """The same flips with their rows, in all generators and the flips of this step before them."""
    part = picked.rows.take(keep)
    before = search.zonotope.flips
    spread = with_flips(part.plain, part, search.form, search.slots, before, known)
    towards, away = spread.towards(columns.sign), spread.towards(-columns.sign)
    margin = picked.margin[keep]
    size = spread.size + margin
    slack = gamma(spread.operations) * size
    up, at = towards.up.clone(), columns.alone.nonzero()[:, 0]
    up[at, columns.own[at]] += ((least - quiet).clamp(min=0.0) * (1.0 + gamma(4)))[at]
    return replace(
        columns,
        column=torch.arange(len(keep), device=keep.device),
        on_moves=towards.on_moves,
        on_phase=towards.on_phase,
        on_bend=towards.on_bend,
        charge=towards.charge,
        below=away.base + slack,
        above=towards.base + slack,
        down=away.up,
        up=up,
        margin=margin,
        least=least,
        quiet=quiet,
        size=size,
    )


def _least(differences: Tensor, margin: Tensor) -> Tensor:
    """The least of several differences, (bounds, rows), of which one number is ``margin``, rounded up."""
    return _rounded_up(differences.amin(0), margin)


def _rounded_up(difference: Tensor, margin: Tensor) -> Tensor:
    """A difference of two numbers of which one is ``margin``, not below the exact one."""
    return difference + gamma(4) * (difference.abs() + margin)
