"""What tells cells apart: moves of the poisoned samples as coordinates, and phases that are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.stacked import Stacked
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Box


@dataclass(frozen=True)
class Phases(Stacked):
    """Phases of functions with a kink, one in each row.

    Attributes:
        cell: the row of the batch of cells, (f,).
        step: of the training, (f,).
        source: number of the node with the argument, among :attr:`Passage.sources`, (f,).
        sample: of the data set, (f,).
        element: of the node, flat, (f,).
        on: whether the argument is above its kink, (f,) bool.
    """

    cell: Tensor
    step: Tensor
    source: Tensor
    sample: Tensor
    element: Tensor
    on: Tensor

    @staticmethod
    def none(device: torch.device | None = None) -> Phases:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Phases(empty, empty, empty, empty, empty, empty.to(torch.bool))

    def __len__(self) -> int:
        return len(self.cell)


@dataclass(frozen=True)
class Moves:
    """How the K coordinates of a cell enter the data: those of each sample of a selection in turn.

    Attributes:
        on_features: how many coordinates of a sample are features; the others are labels.
        columns: which flat features and labels they are, (width,), labels behind the features.
        lower, upper: their range for each sample of the data set, (N, width).
        is_box: whether every move within the ranges is admissible.
    """

    on_features: int
    columns: Tensor
    lower: Tensor
    upper: Tensor
    is_box: bool

    @staticmethod
    def of(poison: Poison) -> Moves:
        """All coordinates that some sample can move."""
        low, high, count = [], [], 0
        for moves, nominal in (
            (poison.feature_moves, poison.features),
            (poison.label_moves, poison.labels),
        ):
            flat = nominal.flatten(1)
            none = torch.zeros_like(flat)
            low.append(none if moves is None else moves.lower.reshape(flat.shape))
            high.append(none if moves is None else moves.upper.reshape(flat.shape))
        lower, upper = torch.cat(low, 1), torch.cat(high, 1)
        open_ = poison.open[:, None]
        lower, upper = torch.where(open_, lower, 0.0), torch.where(open_, upper, 0.0)
        columns = ((lower < 0.0) | (upper > 0.0)).any(0).nonzero()[:, 0]
        count = int((columns < low[0].shape[1]).sum())
        kinds = (poison.feature_moves, poison.label_moves)
        is_box = all(moves is None or isinstance(moves, Box) for moves in kinds)
        return Moves(count, columns, lower[:, columns], upper[:, columns], is_box)

    @property
    def width(self) -> int:
        return len(self.columns)

    def ranges(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Ranges of the coordinates of selections, (..., k) to (..., k * width)."""
        return self.lower[samples].flatten(-2), self.upper[samples].flatten(-2)

    def data(self, poison: Poison, samples: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        """The poisoned data sets, features (B, N, *shape) and labels (B, N, w), of moves (B, K)."""
        count = len(samples)
        features = poison.features.flatten(1).expand(count, -1, -1).clone()
        labels = poison.labels.flatten(1).expand(count, -1, -1).clone()
        own = moves.reshape(count, samples.shape[1], self.width)
        row = torch.arange(count, device=samples.device)[:, None, None]
        first, second = self.columns[: self.on_features], self.columns[self.on_features :]
        features[row, samples[..., None], first] += own[..., : self.on_features]
        labels[row, samples[..., None], second - features.shape[2]] += own[..., self.on_features :]
        return poison.project(
            features.reshape(count, *poison.features.shape),
            labels.reshape(count, *poison.labels.shape),
        )
