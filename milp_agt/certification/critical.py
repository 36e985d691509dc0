"""The selections that determine the width of a union, and their refinement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from milp_agt.bounds.signed_entries import entry_bounds, entry_boxes
from milp_agt.certification.chains import ChainPart

# At most MOST selections are refined; each must account for WORTH of the union's width.
MOST = 12
WORTH = 0.02


@dataclass
class CriticalSelections:
    """Bounds of all signed entries ("ends") per selection; the least of each column is that of the union.

    Attributes:
        parts: each with some of the selections.
        bounds: lower bounds of the ends, (selections, ends), of all parts concatenated.
        centre: of the clean run, (ends,).
        wanted: mask of the ends that count, (ends,).
        tried: mask of the ends with optimised slopes, (ends,), for each selection bounded by itself.
    """

    parts: Sequence[ChainPart]
    bounds: Tensor
    centre: Tensor
    wanted: Tensor
    tried: dict[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(parts: Sequence[ChainPart], wanted: Tensor) -> CriticalSelections:
        """From parts, and the numbers of the ends that count."""
        bounds = torch.cat([entry_bounds(part.state) for part in parts])
        low, high = bounds[0].chunk(2)
        middle = 0.5 * (low - high)
        counted = torch.zeros_like(bounds[0], dtype=torch.bool)
        counted[wanted] = True
        return CriticalSelections(parts, bounds, torch.cat([middle, -middle]), counted)

    @property
    def widths(self) -> Tensor:
        """Distance from the clean run to the bound of the union, (ends,); 0 for ends that do not count."""
        return torch.where(self.wanted, self.centre - self.bounds.amin(0), 0.0)

    def improve(
        self,
        alone: Callable[[int], Tensor],
        optimised: Callable[[int, Tensor], Tensor],
        is_late: Callable[[], bool],
    ) -> bool:
        """Refine the selections that determine the width of the union, the largest share first.

        Args:
            alone: bounds of all ends, (ends,), of a selection bounded by itself.
            optimised: bounds of some ends of such a selection, by their numbers.
            is_late: whether the time is up.

        Returns:
            Whether it stopped because the time was up.
        """
        while (number := self._next()) is not None:
            if is_late():
                return True
            own = self.bounds[number]
            if number not in self.tried:
                self.tried[number] = torch.zeros_like(self.wanted)
                torch.maximum(own, alone(number), out=own)
            else:
                mine = (self.bounds.argmin(0) == number) & self.wanted & ~self.tried[number]
                self.tried[number] |= mine
                ends = mine.nonzero()[:, 0]
                own[ends] = torch.maximum(own[ends], optimised(number, ends))
        return False

    def _next(self) -> int | None:
        """The selection with the largest share of the width left; None if it is below WORTH."""
        widths, worst = self.widths, self.bounds.argmin(0)
        left = widths
        for number, tried in self.tried.items():
            left = torch.where((worst == number) & tried, 0.0, left)
        carried = left.new_zeros(len(self.bounds)).index_add(0, worst, left)
        if len(self.tried) >= MOST:
            known = torch.tensor(list(self.tried), device=carried.device)
            carried = torch.zeros_like(carried).index_copy(0, known, carried[known])
        number = int(carried.argmax())
        return number if float(carried[number]) > WORTH * float(widths.sum()) else None

    def place(self, number: int) -> tuple[ChainPart, int]:
        """The part that holds a selection, and its case there."""
        for part in self.parts:
            if number < part.adversary.cases:
                return part, number
            number -= part.adversary.cases
        raise IndexError(number)

    def settle(self) -> None:
        """Write the bounds back to the parts."""
        pieces = self.bounds.split([part.adversary.cases for part in self.parts])
        for part, bounds in zip(self.parts, pieces, strict=True):
            found = entry_boxes(part.state, bounds)
            part.state = {
                n: b.meet(found[n], f"'{n}' of selections") for n, b in part.state.items()
            }
