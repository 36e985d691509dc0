"""Rows that tie the state at the start of a window to the selection of earlier steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.window_bounds import bound_by_sample
from milp_agt.bounds.program.move_columns import MoveColumns
from milp_agt.bounds.step import NodeOrder, State
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add, stacked
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison

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
