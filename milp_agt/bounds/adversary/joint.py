"""All selections jointly: a few states of every sample, and the worst samples found by sorting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import Emptied, SampleSum, WorstCase
from milp_agt.bounds.adversary.outer_sum import OuterSum
from milp_agt.bounds.adversary.two_budgets import contenders, top_k, worst_of_both, worst_sum
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
    """Box of ``sum_i term_i``, i < ``size``, where within ``budgets`` terms are in states but CLEAN.

    Of one budget the lower end is ``sum_i clean_i - topk_i max(0, clean_i - poisoned_i)``, the upper end
    alike (SEMin and SEMax of Sosnin et al. 2024, section 4); of two, for features and labels, it is
    ``sum_i clean_i`` less :func:`worst_of_both` of ``max(0, clean_i - state_i)``. Terms come in chunks of the
    batch. Only the largest differences so far are kept: temporarily up to four times as many, so that few
    are sorted twice, or contenders.
    """

    def __init__(self, budgets: tuple[int, ...], size: int) -> None:
        self.budgets, self.size = budgets, size
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

    def add(self, terms: Interval, masks: Masks) -> None:
        """Add a chunk of terms, shape (states, n, *shape)."""
        self._count += terms.lower.shape[1]
        low, high = terms.lower[CLEAN], terms.upper[CLEAN]
        totals = [low.sum(0), high.sum(0), terms.magnitude.amax(0).sum(0)]
        self._totals = _added(self._totals, totals)
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
        if not one or sum(h.shape[1] for h in self._largest[0]) >= 4 * self.budgets[0]:
            self._largest = [[self._contenders(torch.cat(held, 1))] for held in self._largest]

    def _contenders(self, hurt: Tensor) -> Tensor:
        if len(self.budgets) > 1:
            return contenders(hurt, sum(self.budgets))
        (keep,) = self.budgets
        return hurt if hurt.shape[1] <= keep else top_k(hurt[0], keep)[None]

    def result(self) -> tuple[Interval, Tensor]:
        """The box of the sum, (1, *shape), and ``sum_i max|term_i|``."""
        lower, upper, size = self._totals
        if self._largest[0]:
            down, up = map(self._worst, self._largest, self._forced)
            lower, upper = lower - down, upper + up
        if self._paid:
            lower, upper = lower - self._paid[0], upper + self._paid[1]
        error = size * gamma(4 * self._count + 16) + TINY
        return Interval(lower.unsqueeze(0), upper.unsqueeze(0)).widen(error), size

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


class _JointSum:
    """A :class:`PoisonedSum` over a batch under a restriction."""

    def __init__(self, step: Step, restriction: Restriction) -> None:
        self._restriction = restriction
        budgets = tuple(quota.budget for quota in step.poison.quotas)
        self._sum: PoisonedSum | OuterSum = PoisonedSum(budgets, step.size)

    def add(self, terms: Interval, samples: Tensor) -> None:
        assert isinstance(self._sum, PoisonedSum)
        self._sum.add(terms, Masks.of(self._restriction, samples))

    def result(self) -> tuple[Interval, Tensor]:
        return self._sum.result()


class _JointProducts(_JointSum):
    """The same of one budget, or an :class:`OuterSum`."""

    def __init__(self, step: Step, restriction: Restriction) -> None:
        super().__init__(step, restriction)
        known = Masks.of(restriction, step.samples).inside
        self._outer = OuterSum(step.poison.budget - (0 if known is None else int(known.sum())))

    def add_outer(self, a: Interval, b: Interval, samples: Tensor) -> None:
        masks = Masks.of(self._restriction, samples)
        self._outer.add(a, b, masks.inside, masks.free)
        self._sum = self._outer


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
        kind = _JointProducts if len(self.poison.quotas) == 1 else _JointSum
        return kind(step, self.restriction)

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
