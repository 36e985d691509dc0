"""Where the tensors of a state lie among the coordinates of a zonotope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from milp_agt.bounds.step import State
from milp_agt.core.interval import Interval


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a state lies among its coordinates: parameters first, then velocities."""

    slices: Mapping[str, slice]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: int

    @property
    def size(self) -> int:
        """How many coordinates there are, velocities included."""
        return sum(int(torch.Size(shape).numel()) for shape in self.shapes.values())

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]], parameters: Sequence[str]) -> Layout:
        slices, at, inner = {}, 0, 0
        for name, shape in shapes.items():
            size = int(torch.Size(shape).numel())
            slices[name] = slice(at, at + size)
            at += size
            if name in parameters:
                inner = at
        return Layout(slices, dict(shapes), inner)

    def boxes(self, box: Interval) -> State:
        """A box of all coordinates as boxes of tensors, (1, *shape)."""
        return {
            name: Interval(
                box.lower[part].reshape(1, *self.shapes[name]),
                box.upper[part].reshape(1, *self.shapes[name]),
            )
            for name, part in self.slices.items()
        }
