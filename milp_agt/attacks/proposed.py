"""Attacks that bounds propose: incumbents of programs, forms of a dual, made admissible and trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.moves import Selector, merged, random_moves, steepest
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.bounds.program import Incumbents
from milp_agt.core.expression import Array

# A sample that is poisoned by less gets its moves enlarged only up to the inverse of this.
SMALLEST_GATE = 1e-3


@dataclass(frozen=True)
class Favoured:
    """Linear forms of the data that a dual bound maximises: one proposal for each.

    Attributes:
        features: coefficients of the features of the data set, (proposals, N, *shape): the direction in
            which each sample does most.
        labels: of the encoded labels, (proposals, N, width).
        worth: who, (proposals, N, quotas), the larger the sooner; None: who raises the form most.
    """

    features: Tensor
    labels: Tensor
    worth: Tensor | None = None

    def rows(self, part: slice) -> Favoured:
        """Some of the proposals only."""
        worth = None if self.worth is None else self.worth[part]
        return Favoured(self.features[part], self.labels[part], worth)


def packed_of(
    selector: Selector, proposals: Sequence[Sequence[Incumbents] | Favoured], chunk: int
) -> Packed | None:
    """The data of :func:`poisoning_of` or :func:`favoured_data`, one after the other; None of nothing."""
    found: list[Packed] = []
    for proposal in proposals:
        forms = proposal.features if isinstance(proposal, Favoured) else proposal[0].gates
        for begin in range(0, len(forms), chunk):
            part = slice(begin, begin + chunk)
            if isinstance(proposal, Favoured):
                data = favoured_data(selector, proposal.rows(part))
            else:
                data = poisoning_of(selector, [batch.rows(part) for batch in proposal])
            found.append(Packed.of(data, selector.unrolled))
    return Packed.cat(found) if found else None


def favoured_data(selector: Selector, forms: Favoured) -> Poisoning:
    """Each form's samples, as many as the budget allows, at their best admissible moves for it.

    An adaptive adversary repeats them in every step. Samples of no worth stay as they are. Places of
    samples that may be inserted are none of the data set: they, and removals, have no coefficients.
    """
    run, count = selector.unrolled, len(forms.features)
    nominal = run.nominal(count)

    def on_entries(values: Tensor) -> Tensor:
        whole = values.new_zeros(count, len(run.poison.features), *values.shape[2:])
        whole[:, : values.shape[1]] = values
        return whole[:, run.cover]

    there = None if nominal.there is None else torch.zeros_like(nominal.there)
    gradient = Poisoning(on_entries(forms.features), on_entries(forms.labels), there)
    target, gain = steepest(run, gradient)
    if forms.worth is not None:
        gain = on_entries(forms.worth)
    return merged(selector.choose(gain) & (gain > 0), target, nominal)


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
