"""What the adversary decides: columns of selections and perturbations, shared as its powers demand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, add, stacked
from milp_agt.core.interval import Interval
from milp_agt.core.program import SHARED
from milp_agt.core.restriction import Restriction
from milp_agt.engines.step import Step
from milp_agt.moves import MoveSet
from milp_agt.poison import Poison


class Moves:
    """Selection and perturbation columns, shared over the steps as the adversary's powers demand."""

    def __init__(self, encoder: Encoder, poison: Poison, restriction: Restriction) -> None:
        self.encoder, self.poison, self.restriction = encoder, poison, restriction
        self._selection: dict[int, Expression] = {}
        self._features: dict[int, Expression] = {}
        self._labels: dict[int, Expression] = {}
        self._budgeted: list[Expression] = []

    def select(self, step: Step) -> Expression:
        """Columns ``s_i`` of a batch, (n,); zero for samples that cannot be poisoned."""
        shared = self.poison.static or not self.poison.per_batch
        known = self._selection if shared else {}
        parts = []
        for sample, is_open in zip(step.samples.tolist(), step.poison.open.tolist(), strict=True):
            if sample not in known:
                known[sample] = self._column(sample, is_open)
                if is_open and not self.poison.per_batch:
                    self._budgeted.append(known[sample])
            parts.append(known[sample])
        selection = stacked(parts, (len(parts),))
        self.encoder.branch_first(selection)
        if self.poison.per_batch:
            self._limit(parts)
        return selection

    def _column(self, sample: int, is_open: bool) -> Expression:
        if not is_open or sample in self.restriction.outside:
            return Expression.of(np.zeros(1))
        low = 1.0 if sample in self.restriction.inside else 0.0
        return self.encoder.columns(np.full(1, low), np.ones(1), integer=self.encoder.exact_phases)

    def _limit(self, selected: Sequence[Expression]) -> None:
        total = stacked(selected, (len(selected),))
        ones = sp.csr_matrix(np.ones((1, len(selected))))
        origin, self.encoder.origin = self.encoder.origin, SHARED
        self.encoder.rows(total.apply(ones, (1,)), -np.inf, float(self.poison.budget))
        self.encoder.origin = origin

    def close(self) -> None:
        """The budget row over the data set."""
        if self._budgeted:
            self._limit(self._budgeted)

    def features(self, step: Step, selection: Expression) -> Expression:
        """Nominal features plus admissible moves of the selected samples."""
        poison = step.poison
        moves, box = poison.feature_moves, poison.feature_box()
        return self._moved(poison.features, moves, box, self._features, step, selection)

    def labels(self, step: Step, selection: Expression) -> Expression:
        """Nominal encoded labels plus admissible moves of the selected samples."""
        poison = step.poison
        moves, box = poison.label_moves, poison.label_box()
        return self._moved(poison.labels, moves, box, self._labels, step, selection)

    def _moved(
        self,
        nominal: Tensor,
        moves: MoveSet | None,
        box: Interval,
        known: dict[int, Expression],
        step: Step,
        selection: Expression,
    ) -> Expression:
        """Nominal values plus moves; a static adversary moves each sample once."""
        values = Expression.of(nominal.cpu().numpy())
        if moves is None:
            return values
        if not self.poison.static:
            known.clear()
        samples = step.samples.tolist()
        for row in np.flatnonzero(_never(selection)):  # a clean sample gets no columns
            known[samples[row]] = Expression.of(np.zeros(values.size // len(samples)))
        new = np.array([row for row, s in enumerate(samples) if s not in known], dtype=np.int64)
        if new.size:
            fresh = moves.take(torch.from_numpy(new).to(nominal.device)).encode(
                self.encoder, selection.take(new)
            )
            parts = np.arange(fresh.size).reshape(new.size, -1)
            known.update(
                {samples[row]: fresh.take(part) for row, part in zip(new, parts, strict=True)}
            )
        # x + e is rounded in the run.
        rounding = 2.0**-52 * box.magnitude.amax(0).cpu().numpy()
        return add([values, stacked([known[s] for s in samples], values.shape)]).blur(rounding)


def _never(selection: Expression) -> npt.NDArray[np.bool_]:
    """Mask of the samples that cannot be poisoned: no column, and the constant 0."""
    empty: npt.NDArray[np.bool_] = np.diff(selection.matrix.indptr) == 0
    never: npt.NDArray[np.bool_] = empty & (selection.constant == 0.0)
    return never
