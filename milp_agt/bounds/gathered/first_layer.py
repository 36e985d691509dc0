"""The outputs of a first layer whose weights are sums over the samples met so far."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma

# Samples whose charges are told apart for each unit, and numbers at once.
TOLD_APART, AT_ONCE = 256, 2**19


@dataclass(frozen=True)
class FirstLayer:
    """``W = share W_0 + sum_i c_i x_i^T`` with ``low_i - s_i down_i <= c_i <= high_i + s_i up_i``.

    s_i in {0, 1} says whether sample i is poisoned, in all its visits or in none. With a bias x ends with
    a 1, and W with a column for it.

    Attributes:
        features: x, (N, d).
        start: W_0, a box (units, d).
        share: of it that weight decay has left.
        low, high, down, up: (N, units).
        seen: mask of the samples met, (N,).
        budget: of poisoned samples.
    """

    features: Tensor
    start: Interval
    share: float
    low: Tensor
    high: Tensor
    down: Tensor
    up: Tensor
    seen: Tensor
    budget: int

    @staticmethod
    def of(features: Tensor, weight: Interval, bias: Interval | None, budget: int) -> FirstLayer:
        start = weight
        if bias is not None:
            column = bias.each(lambda end: end[:, None])
            start, features = Interval.joined([weight, column], 1), with_one(features)
        zero = features.new_zeros(len(features), len(weight.lower))
        seen = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        return FirstLayer(features, start, 1.0, zero, zero, zero, zero, seen, budget)

    def after(
        self, samples: Tensor, keep: float, scale: float, clean: Interval, down: Tensor, up: Tensor
    ) -> FirstLayer:
        """After ``W' = keep W + scale sum_i g_i x_i^T`` with g_i in ``clean`` (n, units), further down and up
        where samples are poisoned."""
        low, high = (clean.lower, clean.upper) if scale >= 0.0 else (clean.upper, clean.lower)
        down, up = (down, up) if scale >= 0.0 else (up, down)
        ends = (self.low, self.high) if keep >= 0.0 else (self.high, self.low)
        charges = (self.down, self.up) if keep >= 0.0 else (self.up, self.down)
        parts = [keep * end for end in ends] + [abs(keep) * charge for charge in charges]
        new = [scale * low, scale * high, abs(scale) * down, abs(scale) * up]
        found = [old.index_add(0, samples, more) for old, more in zip(parts, new, strict=True)]
        seen = self.seen.index_fill(0, samples, True)
        low, high, down, up = found
        share = self.share * keep
        return replace(self, share=share, low=low, high=high, down=down, up=up, seen=seen)

    def outputs(self, features: Tensor, error: Tensor, steps: int) -> Interval:
        """``W x`` for features (n, d), with the rounding of the run, (n, units).

        Args:
            error: what rounding has done to each weight so far, (units, d).
            steps: so far.
        """
        x = with_one(features) if features.shape[1] < self.start.lower.shape[1] else features
        met = self.seen.nonzero()[:, 0]
        low, high, down, up = (p[met] for p in (self.low, self.high, self.down, self.up))
        own = self.features[met]
        inner = own @ x.T
        above, below = inner.clamp(min=0.0), (-inner).clamp(min=0.0)
        middle = self.share * (x @ self.start.centre.T)
        lower = middle + above.T @ low - below.T @ high
        upper = middle + above.T @ high - below.T @ low
        less = self._worst(above, below, down, up)
        more = self._worst(above, below, up, down)
        reach = torch.maximum(low.abs(), high.abs()) + torch.maximum(down, up)
        sizes = own.abs() @ x.abs().T
        size = abs(self.share) * (x.abs() @ self.start.magnitude.T) + sizes.T @ reach
        rounded = gamma(4 * x.shape[1] + 2 * len(met) + 8 * steps + 128) * (size + less + more)
        error = error + abs(self.share) * 0.5 * self.start.width
        width = x.abs() @ error.T * (1.0 + gamma(2 * x.shape[1] + 8))
        return Interval(lower - less, upper + more).widen(rounded + width + TINY)

    def _worst(self, above: Tensor, below: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """The most that ``above_ij up_iu + below_ij down_iu`` adds up to within the budget, (n, units).

        For each unit the samples that reach farthest are told apart; any other counts as the farthest of
        these others with the largest product.
        """
        count, units = up.shape
        budget = min(self.budget, count)
        if not budget:
            return above.new_zeros(above.shape[1], units)
        reach = torch.maximum(up, down)
        most = min(count, max(TOLD_APART, 4 * budget))
        found, chosen = reach.topk(min(count, most + 1), 0)
        largest = (above + below).amax(0)
        rest = found[most] if count > most else torch.zeros_like(found[0])
        parts = []
        chunk = max(1, AT_ONCE // (most * above.shape[1]))
        for unit in torch.arange(units, device=up.device).split(chunk):
            at = chosen[:most, unit].T
            each = above[at] * up[at, unit[:, None]][..., None]
            if bool(below.any()):
                each += below[at] * down[at, unit[:, None]][..., None]
            top = each.topk(budget, 1).values
            others = (rest[unit, None] * largest)[:, None]
            parts.append(torch.maximum(top, others).sum(1))
        return torch.cat(parts).T


def with_one(features: Tensor) -> Tensor:
    """Features with a 1 behind them, (n, d + 1)."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)
