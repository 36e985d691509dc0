"""What a linear form owes to the adversary: coefficients on moves and charges, sample by sample."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from milp_agt.core.restriction import Restriction
from milp_agt.engines.step import Step
from milp_agt.poison import Poison


def worst_sum(hurt: Tensor, budget: int) -> Tensor:
    """The most that ``budget`` samples can add up to: top-k sum of ``hurt >= 0`` (n, ...) on axis 0."""
    if budget <= 0 or len(hurt) == 0:
        return torch.zeros_like(hurt.sum(0))
    if budget >= len(hurt):
        return hurt.sum(0)
    if budget == 1:
        return hurt.amax(0)
    return hurt.topk(budget, dim=0, sorted=False).values.sum(0)


class Debt(ABC):
    """Collects, over the steps of a window, how much poison can lower each of ``rows`` forms.

    The poisoned sample i lowers a form by at most ``dev_i``: the support function of its admissible
    moves plus the charges of the relaxations that hold with a smaller offset if i is poisoned. The
    adversary is worth the sum of the ``budget`` largest ``dev_i``.
    """

    @abstractmethod
    def add(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        """Add one step: coefficients on the moves of the batch (rows, n, ...) and charges (rows, n)."""

    @abstractmethod
    def add_own(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        """Add the step of a node of one sample: each row has entries at its own sample only."""

    @abstractmethod
    def worst_given(self, own: Tensor, poisoned: bool) -> Tensor:
        """The same if it is known whether sample ``own[r]`` of the data set is poisoned, (rows,).

        Not poisoned: the ``budget`` worst of the others. Poisoned: its own debt in full and the
        ``budget - 1`` worst of the others. With a fresh selection in every batch this is known of
        the own step only.
        """

    @abstractmethod
    def worst(self) -> Tensor:
        """The most that the adversary can lower each form, (rows,)."""

    @abstractmethod
    def by_sample(self) -> Tensor:
        """``dev_i`` of every sample of the data set, (rows, N)."""

    def owed(self) -> Tensor:
        """:meth:`worst` for the one case that there is, (rows, 1)."""
        return self.worst().unsqueeze(1)

    def owed_given(self, own: Tensor) -> Tensor:
        """:meth:`worst_given` for the states CLEAN and POISONED, (rows, 2)."""
        return torch.stack([self.worst_given(own, False), self.worst_given(own, True)], 1)


def open_debt(poison: Poison, rows: int, restriction: Restriction) -> Debt:
    """The right kind of debt for a threat model bound to the whole data set."""
    if poison.is_clean:
        return _NoDebt(poison, rows)
    if not poison.static and poison.per_batch:
        return _PerStepDebt(poison, rows, restriction)
    return PerSampleDebt(poison, rows, restriction)


class _NoDebt(Debt):
    def __init__(self, poison: Poison, rows: int) -> None:
        self._zero = torch.zeros(rows, dtype=torch.float64, device=poison.features.device)
        self._count = len(poison.features)

    def add(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        return

    def worst(self) -> Tensor:
        return self._zero

    def by_sample(self) -> Tensor:
        return self._zero.unsqueeze(1).expand(-1, self._count)

    def add_own(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        return

    def worst_given(self, own: Tensor, poisoned: bool) -> Tensor:
        return self._zero

    def owed_given(self, own: Tensor) -> Tensor:
        return self._zero.unsqueeze(1)


class _PerStepDebt(Debt):
    """Adaptive adversary, budget in each batch: top-k in each step, then the sum over steps."""

    def __init__(self, poison: Poison, rows: int, restriction: Restriction) -> None:
        self._restriction = restriction
        self._total = torch.zeros(rows, dtype=torch.float64, device=poison.features.device)
        self._own = self._total
        self._of_samples = self._total.new_zeros(rows, len(poison.features))

    def add(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        hurt = _dev(step.poison, features, labels, charges)
        if hurt is not None:
            self._of_samples = self._of_samples.index_add(1, step.samples, hurt)
            self._total = self._total + _spend(
                hurt, step.samples, step.poison.budget, self._restriction
            )

    def worst(self) -> Tensor:
        return self._total + self._own

    def by_sample(self) -> Tensor:
        return self._of_samples

    def add_own(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        hurt = _dev(step.poison, features, labels, charges)
        if hurt is not None:
            self._own = hurt.sum(1)

    def worst_given(self, own: Tensor, poisoned: bool) -> Tensor:
        return self._total + self._own if poisoned else self._total


class PerSampleDebt(Debt):
    """One account for each sample of the data set that the window has met.

    Static adversary: coefficients on the same move are added over the steps before the support
    function is taken, so that what a perturbation gains in one step it may lose in another.
    Adaptive with one poisoned set for the run: the support function is taken in each step.

    With the budget counted in each batch (and a static adversary), the samples are parted by the
    first batch of the window that held them; each part lies within one batch, so at most ``budget``
    of it are poisoned.
    """

    def __init__(self, poison: Poison, rows: int, restriction: Restriction) -> None:
        self._poison, self._restriction = poison, restriction
        self._rows = rows
        device = poison.features.device
        self._slots = torch.full((len(poison.features),), -1, dtype=torch.int64, device=device)
        self._groups = torch.zeros(0, dtype=torch.int64, device=device)
        self._samples = torch.zeros(0, dtype=torch.int64, device=device)
        self._features: Tensor | None = None
        self._labels: Tensor | None = None
        self._charges: Tensor | None = None
        self._batches = 0

    def add(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        slots = self._slots_of(step)
        if not self._poison.static:
            charges, features, labels = _dev(step.poison, features, labels, charges), None, None
        self._features = self._accumulated(self._features, features, slots)
        self._labels = self._accumulated(self._labels, labels, slots)
        self._charges = self._accumulated(self._charges, charges, slots)

    def _slots_of(self, step: Step) -> Tensor:
        """Positions of the batch in the accounts; new samples get new ones."""
        self._batches += 1
        new = step.samples[self._slots[step.samples] < 0]
        if len(new):
            first = len(self._samples)
            self._slots[new] = torch.arange(first, first + len(new), device=new.device)
            self._samples = torch.cat([self._samples, new])
            group = self._batches if self._poison.per_batch else 0
            self._groups = torch.cat([self._groups, torch.full_like(new, group)])
        return self._slots[step.samples]

    def _accumulated(
        self, total: Tensor | None, new: Tensor | None, slots: Tensor
    ) -> Tensor | None:
        if total is not None and total.shape[1] < len(self._samples):
            extra = len(self._samples) - total.shape[1]
            pad = total.new_zeros((total.shape[0], extra, *total.shape[2:]))
            total = torch.cat([total, pad], 1)
        if new is None:
            return total
        if total is None:
            total = new.new_zeros((self._rows, len(self._samples), *new.shape[2:]))
        return total.index_add(1, slots, new)

    def add_own(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        self.add(step, features, labels, charges)

    def _hurt(self) -> tuple[Tensor, Tensor]:
        """``dev`` of every account, (rows, accounts), and the samples that they belong to."""
        samples = self._samples
        hurt = _dev(self._poison.take(samples), self._features, self._labels, self._charges)
        if hurt is None:
            size = (self._rows, len(samples))
            hurt = torch.zeros(size, dtype=torch.float64, device=samples.device)
        return hurt, samples

    def _spent(self, hurt: Tensor, samples: Tensor, budget: int) -> dict[int, Tensor]:
        """The worst of each group of samples that has a budget of its own, (rows,) each."""
        if not self._poison.per_batch:
            return {0: _spend(hurt, samples, budget, self._restriction)}
        spent = {}
        for group in self._groups.unique().tolist():
            part = self._groups == group
            spent[group] = _spend(hurt[:, part], samples[part], budget, self._restriction)
        return spent

    def by_sample(self) -> Tensor:
        hurt, samples = self._hurt()
        total = hurt.new_zeros(self._rows, len(self._poison.features))
        return total.index_add(1, samples, hurt)

    def worst(self) -> Tensor:
        hurt, samples = self._hurt()
        zero = torch.zeros(self._rows, dtype=torch.float64, device=hurt.device)
        return sum(self._spent(hurt, samples, self._poison.budget).values(), zero)

    def worst_given(self, own: Tensor, poisoned: bool) -> Tensor:
        hurt, samples = self._hurt()
        slots = self._slots[own]
        rows = torch.arange(len(own), device=hurt.device)
        paid = hurt[rows, slots]
        others = hurt.index_put((rows, slots), torch.zeros_like(paid))
        budget = self._poison.budget
        spent = self._spent(others, samples, budget)
        if not poisoned:
            return torch.stack(list(spent.values())).sum(0)
        fewer = self._spent(others, samples, budget - 1)
        home = self._groups[slots]
        # A sample that is known to be inside has used up its part of the budget in _spend already.
        inside = sorted(self._restriction.inside)
        known = torch.isin(own, torch.tensor(inside, dtype=own.dtype, device=own.device))
        total = paid
        for group, full in spent.items():
            total = total + torch.where((home == group) & ~known, fewer[group], full)
        return total


def _dev(
    poison: Poison, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
) -> Tensor | None:
    """``dev_i >= 0`` of each sample, (rows, n); None if nothing was added."""
    if features is None and labels is None:
        return None if charges is None else torch.where(poison.open, charges, 0.0).clamp(min=0.0)
    support = poison.support(features, labels)
    hurt = support if charges is None else support + charges
    return torch.where(poison.open, hurt, 0.0).clamp(min=0.0)


def _spend(hurt: Tensor, samples: Tensor, budget: int, restriction: Restriction) -> Tensor:
    """The ``budget`` worst of ``hurt`` (rows, n), under what is known of the selection."""
    if restriction.outside:
        out = torch.tensor(sorted(restriction.outside), device=samples.device)
        hurt = torch.where(torch.isin(samples, out), 0.0, hurt)
    if not restriction.inside:
        return worst_sum(hurt.T, budget)
    known = torch.isin(samples, torch.tensor(sorted(restriction.inside), device=samples.device))
    paid = hurt[:, known].sum(1)
    return paid + worst_sum(hurt[:, ~known].T, budget - int(known.sum()))
