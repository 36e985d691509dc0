"""Attacks that bounds propose: incumbents of programs, forms of a dual, made admissible and trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.moves import merged, random_moves, steepest
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.selection import Selector
from milp_agt.attacks.unrolled import Poisoning, Unrolled
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
    found = []
    for proposal in proposals:
        if isinstance(proposal, Favoured):
            for part in _parts(len(proposal.features), chunk):
                found.append(favoured_data(selector, proposal.rows(part)))
        else:
            for part in _parts(len(proposal[0].gates), chunk):
                found.append(poisoning_of(selector, [batch.rows(part) for batch in proposal]))
    return Packed.cat([Packed.of(data, selector.unrolled) for data in found]) if found else None


def favoured_data(selector: Selector, forms: Favoured) -> Poisoning:
    """Each form's samples, as many as the budget allows, at their best admissible moves for it.

    An adaptive adversary repeats them in every step. Samples of no worth stay as they are. Places of
    samples that may be inserted are none of the data set: they, and removals, have no coefficients.
    """
    run, count = selector.unrolled, len(forms.features)
    nominal = run.nominal(count)

    def padded(values: Tensor, like: Tensor) -> Tensor:
        whole = values.new_zeros(count, len(like), *values.shape[2:])
        whole[:, : values.shape[1]] = values
        return whole

    on_x, on_y = (
        padded(forms.features, run.poison.features),
        padded(forms.labels, run.poison.labels),
    )
    gradient = Poisoning(
        tuple(on_x[:, cover] for cover in run.covers),
        tuple(on_y[:, cover] for cover in run.covers),
        tuple(torch.zeros_like(there) for there in nominal.there),
    )
    target, gain = steepest(run, gradient)
    if forms.worth is not None:
        worth = padded(forms.worth, run.poison.features)
        gain = tuple(worth[:, cover] for cover in run.covers)
    chosen = zip(selector.choose(gain), gain, strict=True)
    return merged(tuple(mask & (own > 0) for mask, own in chosen), target, nominal)


def poisoning_of(selector: Selector, window: Sequence[Incumbents]) -> Poisoning:
    """Admissible data near those that a program has its adversary train on, one attack for each point.

    A relaxation may poison many samples a little. Those it poisons most are taken, as many as the budget
    allows, and each moves as far as if it were poisoned entirely, ``x + (x' - x) / s`` for the share s,
    to the next admissible point. What happens to whole samples, and pixels in front of frozen layers, are
    not in a program: there samples move at random, at full strength.

    Args:
        window: the data of the steps that a program spans, not empty.
    """
    unrolled = selector.unrolled
    nominal = unrolled.nominal(len(window[0].gates))
    target, scores = nominal.map(torch.clone), _nobody(unrolled, len(nominal))
    for batch in window:
        leaf = 0 if unrolled.poison.static else batch.step
        at = batch.samples if unrolled.poison.static else batch.places
        index = torch.from_numpy(at).to(scores[leaf].device)
        gates = torch.from_numpy(batch.gates).to(scores[leaf])
        scores[leaf][:, index] = gates
        ends = (target.features[leaf], batch.features, gates[..., 0])
        for values, given, gate in (ends, (target.labels[leaf], batch.labels, gates[..., -1])):
            if values.shape[2:] == given.shape[2:]:
                values[:, index] = _enlarged(values[:, index], given, gate)
    chosen = zip(selector.choose(tuple(scores)), scores, unrolled.covers, strict=True)
    surely = torch.tensor(sorted(selector.restriction.inside), dtype=torch.int64)
    masks = tuple(
        mask & ((score > 0.0) | torch.isin(cover, surely.to(cover.device))[:, None])
        for mask, score, cover in chosen
    )
    leaves = zip(unrolled.leaf_poisons, target.features, target.labels, strict=True)
    near = [own.project(x, y) for own, x, y in leaves]
    drawn = random_moves(unrolled, masks, torch.Generator().manual_seed(0))
    features, labels = tuple(x for x, _ in near), tuple(y for _, y in near)
    shape = window[0].features.shape[2:]
    if _in_place(unrolled) or unrolled.poison.features.shape[1:] != shape:
        features = drawn.features
    if _in_place(unrolled):
        labels = drawn.labels
    return merged(masks, Poisoning(features, labels, drawn.there), nominal)


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(begin, begin + chunk) for begin in range(0, count, chunk)]


def _in_place(unrolled: Unrolled) -> bool:
    """Whether other samples take the places of some."""
    return unrolled.middle is not None


def _nobody(unrolled: Unrolled, attacks: int) -> list[Tensor]:
    quotas = len(unrolled.poison.quotas)
    like = unrolled.poison.features
    return [like.new_zeros(attacks, len(c), quotas) for c in unrolled.covers]


def _enlarged(nominal: Tensor, given: Array, gate: Tensor) -> Tensor:
    share = gate.clamp(min=SMALLEST_GATE).reshape(*gate.shape, *[1] * (nominal.dim() - 2))
    return nominal + (torch.from_numpy(given).to(nominal) - nominal) / share
