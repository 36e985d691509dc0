"""Samples that a run treats alike: which of them is poisoned makes no difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass

import numpy as np
import torch

from milp_agt.bounds.program.move_columns import MoveColumns
from milp_agt.bounds.step import Step
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Index, add
from milp_agt.core.program import SHARED
from milp_agt.threats.poison import Poison


def order_equals(encoder: Encoder, moves: MoveColumns, steps: Sequence[Step]) -> None:
    """``s_i >= s_j`` for i < j that are equal in data, admissible moves and batches of the whole run.

    Exchanging the roles of i and j in an attack gives another admissible one, whose training differs in
    the order of summation only; bounds hold for any order. So each run is reached by an attack that the
    rows admit. Nothing is done where steps before ``steps`` are not known, or a restriction knows one.
    """
    known = moves.restriction.inside | moves.restriction.outside
    if known or moves.poison.whole is not None or len(moves.poison.quotas) > 1:
        return
    if not steps or steps[0].index != 0:
        return
    group = _alike(moves.poison, steps)
    order = np.argsort(group, kind="stable")
    same = np.flatnonzero(group[order][1:] == group[order][:-1])
    first, second = order[same], order[same + 1]
    free = moves.poison.open.cpu().numpy()
    keep = free[first] & free[second]
    if keep.any():
        selection, encoder.origin = moves.of_all(), SHARED
        pairs = [selection.take(first[keep]), selection.take(second[keep]).scale(-1.0)]
        encoder.rows(add(pairs), 0.0, np.inf)


def _alike(poison: Poison, steps: Sequence[Step]) -> Index:
    """A number for each sample, the same for those that nothing tells apart."""
    count = len(poison.features)
    present = torch.zeros(count, len(steps), dtype=torch.float64)
    for number, step in enumerate(steps):
        present[:, number] = torch.bincount(step.samples.cpu(), minlength=count)
    parts = [present, *(t.cpu().reshape(count, -1).to(torch.float64) for t in _own(poison, count))]
    _, group = np.unique(torch.cat(parts, 1).numpy(), axis=0, return_inverse=True)
    found: Index = group.reshape(-1).astype(np.int64)
    return found


def _own(held: object, count: int) -> Iterator[torch.Tensor]:
    """All tensors with an entry for each sample: data, masks and moves."""
    if isinstance(held, torch.Tensor):
        if held.dim() and len(held) == count:
            yield held
    elif isinstance(held, (tuple, list)):
        for part in held:
            yield from _own(part, count)
    elif is_dataclass(held):
        for field in fields(held):
            yield from _own(getattr(held, field.name), count)
