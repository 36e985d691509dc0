"""What poison did to a state before it came into a window: rows that tie it to the selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add, stacked
from milp_agt.core.rounding import gamma
from milp_agt.engines.exposure import Debt
from milp_agt.engines.joint import Joint
from milp_agt.engines.linear import walk
from milp_agt.engines.program.moves import Moves
from milp_agt.engines.relaxed import RelaxedStep
from milp_agt.engines.step import Schedule, State
from milp_agt.engines.walker import Forms
from milp_agt.poison import Poison
from milp_agt.tracing import StepGraph

NEGLIGIBLE = 1e-9  # of the largest debt of a row


@dataclass(frozen=True)
class Influence:
    """Forms of a state that hold for every admissible set S of poisoned samples: ``sign * state[name][e]
    >= constant - sum_{i in S} dev_i``, one row for each entry and sign.

    They are the forms of the walk through the steps before the state, concretised on the box where they
    bound most (DESIGN: one slope, two offsets; a poisoned sample is charged in full). The sum over S
    is what a walk replaces by its ``budget`` largest terms; a program keeps it.

    Attributes:
        constant: (2 * entries,): all entries from below, then all from above; rounding is subtracted.
        devs: (2 * entries, samples of the data set), at least 0.
    """

    constant: Array
    devs: Array


def admitted(poison: Poison) -> bool:
    """Whether a selection is one for the whole run, so that what it did before is tied to it."""
    return not poison.is_clean and not poison.per_batch


def influence_on(
    step_graph: StepGraph,
    schedule: Schedule,
    past: Sequence[RelaxedStep],
    state: State,
    joint: Joint,
) -> Influence:
    """Influence rows of a state at the end of ``past``, which is not empty."""
    names = list(state)
    shapes = [state[name].lower.shape[1:] for name in names]
    sizes = [shape.numel() for shape in shapes]
    unit = torch.eye(sum(sizes), dtype=torch.float64, device=joint.poison.features.device)
    parts = torch.cat([unit, -unit]).split(sizes, 1)
    forms = Forms.start(
        {n: p.reshape(-1, *s) for n, p, s in zip(names, parts, shapes, strict=True)}
    )
    debt = joint.open_debt(forms.rows)
    best = torch.full((forms.rows,), -torch.inf, dtype=torch.float64, device=unit.device)
    constant, devs = best.clone(), unit.new_zeros(forms.rows, len(joint.poison.features))
    for relaxed in reversed(past):
        forms = walk(step_graph, schedule, relaxed, forms, debt)
        reached = forms.concretise(relaxed.state, debt.owed())[:, 0]
        free, own = _paid_apart(forms, relaxed.state, debt)
        better = reached > best
        best = torch.where(better, reached, best)
        constant = torch.where(better, free, constant)
        devs = torch.where(better.unsqueeze(1), own, devs)
    return Influence(np.asarray(constant.cpu().numpy()), np.asarray(devs.cpu().numpy()))


def _paid_apart(forms: Forms, state: State, debt: Debt) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds without what is owed, and ``dev`` of every sample; rounding of both is in the first."""
    own = debt.by_sample()
    total = own.sum(1)
    # Rounding is charged as if all samples were poisoned; then the sum is given back.
    low = forms.concretise(state, total.unsqueeze(1))[:, 0]
    free = low + total
    slack = gamma(2 * own.shape[1] + 16) * (low.abs() + 2.0 * total)
    return free - slack, own


def encode_influence(
    encoder: Encoder, moves: Moves, influence: Influence, state: Sequence[Expression]
) -> None:
    """``sign * state + sum_i dev_i s_i >= constant`` for the entries of a state, one after the other."""
    flat = [e.reshape((e.size,)) for e in state]
    ends = stacked([*flat, *(e.scale(-1.0) for e in flat)], (-1,))
    selection = moves.of_all()
    # Debts of no account are paid for sure: fewer entries, and none that a solver drops.
    tiny = influence.devs <= NEGLIGIBLE * influence.devs.max(1, initial=0.0, keepdims=True)
    paid = np.where(tiny, influence.devs, 0.0).sum(1) * (1.0 + 1e-9)
    owed = selection.apply(sp.csr_matrix(np.where(tiny, 0.0, influence.devs)), (ends.size,))
    encoder.rows(add([ends, owed]), np.nextafter(influence.constant - paid, -np.inf), np.inf)
