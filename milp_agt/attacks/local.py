"""Local moves around good attacks: a poisoned sample flips signs, shrinks, or takes another corner."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from milp_agt.attacks.unrolled import Poisoning, Unrolled


def turned(unrolled: Unrolled, data: Poisoning, generator: torch.Generator) -> Poisoning:
    """Some coordinates of every feature move times a number from -1 (a flipped sign) to 1.

    Between one coordinate and all, at all scales; every other attack flips signs only. Back on the
    admissible set. Labels, and who has come or gone, stay.
    """

    def factor(move: Tensor) -> Tensor:
        attacks, size = move.shape[0], move.shape[-1]
        share = size ** -_uniform((attacks, 1, 1), generator)
        drawn = _uniform(tuple(move.shape), generator)
        chosen = (drawn < share) | (drawn == drawn.amin(-1, keepdim=True))
        scale = 2.0 * _uniform((attacks, 1, 1), generator) - 1.0
        scale[::2] = -1.0
        return torch.where(chosen, scale, 1.0).to(move)

    return _scaled(unrolled, data, factor)


def shrunk(unrolled: Unrolled, data: Poisoning, generator: torch.Generator) -> Poisoning:
    """Every feature move times a number between 0 and 1, one for each attack; otherwise likewise."""
    return _scaled(
        unrolled, data, lambda move: _uniform((len(move), 1, 1), generator).to(move.device)
    )


def _scaled(unrolled: Unrolled, data: Poisoning, factor: Callable[[Tensor], Tensor]) -> Poisoning:
    features = []
    for own, x, y in zip(unrolled.leaf_poisons, data.features, data.labels, strict=True):
        move = (x - own.features).flatten(2)
        moved = own.features + (factor(move) * move).reshape(x.shape)
        features.append(own.project(moved, y)[0])
    return Poisoning(tuple(features), data.labels, data.there)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)
