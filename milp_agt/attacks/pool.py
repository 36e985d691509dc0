"""Poisonings that are drawn or listed without looking at an objective."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from milp_agt.attacks.selection import Masks, Selector
from milp_agt.attacks.unrolled import Poisoning, Unrolled


def random_poisoning(
    selector: Selector, attacks: int, generator: torch.Generator, corners: bool
) -> Poisoning:
    """Random admissible data: moves at full strength, or from all over the sets of moves."""
    masks = selector.random(attacks, generator)
    moved = [
        own.sample_moves(generator, mask, corners)
        for own, mask in zip(selector.unrolled.leaf_poisons, masks, strict=True)
    ]
    return Poisoning(tuple(x for x, _ in moved), tuple(y for _, y in moved))


def all_flips(selector: Selector, largest: int) -> Tensor | None:
    """Every way to flip labels within the budget: the option of each sample, (ways, N).

    Options are rows of ``label_vertices``; None where features move too, where the adversary is
    adaptive or has a budget for each batch, or where there are more than ``largest`` ways.
    """
    poison = selector.unrolled.poison
    vertices = poison.label_vertices
    if vertices is None or poison.radius is not None or not poison.static or poison.per_batch:
        return None
    rest = selector.restriction
    inside = sorted(rest.inside)
    free = [i for i in poison.open.nonzero()[:, 0].tolist() if i not in rest.inside | rest.outside]
    others = vertices.abs().sum(-1) > 0  # options that change the label, (N, classes)
    flips = vertices.shape[1] - 1
    left = min(poison.budget - len(inside), len(free))
    ways = sum(math.comb(len(free), k) * flips ** (k + len(inside)) for k in range(left + 1))
    if ways > largest:
        return None
    stay = (~others).to(torch.int8).argmax(1)
    change = {i: others[i].nonzero()[:, 0].tolist() for i in [*free, *inside]}
    found = []
    for count in range(left + 1):
        for chosen in itertools.combinations(free, count):
            moved = [*inside, *chosen]
            for options in itertools.product(*(change[i] for i in moved)):
                way = stay.clone()
                way[moved] = torch.tensor(options, dtype=way.dtype, device=way.device)
                found.append(way)
    return torch.stack(found)


def flipped(unrolled: Unrolled, options: Tensor) -> Poisoning:
    """The data with these labels, options (attacks, N)."""
    poison = unrolled.poison
    assert poison.label_vertices is not None
    samples = torch.arange(options.shape[1], device=options.device)
    labels = poison.labels + poison.label_vertices[samples, options]
    return Poisoning(unrolled.nominal(len(options)).features, (labels,))


def merged(unrolled: Unrolled, masks: Masks, inside: Poisoning, outside: Poisoning) -> Poisoning:
    """``inside`` for the samples in the masks, ``outside`` for the others."""

    def at(mask: Tensor, like: Tensor) -> Tensor:
        return mask.reshape(*mask.shape, *[1] * (like.dim() - 2))

    return Poisoning(
        tuple(
            torch.where(at(m, a), a, b)
            for m, a, b in zip(masks, inside.features, outside.features, strict=True)
        ),
        tuple(
            torch.where(at(m, a), a, b)
            for m, a, b in zip(masks, inside.labels, outside.labels, strict=True)
        ),
    )
