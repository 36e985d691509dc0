"""Linear bounds of one node: the interface between relaxations and backward passes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

Tensors = tuple[Tensor, ...]


class BackwardSlopes(Protocol):
    """The slopes of linear bounds of one node."""

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> tuple[Tensor | None, ...]:
        """Coefficients on the inputs, one tensor each: (rows, [samples or 1], *input shape); None for an
        input without any.

        With ``diagonal`` each pair of a first index and a sample is a row: nothing is summed over the
        samples, and inputs without a sample axis get coefficients with one.
        """
        ...


class LinearBounds(BackwardSlopes, Protocol):
    """Linear bounds of one node ``v`` in its inputs ``u_j``, valid on the ranges they were made for.

    For every row of coefficients ``c`` (rows first, then the axes of the node without its states)

        c . v  >=  sum_j backward_j(c) . u_j  +  max(c, 0) . lower[s]  +  min(c, 0) . upper[s]

    where ``s`` is the poisoning state of the sample. All states share one slope; intercepts differ.

    Attributes:
        lower, upper: intercepts, shape (states, [samples], *shape), rounding errors included; None
            if the operation is linear without a constant.
        magnitude: bound of ``|v|`` and of all terms that the right side adds up, without their
            coefficients, shape ([samples], *shape). The rounding of backward passes grows with it.
    """

    @property
    def lower(self) -> Tensor | None: ...

    @property
    def upper(self) -> Tensor | None: ...

    @property
    def magnitude(self) -> Tensor: ...


@runtime_checkable
class NarrowableSlopes(BackwardSlopes, Protocol):
    """Planes that can be narrowed to some indices of one axis if all other coefficients are 0."""

    def narrow(
        self, axis: int, index: Tensor
    ) -> tuple[BackwardSlopes, tuple[int | None, ...]] | None:
        """Planes for coefficients on ``index`` along ``axis`` (counted from the right) only.

        Also returns, for each input, the axis along which the coefficients from :meth:`backward` are
        narrowed to the same indices; None if they are not. Returns None if narrowing is not possible.
        """
        ...
