"""All selections jointly: a few states of every sample, and the worst samples found by sorting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import Emptied, SampleSum, WorstCase
from milp_agt.bounds.adversary.sums import Masks, OuterSum, PoisonedSum
from milp_agt.bounds.adversary.worst_case import open_worst_case
from milp_agt.bounds.step import Step
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.threats.poison import Poison, Whole
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION


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

    def add_outer(self, a: Interval, b: Interval, samples: Tensor) -> None:
        if isinstance(self._sum, PoisonedSum):
            self._sum = OuterSum(self._sum.budgets[0], self._sum.size)
        self._sum.add(a, b, Masks.of(self._restriction, samples))


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
