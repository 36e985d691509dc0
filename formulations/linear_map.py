"""What constant linear maps have in common: planes that lose only rounding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Protocol

import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions
from milp_agt.core.graph import (
    Graph,
    LinearBounds,
    Node,
    Operation,
    Pulled,
    Signature,
    Tensors,
    Wanted,
)
from milp_agt.core.interval import Boxes, Interval, as_array
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import EncodingError

Scale = float | Tensor
Shape = tuple[int, ...]


class LinearMap(Operation):
    """A constant linear map."""

    def terms(self) -> int:
        """Terms of the longest sum."""
        return 1


class MapOfOne(LinearMap):
    """``v = L u + constant`` of one input; a subclass states L, its transpose and its matrix."""

    @property
    @abstractmethod
    def shapes(self) -> tuple[Shape, Shape]:
        """Shapes that L takes and gives."""

    @property
    def constant(self) -> Tensor | None:
        """Broadcasts to the shape of the result."""
        return None

    @property
    @abstractmethod
    def flipped(self) -> MapOfOne:
        """The transpose of L."""

    @abstractmethod
    def linear(self, u: Tensor) -> Tensor:
        """``L u``, on any leading axes."""

    def absolute(self, u: Tensor) -> Tensor:
        """``|L| u``; L itself where no entry is negative."""
        return self.linear(u)

    @abstractmethod
    def sparse(self) -> sp.csr_matrix:
        """L over flattened tensors."""

    def relative_error(self) -> float:
        """Of the sizes of all terms, in the run and here; a sum of one term is a copy."""
        return gamma(3 * self.terms() + 10) if self.terms() > 1 else 0.0

    def infer(self, *inputs: Signature) -> Signature:
        (source,), (before, after) = inputs, self.shapes
        if source.shape != before:
            raise EncodingError(f"'{self.key}' of shape {before}", f"shape {source.shape}")
        return Signature(after, source.batched)

    def value(self, *inputs: Tensor) -> Tensor:
        found = self.linear(inputs[0])
        return found if self.constant is None else found + self.constant

    def interval(self, *inputs: Interval) -> Interval:
        """Where no entry of L is negative."""
        (box,), factor = inputs, self.relative_error()
        ends = Interval(self.value(box.lower), self.value(box.upper))
        if factor == 0.0:
            return ends
        return ends.widen(*(self.absolute(e.abs()) * factor + TINY for e in (box.lower, box.upper)))

    def transpose(self, coefficients: Tensor, samples: int, diagonal: bool = False) -> Tensors:
        return (self.flipped.linear(coefficients),)

    def relax(self, *inputs: Interval) -> LinearBounds:
        size, offset = self.absolute(inputs[0].magnitude.amax(0)), None
        if self.constant is not None:
            size = size + self.constant.abs()
            offset = self.constant.expand(size.shape).unsqueeze(0)
        return LinearPlanes(self, 1, offset, offset, size)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        (expression,), (before, after) = inputs, self.shapes
        blocks = sp.eye_array(expression.size // prod(before))
        lead = expression.shape[: len(expression.shape) - len(before)]
        on_all = sp.csr_matrix(sp.kron(blocks, self.sparse(), format="csr"))
        result = expression.apply(on_all, (*lead, *after))
        if self.constant is not None:
            result = result.shift(as_array(self.constant))
        factor = self.relative_error()
        if factor == 0.0:
            return result
        return result.plus_error(as_array(self.relax(*ranges).magnitude * factor))

    def vjp(self, graph: Graph, node: Node, cotangent: Node, wanted: Wanted) -> Pulled:
        return (graph.add(self.flipped, cotangent),)


class Weighted(MapOfOne):
    """A map by weights of either sign, as they are or transposed."""

    @property
    @abstractmethod
    def weights(self) -> Tensor: ...

    @abstractmethod
    def by(self, weights: Tensor, u: Tensor) -> Tensor:
        """``L u`` with other weights."""

    def linear(self, u: Tensor) -> Tensor:
        return self.by(self.weights, u)

    def absolute(self, u: Tensor) -> Tensor:
        return self.by(self.weights.abs(), u)

    def relative_error(self) -> float:
        return gamma(3 * self.terms() + 10)

    def interval(self, *inputs: Interval) -> Interval:
        """With W+ and W- for the positive and the negative part of the weights, the lower end is
        ``W+ l + W- u``. Boxes of what is never negative need half as many products."""
        (box,) = inputs
        signs = self.weights.clamp(min=0.0), self.weights.clamp(max=0.0)

        def parts(with_positive: Tensor, with_negative: Tensor) -> Tensors:
            return self.by(signs[0], with_positive), self.by(signs[1], with_negative)

        low, high = parts(box.lower, box.upper), parts(box.upper, box.lower)
        small, large = low, high
        if not bool((box.lower >= 0).all()):
            small = parts(box.lower.abs(), box.upper.abs())
            large = parts(box.upper.abs(), box.lower.abs())
        ends = low[0] + low[1], high[0] + high[1]
        return self.shifted(*ends, small[0] - small[1], large[0] - large[1])

    def shifted(self, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor) -> Interval:
        """The box of the result from the ends of ``L u`` and the sums of the sizes of their terms."""
        if self.constant is not None:
            size = self.constant.abs()
            lower, upper = lower + self.constant, upper + self.constant
            below, above = below + size, above + size
        factor = self.relative_error()
        return Interval(lower, upper).widen(below * factor + TINY, above * factor + TINY)


class _Linear(Protocol):
    def transpose(self, coefficients: Tensor, samples: int, diagonal: bool = False) -> Tensors: ...


@dataclass(frozen=True, slots=True)
class LinearPlanes:
    """``v = L u + constant``: the pull is the transpose of L; only rounding is lost.

    ``elementwise`` is how many inputs there are if every element of the result reads those at its
    own place with the same scales, so that coefficients of a part may be pulled alone; else 0.
    """

    op: _Linear
    samples: int
    lower: Tensor | None
    upper: Tensor | None
    magnitude: Tensor
    elementwise: int = 0

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> Tensors:
        return self.op.transpose(coefficients, self.samples, diagonal)

    def narrow(
        self, axis: int, index: Tensor
    ) -> tuple[LinearPlanes, tuple[int | None, ...]] | None:
        return (self, (axis,) * self.elementwise) if self.elementwise else None


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of some tensors, from the left."""
    return reduce(torch.add, terms)
