"""How far moves violate the conditions of their set, in floating point: a judge apart from the sets."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.threats.sets import Ball, BoxOrFill, Halfspaces, MoveSet, Product, Sparse, Vertices


def excess(own: MoveSet, moves: Tensor) -> Tensor:
    """For moves (..., N, size), (..., N); 0 if they are admissible."""
    if isinstance(own, Vertices):
        nearest = (moves[..., None, :] - own.points).abs().amax(-1).amin(-1)
        return torch.minimum(nearest, moves.abs().amax(-1))
    if isinstance(own, Product):
        parts = zip(own.parts, map(list, own.columns), strict=True)
        return torch.stack([excess(part, moves[..., columns]) for part, columns in parts]).amax(0)
    if isinstance(own, Sparse):
        sizes = moves.new_zeros(*moves.shape[:-1], own.base.blocks)
        sizes.scatter_reduce_(-1, own.base.block_of.expand(moves.shape), moves.abs(), "amax")
        rest = sizes.sort(-1, descending=True).values[..., own.limit :].sum(-1)
        return torch.maximum(excess(own.base, moves), rest)
    if isinstance(own, Halfspaces):
        beyond = moves @ torch.from_numpy(own.matrix).T - own.limits - own._rounding()
        return torch.maximum(excess(own.base, moves), beyond.clamp(min=0.0).amax(-1))
    if isinstance(own, BoxOrFill):
        return torch.minimum(_outside(own.box, moves), (moves - own.fill).abs()).amax(-1)
    outside = _outside(own, moves).amax(-1)
    if isinstance(own, Ball):
        shares = torch.where(own.radius > 0, moves / own.radius, 0.0)
        norms = torch.linalg.vector_norm(shares, ord=own.order, dim=-1)
        return torch.maximum(outside, (norms - 1.0).clamp(min=0.0) * own.radius.amax(-1))
    return outside


def _outside(own: MoveSet, moves: Tensor) -> Tensor:
    """How far each coordinate is outside of a box, or from a whole number where it has to be one."""
    beyond = torch.maximum(moves - own.high, own.low - moves).clamp(min=0.0)
    whole = list(own.whole)
    beyond[..., whole] = torch.maximum(beyond, (moves - moves.trunc()).abs())[..., whole]
    return beyond
