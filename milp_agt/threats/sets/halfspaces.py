"""Linear rows on the moves of a sample, on top of another set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add
from milp_agt.core.interval import as_array
from milp_agt.core.rounding import gamma
from milp_agt.threats.sets.move_set import OnBase, Rules, exact, exact_moves, spread

# Rounds of alternating projections on the rows and on the set below them.
ROUNDS = 20


@dataclass(frozen=True)
class Halfspaces(OnBase):
    """Moves of ``base`` with ``matrix @ e <= limits``, up to the rounding of ``matrix @ e``.

    Programs keep the rows, loosened by that rounding. The support function is that of ``base``, an
    upper bound.

    Attributes:
        base: the set without the rows.
        matrix: (rows, size), the same for every sample.
        limits: (N, rows), >= 0.
    """

    rules = Rules(
        "linear rows of the user's own", "without the rows; the result says so", "kept", "kept"
    )

    matrix: Array
    limits: Tensor

    @property
    def is_exact(self) -> bool:
        return False

    @property
    def is_box(self) -> bool:
        """As for the base: only programs use the rows."""
        return self.base.is_box

    @property
    def is_convex(self) -> bool:
        return self.base.is_convex

    def gains(self, coefficients: Tensor) -> Tensor:
        return self.base.support(coefficients)[..., None]

    def radius_supports(self, radius: Tensor) -> Tensor:
        return self.base.radius_support(radius)[..., None]

    def maximise(self, coefficients: Tensor) -> Tensor:
        return self._near(self.base.maximise(coefficients))

    def project(self, moves: Tensor) -> Tensor:
        return self._near(moves)

    def sample(self, generator: torch.Generator, count: int, corners: bool) -> Tensor:
        return self._near(self.base.sample(generator, count, corners))

    def _activity(self, moves: Tensor) -> Tensor:
        return moves @ torch.from_numpy(self.matrix).to(moves).T

    def _rounding(self) -> Tensor:
        """Bound of the rounding of ``matrix @ e``, (N, rows)."""
        sizes = self.reach @ torch.from_numpy(abs(self.matrix)).to(self.limits).T
        return gamma(4 * self.size + 16) * sizes

    def _near(self, moves: Tensor) -> Tensor:
        """Alternating projections on the rows and on ``base``; moves still beyond a row are scaled down.

        If scaled moves need not be admissible, a move beyond a row becomes "no move".
        """
        near = self.base.project(moves)
        limits = self.limits + self._rounding()
        for _ in range(ROUNDS):
            if not bool((self._activity(near) > limits).any()):
                return near
            near = self.base.project(self._behind_rows(near))
        activity = self._activity(near)
        beyond = activity > limits
        if not self.is_convex:
            return torch.where(beyond.any(-1, keepdim=True), 0.0, near)
        share = torch.where(beyond, self.limits / torch.where(beyond, activity, 1.0), 1.0)
        return share.amin(-1, keepdim=True) * near

    def _behind_rows(self, moves: Tensor) -> Tensor:
        """Moves projected on each violated row, one row after the other."""
        for row, limit in zip(self.matrix, self.limits.unbind(1), strict=True):
            normal = torch.from_numpy(row).to(moves)
            beyond = (moves @ normal - limit).clamp(min=0.0)
            length = normal.square().sum()
            moves = moves - (beyond / torch.where(length > 0, length, 1.0))[..., None] * normal
        return moves

    def admits(self, sample: int, nominal: Tensor, given: Tensor) -> bool:
        moves, limits = exact_moves(nominal, given), exact(self.limits[sample])
        rows = [[Fraction(c) for c in row] for row in self.matrix.tolist()]
        sums = [sum((c * e for c, e in zip(row, moves, strict=True)), Fraction(0)) for row in rows]
        below = all(total <= limit for total, limit in zip(sums, limits, strict=True))
        return below and self.base.admits(sample, nominal, given)

    def on(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, base=self.base.on(change), limits=change(self.limits))

    def add_to(self, encoder: Encoder, gates: Expression) -> Expression:
        samples, rows = gates.shape[0], len(self.matrix)
        moves = self.base.add_to(encoder, spread(gates, self.base.blocks))
        every = sp.csr_matrix(sp.kron(sp.eye(samples), self.matrix))
        activity = moves.apply(every, (samples, rows))
        limits = as_array(self.limits + self._rounding())
        encoder.rows(add([activity, spread(gates, rows).scale(-limits)]), -np.inf, 0.0)
        return moves
