"""Groups of coordinates, each with its own set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, add
from milp_agt.threats.sets.move_set import MoveSet, Rules, placed_in


@dataclass(frozen=True)
class Product(MoveSet):
    """The coordinates ``columns[k]`` move in ``parts[k]``, independently of the others.

    The columns of all parts partition the coordinates. Support functions add up.
    """

    rules = Rules("numbers and categories of one sample", *["as its parts"] * 3)

    columns: tuple[tuple[int, ...], ...]
    parts: tuple[MoveSet, ...]

    @property
    def lower(self) -> Tensor:
        return self._joined([part.lower for part in self.parts])

    @property
    def upper(self) -> Tensor:
        return self._joined([part.upper for part in self.parts])

    @property
    def block_of(self) -> Tensor:
        first = 0
        numbers = []
        for part in self.parts:
            numbers.append(part.block_of + first)
            first += part.blocks
        return self._joined(numbers)

    @property
    def is_exact(self) -> bool:
        return all(part.is_exact for part in self.parts)

    @property
    def is_box(self) -> bool:
        return all(part.is_box for part in self.parts)

    @property
    def is_convex(self) -> bool:
        return all(part.is_convex for part in self.parts)

    def gains(self, coefficients: Tensor) -> Tensor:
        return torch.cat([p.gains(c) for p, c in self._split(coefficients)], -1)

    def radius_supports(self, radius: Tensor) -> Tensor:
        return torch.cat([p.radius_supports(r) for p, r in self._split(radius)], -1)

    def support(self, coefficients: Tensor) -> Tensor:
        supports = [p.support(c) for p, c in self._split(coefficients)]
        return torch.stack(supports).sum(0)

    def maximise(self, coefficients: Tensor) -> Tensor:
        return self._joined([p.maximise(c) for p, c in self._split(coefficients)])

    def project(self, moves: Tensor) -> Tensor:
        return self._joined([p.project(m) for p, m in self._split(moves)])

    def sample(self, generator: torch.Generator, count: int, corners: bool) -> Tensor:
        return self._joined([p.sample(generator, count, corners) for p in self.parts])

    def _split(self, tensor: Tensor) -> list[tuple[MoveSet, Tensor]]:
        return [
            (part, tensor[..., list(columns)])
            for part, columns in zip(self.parts, self.columns, strict=True)
        ]

    def _joined(self, pieces: list[Tensor]) -> Tensor:
        """Pieces of each part (..., columns) as one tensor (..., size)."""
        order = np.argsort(np.concatenate([np.asarray(c) for c in self.columns]))
        index = torch.from_numpy(order).to(pieces[0].device)
        return torch.cat(pieces, -1)[..., index]

    def admits(self, sample: int, nominal: Tensor, given: Tensor) -> bool:
        pairs = zip(self.parts, map(list, self.columns), strict=True)
        return all(part.admits(sample, nominal[own], given[own]) for part, own in pairs)

    def jumps(self, nominal: Tensor, given: Tensor) -> Tensor:
        pairs = zip(self.parts, map(list, self.columns), strict=True)
        return self._joined([p.jumps(nominal[..., c], given[..., c]) for p, c in pairs])

    def on(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, parts=tuple(part.on(change) for part in self.parts))

    def add_to(self, encoder: Encoder, gates: Expression) -> Expression:
        samples = gates.shape[0]
        index = np.arange(gates.size).reshape(samples, -1)
        size = sum(len(columns) for columns in self.columns)
        first, placed = 0, []
        for part, columns in zip(self.parts, self.columns, strict=True):
            own = gates.take(index[:, first : first + part.blocks])
            first += part.blocks
            placed.append(placed_in(part.add_to(encoder, own), np.asarray(columns), size))
        return add(placed)
