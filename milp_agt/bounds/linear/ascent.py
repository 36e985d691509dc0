"""Slopes during an ascent: variables with ranges, moved by Adam and projected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from milp_agt.bounds.linear.slopes import Place, Slopes
from milp_agt.core.planes import FreeSlope

# Length of the first move, as a share of the range of a slope; its factor per move that the slopes of a
# training step have made; its least length.
RATE, DECAY, SHORTEST = 0.1, 0.95, 0.01
# Decay of Adam's averages (Kingma and Ba 2015). Gradients below FLOOR times the largest of a row are not
# scaled up: most slopes hardly matter, and kinks lie at their start values.
MEMORY = (0.5, 0.9)
FLOOR = 0.03

Free = Mapping[Place, tuple[FreeSlope, ...]]


def has_choice(slope: FreeSlope) -> bool:
    """Whether any element has a range to choose from."""
    return bool((slope.upper > slope.lower).any())


@dataclass(eq=False)
class Variable:
    """One free slope of one place, with its range, the best value so far, and Adam's averages.

    Attributes:
        step, place, slot: the step of the window, the place in it, the number of the slope there.
        value, kept: (rows, *shape).
    """

    step: int
    place: Place
    slot: int
    free: FreeSlope
    value: Tensor
    kept: Tensor = field(init=False)
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.value = self.value.clone()
        self.kept = self.value.clone()
        self.first, self.second = torch.zeros_like(self.value), torch.zeros_like(self.value)

    def learn(self, gradient: Tensor | None) -> Tensor:
        """Add a gradient to the averages; returns the largest second moment of each row, (rows,)."""
        self.first.mul_(MEMORY[0])
        self.second.mul_(MEMORY[1])
        if gradient is not None:
            scaled = gradient.nan_to_num(0.0, 0.0, 0.0).mul_(self.free.upper - self.free.lower)
            self.first.add_(scaled, alpha=1 - MEMORY[0])
            self.second.addcmul_(scaled, scaled, value=1 - MEMORY[1])
        return self.second.flatten(1).amax(1)

    def move(self, rate: float, floor: Tensor, decays: Sequence[float]) -> None:
        """One move of at most about ``rate`` of the range."""
        size = self.second.div(decays[1]).sqrt_().add_(aligned(floor, self.value))
        length = torch.div(self.first, size, out=size).mul_(rate / decays[0])
        self.value = self.value.addcmul(length, self.free.upper - self.free.lower)
        self.value = self.value.clamp_(self.free.lower, self.free.upper)


@dataclass
class Variables:
    """All free slopes of a window, for some rows.

    ``made`` counts the moves that the slopes of each step have already made.
    """

    each: list[Variable]
    fixed: list[dict[Place, tuple[Tensor, ...]]]
    made: Sequence[int]
    count: int = 0

    @staticmethod
    def of(free: Sequence[Free], start: Sequence[Slopes], made: Sequence[int]) -> Variables:
        each = [
            Variable(step, place, slot, slope, value)
            for step, (own, values) in enumerate(zip(free, start, strict=True))
            for place, slopes in own.items()
            for slot, (slope, value) in enumerate(zip(slopes, values[place], strict=True))
            if has_choice(slope)
        ]
        return Variables(each, [dict(own) for own in start], made)

    def leaves(self) -> list[Tensor]:
        """The values, marked as leaves for gradients."""
        return [v.value.requires_grad_() for v in self.each]

    def now(self) -> list[Slopes]:
        """The current slopes of each step."""
        return self._with([v.value for v in self.each])

    def best(self) -> list[Slopes]:
        """The kept slopes of each step."""
        return self._with([v.kept for v in self.each])

    def _with(self, values: Sequence[Tensor]) -> list[Slopes]:
        found = [{place: list(own) for place, own in step.items()} for step in self.fixed]
        for variable, value in zip(self.each, values, strict=True):
            found[variable.step][variable.place][variable.slot] = value
        return [{place: tuple(own) for place, own in step.items()} for step in found]

    def keep(self, rows: Tensor) -> None:
        """Keep the current values of the rows in a mask."""
        for variable in self.each:
            variable.kept[rows] = variable.value.detach()[rows]

    @torch.no_grad()
    def move(self, gradients: Sequence[Tensor | None], before: int) -> None:
        """One move upwards, after ``before`` others."""
        self.count += 1
        decays = [1.0 - memory**self.count for memory in MEMORY]
        tops = [v.learn(g) for v, g in zip(self.each, gradients, strict=True)]
        floor = FLOOR * (torch.stack(tops).amax(0) / decays[1]).sqrt() + 1e-300
        for variable in self.each:
            made = self.made[variable.step] + before
            variable.move(max(SHORTEST, RATE * DECAY**made), floor, decays)


def aligned(rows: Tensor, like: Tensor) -> Tensor:
    """(rows,) reshaped to broadcast against another tensor."""
    return rows.reshape(-1, *[1] * (like.dim() - 1))
