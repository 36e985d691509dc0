"""Linear rows on the moves of a sample, on top of another set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add
from milp_agt.core.rounding import gamma
from milp_agt.moves.base import MoveSet, as_array, one_block


@dataclass(frozen=True)
class Halfspaces(MoveSet):
    """Moves of ``base`` with ``matrix @ e <= limits``.

    Programs keep the rows. The support function is that of ``base``: a bound from above.

    Attributes:
        base: the set without the rows.
        matrix: (rows, size), the same for every sample.
        limits: (N, rows), >= 0.
    """

    base: MoveSet
    matrix: Array
    limits: Tensor

    @property
    def lower(self) -> Tensor:
        return self.base.lower

    @property
    def upper(self) -> Tensor:
        return self.base.upper

    @property
    def block_of(self) -> Tensor:
        return one_block(self.base.lower)

    @property
    def is_exact(self) -> bool:
        return False

    @property
    def is_convex(self) -> bool:
        return self.base.is_convex

    def gains(self, coefficients: Tensor) -> Tensor:
        return self.base.support(coefficients)[..., None]

    def maximise(self, coefficients: Tensor) -> Tensor:
        return self._cut(self.base.maximise(coefficients))

    def project(self, moves: Tensor) -> Tensor:
        return self._cut(self.base.project(moves))

    def sample(self, generator: torch.Generator, count: int, corners: bool) -> Tensor:
        return self._cut(self.base.sample(generator, count, corners))

    def excess(self, moves: Tensor) -> Tensor:
        beyond = (self._activity(moves) - self.limits).clamp(min=0.0)
        return torch.maximum(self.base.excess(moves), beyond.amax(-1))

    def _activity(self, moves: Tensor) -> Tensor:
        return moves @ torch.from_numpy(self.matrix).to(moves).T

    def _cut(self, moves: Tensor) -> Tensor:
        """The part of an admissible move of ``base`` that meets the rows; none where parts do not count."""
        activity = self._activity(moves)
        beyond = activity > self.limits
        if not self.is_convex:
            return torch.where(beyond.any(-1, keepdim=True), 0.0, moves)
        share = torch.where(beyond, self.limits / activity.clamp(min=1e-300), 1.0)
        share = share.amin(-1, keepdim=True)
        inside = share * (1.0 - gamma(4 * self.size + 16))
        return torch.where(share < 1.0, inside * moves, moves)

    def on(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, base=self.base.on(change), limits=change(self.limits))

    def add_to(self, encoder: Encoder, gates: Expression) -> Expression:
        samples, blocks = gates.shape[0], self.base.blocks
        index = np.repeat(np.arange(samples), blocks).reshape(samples, blocks)
        moves = self.base.add_to(encoder, gates.take(index))
        rows = len(self.matrix)
        every = sp.csr_matrix(sp.kron(sp.eye(samples), self.matrix))
        activity = moves.apply(every, (samples, rows))
        each = gates.take(np.repeat(np.arange(samples), rows).reshape(samples, rows))
        encoder.rows(add([activity, each.scale(-as_array(self.limits))]), -np.inf, 0.0)
        return moves
