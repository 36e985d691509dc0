"""Moves of poisoned data as a whole: the best ones for a gradient, steps, mixtures."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from milp_agt.attacks.selection import Masks
from milp_agt.attacks.unrolled import Poisoning, Unrolled, same

SCALES = 7.0  # new samples are drawn out to their reach, halved up to so many times


def steepest(unrolled: Unrolled, gradient: Poisoning) -> tuple[Poisoning, Masks]:
    """Every sample at its best move for a gradient, and what that gains to first order.

    A sample comes, or goes, where that is a gain.
    """
    pairs = zip(gradient.features, gradient.labels, strict=True)
    best = [own.steepest(x, y) for own, (x, y) in zip(unrolled.leaf_poisons, pairs, strict=True)]
    apart = unrolled.poison.label_quota is not None
    gains = [
        torch.stack([b.feature_gain, b.label_gain], -1)
        if apart
        else (b.feature_gain + b.label_gain).unsqueeze(-1)
        for b in best
    ]
    there = []
    for leaf, (present, slope) in enumerate(
        zip(unrolled.leaf_present, gradient.there, strict=True)
    ):
        gains[leaf] = (gains[leaf] + (slope * (1.0 - 2.0 * present)).unsqueeze(-1)).clamp(min=0.0)
        there.append(torch.where(gains[leaf][..., 0] > 0, 1.0 - present, present))
    return _poisoning(((b.features, b.labels) for b in best), there), tuple(gains)


def stepped(unrolled: Unrolled, data: Poisoning, target: Poisoning, stride: float) -> Poisoning:
    """A step of ``stride`` times the moves of ``target``, back on the admissible set.

    Who has come or gone stays so.
    """
    leaves = zip(
        unrolled.leaf_poisons,
        data.features,
        data.labels,
        target.features,
        target.labels,
        strict=True,
    )
    there = zip(data.there, target.there, unrolled.leaf_present, strict=True)
    return _poisoning(
        (
            own.project(x + stride * (to_x - own.features), y + stride * (to_y - own.labels))
            for own, x, y, to_x, to_y in leaves
        ),
        [torch.where(now != given, now, to) for now, to, given in there],
    )


def random_moves(
    unrolled: Unrolled, masks: Masks, generator: torch.Generator, corners: bool = True
) -> Poisoning:
    """Random moves of the samples in the masks: extreme ones, or from all over their sets.

    Samples that can come or go do, or, without ``corners``, every other time. New samples lie at all
    distances from the middle.
    """
    there = []
    for present, mask in zip(unrolled.leaf_present, masks, strict=bool(unrolled.leaf_present)):
        turned = mask[..., 0]
        if not corners:
            coin = torch.rand(turned.shape, generator=generator, dtype=torch.float64)
            turned = turned & (coin < 0.5).to(turned.device)
        there.append(torch.where(turned, 1.0 - present, present))
    leaves = []
    for own, mask in zip(unrolled.leaf_poisons, masks, strict=True):
        x, y = own.sample_moves(generator, mask, corners)
        leaves.append((_nearer(unrolled, x, mask[..., 0], generator), y))
    return _repeated(unrolled, _poisoning(leaves, there), generator)


def _repeated(unrolled: Unrolled, data: Poisoning, generator: torch.Generator) -> Poisoning:
    """Every other run inserts the samples of its first step in all others, too."""
    if unrolled.present is None or unrolled.poison.static:
        return data
    places = unrolled.poison.budget
    coin = torch.rand(len(data), generator=generator, dtype=torch.float64) < 0.5
    again = coin.to(data.labels[0].device)

    def copied(leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = leaves[0][:, leaves[0].shape[1] - places :]
        made = []
        for leaf in leaves:
            same = torch.cat([leaf[:, : leaf.shape[1] - places], first], 1)
            made.append(torch.where(again.reshape(-1, *[1] * (leaf.dim() - 1)), same, leaf))
        return tuple(made)

    return Poisoning(copied(data.features), copied(data.labels), copied(data.there))


def _nearer(unrolled: Unrolled, x: Tensor, new: Tensor, generator: torch.Generator) -> Tensor:
    """New samples (attacks, n, *shape) drawn towards the middle, by factors of all sizes."""
    middle = unrolled.middle
    if middle is None:
        return x
    drawn = torch.rand(new.shape, generator=generator, dtype=torch.float64).to(x.device)
    ones = [1] * (x.dim() - 2)
    factor = (2.0 ** (-SCALES * drawn)).reshape(*new.shape, *ones)
    return torch.where(new.reshape(*new.shape, *ones), middle + factor * (x - middle), x)


def moved(unrolled: Unrolled, data: Poisoning) -> Masks:
    """The samples that differ from the data as given."""
    apart = unrolled.poison.label_quota is not None
    return tuple(
        torch.stack([x, y], -1) if apart else (x | y).unsqueeze(-1)
        for x, y in unrolled.changed(data)
    )


def merged(masks: Masks, inside: Poisoning, outside: Poisoning) -> Poisoning:
    """``inside`` for the samples in the masks, ``outside`` for the others."""

    def at(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if same(a, b):  # features that nobody moves, say: as large as the data set, for each attack
            return a
        return torch.where(mask.reshape(*mask.shape, *[1] * (a.dim() - 2)), a, b)

    first, last = [m[..., 0] for m in masks], [m[..., -1] for m in masks]
    return Poisoning(
        tuple(map(at, first, inside.features, outside.features)),
        tuple(map(at, last, inside.labels, outside.labels)),
        tuple(map(at, first, inside.there, outside.there)),
    )


def _poisoning(leaves: Iterable[tuple[Tensor, Tensor]], there: Iterable[Tensor]) -> Poisoning:
    pairs = list(leaves)
    return Poisoning(tuple(x for x, _ in pairs), tuple(y for _, y in pairs), tuple(there))
