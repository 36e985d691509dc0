"""Boxes: tensors of lower and upper ends with a leading axis of poisoning states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.errors import SoundnessError

CLEAN = 0
POISONED = 1


@dataclass(frozen=True, slots=True)
class Interval:
    """The box ``{v : lower <= v <= upper}``, elementwise, float64.

    Shapes: ``(states, samples, *shape)`` for a node with a sample axis and ``(1, *shape)`` for one
    without. State ``CLEAN`` holds if the sample is not poisoned, state ``POISONED`` if it may be;
    a batch that cannot be poisoned has one state. With separate budgets for features and labels there
    are four: ``CLEAN``, features poisoned, labels poisoned, and both; bit 0 of a state stands for
    features, bit 1 for labels. Infinite ends mean that nothing is known.
    """

    lower: Tensor
    upper: Tensor

    @staticmethod
    def point(value: Tensor) -> Interval:
        return Interval(value, value)

    @staticmethod
    def spanning(values: Iterable[Tensor]) -> Interval:
        """The smallest box with each of some tensors of one shape."""
        every = list(values)
        return Interval(reduce(torch.minimum, every), reduce(torch.maximum, every))

    @staticmethod
    def holding(boxes: Iterable[Interval]) -> Interval:
        """The smallest box with some boxes of one shape."""
        every = list(boxes)
        lower = reduce(torch.minimum, (box.lower for box in every))
        return Interval(lower, reduce(torch.maximum, (box.upper for box in every)))

    @staticmethod
    def joined(parts: Sequence[Interval], axis: int = 0) -> Interval:
        """Boxes one after the other along an axis."""
        return Interval(
            torch.cat([part.lower for part in parts], axis),
            torch.cat([part.upper for part in parts], axis),
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Interval:
        """With both ends changed in the same way, which keeps their order."""
        return Interval(change(self.lower), change(self.upper))

    def plus(self, other: Interval) -> Interval:
        return Interval(self.lower + other.lower, self.upper + other.upper)

    def within(self, least: float, most: float) -> Interval:
        """With ends that are cut at numbers which no value passes."""
        return Interval(self.lower.clamp(min=least), self.upper.clamp(max=most))

    @property
    def is_point(self) -> bool:
        return bool((self.lower == self.upper).all())

    @property
    def centre(self) -> Tensor:
        return 0.5 * self.lower + 0.5 * self.upper

    @property
    def width(self) -> Tensor:
        return self.upper - self.lower

    @property
    def magnitude(self) -> Tensor:
        """``max(|lower|, |upper|) = max(upper, -lower)``, elementwise."""
        return torch.maximum(self.upper, -self.lower)

    @property
    def clean(self) -> Interval:
        """The box of the state CLEAN, with the axis of states kept."""
        return Interval(self.lower[:1], self.upper[:1])

    @property
    def of_clean(self) -> Interval:
        """The box of the state CLEAN, without the axis of states."""
        return Interval(self.lower[CLEAN], self.upper[CLEAN])

    def hull(self) -> Interval:
        """The smallest box that contains every state, without the axis of states."""
        return Interval(self.lower.amin(0), self.upper.amax(0))

    @property
    def of_all(self) -> Interval:
        """One box that holds every state, with an axis of one state."""
        return Interval(self.lower.amin(0, keepdim=True), self.upper.amax(0, keepdim=True))

    def widen(self, error: Tensor | float, upper_error: Tensor | float | None = None) -> Interval:
        """Move the ends outwards by ``error >= 0``; a NaN end becomes infinite.

        With ``upper_error`` the lower end moves by ``error`` and the upper end by ``upper_error``.

        A NaN can only come from infinite ends (``inf - inf``, ``0 * inf``): nothing is known then,
        and the whole line is the sound answer.
        """
        lower = self.lower - error
        upper = self.upper + (error if upper_error is None else upper_error)
        return Interval(
            lower.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf),
            upper.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf),
        )

    @property
    def is_whole(self) -> bool:
        """Whether no entry has a bound on either side."""
        return not bool((self.lower > -torch.inf).any() or (self.upper < torch.inf).any())

    def forgotten(self) -> Interval:
        """The whole line for each entry."""
        whole = torch.full_like(self.upper, torch.inf)
        return Interval(-whole, whole)

    def meet(self, other: Interval, what: str = "two bounds of the same node") -> Interval:
        """The intersection.

        Raises:
            SoundnessError: the intersection is empty. Both boxes must contain the true value, so
                one of them is wrong.
        """
        lower = torch.maximum(self.lower, other.lower)
        upper = torch.minimum(self.upper, other.upper)
        if not bool((lower <= upper).all()):
            gap = float((lower - upper).max())
            raise SoundnessError(
                f"The meet of {what} must not be empty",
                f"a gap of {gap:.3e}",
                "one of the two bounds is unsound: please report this run",
            )
        return Interval(lower, upper)

    def contains(self, value: Tensor) -> bool:
        return bool(((self.lower <= value) & (value <= self.upper)).all())

    def expand_states(self, states: int) -> Interval:
        """Repeat a box with one state for ``states`` states (a view)."""
        if self.lower.shape[0] == states:
            return self
        size = (states, *self.lower.shape[1:])
        return Interval(self.lower.expand(size), self.upper.expand(size))


Boxes = tuple[Interval, ...]


def as_array(values: Tensor | float) -> npt.NDArray[np.float64]:
    """Numbers on the host."""
    host = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(host, dtype=np.float64)
