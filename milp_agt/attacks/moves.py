"""Moves of poisoned data as a whole: the best ones for a gradient, steps, mixtures."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from milp_agt.attacks.selection import Masks
from milp_agt.attacks.unrolled import Poisoning, Unrolled


def steepest(unrolled: Unrolled, gradient: Poisoning) -> tuple[Poisoning, Masks]:
    """Every sample at its best move for a gradient, and what that gains to first order."""
    pairs = zip(gradient.features, gradient.labels, strict=True)
    best = [own.steepest(x, y) for own, (x, y) in zip(unrolled.leaf_poisons, pairs, strict=True)]
    apart = unrolled.poison.label_quota is not None
    gains = tuple(
        torch.stack([b.feature_gain, b.label_gain], -1)
        if apart
        else (b.feature_gain + b.label_gain).unsqueeze(-1)
        for b in best
    )
    return _poisoning((b.features, b.labels) for b in best), gains


def stepped(unrolled: Unrolled, data: Poisoning, target: Poisoning, stride: float) -> Poisoning:
    """A step of ``stride`` times the moves of ``target``, back on the admissible set."""
    leaves = zip(
        unrolled.leaf_poisons,
        data.features,
        data.labels,
        target.features,
        target.labels,
        strict=True,
    )
    return _poisoning(
        own.project(x + stride * (to_x - own.features), y + stride * (to_y - own.labels))
        for own, x, y, to_x, to_y in leaves
    )


def random_moves(
    unrolled: Unrolled, masks: Masks, generator: torch.Generator, corners: bool = True
) -> Poisoning:
    """Random moves of the samples in the masks: extreme ones, or from all over their sets."""
    return _poisoning(
        own.sample_moves(generator, mask, corners)
        for own, mask in zip(unrolled.leaf_poisons, masks, strict=True)
    )


def moved(unrolled: Unrolled, data: Poisoning) -> Masks:
    """The samples that differ from the data as given."""
    apart = unrolled.poison.label_quota is not None
    masks = []
    for x, y, own in zip(data.features, data.labels, unrolled.leaf_poisons, strict=True):
        in_x, in_y = (x != own.features).flatten(2).any(-1), (y != own.labels).any(-1)
        masks.append(torch.stack([in_x, in_y], -1) if apart else (in_x | in_y).unsqueeze(-1))
    return tuple(masks)


def merged(masks: Masks, inside: Poisoning, outside: Poisoning) -> Poisoning:
    """``inside`` for the samples in the masks, ``outside`` for the others."""

    def at(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(*mask.shape, *[1] * (a.dim() - 2)), a, b)

    return Poisoning(
        tuple(map(at, (m[..., 0] for m in masks), inside.features, outside.features)),
        tuple(map(at, (m[..., -1] for m in masks), inside.labels, outside.labels)),
    )


def _poisoning(leaves: Iterable[tuple[Tensor, Tensor]]) -> Poisoning:
    pairs = list(leaves)
    return Poisoning(tuple(x for x, _ in pairs), tuple(y for _, y in pairs))
