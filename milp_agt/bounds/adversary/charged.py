"""For budgets with too many selections to list: errors are charged to the samples that cause them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from milp_agt.bounds.adversary.box_algebra import AddedInfluences, BoxAlgebra
from milp_agt.bounds.adversary.model import Emptied, SampleSum, WorstCase
from milp_agt.bounds.adversary.worst_case import PerSampleWorstCase
from milp_agt.bounds.step import NodeOrder, Step
from milp_agt.core.influence import Influence, charge_of
from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.rounding import gamma
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.sign import Sign
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, LABELS
from milp_agt.training.training import UpdateRule


def can_be_charged(poison: Poison, restriction: Restriction) -> bool:
    """Whether one set of samples is poisoned for the whole run, and it may be any set of that size.

    False with separate budgets for features and labels: then there are two such sets.
    """
    if poison.is_clean or poison.per_batch or poison.whole is not None:
        return False
    if poison.label_quota is not None:
        return False
    return restriction == UNRESTRICTED


def without_influence(schedule: NodeOrder, update: UpdateRule) -> str | None:
    """The key of an operation without a rule for influences; None if all have one."""
    if update.l1:
        return Sign.key
    if update.clip_total is not None:
        return SquaredNorm.key
    if update.projection is not None:
        return Clip.key
    return next((n.op.key for n in schedule.all if n.inputs and not n.op.has_influence), None)


@dataclass(frozen=True)
class Charged:
    """Boxes are influences: a base, and how far each sample that can be poisoned moves it.

    All bounds are ``base + sum_{j in S} influence_j`` for every admissible set S at once, errors of
    relaxations included, and the ``budget`` largest influences are taken *after* the backward pass.
    Joint bounds take the worst samples of each node separately; here one set counts for all nodes.
    """

    poison: Poison

    @cached_property
    def columns(self) -> Tensor:
        """Samples that can be poisoned, (columns,)."""
        return self.poison.open.nonzero()[:, 0]

    @property
    def cases(self) -> int:
        return len(self.columns) + 1

    @property
    def states(self) -> int:
        return self.cases

    @cached_property
    def algebra(self) -> BoxAlgebra:
        column_of = torch.full_like(self.poison.open, -1, dtype=torch.int64)
        column_of[self.columns] = torch.arange(len(self.columns), device=column_of.device)
        return AddedInfluences(self.poison.budget, column_of)

    def leaves(self, step: Step, part: slice | None = None) -> dict[str, Interval]:
        samples = step.samples if part is None else step.samples[part]
        data = self.poison.take(samples)
        mask = torch.cat([torch.zeros_like(samples[None]) > 0, self.columns[:, None] == samples])

        def moved(box: Interval) -> Interval:
            if len(box.lower) == 1:
                return box
            own = mask.reshape(*mask.shape, *[1] * (box.lower.dim() - 2))
            return Interval(
                torch.where(own, box.lower[POISONED], box.lower[CLEAN]),
                torch.where(own, box.upper[POISONED], box.upper[CLEAN]),
            )

        return {FEATURES: moved(data.feature_box()), LABELS: moved(data.label_box())}

    def nominal(self, step: Step) -> dict[str, Tensor]:
        return {
            FEATURES: step.poison.features.unsqueeze(0),
            LABELS: step.poison.labels.unsqueeze(0),
        }

    def total(self, step: Step) -> SampleSum:
        return _InfluenceSum(self.poison.budget)

    def open_worst_case(self, rows: int) -> WorstCase:
        return _ColumnWorstCase(self, rows)

    def sample_influences(self, bounds: Tensor) -> Tensor:
        """How much each sample can lower forms with these bounds, (rows, cases) to (rows, N)."""
        alone = charge_of(bounds[:, :1] - bounds[:, 1:])
        none = alone.new_zeros(len(alone), len(self.poison.open))
        return none.index_copy(1, self.columns, alone * (1.0 + gamma(8)))

    def emptied(self, step: Step) -> Emptied | None:
        return None


class _InfluenceSum:
    """Influences on a sum over the samples of a batch."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._terms: list[Influence] = []
        self._size: Tensor | None = None

    def add(self, terms: Interval, samples: Tensor) -> None:
        own = Influence.of(terms, self._budget, None)
        size = own.hull().magnitude[0].sum(0)
        self._size = size if self._size is None else self._size + size
        op = SumSamples(terms.lower.dim() - 2)
        self._terms.append(op.influence(own))

    def result(self) -> tuple[Interval, Tensor]:
        assert self._size is not None
        first, *others = self._terms
        for term in others:
            base = Interval(first.base.lower + term.base.lower, first.base.upper + term.base.upper)
            first = Influence(base, first.down + term.down, first.up + term.up, self._budget)
        total = first.settled(self._size, 8.0 * len(self._terms) + 8.0)
        return total.columns(), self._size


class _ColumnWorstCase(PerSampleWorstCase):
    """The most that each sample alone can lower each form, one column each; 0 for the base."""

    def __init__(self, adversary: Charged, rows: int) -> None:
        super().__init__(adversary.poison, rows, UNRESTRICTED)
        self._columns = adversary.columns

    def worst_case(self) -> Tensor:
        alone = self.sample_influences()[:, self._columns]
        return torch.cat([torch.zeros_like(alone[:, :1]), alone], 1)

    def worst_case_given(self, own: Tensor) -> Tensor:
        return self.worst_case()
