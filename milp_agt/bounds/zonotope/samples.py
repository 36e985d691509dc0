"""The generators of poisoned samples: who may move, how far a direction follows, and what a budget buys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from milp_agt.threats.poison import Poison


@dataclass(frozen=True)
class SampleGenerators:
    """One generator ``e_i`` for each sample that can be poisoned: its move, or 0 if it is clean.

    ``e_i`` lies in ``s_i E_i`` with the set of moves ``E_i`` of features and labels together and
    ``s_i`` in {0, 1}; the cardinality constraint is ``sum_i s_i <= budget``.

    Attributes:
        poison: the moves of these samples alone, in this order.
        columns: their numbers in the data set, (m,).
        column_of: the generator of each sample of the data set, (N,), -1 for those that stay clean.
        budget: how many samples are poisoned at most.
    """

    poison: Poison
    columns: Tensor
    column_of: Tensor
    budget: int

    @staticmethod
    def of(poison: Poison) -> SampleGenerators:
        """The generators of a threat with one budget for the data set and moves that stay as they are."""
        columns = poison.exposed.nonzero()[:, 0] if poison.budget else poison.open.nonzero()[:0, 0]
        column_of = torch.full_like(poison.open, -1, dtype=torch.int64)
        column_of[columns] = torch.arange(len(columns), device=columns.device)
        return SampleGenerators(poison.take(columns), columns, column_of, poison.budget)

    @property
    def count(self) -> int:
        return len(self.columns)

    @property
    def on_features(self) -> int:
        """How many coordinates of a move are those of features; they come first."""
        moves = self.poison.feature_moves
        return 0 if moves is None else moves.size

    @property
    def width(self) -> int:
        """Coordinates of one move."""
        moves = self.poison.label_moves
        return self.on_features + (0 if moves is None else moves.size)

    @cached_property
    def reach(self) -> Tensor:
        """The largest size of each coordinate of a move, (m, width)."""
        poison = self.poison
        parts = [m.reach for m in (poison.feature_moves, poison.label_moves) if m is not None]
        return torch.cat(parts, -1) if parts else poison.features.new_zeros(self.count, 0)

    def support(self, coefficients: Tensor) -> Tensor:
        """``max over moves of c_i . e_i``, (rows, m), from coefficients (rows, m, width)."""
        total = coefficients.new_zeros(coefficients.shape[:2])
        features, labels = self._split(coefficients)
        if self.poison.feature_moves is not None:
            total = total + self.poison.feature_moves.support(features)
        if self.poison.label_moves is not None:
            total = total + self.poison.label_moves.support(labels)
        return total

    def maximise(self, coefficients: Tensor) -> Tensor:
        """Moves that attain the support function, (rows, m, width)."""
        features, labels = self._split(coefficients)
        parts = []
        if self.poison.feature_moves is not None:
            parts.append(self.poison.feature_moves.maximise(features))
        if self.poison.label_moves is not None:
            parts.append(self.poison.label_moves.maximise(labels))
        return torch.cat(parts, -1) if parts else torch.zeros_like(coefficients)

    def _split(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return coefficients[..., : self.on_features], coefficients[..., self.on_features :]

    def worst(self, reach: Tensor, spent: int = 0) -> Tensor:
        """Sum of the largest of ``reach`` >= 0, (..., m), as many as the budget less ``spent`` allows."""
        count = min(max(0, self.budget - spent), reach.shape[-1])
        if count == 0:
            return reach.new_zeros(reach.shape[:-1])
        if count == 1:
            return reach.amax(-1)
        return reach.topk(count, -1, sorted=False).values.sum(-1)

    def chosen(self, reach: Tensor) -> Tensor:
        """Mask, as numbers, of the samples whose reach :meth:`worst` adds up, (..., m)."""
        count = min(self.budget, reach.shape[-1])
        index = reach.topk(count, -1, sorted=False).indices
        return torch.zeros_like(reach).scatter_(-1, index, 1.0)
