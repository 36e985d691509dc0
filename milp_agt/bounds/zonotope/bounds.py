"""What is proved of every coordinate of a state: boxes, conditional boxes, and multipliers to share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from milp_agt.bounds.step import NodeOrder
from milp_agt.bounds.zonotope.ascent import ascend, start, warm
from milp_agt.bounds.zonotope.dual import Added, Bound, Multipliers, bound
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.layout import Layout
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.bounds.zonotope.squares import narrowed
from milp_agt.bounds.zonotope.state import AT_ONCE, HybridZonotope
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma

# Coefficients on moves that are kept of what multipliers add to the ends.
ADDED = 2**25
# Bytes, where nobody says how many.
MEMORY = 2**32


@dataclass(frozen=True)
class StateBounds:
    """Bounds of all ends of a state, and the multipliers that they were found with.

    The bound is convex and positively homogeneous in direction and multipliers together. So a direction
    ``J`` gets ``sum_p J_p^+ alpha_(p,+) + J_p^- alpha_(p,-)`` without a search, and is never looser than
    interval arithmetic on the box.

    Attributes:
        flips: whose rows were used.
        alpha: multipliers of these rows, for 2 P ends: upper ones first, then lower ones.
        below, above: how far each coordinate lies below and above the centre, (P,), >= 0.
        clean, poisoned: the same for both ends if a sample is clean, and if it may be poisoned, (2 P, m).
        rest, each: the parts of both ends, as in :class:`Bound`, (2 P,) and (2 P, m).
        terms: sizes of the terms of each coordinate, (P,).
    """

    flips: Flips
    alpha: Multipliers
    below: Tensor
    above: Tensor
    clean: Tensor
    poisoned: Tensor
    rest: Tensor
    each: Tensor
    terms: Tensor

    @staticmethod
    def of(zonotope: HybridZonotope, old: Multipliers | None, steps: int) -> StateBounds:
        """Bounds after ``steps`` of ascent from the multipliers ``old`` of the step before."""
        size, samples, flips = zonotope.size, zonotope.samples, zonotope.flips
        terms = zonotope.terms()
        width = max(1, samples.count * samples.width, flips.count)
        pieces, order = [], []
        for part in torch.arange(size, device=terms.device).split(max(1, AT_ONCE // (2 * width))):
            spread = zonotope.coordinates(slice(int(part[0]), int(part[-1]) + 1), terms)
            supports = None if flips.rows else samples.both_supports(spread.on_moves)
            directions = spread.both(supports)
            ends = torch.cat([part, size + part])
            order.append(ends)
            if old is None:
                alpha = start(directions, flips, samples)
            else:
                alpha = warm(old.take(ends), directions, flips, samples)
            alpha = ascend(directions, flips, samples, alpha, steps)
            found = bound(directions, flips, alpha, samples)
            found = narrowed(found, directions, flips, alpha, samples)
            total = found.total(samples).clamp(min=0.0)
            rest = (found.rest + found.slack).clamp(min=0.0) * (1.0 + gamma(4))
            pieces.append((alpha, total, *_conditional(found, samples), rest, found.each))
        alphas, totals, cleans, poisoneds, rests, parts = zip(*pieces, strict=True)
        at = torch.cat(order).argsort()
        alpha, total = Multipliers.cat(alphas).take(at), torch.cat(totals)[at]
        clean, poisoned = torch.cat(cleans)[at], torch.cat(poisoneds)[at]
        ends_of_all = total.unsqueeze(1)
        return StateBounds(
            flips,
            alpha,
            total[size:],
            total[:size],
            torch.minimum(clean, ends_of_all),
            torch.minimum(poisoned, ends_of_all),
            torch.cat(rests)[at],
            torch.cat(parts)[at],
            terms,
        )

    @property
    def dev(self) -> Tensor:
        """What each sample adds, or 0 where that is less, (2 P, m)."""
        return self.each.clamp(min=0.0)

    @property
    def radius(self) -> Tensor:
        return torch.maximum(self.below, self.above)

    def most_used(self, count: int) -> Tensor:
        """The rows with the largest multipliers, ascending."""
        return _largest(self.alpha.rows.sum((0, 1)), count)

    def most_limited(self, count: int) -> Tensor:
        """The same of C3."""
        return _largest(self.alpha.limits.sum(0), count)

    def box(self, centre: Tensor) -> Interval:
        """All states, (P,), rounded outwards."""
        error = gamma(4) * (centre.abs() + self.radius) + TINY
        return Interval(centre - self.below, centre + self.above).widen(error)

    def given(self, part: slice, columns: Tensor) -> tuple[Tensor, Tensor]:
        """How far some coordinates lie below and above the centre given the samples ``columns``
        (n, parts), -1 for those that stay clean, in each of their states: (states, n, p) each.

        What is known of a unit alone holds in all states that it is clean, or poisoned, in.
        """
        size, states = len(self.below), 2 ** columns.shape[1]
        known = columns >= 0
        index = columns.clamp(min=0)
        ends = []
        for first, every in ((size, self.below), (0, self.above)):
            rows = slice(first + part.start, first + part.stop)
            found = every[part].expand(states, len(columns), -1)
            if self.clean.shape[1]:
                both = torch.stack([self.clean[rows][:, index], self.poisoned[rows][:, index]])
                both = torch.where(known, both, every[part][:, None, None]).permute(3, 0, 2, 1)
                each = [[both[p, s >> p & 1] for p in range(len(both))] for s in range(states)]
                found = torch.stack([torch.stack(of_state).amin(0) for of_state in each])
                found[-1] = found.amax(0) if len(both) > 1 else found[-1]
            ends.append(found)
        return ends[0], ends[1]

    def shared(self, rows: Tensor) -> tuple[Multipliers, Multipliers]:
        """Multipliers for directions ``rows`` (r, p) of the first p coordinates, and for their opposites."""
        used, (upper, lower) = self._weights(rows)
        ends = self.alpha.take(used)
        return ends.mixed(upper), ends.mixed(lower)

    def added(self, rows: Tensor) -> Iterator[tuple[Multipliers, Added | None]]:
        """The same, and what those of C1 and C2 add to directions and to their opposites: linear in the
        multipliers, and so a sum over the ends that a direction reads. None without rows of flips, and where
        it would take much memory; else these multipliers themselves are left out.
        """
        used, sides = self._weights(rows)
        numbers = len(self.alpha.limits) * self.flips.on_moves[:1].numel()
        ends, known = self.alpha.take(used), self.flips.rows > 0 and numbers <= ADDED
        if known:
            ends = replace(ends, rows=ends.rows[..., :0])
        for weights in sides:
            yield ends.mixed(weights), self._added.mixed(weights, used) if known else None

    @cached_property
    def _added(self) -> Added:
        return Added.of(self.flips, self.alpha.rows)

    def _weights(self, rows: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The ends that directions read, and their weights for these and for their opposites."""
        used = (rows != 0.0).any(0).nonzero()[:, 0]
        rows = rows[:, used]
        plus, minus = rows.clamp(min=0.0), (-rows).clamp(min=0.0)
        upper, lower = torch.cat([plus, minus], 1), torch.cat([minus, plus], 1)
        return torch.cat([used, len(self.below) + used]), (upper, lower)


