"""Sums over samples of outer products, a few entries at a time, with samples along the last axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.adversary.two_budgets import top_k_of_rows
from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.interval_products import corner_products

# Bounds of operands that are collected before they are multiplied, and products computed at once.
HELD = 2**22
AT_ONCE = 2**16


@dataclass(frozen=True)
class _Operands:
    """Operands of some samples, (states, p, n) and (states, q, n), and masks (n,) of these samples."""

    a: Interval
    b: Interval
    inside: Tensor | None
    free: Tensor | None

    @staticmethod
    def joined(parts: list[_Operands]) -> _Operands:
        def mask(masks: list[Tensor | None]) -> Tensor | None:
            known = [m for m in masks if m is not None]
            return torch.cat(known) if known else None

        return _Operands(
            _joined([part.a for part in parts]),
            _joined([part.b for part in parts]),
            mask([part.inside for part in parts]),
            mask([part.free for part in parts]),
        )

    def products(self, rows: slice, columns: slice) -> Interval:
        """Boxes of some products, (states, p, q, n)."""
        a, b = self.a, self.b
        return corner_products(
            a.each(lambda end: end[:, rows, None]), b.each(lambda end: end[:, None, columns])
        )


class OuterSum:
    """Box of ``sum_i a_i (x) b_i``, where at most ``budget`` samples are in the state POISONED.

    The same bound as :class:`milp_agt.bounds.adversary.joint.PoisonedSum` of the boxes of all products
    (SEMin and SEMax of Sosnin et al. 2024, section 4). Those boxes would have as many entries for each
    sample as the sum has. Here only the operands are kept; products are computed, selected from and
    dropped a few entries at a time.

    Args:
        budget: how many samples are poisoned besides those known to be.
    """

    def __init__(self, budget: int) -> None:
        self.budget = max(0, budget)
        self._held: list[_Operands] = []
        self._ends = self._count = 0
        self._shape: tuple[int, ...] = ()
        self._totals: Tensor | None = (
            None  # clean lower ends, clean upper ends and sizes, (3, p, q)
        )
        self._paid: Tensor | None = None  # differences of samples known to be poisoned
        self._worst: list[list[Tensor]] = []  # the largest of the others, by piece: down, up

    def add(self, a: Interval, b: Interval, inside: Tensor | None, free: Tensor | None) -> None:
        """Add operands (states, n, p...) and (states, n, q...) of a chunk of samples.

        ``inside`` masks the samples known to be poisoned, None for none; ``free`` those that may be,
        None for all.
        """
        self._shape = (*a.lower.shape[2:], *b.lower.shape[2:])
        held = _Operands(_in_rows(a), _in_rows(b), inside, free)
        self._held.append(held)
        self._count += a.lower.shape[1]
        self._ends += 2 * (held.a.lower.numel() + held.b.lower.numel())
        if self._ends > HELD:
            self._multiply(last=False)

    def result(self) -> tuple[Interval, Tensor]:
        """The box of the sum, (1, *shape), and ``sum_i max|term_i|``."""
        if self._held:
            self._multiply(last=True)
        assert self._totals is not None
        lower, upper, size = self._totals
        moved = torch.zeros_like(self._totals[:2]) if self._paid is None else self._paid
        for (rows, columns), pair in zip(self._pieces(), self._worst, strict=False):
            moved[:, rows, columns] += torch.stack([h.sum(-1) for h in pair])
        # Covers roundings of the run's products and sums, and of those here, by the sizes of the terms.
        error = (size * gamma(4 * self._count + 64) + TINY).reshape(self._shape)
        lower, upper = (lower - moved[0])[None], (upper + moved[1])[None]
        box = Interval(lower.reshape(1, *self._shape), upper.reshape(1, *self._shape))
        return box.widen(error), size.reshape(self._shape)

    def _pieces(self) -> list[tuple[slice, slice]]:
        """Rectangles of entries whose products over one batch fit into the processor's cache."""
        assert self._totals is not None
        p, q = self._totals.shape[1:]
        entries = max(1, AT_ONCE // self._first)
        wide = min(q, entries)
        high = max(1, entries // wide)
        return [
            (slice(i, min(i + high, p)), slice(j, min(j + wide, q)))
            for i in range(0, p, high)
            for j in range(0, q, wide)
        ]

    def _multiply(self, last: bool) -> None:
        """Multiply the collected operands, piece by piece."""
        held, self._held, self._ends = _Operands.joined(self._held), [], 0
        sizes = [box.magnitude.amax(0) for box in (held.a, held.b)]
        totals = (sizes[0] @ sizes[1].T).repeat(3, 1, 1)
        if self._totals is None:
            self._totals, self._first = torch.zeros_like(totals), held.a.lower.shape[2]
        paid = None if held.inside is None else torch.zeros_like(totals[:2])
        for number, (rows, columns) in enumerate(self._pieces()):
            terms = held.products(rows, columns)
            low, high = terms.lower[CLEAN], terms.upper[CLEAN]
            totals[:2, rows, columns] = torch.stack([low.sum(-1), high.sum(-1)])
            if len(terms.lower) == 1:
                continue
            hurt = [
                low.sub_(terms.lower[POISONED]).clamp_(min=0.0),
                terms.upper[POISONED].sub_(high).clamp_(min=0.0),
            ]
            if paid is not None:
                paid[:, rows, columns] = torch.stack([h[..., held.inside].sum(-1) for h in hurt])
            if held.free is not None:
                hurt = [h[..., held.free] for h in hurt]
            self._select(number, hurt, last)
        self._totals = self._totals + totals
        if paid is not None:
            self._paid = paid if self._paid is None else self._paid + paid

    def _select(self, number: int, hurt: list[Tensor], last: bool) -> None:
        """Keep the largest differences of a piece so far; only their sum if this is the last call."""
        if number < len(self._worst):
            hurt = [torch.cat(pair, -1) for pair in zip(self._worst[number], hurt, strict=True)]
        else:
            self._worst.append([])
        if self.budget < hurt[0].shape[-1]:
            hurt = [top_k_of_rows(h, self.budget) for h in hurt]
        self._worst[number] = [h.sum(-1, keepdim=True) for h in hurt] if last else hurt


def _in_rows(box: Interval) -> Interval:
    """(states, n, *shape) to (states, numbers, n)."""

    def turned(ends: Tensor) -> Tensor:
        return ends.flatten(2).transpose(1, 2) if ends.dim() > 2 else ends.unsqueeze(1)

    return box.each(turned)


def _joined(parts: list[Interval]) -> Interval:
    states = max(len(part.lower) for part in parts)
    joined = Interval.joined([part.expand_states(states) for part in parts], -1)
    return joined.each(Tensor.contiguous)
