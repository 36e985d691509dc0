"""Functions that rise between levels: planes along the sloped edges of the hull of their graph."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from milp_agt.core.interval import CLEAN, Interval
from milp_agt.formulations.bent import Bent


class HullEdges(Bent):
    """An increasing function made of comparisons, level before its first kink and after its last.

    Planes: below, the sloped edge of the hull, or the lower level where most of the range lies before the
    first kink; above, mirrored at the last kink.
    """

    rises: ClassVar[int] = 1
    piece_slopes: ClassVar[tuple[float, ...]] = (0.0,)  # further rows of programs have these

    @property
    @abstractmethod
    def kinks(self) -> tuple[float, ...]:
        """Where the slope changes, ascending."""

    @abstractmethod
    def edges(self, box: Interval) -> tuple[Tensor, Tensor]:
        """Slopes of the sloped edges of the hull below and above the graph."""

    def rounds_in_run(self) -> bool:
        return False

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        """Comparisons are exact."""
        return torch.zeros_like(value)

    def slopes(self, clean: Interval) -> tuple[Tensor, Tensor]:
        below, above = self.edges(clean)
        first, last = self.kinks[0], self.kinks[-1]
        flat_below = (clean.lower < first) & (clean.centre < first)
        flat_above = (clean.upper > last) & (clean.centre > last)
        zero = torch.zeros_like(below)
        return torch.where(flat_below, zero, below), torch.where(flat_above, zero, above)

    def program_slopes(self, box: Interval) -> tuple[list[Tensor], list[Tensor]]:
        zero = torch.zeros_like(box.lower[CLEAN])
        lower, upper = ([zero + slope for slope in self.piece_slopes] for _ in range(2))
        for each in (box.of_clean, box.hull()):
            below, above = self.edges(each)
            lower.append(below)
            upper.append(above)
        return lower, upper
