"""Independent coordinates: a box, and a box with a value for missing entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, add
from milp_agt.core.interval import as_array
from milp_agt.threats.sets.move_set import (
    InBox,
    MoveSet,
    Rules,
    exact_moves,
    extent,
    gated_columns,
    truncated,
)


@dataclass(frozen=True)
class Box(InBox):
    """``low <= e <= high`` in each coordinate, with whole numbers in the coordinates ``whole``.

    Support function: ``sum_j max(c_j high_j, c_j low_j)``. ``low`` and ``high`` have shape (N, size)
    and are whole numbers in these coordinates.
    """

    rules = Rules(
        "norm inf: each coordinate within its radius and domain; whole numbers",
        "exact",
        "hull",
        "exact",
    )
    is_box = True

    low: Tensor
    high: Tensor
    whole: tuple[int, ...] = ()

    @property
    def block_of(self) -> Tensor:
        return torch.arange(self.low.shape[-1], device=self.low.device)

    def gains(self, coefficients: Tensor) -> Tensor:
        return coefficients.abs() * extent(coefficients, self.low, self.high)

    def radius_supports(self, radius: Tensor) -> Tensor:
        return radius * self.reach

    def support(self, coefficients: Tensor) -> Tensor:
        return torch.maximum(coefficients * self.high, coefficients * self.low).sum(-1)

    def maximise(self, coefficients: Tensor) -> Tensor:
        return torch.where(coefficients >= 0, self.high, self.low)

    def project(self, moves: Tensor) -> Tensor:
        return truncated(self.boxed(moves), self.whole)

    def admits(self, sample: int, nominal: Tensor, given: Tensor) -> bool:
        return all(self.inside(sample, exact_moves(nominal, given)))

    def on(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, low=change(self.low), high=change(self.high))

    def add_to(self, encoder: Encoder, gates: Expression) -> Expression:
        low, high = as_array(self.low), as_array(self.high)
        return gated_columns(encoder, low, high, gates, self.whole)


@dataclass(frozen=True)
class BoxOrFill(MoveSet):
    """Each coordinate moves within a box, or jumps to the value of a missing entry.

    Support function: ``sum_j max(c_j high_j, c_j low_j, c_j fill_j)``. ``fill`` (N, size) is the move
    to that value, 0 where a coordinate cannot go missing.
    """

    rules = Rules("missing values: or the value that stands for one", "exact", "hull", "exact")
    is_box = True
    is_convex = False

    box: Box
    fill: Tensor

    @property
    def lower(self) -> Tensor:
        return torch.minimum(self.box.low, self._jump(-torch.inf))

    @property
    def upper(self) -> Tensor:
        return torch.maximum(self.box.high, self._jump(torch.inf))

    def _jump(self, towards: float) -> Tensor:
        """The jumps, rounded outwards because ``fill`` is a rounded difference."""
        outwards = torch.nextafter(self.fill, torch.full_like(self.fill, towards))
        return torch.where(self.fill == 0.0, 0.0, outwards)

    @property
    def block_of(self) -> Tensor:
        return self.box.block_of

    def radius_supports(self, radius: Tensor) -> Tensor:
        return radius * self.reach

    def gains(self, coefficients: Tensor) -> Tensor:
        return torch.maximum(self.box.gains(coefficients), coefficients * self.fill)

    def maximise(self, coefficients: Tensor) -> Tensor:
        jumps = coefficients * self.fill > self.box.gains(coefficients)
        return torch.where(jumps, self.fill, self.box.maximise(coefficients))

    def project(self, moves: Tensor) -> Tensor:
        inside = self.box.project(moves)
        nearer = (moves - self.fill).abs() < (moves - inside).abs()
        return torch.where(nearer, self.fill, inside)

    def admits(self, sample: int, nominal: Tensor, given: Tensor) -> bool:
        fill, inside = self.fill[sample], self.box.inside(sample, exact_moves(nominal, given))
        jumped = ((given == nominal + fill) & (fill != 0.0)).tolist()
        return all(a or b for a, b in zip(inside, jumped, strict=True))

    def jumps(self, nominal: Tensor, given: Tensor) -> Tensor:
        return self.box.jumps(nominal, given) | (given == nominal + self.fill)

    def on(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, box=self.box.on(change), fill=change(self.fill))

    def add_to(self, encoder: Encoder, gates: Expression) -> Expression:
        fill = as_array(self.fill)
        jump = encoder.columns(
            np.zeros(fill.shape), (fill != 0.0).astype(np.float64), integer=encoder.exact_phases
        )
        left = add([gates, jump.scale(-1.0)])
        encoder.rows(left, 0.0, np.inf)
        return add([self.box.add_to(encoder, left), jump.scale(fill)])
