"""Constant linear maps of single samples: combinations, matrices on the last axis, reshapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, Expressions, add
from milp_agt.core.graph import Graph, Node, Pulled, Signature, Tensors, Wanted
from milp_agt.core.interval import Boxes, Interval, as_array
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.linear_map import (
    LinearMap,
    LinearPlanes,
    MapOfOne,
    Scale,
    Shape,
    Weighted,
    total,
)
from milp_agt.formulations.registry import register
from milp_agt.formulations.sum_samples import SumSamples


@register
@dataclass(frozen=True, eq=False)
class Combine(LinearMap):
    """``v = sum_j scale_j * u_j + constant`` with scalar or elementwise constant scales.

    Inputs have the shape of the result; those without a sample axis are repeated for every sample
    (a bias). The result has a sample axis if any input has one. A run may add these terms among
    ``summed`` others, those of the sum that is an input: a bias in front of a product of matrices is
    rounded as often as the product.
    """

    scales: tuple[Scale, ...]
    constant: Tensor | None = None
    batched: tuple[bool, ...] = ()
    rank: int = 0
    summed: int = 0
    key = "combine"
    rounds_in_run = True
    exactness = "exact up to rounding"

    @staticmethod
    def build(
        graph: Graph,
        terms: Sequence[tuple[Scale, Node]],
        constant: Tensor | None = None,
        name: str | None = None,
        summed: int = 0,
    ) -> Node:
        """Append ``sum_j scale_j u_j + constant`` to the graph."""
        scales, nodes = tuple(s for s, _ in terms), tuple(n for _, n in terms)
        batched = tuple(n.batched for n in nodes)
        return graph.add(
            Combine(scales, constant, batched, len(nodes[0].shape), summed),
            *nodes,
            name=name,
        )

    def infer(self, *inputs: Signature) -> Signature:
        shapes = {i.shape for i in inputs}
        if len(shapes) != 1 or len(inputs) != len(self.scales):
            raise EncodingError(
                f"A combination of {len(self.scales)} nodes needs one shape",
                f"shapes {[i.shape for i in inputs]}",
            )
        return Signature(inputs[0].shape, any(self.batched))

    def _aligned(self, tensor: Tensor, j: int) -> Tensor:
        """Insert the sample axis where an input without one meets inputs with one."""
        if any(self.batched) and not self.batched[j]:
            return tensor.unsqueeze(tensor.dim() - self.rank)
        return tensor

    def value(self, *inputs: Tensor) -> Tensor:
        found = total(
            self._aligned(u, j) if _is_one(scale) else scale * self._aligned(u, j)
            for j, (scale, u) in enumerate(zip(self.scales, inputs, strict=True))
        )
        return found if self.constant is None else found + self.constant

    def ends(self, inputs: Boxes) -> list[tuple[Tensor, Tensor]]:
        """Both ends of every term."""
        return [
            _scaled(scale, self._aligned(box.lower, j), self._aligned(box.upper, j))
            for j, (scale, box) in enumerate(zip(self.scales, inputs, strict=True))
        ]

    def interval(self, *inputs: Interval) -> Interval:
        # Every term t of a sum may be off by gamma |t|; t - gamma |t| increases in t, so that each end
        # is widened by the terms that it is made of.
        sides = list(zip(*self.ends(inputs), strict=True))
        ends, sizes = [total(side) for side in sides], [total(map(abs, side)) for side in sides]
        if self.constant is not None:
            ends = [end + self.constant for end in ends]
            sizes = [size + self.constant.abs() for size in sizes]
        factor = self._gamma(len(inputs))
        return Interval(ends[0], ends[1]).widen(sizes[0] * factor + TINY, sizes[1] * factor + TINY)

    def _gamma(self, inputs: int) -> float:
        return gamma(2 * inputs + 8 + self.summed)

    def terms(self) -> int:
        return len(self.scales) + self.summed

    def _size(self, magnitudes: Sequence[Tensor]) -> Tensor:
        """The sizes of all terms and of the constant, summed up."""
        size = total(
            self._aligned(_size(scale) * u, j)
            for j, (scale, u) in enumerate(zip(self.scales, magnitudes, strict=True))
        )
        return size if self.constant is None else size + self.constant.abs()

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """A plain sum; else scales and constants are made by the run, with up to 16 roundings for each.

        Batch normalisation needs most: ``1 / sqrt(variance + eps)`` takes four with that of eps, its
        products with weight and mean two, and the affine function itself two for each term.
        """
        plain = self.constant is None and all(map(_is_one, self.scales))
        rounded = len(inputs) + self.summed + (0 if plain else 17)
        size = self._size([box.magnitude for box in inputs])
        return size * precision.gamma(rounded) + precision.tiny

    def transpose(self, coefficients: Tensor, samples: int, diagonal: bool = False) -> Tensors:
        pulled = []
        for scale, batched in zip(self.scales, self.batched, strict=True):
            term = coefficients if _is_one(scale) else coefficients * scale
            if any(self.batched) and not batched and not diagonal:
                repeats = samples // term.shape[1]
                term = term.sum(1) * repeats if repeats > 1 else term.sum(1)
            pulled.append(term)
        return tuple(pulled)

    def relax(self, *inputs: Interval) -> LinearPlanes:
        size, offset = self._size([box.magnitude.amax(0) for box in inputs]), None
        if self.constant is not None:
            offset = self.constant.expand(size.shape).unsqueeze(0)
        samples = size.shape[0] if any(self.batched) else 1
        alike = all(isinstance(scale, float) for scale in self.scales)
        return LinearPlanes(self, samples, offset, offset, size, len(self.scales) if alike else 0)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        with_samples = [e.shape[0] for e, b in zip(inputs, self.batched, strict=True) if b]
        terms = []
        for scale, expression, batched in zip(self.scales, inputs, self.batched, strict=True):
            if with_samples and not batched:
                index = np.arange(expression.size).reshape(1, *expression.shape)
                expression = expression.take(np.repeat(index, max(with_samples), axis=0))
            terms.append(expression.scale(as_array(scale)))
        result = add(terms)
        if self.constant is not None:
            result = result.shift(as_array(self.constant))
        return result.plus_error(self.encoded_error(ranges))

    def encoded_error(self, ranges: Boxes) -> Array:
        return as_array(self.relax(*ranges).magnitude * self._gamma(len(ranges)))

    def vjp(self, graph: Graph, node: Node, cotangent: Node, wanted: Wanted) -> Pulled:
        pulled: list[Node | None] = []
        for scale, batched, want in zip(self.scales, self.batched, wanted, strict=True):
            term = None
            if want:
                term = cotangent
                if not _is_one(scale):
                    term = Combine.build(graph, [(scale, cotangent)])
                if node.batched and not batched:
                    term = graph.add(SumSamples(len(term.shape)), term)
            pulled.append(term)
        return tuple(pulled)


@register
@dataclass(frozen=True, eq=False)
class Affine(Weighted):
    """``v = u M^T + bias`` on the last axis, with a constant matrix M of shape (out, in)."""

    matrix: Tensor
    bias: Tensor | None = None
    key = "affine"
    rounds_in_run = True
    exactness = "exact up to rounding"

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        return (self.matrix.shape[1],), (self.matrix.shape[0],)

    @property
    def constant(self) -> Tensor | None:
        return self.bias

    @property
    def weights(self) -> Tensor:
        return self.matrix

    @property
    def flipped(self) -> Affine:
        return Affine(self.matrix.T.contiguous())

    def by(self, weights: Tensor, u: Tensor) -> Tensor:
        return u @ weights.T

    def sparse(self) -> sp.csr_matrix:
        return self.matrix.cpu().numpy()

    def infer(self, *inputs: Signature) -> Signature:
        (source,) = inputs
        if source.shape[-1:] != (self.matrix.shape[1],):
            raise EncodingError(
                f"A constant matrix {tuple(self.matrix.shape)} needs {self.matrix.shape[1]} inputs",
                f"shape {source.shape}",
            )
        return Signature((*source.shape[:-1], self.matrix.shape[0]), source.batched)

    def terms(self) -> int:
        return self.matrix.shape[1]

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        size = self.absolute(inputs[0].magnitude)
        if self.bias is not None:
            size = size + self.bias.abs()
        return size * precision.gamma(self.terms() + 2) + precision.tiny

    def transpose(self, coefficients: Tensor, samples: int, diagonal: bool = False) -> Tensors:
        return (coefficients @ self.matrix,)


@register
@dataclass(frozen=True)
class Reshape(MapOfOne):
    """The same elements in another shape (C order), the sample axis left alone."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    key = "reshape"
    rounds_in_run = False
    exactness = "exact"

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        return self.before, self.after

    @property
    def flipped(self) -> Reshape:
        return Reshape(self.after, self.before)

    def linear(self, u: Tensor) -> Tensor:
        return u.reshape(*u.shape[: u.dim() - len(self.before)], *self.after)

    def sparse(self) -> sp.csr_matrix:
        return sp.eye_array(math.prod(self.before), format="csr")

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        lead = inputs[0].shape[: len(inputs[0].shape) - len(self.before)]
        return inputs[0].reshape((*lead, *self.after))


def _scaled(scale: Scale, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of ``scale * [lower, upper]``; the sign of the scale decides which end is which."""
    if isinstance(scale, float):
        if scale == 1.0:
            return lower, upper
        return (scale * lower, scale * upper) if scale >= 0 else (scale * upper, scale * lower)
    first, second = scale * lower, scale * upper
    return torch.minimum(first, second), torch.maximum(first, second)


def _is_one(scale: Scale) -> bool:
    return isinstance(scale, float) and scale == 1.0


def _size(scale: Scale) -> Scale:
    return abs(scale) if isinstance(scale, float) else scale.abs()
