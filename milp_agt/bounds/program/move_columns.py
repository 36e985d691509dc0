"""The adversary's columns, shared over steps as the threat model allows, and rows that tie states to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.window_bounds import bound_by_sample
from milp_agt.bounds.program.incumbents import EncodedBatch
from milp_agt.bounds.step import NodeOrder, State, Step
from milp_agt.core.encoder import SHARED_ROWS, Encoder, SelectionColumns
from milp_agt.core.expression import Array, Expression, add, stacked
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import MoveSet


class MoveColumns:
    """Selection and perturbation columns, shared over the steps as the threat model allows.

    A sample has a column for each state but the clean one, at most one of which is 1. The bits of a
    state show which budgets it counts in (:attr:`milp_agt.threats.poison.Poison.quotas`).
    """

    def __init__(self, encoder: Encoder, poison: Poison, restriction: Restriction) -> None:
        self.encoder, self.poison, self.restriction = encoder, poison, restriction
        self._selection: dict[int, Expression] = {}
        self._features: dict[int, Expression] = {}
        self._labels: dict[int, Expression] = {}
        self._budgeted: list[Expression] = []

    def select(self, step: Step) -> SelectionColumns:
        """Columns ``s_i`` of a batch; zero for states that a sample cannot be in."""
        parts = self._parts(step.samples.tolist(), step.poison)
        every = stacked(parts, (len(parts), self.poison.states - 1))
        if self.poison.per_batch:
            self._limit(parts)
        index = np.arange(every.size).reshape(every.shape)
        return SelectionColumns(tuple(every.take(own) for own in index.T))

    def of_all(self) -> Expression:
        """The fraction by which each sample is poisoned in any way, (samples,), if decided once per run."""
        parts = self._parts(range(len(self.poison.features)), self.poison)
        any_state = sp.csr_matrix(np.ones((1, self.poison.states - 1)))
        return stacked([part.apply(any_state, (1,)) for part in parts], (len(parts),))

    def _parts(self, samples: Sequence[int], poison: Poison) -> list[Expression]:
        """Columns of some samples, (states - 1,) each; ``poison`` is of these samples."""
        shared = self.poison.static or not self.poison.per_batch
        known = self._selection if shared else {}
        opened = torch.stack([quota.open for quota in poison.quotas], 1).tolist()
        for sample, is_open in zip(samples, opened, strict=True):
            if sample not in known:
                known[sample] = self._columns(sample, is_open)
                if any(is_open) and not self.poison.per_batch:
                    self._budgeted.append(known[sample])
        return [known[sample] for sample in samples]

    def _columns(self, sample: int, is_open: Sequence[bool]) -> Expression:
        """One column for each state but the clean one, (states - 1,); constant 0 for impossible states."""
        states = range(1, self.poison.states)
        closed = sum(1 << quota for quota, free in enumerate(is_open) if not free)
        possible = np.array([not state & closed for state in states])
        if sample in self.restriction.outside or not possible.any():
            return Expression.of(np.zeros(len(states)))
        surely = sample in self.restriction.inside
        low = np.full(1, 1.0 if surely and len(states) == 1 else 0.0)
        column = [
            self.encoder.columns(low, np.ones(1), integer=self.encoder.exact_phases)
            if may
            else Expression.of(np.zeros(1))
            for may in possible
        ]
        own = stacked(column, (len(states),))
        if len(states) > 1:
            with self._shared():
                total = own.apply(sp.csr_matrix(np.ones((1, len(states)))), (1,))
                self.encoder.rows(total, 1.0 if surely else -np.inf, 1.0)
        return own

    def _limit(self, selected: Sequence[Expression]) -> None:
        """The budget rows over some samples."""
        total = stacked(selected, (-1,))
        states = np.arange(1, self.poison.states)
        with self._shared():
            for p, quota in enumerate(self.poison.quotas):
                costs = np.tile(states >> p & 1, len(selected)).astype(np.float64)
                used = total.apply(sp.csr_matrix(costs[None]), (1,))
                self.encoder.rows(used, -np.inf, float(quota.budget))

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """Mark rows as belonging to no step."""
        origin, self.encoder.origin = self.encoder.origin, SHARED_ROWS
        try:
            yield
        finally:
            self.encoder.origin = origin

    def close(self) -> None:
        """The budget rows over the data set."""
        if self._budgeted:
            self._limit(self._budgeted)

    def _gates(self, selection: SelectionColumns, quota: int) -> Expression:
        """The fraction by which each sample is poisoned within a quota, (n,)."""
        costing = [s for state, s in enumerate(selection.states, 1) if state >> quota & 1]
        return costing[0] if len(costing) == 1 else add(costing)

    def batch(
        self, step: Step, selection: SelectionColumns, features: Expression, labels: Expression
    ) -> EncodedBatch:
        """The data of a step, with the gates of each quota."""
        gates = tuple(self._gates(selection, quota) for quota in range(len(step.poison.quotas)))
        return EncodedBatch(step.index, step.samples.cpu().numpy(), gates, features, labels)

    def features(self, step: Step, selection: SelectionColumns) -> Expression:
        """Nominal features plus admissible moves of the selected samples."""
        poison = step.poison
        moves, box = poison.feature_moves, poison.feature_box()
        gates = self._gates(selection, 0)
        return self._moved(poison.features, moves, box, self._features, step, gates)

    def labels(self, step: Step, selection: SelectionColumns) -> Expression:
        """Nominal encoded labels plus admissible moves of the selected samples."""
        poison = step.poison
        moves, box = poison.label_moves, poison.label_box()
        gates = self._gates(selection, len(poison.quotas) - 1)
        return self._moved(poison.labels, moves, box, self._labels, step, gates)

    def _moved(
        self,
        nominal: Tensor,
        moves: MoveSet | None,
        box: Interval,
        known: dict[int, Expression],
        step: Step,
        gates: Expression,
    ) -> Expression:
        """Nominal values plus moves; a static adversary moves each sample once."""
        values = Expression.of(nominal.cpu().numpy())
        if moves is None:
            return values
        if not self.poison.static:
            known.clear()
        samples = step.samples.tolist()
        for row in np.flatnonzero(_never(gates)):  # a clean sample gets no columns
            known[samples[row]] = Expression.of(np.zeros(values.size // len(samples)))
        new = np.array([row for row, s in enumerate(samples) if s not in known], dtype=np.int64)
        if new.size:
            fresh = moves.take(torch.from_numpy(new).to(nominal.device)).encode(
                self.encoder, gates.take(new)
            )
            parts = np.arange(fresh.size).reshape(new.size, -1)
            known.update(
                {samples[row]: fresh.take(part) for row, part in zip(new, parts, strict=True)}
            )
        # x + e is rounded in the run.
        rounding = 2.0**-52 * box.magnitude.amax(0).cpu().numpy()
        return add([values, stacked([known[s] for s in samples], values.shape)]).plus_error(
            rounding
        )


def _never(gates: Expression) -> npt.NDArray[np.bool_]:
    """Mask of the samples that cannot be poisoned: no column, and the constant 0."""
    empty: npt.NDArray[np.bool_] = np.diff(gates.matrix.indptr) == 0
    never: npt.NDArray[np.bool_] = empty & (gates.constant == 0.0)
    return never


NEGLIGIBLE = 1e-9  # share of the largest influence of a row


@dataclass(frozen=True)
class SelectionRows:
    """Rows for a state that hold for every admissible set S of poisoned samples.

    ``sign * state[name][e] >= constant - sum_{i in S} dev_i``, one row for each entry and sign: the linear
    bounds of the backward pass through the steps before the state, concretised on the box with the best
    bound (one slope, two intercepts; a poisoned sample is charged in full). The backward pass replaces
    the sum over S by its ``budget`` largest terms; a program keeps it.

    Attributes:
        constant: (2 * entries,): all entries from below, then all from above; rounding is subtracted.
        devs: (2 * entries, samples of the data set), at least 0.
    """

    constant: Array
    devs: Array

    def without_tiny(self) -> SelectionRows:
        """Move negligible influences into the constant, which is sound and keeps the rows sparse.

        The remaining entries are large enough that no solver drops them.
        """
        tiny = self.devs <= NEGLIGIBLE * self.devs.max(1, initial=0.0, keepdims=True)
        paid = np.where(tiny, self.devs, 0.0).sum(1) * (1.0 + 1e-9)
        constant = np.nextafter(self.constant - paid, -np.inf)
        return SelectionRows(constant, np.where(tiny, 0.0, self.devs))


def admitted(poison: Poison, restriction: Restriction) -> bool:
    """Whether one selection holds for the whole run, so that rows can tie earlier steps to it.

    False if the selection is already fixed, as in the program of one choice: there is nothing left to
    tie, and the forms of its steps cover all choices.
    """
    free = torch.stack([quota.open for quota in poison.quotas]).any(0)
    free[sorted(restriction.inside)] = False
    return not poison.is_clean and not poison.per_batch and bool(free.any())


def influence_on(
    schedule: NodeOrder,
    past: Sequence[LinearizedStep],
    state: State,
    joint: Joint,
) -> SelectionRows:
    """Selection rows of a state after the steps ``past``, which is not empty."""
    names = list(state)
    shapes = [state[name].lower.shape[1:] for name in names]
    sizes = [shape.numel() for shape in shapes]
    unit = torch.eye(sum(sizes), dtype=torch.float64, device=joint.poison.features.device)
    parts = torch.cat([unit, -unit]).split(sizes, 1)
    forms = Forms.start(
        {n: p.reshape(-1, *s) for n, p, s in zip(names, parts, shapes, strict=True)}
    )
    base, dev = bound_by_sample(schedule, past, forms, joint)
    return SelectionRows(np.asarray(base.cpu().numpy()), np.asarray(dev.cpu().numpy()))


def encode_influence(
    encoder: Encoder, moves: MoveColumns, influence: SelectionRows, state: Sequence[Expression]
) -> None:
    """Rows ``sign * state + sum_i dev_i s_i >= constant`` for all entries of a state."""
    flat = [e.reshape((e.size,)) for e in state]
    ends = stacked([*flat, *(e.scale(-1.0) for e in flat)], (-1,))
    selection = moves.of_all()
    known = influence.without_tiny()
    worst_case = selection.apply(sp.csr_matrix(known.devs), (ends.size,))
    encoder.rows(add([ends, worst_case]), known.constant, np.inf)
