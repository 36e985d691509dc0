"""Linear bounds of one node: what a backward pass asks of a relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


class BackwardSlopes(Protocol):
    """The slopes of linear bounds of one node."""

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> tuple[Tensor | None, ...]:
        """Coefficients on the inputs, one tensor for each: (rows, [samples or 1], *input shape);
        None for an input on which there is none.

        With ``diagonal`` there is one row for each pair of a first index and a sample: nothing is
        summed over the samples, and inputs without a sample axis get coefficients with one.
        """
        ...


class LinearBounds(BackwardSlopes, Protocol):
    """Linear bounds of one node ``v`` in its inputs ``u_j``, valid on the ranges they were made for.

    For every row of coefficients ``c`` (rows first, then the axes of the node without its states)

        c . v  >=  sum_j pull_j(c) . u_j  +  max(c, 0) . lower[s]  +  min(c, 0) . upper[s]

    where ``s`` is the poisoning state of the sample. One slope serves all states; the offsets differ.

    Attributes:
        lower, upper: offsets, shape (states, [samples], *shape), rounding errors included; None
            where the operation is linear without a constant.
        magnitude: bound of ``|v|`` and of all terms that the right side adds up, without their
            coefficients, shape ([samples], *shape). The walk's own rounding is charged to it.
    """

    @property
    def lower(self) -> Tensor | None: ...

    @property
    def upper(self) -> Tensor | None: ...

    @property
    def magnitude(self) -> Tensor: ...


@runtime_checkable
class NarrowableSlopes(BackwardSlopes, Protocol):
    """Planes that can be cut down to some indices of one axis, where all other coefficients are 0."""

    def narrow(
        self, axis: int, index: Tensor
    ) -> tuple[BackwardSlopes, tuple[int | None, ...]] | None:
        """Planes for coefficients on ``index`` along ``axis`` (from the right) alone.

        Also says along which axis the coefficients that :meth:`LinearBounds.pull` returns for each input
        are cut down to the same indices; None for all of them. None: not possible.
        """
        ...


@dataclass(frozen=True, slots=True)
class FreeSlope:
    """A slope of linear bounds that may be any number: where it starts, and where better ones may lie.

    All three of the shape of the slope; ``lower == upper`` where no other slope could be better.
    """

    start: Tensor
    lower: Tensor
    upper: Tensor