@dataclass(frozen=True)
class Effort:
    """How long multipliers are searched for; more only makes bounds tighter.

    Attributes:
        state: steps of ascent for the ends of the state after each step.
        candidates: for each phase that may flip.
        last: for the ends of the state after the last step, and for questions.
    """

    state: int = 30
    candidates: int = 60
    last: int = 60


@dataclass(frozen=True)
class Carried:
    """The set of states after some steps, and what is proved of it.

    Every state that float64 training can reach, in any order of summation, is in ``zonotope``. It has the
    generators of the samples met so far and in the next step; ``samples`` are those of all steps.
    """

    schedule: NodeOrder
    layout: Layout
    zonotope: HybridZonotope
    bounds: StateBounds
    effort: Effort
    samples: SampleGenerators
    memory: int = MEMORY
    unprojected: Interval | None = None


def _largest(worth: Tensor, count: int) -> Tensor:
    return worth.topk(min(count, len(worth))).indices.sort().values


def _conditional(found: Bound, samples: SampleGenerators) -> tuple[Tensor, Tensor]:
    """The bound of each row given each sample: clean, and poisoned, (r, m) each."""
    clean, poisoned = samples.conditional(found.dev)
    base = (found.rest + found.slack)[:, None]
    total = samples.worst(found.dev)[:, None]
    error = gamma(16 + 8 * samples.terms) * (base.abs() + total) + TINY
    return (base + clean + error).clamp(min=0.0), (base + poisoned + error).clamp(min=0.0)
