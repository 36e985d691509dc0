"""Directions of the state as forms on all generators, to be bounded towards either side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.dual import Directions
from milp_agt.core.stacked import Stacked


@dataclass(frozen=True)
class Spread(Stacked):
    """Directions of the state on all generators, with the noise towards either side, see Directions."""

    on_moves: Tensor
    on_phase: Tensor
    on_bend: Tensor
    charge: Tensor
    below: Tensor
    above: Tensor
    down: Tensor
    up: Tensor
    size: Tensor
    operations: float

    def towards(self, sign: Tensor) -> Directions:
        """Each direction times its sign, (r,) of 1 and -1."""
        along = sign > 0
        one, two = sign[:, None], sign[:, None, None]
        return Directions(
            two * self.on_moves,
            one * self.on_phase,
            one * self.on_bend,
            self.charge,
            torch.where(along[:, None], self.up, self.down),
            torch.where(along, self.above, self.below),
            self.size,
            self.operations,
        )

    def both(self, supports: tuple[Tensor, Tensor] | None = None) -> Directions:
        """All directions, then their opposites; with the ``supports`` of both, (r, m), if they are known."""
        return Directions(
            torch.cat([self.on_moves, -self.on_moves]),
            torch.cat([self.on_phase, -self.on_phase]),
            torch.cat([self.on_bend, -self.on_bend]),
            torch.cat([self.charge, self.charge]),
            torch.cat([self.up, self.down]),
            torch.cat([self.above, self.below]),
            torch.cat([self.size, self.size]),
            self.operations,
            None if supports is None else torch.cat(supports),
        )
