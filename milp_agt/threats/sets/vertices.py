"""A finite set of joint moves: classes of labels, categories of one-hot columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, add
from milp_agt.core.interval import as_array
from milp_agt.threats.sets.move_set import MoveSet, Rules, one_block


@dataclass(frozen=True)
class Vertices(MoveSet):
    """No move, or one of the moves ``points`` (N, count, size): coordinates move jointly.

    Support function: ``max(0, max_l c . points_l)``; the rows are those of the convex hull.
    """

    rules = Rules("joint moves out of a finite set: classes, categories", "exact", "hull", "exact")
    is_convex = False

    points: Tensor

    @property
    def lower(self) -> Tensor:
        return self.points.amin(1).clamp(max=0.0)

    @property
    def upper(self) -> Tensor:
        return self.points.amax(1).clamp(min=0.0)

    @property
    def block_of(self) -> Tensor:
        return one_block(self.points)

    def gains(self, coefficients: Tensor) -> Tensor:
        values = torch.einsum("rnd,nld->rnl", coefficients, self.points)
        return values.amax(-1, keepdim=True).clamp(min=0.0)

    def furthest(self, coefficients: Tensor) -> Tensor:
        """``max_l c . points_l`` over the points that are a move, (r, N), 0 where none is."""
        return self._by_moves(coefficients).amax(-1)

    def furthest_move(self, coefficients: Tensor) -> Tensor:
        """The move that :meth:`furthest` takes, (r, N, size)."""
        return self._picked(self._by_moves(coefficients).argmax(-1))

    def _by_moves(self, coefficients: Tensor) -> Tensor:
        stays = ~self.points.any(-1)
        stays &= ~stays.all(1, keepdim=True)
        values = torch.einsum("rnd,nld->rnl", coefficients, self.points)
        return values.masked_fill_(stays, -torch.inf)

    def radius_supports(self, radius: Tensor) -> Tensor:
        values = torch.einsum("rnd,nld->rnl", radius, self.points.abs())
        return values.amax(-1, keepdim=True)

    def maximise(self, coefficients: Tensor) -> Tensor:
        value, best = torch.einsum("rnd,nld->rnl", coefficients, self.points).max(-1)
        moves = self._picked(best)
        return torch.where((value > 0)[..., None], moves, torch.zeros_like(moves))

    def project(self, moves: Tensor) -> Tensor:
        distances = (moves[..., None, :] - self.points).square().sum(-1)
        nearest, index = distances.min(-1)
        stay = moves.square().sum(-1) <= nearest
        picked = self._picked(index)
        return torch.where(stay[..., None], torch.zeros_like(picked), picked)

    def sample(self, generator: torch.Generator, count: int, corners: bool) -> Tensor:
        """Every move has the same probability, with or without ``corners``."""
        samples, moves, _ = self.points.shape
        choice = torch.randint(moves, (count, samples), generator=generator)
        return self._picked(choice.to(self.points.device))

    def _picked(self, index: Tensor) -> Tensor:
        """The moves with these indices, (..., N), as (..., N, size)."""
        return self.points[torch.arange(len(self.points), device=index.device), index]

    def admits(self, sample: int, nominal: Tensor, given: Tensor) -> bool:
        reached = nominal + self.points[sample]
        return bool((given == nominal).all()) or bool((reached == given).all(-1).any())

    def jumps(self, nominal: Tensor, given: Tensor) -> Tensor:
        return torch.ones(given.shape, dtype=torch.bool, device=given.device)

    def on(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, points=change(self.points))

    def add_to(self, encoder: Encoder, gates: Expression) -> Expression:
        samples, _, size = self.points.shape
        points = as_array(self.points)
        owner, which = np.nonzero(np.abs(points).any(-1))
        count = len(owner)
        if count == 0:
            return Expression.of(np.zeros((samples, size)))
        weights = encoder.columns(np.zeros(count), np.ones(count), integer=encoder.exact_phases)
        ones = sp.csr_matrix((np.ones(count), (owner, np.arange(count))), shape=(samples, count))
        total = weights.apply(ones, (samples,))
        encoder.rows(add([total, gates.reshape((samples,)).scale(-1.0)]), -np.inf, 0.0)
        rows = (owner[:, None] * size + np.arange(size)).reshape(-1)
        columns = np.repeat(np.arange(count), size)
        moves = (points[owner, which].reshape(-1), (rows, columns))
        return weights.apply(sp.csr_matrix(moves, shape=(samples * size, count)), (samples, size))
