"""Boxes of sums over the samples of a batch, of which some are poisoned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.adversary.two_budgets import contenders, top_k, worst_of_both, worst_sum
from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.restriction import Restriction
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.interval_products import corner_products

# Bounds of operands that are collected before they are multiplied, and products computed at once.
HELD = 2**22
AT_ONCE = 2**16


class PlainSum:
    """Box of ``sum_i term_i``, for every state separately."""

    def __init__(self, cases: int) -> None:
        self._cases = cases
        self._count = 0
        self._lower: Tensor | None = None
        self._upper = self._size = torch.zeros((), dtype=torch.float64)

    def add(self, terms: Interval, samples: Tensor) -> None:
        self._count += terms.lower.shape[1]
        lower = terms.lower.sum(1)
        self._lower = lower if self._lower is None else self._lower + lower
        self._upper = self._upper + terms.upper.sum(1)
        self._size = self._size + terms.magnitude.amax(0).sum(0)

    def result(self) -> tuple[Interval, Tensor]:
        assert self._lower is not None
        error = self._size * gamma(4 * self._count + 16) + TINY
        box = Interval(self._lower, self._upper).widen(error)
        return box.expand_states(self._cases), self._size


@dataclass(frozen=True)
class Masks:
    """A restriction on one batch: (n,) masks, or None where it demands nothing."""

    inside: Tensor | None = None
    outside: Tensor | None = None

    @staticmethod
    def of(restriction: Restriction, samples: Tensor) -> Masks:
        def mask(chosen: frozenset[int]) -> Tensor | None:
            if not chosen:
                return None
            return torch.isin(samples, torch.tensor(sorted(chosen), device=samples.device))

        return Masks(mask(restriction.inside), mask(restriction.outside))

    @staticmethod
    def joined(parts: Sequence[Masks]) -> Masks:
        """Of several chunks."""

        def both(masks: list[Tensor | None]) -> Tensor | None:
            known = [mask for mask in masks if mask is not None]
            return torch.cat(known) if known else None

        return Masks(both([part.inside for part in parts]), both([part.outside for part in parts]))

    @property
    def free(self) -> Tensor | None:
        """Samples that may or may not be poisoned; None for all."""
        fixed = [m for m in (self.inside, self.outside) if m is not None]
        return ~torch.stack(fixed).any(0) if fixed else None


class PoisonedSum:
    """Box of ``sum_i term_i``, i < ``size``, where within ``budgets`` terms are in states but CLEAN.

    Of one budget the lower end is ``sum_i clean_i - topk_i max(0, clean_i - poisoned_i)``, the upper end
    alike (SEMin and SEMax of Sosnin et al. 2024, section 4); of two, for features and labels, it is
    ``sum_i clean_i`` less :func:`worst_of_both` of ``max(0, clean_i - state_i)``. Terms come in chunks of the
    batch. Only the largest differences so far are kept: temporarily up to ``spare`` times as many, so that
    few are sorted twice, or contenders.
    """

    def __init__(self, budgets: tuple[int, ...], size: int, spare: int = 4) -> None:
        self.budgets, self.size, self.spare = budgets, size, spare
        self._count = self._inside = 0
        self._totals: list[Tensor] = []  # clean lower, clean upper, sum of magnitudes
        self._paid: list[Tensor] = []  # differences of samples that are poisoned, or may all be
        self._forced: list[list[Tensor]] = [
            [],
            [],
        ]  # of two budgets, those known to be poisoned somehow
        self._largest: list[list[Tensor]] = [
            [],
            [],
        ]  # pieces with the largest of the others: down, up

    def add(self, terms: Interval, masks: Masks, size: Tensor | None = None) -> None:
        """Add a chunk of terms, (states, n, *shape); ``size`` is the sum of their sizes, if it is known."""
        self._count += terms.lower.shape[1]
        low, high = terms.lower[CLEAN], terms.upper[CLEAN]
        size = terms.magnitude.amax(0).sum(0) if size is None else size
        self._totals = _added(self._totals, [low.sum(0), high.sum(0), size])
        if len(terms.lower) == 1 or not any(self.budgets):
            return
        hurt = [  # (states - 1, n, *shape)
            (low - terms.lower[POISONED:]).clamp_(min=0.0),
            (terms.upper[POISONED:] - high).clamp_(min=0.0),
        ]
        one = len(self.budgets) == 1
        if masks.inside is not None:
            self._inside += int(masks.inside.sum())
            known = [h[:, masks.inside] for h in hurt]
            if one:
                self._paid = _added(self._paid, [h[0].sum(0) for h in known])
            else:
                self._forced = _longer(self._forced, known)
        free = masks.free
        if free is not None:
            hurt = [h[:, free] for h in hurt]
        if one and self.budgets[0] >= self.size:
            self._paid = _added(self._paid, [h[0].sum(0) for h in hurt])
            return
        self._largest = _longer(self._largest, hurt)
        if not one or sum(h.shape[1] for h in self._largest[0]) >= self.spare * self.budgets[0]:
            self._largest = [[self._contenders(torch.cat(held, 1))] for held in self._largest]

    def _contenders(self, hurt: Tensor) -> Tensor:
        if len(self.budgets) > 1:
            return contenders(hurt, sum(self.budgets))
        (keep,) = self.budgets
        return hurt if hurt.shape[1] <= keep else top_k(hurt[0], keep)[None]

    def result(self) -> tuple[Interval, Tensor]:
        """The box of the sum, (1, *shape), and ``sum_i max|term_i|``."""
        box, size = self.ends()
        return box.widen(size * gamma(4 * self._count + 16) + TINY), size

    def ends(self) -> tuple[Interval, Tensor]:
        """The same but for rounding."""
        lower, upper, size = self._totals
        if self._largest[0]:
            down, up = map(self._worst, self._largest, self._forced)
            lower, upper = lower - down, upper + up
        if self._paid:
            lower, upper = lower - self._paid[0], upper + self._paid[1]
        return Interval(lower.unsqueeze(0), upper.unsqueeze(0)), size

    def _worst(self, held: list[Tensor], known: list[Tensor]) -> Tensor:
        hurt = torch.cat([*held, *known], 1)
        if len(self.budgets) == 1:
            return worst_sum(hurt[0], self.budgets[0] - self._inside)
        forced = None
        if known:
            forced = torch.zeros_like(hurt[0], dtype=torch.bool)
            forced[sum(h.shape[1] for h in held) :] = True
        return worst_of_both(hurt, (self.budgets[0], self.budgets[1]), forced)


def _added(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(old, new, strict=True)] if old else new


def _longer(old: list[list[Tensor]], new: list[Tensor]) -> list[list[Tensor]]:
    return [[*held, h] for held, h in zip(old, new, strict=True)]


class OuterSum:
    """Box of ``sum_i a_i (x) b_i``: the :class:`PoisonedSum` of one budget of the boxes of all products.

    Those boxes would have as many entries for each sample as the sum has. Here only the operands are kept;
    products are computed, selected from and dropped a few entries at a time, with samples along the last
    axis of memory.
    """

    def __init__(self, budget: int, size: int) -> None:
        self.budget, self.size = budget, size
        self._held: list[tuple[Interval, Interval, Masks]] = []
        self._ends = self._count = self._first = 0
        self._shape: tuple[int, ...] = ()
        self._grid: tuple[int, int] = (0, 0)
        self._sums: list[PoisonedSum] = []  # of rectangles of entries

    def add(self, a: Interval, b: Interval, masks: Masks) -> None:
        """Add operands (states, n, p...) and (states, n, q...) of a chunk of samples."""
        self._shape = (*a.lower.shape[2:], *b.lower.shape[2:])
        self._held.append((_in_rows(a), _in_rows(b), masks))
        self._count += a.lower.shape[1]
        self._ends += 2 * (a.lower.numel() + b.lower.numel())
        if self._ends > HELD:
            self._sums = [total for _, _, total in self._multiplied()]

    def result(self) -> tuple[Interval, Tensor]:
        """The box of the sum, (1, *shape), and ``sum_i max|term_i|``."""
        every: Tensor | None = None
        for rows, columns, total in self._multiplied():
            box, size = total.ends()
            every = size.new_empty(3, *self._grid) if every is None else every
            every[:, rows, columns] = torch.stack([box.lower[0], box.upper[0], size])
        assert every is not None
        lower, upper, size = (part.reshape(1, *self._shape) for part in every)
        # Covers roundings of the run's products and sums, and of those here, by the sizes of the terms.
        box = Interval(lower, upper).widen(size * gamma(4 * self._count + 64) + TINY)
        return box, size[0]

    def _multiplied(self) -> Iterator[tuple[slice, slice, PoisonedSum]]:
        """The sums of some entries after the others, with all that was collected added."""
        held, self._held, self._ends = self._held, [], 0
        if not held:
            for piece, total in zip(self._rectangles(), self._sums, strict=True):
                yield *piece, total
            return
        a, b = _joined([part[0] for part in held]), _joined([part[1] for part in held])
        masks = Masks.joined([part[2] for part in held])
        sizes = a.magnitude.amax(0) @ b.magnitude.amax(0).T
        self._grid, self._first = (len(sizes), sizes.shape[1]), self._first or a.lower.shape[2]
        for number, (rows, columns) in enumerate(self._rectangles()):
            total = PoisonedSum((self.budget,), self.size, spare=1)
            if self._sums:
                total = self._sums[number]
            products = corner_products(
                Interval(a.lower[:, rows, None], a.upper[:, rows, None]),
                Interval(b.lower[:, None, columns], b.upper[:, None, columns]),
            )
            terms = products.each(lambda end: end.movedim(-1, 1))
            total.add(terms, masks, sizes[rows, columns])
            yield rows, columns, total

    def _rectangles(self) -> Iterator[tuple[slice, slice]]:
        """Entries whose products over as many samples as come first fit into the processor's cache."""
        p, q = self._grid
        entries = max(1, AT_ONCE // self._first)
        wide = min(q, entries)
        high = max(1, entries // wide)
        for i in range(0, p, high):
            for j in range(0, q, wide):
                yield slice(i, min(i + high, p)), slice(j, min(j + wide, q))


def _in_rows(box: Interval) -> Interval:
    """(states, n, *shape) to (states, numbers, n)."""

    def turned(ends: Tensor) -> Tensor:
        return ends.flatten(2).transpose(1, 2) if ends.dim() > 2 else ends.unsqueeze(1)

    return box.each(turned)


def _joined(parts: list[Interval]) -> Interval:
    states = max(len(part.lower) for part in parts)
    joined = Interval.joined([part.expand_states(states) for part in parts], -1)
    return joined.each(Tensor.contiguous)
