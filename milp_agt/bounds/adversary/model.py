"""How poison meets a batch: the doors through which engines see a threat model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from milp_agt.bounds.adversary.box_algebra import BoxAlgebra
from milp_agt.bounds.step import State, Step
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.threats.poison import Poison


class SampleSum(Protocol):
    """Box of a sum over the samples of a batch, fed in fragments."""

    def add(self, terms: Interval, samples: Tensor) -> None:
        """Add a fragment of terms, (states, n, *shape), of the samples with these indices, (n,)."""
        ...

    def result(self) -> tuple[Interval, Tensor]:
        """The box of the sum, (cases, *shape), and ``sum_i max|term_i|``, (*shape)."""
        ...


@runtime_checkable
class SumOfProducts(SampleSum, Protocol):
    """One that can be fed the operands of outer products instead of their boxes."""

    def add_outer(self, a: Interval, b: Interval, samples: Tensor) -> None:
        """Add ``a_i (x) b_i`` of a fragment: boxes (states, n, p...) and (states, n, q...)."""
        ...


class PerturbationTerms(Protocol):
    """Whoever is told, step by step, what forms owe to the moves and charges of samples."""

    def add(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        """Add one step: coefficients on the moves of the batch (rows, n, ...) and charges."""
        ...


class WorstCase(PerturbationTerms, Protocol):
    """Collects, over the steps of a window, how much poison can lower each of ``rows`` forms.

    The poisoned sample i lowers a form by at most ``dev_i``: the support function of its admissible
    moves plus the charges of the relaxations that hold with a smaller offset if i is poisoned. Charges
    are (rows, n, states - 1), one for each state in which a sample is poisoned.
    """

    def add_own(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        """Add the step of a node of one sample: each row has entries at its own sample only."""
        ...

    def worst_case(self) -> Tensor:
        """The most that the adversary can lower each form, (rows, cases)."""
        ...

    def sample_influences(self) -> Tensor:
        """How much each sample of the data set alone can lower each form, ``dev_i``, (rows, N)."""
        ...

    def worst_case_given(self, own: Tensor) -> Tensor:
        """The same for each state that the boxes of sample ``own[r]`` distinguish, (rows, states)."""
        ...


@dataclass(frozen=True)
class Emptied:
    """Masks (cases,) of the cases in which a batch may, and in which it does lose all its samples.

    Its step is then skipped: no update, and velocities stay.
    """

    maybe: Tensor
    surely: Tensor

    def merged(self, old: State, new: State) -> State:
        """Boxes that hold the state after the step, whether it was skipped or not."""

        def both(name: str) -> Interval:
            before, after = old[name].expand_states(len(self.maybe)), new[name]
            rank = after.lower.dim() - 1
            maybe, surely = (m.reshape(-1, *[1] * rank) for m in (self.maybe, self.surely))
            hull = Interval(
                torch.minimum(before.lower, after.lower), torch.maximum(before.upper, after.upper)
            )

            def of(skipped: Tensor, either: Tensor, taken: Tensor) -> Tensor:
                return torch.where(surely, skipped, torch.where(maybe, either, taken))

            return Interval(
                of(before.lower, hull.lower, after.lower), of(before.upper, hull.upper, after.upper)
            )

        return {name: both(name) for name in new}


class AdversaryModel(Protocol):
    """A threat model as the engines see it: boxes of the data, sums over samples, debts.

    Boxes of nodes with a sample axis have a leading axis of *states*, those of nodes without one an
    axis of *cases*. With a budget spent jointly there are two states, clean and poisoned (four with
    budgets of features and of labels apart), and one case; where the choices of the adversary are
    enumerated, states and cases are the same; where errors are charged to samples, both are the
    columns of an :class:`Influence`.
    """

    @property
    def poison(self) -> Poison: ...

    @property
    def cases(self) -> int:
        """Boxes of theta that are carried apart."""
        ...

    @property
    def states(self) -> int:
        """States that boxes of a sample are told apart by."""
        ...

    @property
    def algebra(self) -> BoxAlgebra:
        """How boxes with these states and cases are computed with."""
        ...

    def leaves(self, step: Step, part: slice | None = None) -> dict[str, Interval]:
        """Boxes of features and labels of the batch, or of a part of it."""
        ...

    def nominal(self, step: Step) -> dict[str, Tensor]:
        """Points of features and labels that moves are counted from, (1 or cases, n, *shape)."""
        ...

    def total(self, step: Step) -> SampleSum:
        """An empty sum over the batch."""
        ...

    def open_worst_case(self, rows: int) -> WorstCase:
        """An empty account for forms."""
        ...

    def emptied(self, step: Step) -> Emptied | None:
        """Where the removal of samples may leave none in the batch; None for nowhere."""
        ...


class PlainSum:
    """Box of ``sum_i term_i``, every state by itself."""

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
