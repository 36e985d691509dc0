"""The norm 0: at most a given number of features of a sample move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, add
from milp_agt.threats.sets.move_set import OnBase, Rules, row_sums, spread


@dataclass(frozen=True)
class Sparse(OnBase):
    """Moves of ``base`` in at most ``limit`` of its blocks (a one-hot group is one block).

    Support function: the sum of the ``limit`` largest gains of blocks.
    """

    rules = Rules(
        "norm 0: at most so many coordinates or categories", "exact", "relaxed count", "exact"
    )
    is_convex = False

    limit: int

    @property
    def is_exact(self) -> bool:
        return self.base.is_exact

    def gains(self, coefficients: Tensor) -> Tensor:
        gains = self.base.gains(coefficients)
        return gains.topk(self.limit, dim=-1, sorted=False).values.sum(-1, keepdim=True)

    def radius_supports(self, radius: Tensor) -> Tensor:
        spreads = self.base.radius_supports(radius)
        return spreads.topk(self.limit, dim=-1, sorted=False).values.sum(-1, keepdim=True)

    def maximise(self, coefficients: Tensor) -> Tensor:
        kept = self._largest(self.base.gains(coefficients))
        return torch.where(kept, self.base.maximise(coefficients), 0.0)

    def project(self, moves: Tensor) -> Tensor:
        near, reach = self.base.project(moves), self.reach
        share = torch.where(reach > 0, near.abs() / reach.clamp(min=1e-300), 0.0)
        return torch.where(self._largest(self._by_block(share)), near, 0.0)

    def sample(self, generator: torch.Generator, count: int, corners: bool) -> Tensor:
        moves = self.base.sample(generator, count, corners)
        scores = torch.rand(
            (*moves.shape[:-1], self.base.blocks), generator=generator, dtype=torch.float64
        )
        return torch.where(self._largest(scores.to(moves.device)), moves, 0.0)

    def _by_block(self, sizes: Tensor) -> Tensor:
        """The largest entry of each block, (..., N, blocks)."""
        totals = sizes.new_zeros((*sizes.shape[:-1], self.base.blocks))
        block = self.base.block_of.expand(sizes.shape)
        return totals.scatter_reduce(-1, block, sizes, "amax")

    def _largest(self, scores: Tensor) -> Tensor:
        """Mask of the coordinates in the ``limit`` blocks with the largest scores."""
        chosen = scores.topk(self.limit, dim=-1, sorted=False).indices
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True)
        return kept[..., self.base.block_of]

    def admits(self, sample: int, nominal: Tensor, given: Tensor) -> bool:
        blocks = self.base.block_of[(given != nominal).to(self.base.block_of.device)]
        few = len(blocks.unique()) <= self.limit
        return few and self.base.admits(sample, nominal, given)

    def on(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, base=self.base.on(change))

    def add_to(self, encoder: Encoder, gates: Expression) -> Expression:
        shape = (gates.size, self.base.blocks)
        inner = encoder.columns(np.zeros(shape), np.ones(shape), integer=encoder.exact_phases)
        encoder.rows(add([inner, spread(gates, shape[1]).scale(-1.0)]), -np.inf, 0.0)
        total = row_sums(inner, np.ones(shape))
        limit = gates.reshape((gates.size,)).scale(-float(self.limit))
        encoder.rows(add([total, limit]), -np.inf, 0.0)
        return self.base.add_to(encoder, inner)
