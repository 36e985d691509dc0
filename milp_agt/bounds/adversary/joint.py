"""All selections jointly: a few states of every sample, and the worst samples found by sorting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import Emptied, SampleSum, WorstCase
from milp_agt.bounds.adversary.outer_sum import OuterSum
from milp_agt.bounds.adversary.two_budgets import SeparateSum, top_k, worst_sum
from milp_agt.bounds.adversary.worst_case import open_worst_case
from milp_agt.bounds.step import Step
from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.rounding import TINY, gamma
from milp_agt.threats.poison import Poison, Whole
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION


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

    @property
    def free(self) -> Tensor | None:
        """Samples that may or may not be poisoned; None for all."""
        fixed = [m for m in (self.inside, self.outside) if m is not None]
        return ~torch.stack(fixed).any(0) if fixed else None


class PoisonedSum:
    """Box of ``sum_i term_i``, i < ``size``, where at most ``budget`` terms are in the state POISONED.

    Lower end: ``sum_i clean_i - topk_i max(0, clean_i - poisoned_i)``, upper end alike (SEMin and
    SEMax of Sosnin et al. 2024, section 4). Terms come in chunks of the batch. Only the largest
    differences so far are kept, temporarily up to four times as many, so that few are sorted twice.
    """

    def __init__(self, budget: int, size: int) -> None:
        self.budget, self.size = budget, size
        self._count = 0
        self._totals: list[Tensor] = []  # clean lower, clean upper, sum of magnitudes
        self._paid: list[Tensor] = []  # differences of samples that are poisoned, or may all be
        self._largest: list[list[Tensor]] = []  # pieces with the largest of the others: down, up

    def add(self, terms: Interval, masks: Masks) -> None:
        """Add a chunk of terms, shape (states, n, *shape)."""
        self._count += terms.lower.shape[1]
        totals = [
            terms.lower[CLEAN].sum(0),
            terms.upper[CLEAN].sum(0),
            terms.magnitude.amax(0).sum(0),
        ]
        self._totals = _added(self._totals, totals)
        if terms.lower.shape[0] == 1 or self.budget == 0:
            return
        hurt = [
            (terms.lower[CLEAN] - terms.lower[POISONED]).clamp_(min=0.0),
            (terms.upper[POISONED] - terms.upper[CLEAN]).clamp_(min=0.0),
        ]
        if masks.inside is not None:
            self._paid = _added(self._paid, [h[masks.inside].sum(0) for h in hurt])
        free = masks.free
        if free is not None:
            hurt = [h[free] for h in hurt]
        if self.budget >= self.size:
            self._paid = _added(self._paid, [h.sum(0) for h in hurt])
        else:
            self._hold(hurt)

    def _hold(self, hurt: list[Tensor]) -> None:
        """Keep the differences of a chunk that may be among the largest."""
        pieces = self._largest or [[], []]
        self._largest = [[*held, h] for held, h in zip(pieces, hurt, strict=True)]
        if sum(map(len, self._largest[0])) >= 4 * self.budget:
            keep = self.budget
            self._largest = [
                [h if len(h) <= keep else top_k(h, keep)] for h in map(torch.cat, self._largest)
            ]

    def result(self, inside: int = 0) -> tuple[Interval, Tensor]:
        """The box of the sum, (1, *shape), and ``sum_i max|term_i|``.

        ``inside`` counts the samples of the batch that are known to be poisoned.
        """
        lower, upper, size = self._totals
        if self._largest:
            down, up = (worst_sum(torch.cat(h), self.budget - inside) for h in self._largest)
            lower, upper = lower - down, upper + up
        if self._paid:
            lower, upper = lower - self._paid[0], upper + self._paid[1]
        error = size * gamma(4 * self._count + 16) + TINY
        return Interval(lower.unsqueeze(0), upper.unsqueeze(0)).widen(error), size


def _added(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(old, new, strict=True)] if old else new


class _JointSum:
    """A :class:`PoisonedSum`, or an :class:`OuterSum`, over a batch under a restriction."""

    def __init__(self, step: Step, restriction: Restriction) -> None:
        self._restriction = restriction
        known = Masks.of(restriction, step.samples).inside
        self._inside = 0 if known is None else int(known.sum())
        self._sum = PoisonedSum(step.poison.budget, step.size)
        self._outer = OuterSum(step.poison.budget - self._inside)
        self._multiplies = False

    def add(self, terms: Interval, samples: Tensor) -> None:
        self._sum.add(terms, Masks.of(self._restriction, samples))

    def add_outer(self, a: Interval, b: Interval, samples: Tensor) -> None:
        masks = Masks.of(self._restriction, samples)
        self._outer.add(a, b, masks.inside, masks.free)
        self._multiplies = True

    def result(self) -> tuple[Interval, Tensor]:
        return self._outer.result() if self._multiplies else self._sum.result(self._inside)


class _JointSeparateSum:
    """A :class:`SeparateSum` over a batch under a restriction."""

    def __init__(self, budgets: tuple[int, int], restriction: Restriction) -> None:
        self._sum, self._restriction = SeparateSum(budgets), restriction

    def add(self, terms: Interval, samples: Tensor) -> None:
        masks = Masks.of(self._restriction, samples)
        self._sum.add(terms, masks.inside, masks.outside)

    def result(self) -> tuple[Interval, Tensor]:
        return self._sum.result()


@dataclass(frozen=True)
class Joint:
    """All selections at once: ranges hold for every admissible poisoning of the whole data set.

    A sample is in one of two states, clean or poisoned, or in one of four with separate budgets for
    features and labels. Sums over samples and worst cases of forms take the samples that change most.
    """

    poison: Poison
    restriction: Restriction = UNRESTRICTED

    @property
    def cases(self) -> int:
        return 1

    @property
    def states(self) -> int:
        return self.poison.states

    def leaves(self, step: Step, part: slice | None = None) -> dict[str, Interval]:
        poison = step.poison if part is None else step.poison.take(_indices(part, step))
        boxes = {FEATURES: poison.feature_box(), LABELS: poison.label_box()}
        if poison.whole is not None:
            states = [torch.zeros_like(poison.open), poison.open][: poison.states]
            boxes[SELECTION] = poison.selection_box(torch.stack(states), step.size)
        return boxes

    def total(self, step: Step) -> SampleSum:
        quotas = self.poison.quotas
        if len(quotas) > 1:
            return _JointSeparateSum((quotas[0].budget, quotas[1].budget), self.restriction)
        return _JointSum(step, self.restriction)

    def open_worst_case(self, rows: int) -> WorstCase:
        return open_worst_case(self.poison, rows, self.restriction)

    def emptied(self, step: Step) -> Emptied | None:
        poison = step.poison
        if poison.whole is not Whole.REMOVED or poison.budget < step.size:
            return None
        if not bool(poison.open.all()):
            return None
        maybe = poison.open[:1]
        return Emptied(maybe, ~maybe)

    def nominal(self, step: Step) -> dict[str, Tensor]:
        return {
            FEATURES: step.poison.features.unsqueeze(0),
            LABELS: step.poison.labels.unsqueeze(0),
        }


def _indices(part: slice, step: Step) -> Tensor:
    return torch.arange(part.start, part.stop, device=step.samples.device)
