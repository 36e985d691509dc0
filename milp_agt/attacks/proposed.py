"""Attacks that programs propose: their incumbents, made admissible and trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from milp_agt.attacks.moves import Selector, merged, random_moves
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.bounds.program import Incumbents
from milp_agt.core.expression import Array

# A sample that is poisoned by less gets its moves enlarged only up to the inverse of this.
SMALLEST_GATE = 1e-3


def packed_of(
    selector: Selector, proposals: Sequence[Sequence[Incumbents]], chunk: int
) -> Packed | None:
    """The data of :func:`poisoning_of`, one after the other; None of nothing."""
    found = [
        poisoning_of(selector, [batch.rows(slice(begin, begin + chunk)) for batch in window])
        for window in proposals
        for begin in range(0, len(window[0].gates), chunk)
    ]
    return Packed.cat([Packed.of(data, selector.unrolled) for data in found]) if found else None


def poisoning_of(selector: Selector, window: Sequence[Incumbents]) -> Poisoning:
    """Admissible data near those that a program has its adversary train on, one attack for each point.

    A relaxation may poison many samples a little. Those it poisons most are taken, as many as the budget
    allows, and each moves as far as if it were poisoned entirely, ``x + (x' - x) / s`` for the share s,
    to the next admissible point. What happens to whole samples, and pixels in front of frozen layers, are
    not in a program: there samples move at random, at full strength.

    Args:
        window: the data of the steps that a program spans, not empty.
    """
    run = selector.unrolled
    nominal = run.nominal(len(window[0].gates))
    features, labels = nominal.features.clone(), nominal.labels.clone()
    scores = features.new_zeros(len(nominal), len(run.cover), run.quotas)
    for batch in window:
        index = torch.from_numpy(batch.samples if run.poison.static else batch.places)
        index = index.to(scores.device) + (0 if run.poison.static else run.spans[batch.step].start)
        gates = torch.from_numpy(batch.gates).to(scores)
        scores[:, index] = gates
        ends = (features, batch.features, gates[..., 0])
        for values, given, gate in (ends, (labels, batch.labels, gates[..., -1])):
            if values.shape[2:] == given.shape[2:]:
                values[:, index] = _enlarged(values[:, index], given, gate)
    surely = torch.tensor(sorted(selector.restriction.inside), dtype=torch.int64)
    surely = torch.isin(run.cover, surely.to(run.cover.device))
    mask = selector.choose(scores) & ((scores > 0.0) | surely[:, None])
    features, labels = run.moves.project(features, labels)
    drawn = random_moves(run, mask, torch.Generator().manual_seed(0))
    in_place = run.middle is not None  # other samples take the places of some
    if in_place or run.poison.features.shape[1:] != window[0].features.shape[2:]:
        features = drawn.features
    if in_place:
        labels = drawn.labels
    return merged(mask, Poisoning(features, labels, drawn.there), nominal)


def _enlarged(nominal: Tensor, given: Array, gate: Tensor) -> Tensor:
    share = gate.clamp(min=SMALLEST_GATE).reshape(*gate.shape, *[1] * (nominal.dim() - 2))
    return nominal + (torch.from_numpy(given).to(nominal) - nominal) / share
