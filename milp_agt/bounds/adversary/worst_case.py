"""The worst case of linear forms over poisoned samples: coefficients on moves, and charges, per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import OnMoves, WorstCase
from milp_agt.bounds.adversary.sums import Masks
from milp_agt.bounds.adversary.two_budgets import contenders, worst_of_both, worst_sum
from milp_agt.bounds.step import Step
from milp_agt.core.interval import CLEAN
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison


def open_worst_case(poison: Poison, rows: int, restriction: Restriction) -> WorstCase:
    """The kind of worst case that fits a threat model bound to the whole data set."""
    if poison.is_clean:
        return _NoPerturbation(poison, rows)
    if not poison.static and poison.per_batch:
        return _PerStepWorstCase(poison, rows, restriction)
    return PerSampleWorstCase(poison, rows, restriction)


class _NoPerturbation(WorstCase):
    states = 1

    def __init__(self, poison: Poison, rows: int) -> None:
        self._zero = torch.zeros(rows, dtype=torch.float64, device=poison.features.device)
        self._count = len(poison.features)

    def add(self, step: Step, on: OnMoves) -> None:
        return

    def worst(self) -> Tensor:
        return self._zero

    def worst_given(self, own: Tensor, state: int) -> Tensor:
        return self._zero

    def sample_influences(self) -> Tensor:
        return self._zero.unsqueeze(1).expand(-1, self._count)


class _PerStepWorstCase(WorstCase):
    """Adaptive adversary with a budget per batch: top-k in each step, then the sum over steps."""

    def __init__(self, poison: Poison, rows: int, restriction: Restriction) -> None:
        self._poison, self._restriction = poison, restriction
        self._total = torch.zeros(rows, dtype=torch.float64, device=poison.features.device)
        self._own = self._total.new_zeros(rows, poison.states - 1)
        self._met: list[tuple[Tensor, Tensor]] = []  # samples of each step, and their dev

    @property
    def states(self) -> int:
        return self._poison.states

    def add(self, step: Step, on: OnMoves) -> None:
        hurt = _dev(step.poison, on)
        if hurt is not None:
            self._met.append((step.samples, hurt))
            budgets = step.poison.budgets_given(CLEAN)
            worst = _worst_within(hurt, step.samples, budgets, self._restriction)
            self._total = self._total + worst

    def add_own(self, step: Step, on: OnMoves) -> None:
        hurt = _dev(step.poison, on)
        if hurt is not None:
            self._own = hurt.sum(1)

    def worst(self) -> Tensor:
        return self._total + self._own.amax(-1)

    def worst_given(self, own: Tensor, state: int) -> Tensor:
        return self._total + self._own[:, state - 1] if state else self._total

    def sample_influences(self) -> Tensor:
        total = self._total.new_zeros(len(self._total), len(self._poison.features))
        for samples, hurt in self._met:
            total.index_add_(1, samples, hurt.amax(-1))
        return total


class PerSampleWorstCase(WorstCase):
    """Running totals for each sample of the window that may be poisoned, one slot per sample.

    Static adversary: coefficients on the same move are added over the steps before the support
    function is taken, so effects of one perturbation in different steps may cancel.
    Adaptive with one poisoned set for the run: the support function is taken in each step.

    With a budget per batch (and a static adversary), the samples are grouped by the first batch that
    the backward pass met them in. Each group lies within one batch, so at most ``budget`` of its
    samples are poisoned.
    """

    def __init__(self, poison: Poison, rows: int, restriction: Restriction) -> None:
        self._poison, self._restriction = poison, restriction
        self._rows = rows
        device = poison.features.device
        self._exposed = poison.exposed
        self._slots = torch.full((len(poison.features),), -1, dtype=torch.int64, device=device)
        self._group_of = self._slots.clone()
        self._samples = self._slots[:0]
        self._totals = OnMoves()
        self._batches = 0
        size = (rows, 0, poison.states - 1)
        self._devs = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, step: Step, on: OnMoves) -> None:
        if not self._poison.static:
            on = OnMoves(charges=_dev(step.poison, on))
        at = self._exposed[step.samples].nonzero()[:, 0]
        if len(at) < step.size:
            on = on.map(lambda each: each[:, at])
        slots = self._slots_of(step.samples, step.samples[at])
        pairs = zip(self._totals.parts, on.parts, strict=True)
        self._totals = OnMoves(*(self._accumulated(total, new, slots) for total, new in pairs))
        # Only slots of this batch have changed.
        of_batch = self._totals.map(lambda each: each[:, slots])
        changed = _dev(self._poison.take(step.samples[at]), of_batch)
        self._devs = _padded(self._devs, len(self._samples))
        if changed is not None:
            self._devs = self._devs.index_copy(1, slots, changed)

    def _slots_of(self, batch: Tensor, samples: Tensor) -> Tensor:
        """The slots of ``samples``, the part of ``batch`` that may be poisoned; opens new slots."""
        self._batches += 1
        met = self._group_of[batch]
        group = self._batches if self._poison.per_batch else 0
        self._group_of[batch] = torch.where(met < 0, group, met)
        new = samples[self._slots[samples] < 0]
        first = len(self._samples)
        self._slots[new] = torch.arange(first, first + len(new), device=new.device)
        self._samples = torch.cat([self._samples, new])
        return self._slots[samples]

    def _accumulated(
        self, total: Tensor | None, new: Tensor | None, slots: Tensor
    ) -> Tensor | None:
        """The totals of all slots with a batch added; they belong to this object and change in place."""
        if total is None and new is None:
            return None
        if total is None:
            assert new is not None
            total = new.new_zeros((self._rows, 0, *new.shape[2:]))
        total = _padded(total, len(self._samples))
        return total if new is None else total.index_add_(1, slots, new)

    def _hurt(self) -> tuple[Tensor, Tensor]:
        """``dev`` of every slot, (rows, slots, states - 1), and the sample of each slot."""
        return self._devs, self._samples

    @property
    def states(self) -> int:
        return self._poison.states

    def _worst_by_group(
        self, hurt: Tensor, samples: Tensor, budgets: tuple[int, ...]
    ) -> dict[int, Tensor]:
        """The worst case of each group of samples with its own budgets, (rows,) each."""
        if not self._poison.per_batch:
            return {0: _worst_within(hurt, samples, budgets, self._restriction)}
        worst, groups = {}, self._group_of[samples]
        for group in groups.unique().tolist():
            part = groups == group
            worst[group] = _worst_within(hurt[:, part], samples[part], budgets, self._restriction)
        return worst

    def sample_influences(self) -> Tensor:
        hurt, samples = self._hurt()
        total = hurt.new_zeros(self._rows, len(self._poison.features))
        return total.index_add(1, samples, hurt.amax(-1))

    def worst(self) -> Tensor:
        hurt, samples = self._hurt()
        zero = torch.zeros(self._rows, dtype=torch.float64, device=hurt.device)
        return sum(
            self._worst_by_group(hurt, samples, self._poison.budgets_given(CLEAN)).values(), zero
        )

    def worst_given(self, own: Tensor, state: int) -> Tensor:
        hurt, samples = self._hurt()
        slots = self._slots[own]
        rows = (slots >= 0).nonzero()[:, 0]  # the others have no totals
        at = (rows, slots[rows])
        paid = hurt.new_zeros(len(own), hurt.shape[2]).index_put((rows,), hurt[at])
        others = hurt.index_put(at, hurt.new_zeros(()))
        worst = self._worst_by_group(others, samples, self._poison.budgets_given(CLEAN))
        if not state:
            return sum(worst.values(), hurt.new_zeros(len(own)))
        fewer = self._worst_by_group(others, samples, self._poison.budgets_given(state))
        home = self._group_of[own]
        # _worst_within has already taken samples known to be poisoned out of the budget.
        inside = sorted(self._restriction.inside)
        known = torch.isin(own, torch.tensor(inside, dtype=own.dtype, device=own.device))
        total = paid[:, state - 1]
        for group, full in worst.items():
            total = total + torch.where((home == group) & ~known, fewer[group], full)
        return total


def _padded(totals: Tensor, count: int) -> Tensor:
    """The same totals, with zeros for new slots, (rows, count, ...)."""
    if totals.shape[1] == count:
        return totals
    extra = totals.new_zeros((totals.shape[0], count - totals.shape[1], *totals.shape[2:]))
    return torch.cat([totals, extra], 1)


def _dev(poison: Poison, on: OnMoves) -> Tensor | None:
    """``dev_i >= 0`` of each sample in each state but CLEAN, (rows, n, states - 1); None if all are 0."""
    features, labels, charges = on.parts
    if features is None and labels is None and charges is None:
        return None
    if poison.label_quota is not None:
        return _dev_separate(poison, on)
    if features is None and labels is None:
        assert charges is not None
        hurt = charges
    else:
        support = poison.support(features, labels).unsqueeze(-1)
        hurt = support if charges is None else support + charges
    return torch.where(poison.open[:, None], hurt, 0.0).clamp(min=0.0)


def _dev_separate(poison: Poison, on: OnMoves) -> Tensor:
    """:func:`_dev` with separate budgets: the support of features, labels or both, plus the charge."""
    of_features = 0.0 if on.features is None else poison.support(on.features, None)
    of_labels = 0.0 if on.labels is None else poison.support(None, on.labels)
    moved = [of_features, of_labels, of_features + of_labels]
    given = [m for m in (*moved, on.charges) if isinstance(m, Tensor)]
    size = given[-1].shape[:2]
    hurt = torch.stack([given[0].new_zeros(size) + m for m in moved], -1)
    hurt = hurt if on.charges is None else hurt + on.charges
    x, y = (quota.open for quota in poison.quotas)
    return torch.where(torch.stack([x, y, x & y], -1), hurt, 0.0).clamp(min=0.0)


def _worst_within(
    hurt: Tensor, samples: Tensor, budgets: tuple[int, ...], restriction: Restriction
) -> Tensor:
    """The worst sum of ``hurt`` (rows, n, states - 1) within budgets and under a restriction."""

    masks = Masks.of(restriction, samples)
    if masks.outside is not None:
        hurt = torch.where(masks.outside[:, None], 0.0, hurt)
    if len(budgets) > 1:
        return _worst_within_two(hurt.permute(2, 1, 0), (budgets[0], budgets[1]), masks.inside)
    (budget,), hurt, inside = budgets, hurt[..., 0], masks.inside
    if inside is None:
        return worst_sum(hurt.T, budget)
    paid = hurt[:, inside].sum(1)
    return paid + worst_sum(hurt[:, ~inside].T, budget - int(inside.sum()))


def _worst_within_two(hurt: Tensor, budgets: tuple[int, int], inside: Tensor | None) -> Tensor:
    """:func:`_worst_within` with two budgets, (3, n, rows); ``inside`` (n,) are known to be poisoned."""
    if inside is None:
        return worst_of_both(contenders(hurt, sum(budgets)), budgets)
    free = contenders(hurt[:, ~inside], sum(budgets))
    both = torch.cat([free, hurt[:, inside]], 1)
    forced = torch.zeros_like(both[0], dtype=torch.bool)
    forced[free.shape[1] :] = True
    return worst_of_both(both, budgets, forced)
