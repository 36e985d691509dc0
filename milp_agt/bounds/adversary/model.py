"""The adversary model: the interface through which engines see a threat model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from milp_agt.bounds.step import State, Step
from milp_agt.core.interval import Interval
from milp_agt.threats.poison import Poison


class SampleSum(Protocol):
    """Box of a sum over the samples of a batch, which come in chunks."""

    def add(self, terms: Interval, samples: Tensor) -> None:
        """Add a chunk of terms, (states, n, *shape), of the samples with these indices, (n,)."""
        ...

    def result(self) -> tuple[Interval, Tensor]:
        """The box of the sum, (cases, *shape), and ``sum_i max|term_i|``, (*shape)."""
        ...


@runtime_checkable
class SumOfProducts(SampleSum, Protocol):
    """A sample sum that accepts the operands of outer products instead of their boxes."""

    def add_outer(self, a: Interval, b: Interval, samples: Tensor) -> None:
        """Add ``a_i (x) b_i`` of a chunk: boxes (states, n, p...) and (states, n, q...)."""
        ...


@dataclass(frozen=True)
class OnMoves:
    """What forms read of the moves of some samples, and what poisoning them is charged; None for nothing.

    Attributes:
        features, labels: coefficients on the moves, (rows, n, ...).
        charges: (rows, n, states - 1), one for each state in which a sample is poisoned, for the relaxations
            that need a lower intercept there.
    """

    features: Tensor | None = None
    labels: Tensor | None = None
    charges: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.features, self.labels, self.charges

    def map(self, change: Callable[[Tensor], Tensor]) -> OnMoves:
        return OnMoves(*(None if part is None else change(part) for part in self.parts))

    @staticmethod
    def joined(pieces: Sequence[OnMoves]) -> OnMoves:
        """Pieces of a batch, along the axis of samples."""

        def join(parts: Sequence[Tensor | None]) -> Tensor | None:
            known = [part for part in parts if part is not None]
            return (torch.cat(known, 1) if len(known) > 1 else known[0]) if known else None

        return OnMoves(*map(join, zip(*(piece.parts for piece in pieces), strict=True)))


class WorstCase(ABC):
    """Collects, over the steps of a window, how much poison can lower each of some forms (rows).

    A poisoned sample i lowers a form by at most ``dev_i``: the support function of its admissible
    moves plus its charges. In one case, the worst is the sum of the ``budget`` largest ``dev_i``. With
    separate budgets for features and labels there is a ``dev_i`` for each of the three states in which the
    sample is poisoned, and the worst is :func:`milp_agt.bounds.adversary.two_budgets.worst_of_both`.
    """

    @abstractmethod
    def add(self, step: Step, on: OnMoves) -> None:
        """Add one step, with all samples of its batch."""

    def add_own(self, step: Step, on: OnMoves) -> None:
        """Add the step of a form of a single sample: each row has entries at its own sample only."""
        self.add(step, on)

    @abstractmethod
    def worst(self) -> Tensor:
        """The most that the adversary can lower each form in the only case, (rows,)."""

    @abstractmethod
    def worst_given(self, own: Tensor, state: int) -> Tensor:
        """:meth:`worst` given the state of sample ``own[r]`` of the data set, (rows,).

        Clean: the ``budget`` worst of the others. Poisoned: its own ``dev`` in full and the
        ``budget - 1`` worst of the others. With a new selection in every batch, the state is known in
        the sample's own step only.
        """

    @abstractmethod
    def sample_influences(self) -> Tensor:
        """How much each sample of the data set alone can lower each form, ``dev_i``, (rows, N)."""

    @property
    @abstractmethod
    def states(self) -> int:
        """States of a sample."""

    def worst_case(self) -> Tensor:
        """:meth:`worst` for each case, (rows, cases)."""
        return self.worst().unsqueeze(1)

    def worst_case_given(self, own: Tensor) -> Tensor:
        """:meth:`worst_given` for each state, (rows, states)."""
        return torch.stack([self.worst_given(own, state) for state in range(self.states)], 1)


@dataclass(frozen=True)
class Emptied:
    """Masks (cases,) of the cases in which a batch may lose all its samples, and in which it does.

    Its step is then skipped: no update, and velocities do not change.
    """

    maybe: Tensor
    surely: Tensor

    def merged(self, old: State, new: State) -> State:
        """Boxes of the state after the step, whether it was skipped or not."""

        def both(name: str) -> Interval:
            before, after = old[name].expand_states(len(self.maybe)), new[name]
            rank = after.lower.dim() - 1
            maybe, surely = (m.reshape(-1, *[1] * rank) for m in (self.maybe, self.surely))
            hull = Interval.holding([before, after])

            def of(skipped: Tensor, either: Tensor, taken: Tensor) -> Tensor:
                return torch.where(surely, skipped, torch.where(maybe, either, taken))

            return Interval(
                of(before.lower, hull.lower, after.lower), of(before.upper, hull.upper, after.upper)
            )

        return {name: both(name) for name in new}


class AdversaryModel(Protocol):
    """A threat model as the engines see it: boxes of the data, sums over samples, worst cases.

    Boxes of nodes with a sample axis have a leading axis of *states*, boxes of other nodes an axis of
    *cases*. Joint bounds have two states, clean and poisoned (four with separate budgets for features
    and labels), and one case. With listed selections, states and cases are the same; case 0 is the
    clean run.
    """

    @property
    def poison(self) -> Poison: ...

    @property
    def cases(self) -> int:
        """Number of separate boxes of theta."""
        ...

    @property
    def states(self) -> int:
        """Number of states that the boxes of a sample distinguish."""
        ...

    def leaves(self, step: Step, part: slice | None = None) -> dict[str, Interval]:
        """Boxes of features and labels of the batch, or of a part of it."""
        ...

    def nominal(self, step: Step) -> dict[str, Tensor]:
        """The features and labels from which moves start, (1 or cases, n, *shape)."""
        ...

    def total(self, step: Step) -> SampleSum:
        """An empty sum over the batch."""
        ...

    def open_worst_case(self, rows: int) -> WorstCase:
        """A worst case of ``rows`` forms, with no step added yet."""
        ...

    def emptied(self, step: Step) -> Emptied | None:
        """The cases in which removals may leave an empty batch; None if there are none."""
        ...
