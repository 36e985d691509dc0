"""Functions of linear pieces in programs: what meets a kink gets columns and phases, the rest is folded."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, Expressions, add
from milp_agt.core.interval import CLEAN, Boxes, Interval
from milp_agt.formulations.univariate import Univariate

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """The elements of an argument whose ranges meet a kink.

    Attributes:
        argument, mask: the whole argument, and which elements of it these are.
        x: their values, (count,).
        box: their ranges, (states, count); low, high: the ends of its hull.
    """

    argument: Expression
    mask: Mask
    x: Expression
    box: Interval
    low: Array
    high: Array


class Bent(Univariate):
    """A function of linear pieces."""

    @abstractmethod
    def straight(self, argument: Expression, low: Array, high: Array, bent: Mask) -> Expression:
        """The function on ranges that meet no kink, and 0 on all others."""

    @abstractmethod
    def bent_columns(self, encoder: Encoder, part: Part) -> Expression:
        """New columns for the values of a part."""

    def phase_rows(self, encoder: Encoder, part: Part, column: Expression) -> None:
        """Rows that come after those of the planes."""
        return

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        (argument,), (box,) = inputs, ranges
        hull = box.hull()
        low, high = hull.lower.cpu().numpy(), hull.upper.cpu().numpy()
        bent = ~self.is_linear_on(hull).cpu().numpy()
        straight = self.straight(argument, low, high, bent)
        if not bent.any():
            return straight
        index = np.flatnonzero(bent)
        picked = torch.from_numpy(index).to(box.lower.device)
        some = Interval(box.lower.flatten(1)[:, picked], box.upper.flatten(1)[:, picked])
        part = Part(argument, bent, argument.take(index), some, low[bent], high[bent])
        column = self.bent_columns(encoder, part)
        with encoder.selected(index, bent.size):
            self.encode_rows(encoder, column, part.x, some)
            encoder.conditional(column, self.interval(some))
        self.phase_rows(encoder, part, column)
        entries = (np.ones(index.size), (index, np.arange(index.size)))
        placement = sp.csr_matrix(entries, shape=(bent.size, index.size))
        return add([straight, column.apply(placement, bent.shape)])


class HullEdges(Bent):
    """An increasing function made of comparisons, level before its first kink and after its last.

    Planes: below, the sloped edge of the hull, or the lower level where most of the range lies before the
    first kink; above, mirrored at the last kink.
    """

    rounds_in_run = False

    rises: ClassVar[int] = 1
    piece_slopes: ClassVar[tuple[float, ...]] = (0.0,)  # further rows of programs have these

    @property
    @abstractmethod
    def kinks(self) -> tuple[float, ...]:
        """Where the slope changes, ascending."""

    @abstractmethod
    def edges(self, box: Interval) -> tuple[Tensor, Tensor]:
        """Slopes of the sloped edges of the hull below and above the graph."""

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
