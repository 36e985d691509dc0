"""Boxes of parameters that are sums over visits of samples, of which a budget is poisoned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma

# Most charges of single samples that are kept for each parameter; more count as often as the least of them.
KEPT = 32


@dataclass(frozen=True)
class Tally:
    """``low - d <= theta <= high + u``: ``d`` and ``u`` are what poisoned samples add, each of which counts.

    Attributes:
        low, high: the sum with all samples clean, (P).
        down, up: the largest charges of the samples met since they were last settled, (m, P), falling.
        settled_down, settled_up: the worst charges before that, (P).
        error: what rounding does, (P).
        budget: of poisoned samples.
    """

    low: Tensor
    high: Tensor
    down: Tensor
    up: Tensor
    settled_down: Tensor
    settled_up: Tensor
    error: Tensor
    budget: int

    @staticmethod
    def of(box: Interval, budget: int) -> Tally:
        """A parameter before the first step, (1, P)."""
        (low,), (high,) = box.lower, box.upper
        zero, none = torch.zeros_like(low), low.new_zeros(0, *low.shape)
        return Tally(low, high, none, none, zero, zero, zero, budget)

    def settled(self) -> Tally:
        """The same before samples are met again, so that further charges are those of all samples anew."""
        none = self.down[:0]
        return replace(
            self,
            down=none,
            up=none,
            settled_down=self.settled_down + self._worst(self.down),
            settled_up=self.settled_up + self._worst(self.up),
        )

    def _worst(self, charges: Tensor) -> Tensor:
        """The most that charges add up to within the budget."""
        if not len(charges):
            return torch.zeros_like(self.low)
        more = max(0, self.budget - KEPT) if len(charges) == KEPT else 0
        return charges.sum(0) + more * charges[-1]

    def box(self) -> Interval:
        """All values, rounding covered, (1, P)."""
        down, up = self._worst(self.down), self._worst(self.up)
        down, up = down + self.settled_down, up + self.settled_up
        size = torch.maximum(self.low.abs(), self.high.abs()) + down + up
        error = self.error + gamma(self.budget + 64) * (size + self.error) + TINY
        return Interval((self.low - down)[None], (self.high + up)[None]).widen(error)

    def times(self, factor: float) -> Tally:
        """All values times a factor, but for rounding."""
        turned = factor < 0.0
        low, high = (self.high, self.low) if turned else (self.low, self.high)
        parts = (self.down, self.up, self.settled_down, self.settled_up)
        down, up, old_down, old_up = (abs(factor) * part for part in parts)
        if turned:
            down, up, old_down, old_up = up, down, old_up, old_down
        error = abs(factor) * self.error
        return Tally(factor * low, factor * high, down, up, old_down, old_up, error, self.budget)

    def plus(self, low: Tensor, high: Tensor, down: Tensor, up: Tensor, error: Tensor) -> Tally:
        """With a further sum, (P), and charges of further samples, (n, P)."""
        return replace(
            self,
            low=self.low + low,
            high=self.high + high,
            down=self._largest(self.down, down),
            up=self._largest(self.up, up),
            error=self.error + error,
        )

    def _largest(self, old: Tensor, new: Tensor) -> Tensor:
        every = torch.cat([old, new])
        return every.topk(min(len(every), self.budget, KEPT), 0).values
