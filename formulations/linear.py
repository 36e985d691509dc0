"""Constant linear maps of single samples: combinations, matrices on the last axis, reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add
from milp_agt.core.graph import Graph, Node, Signature
from milp_agt.core.interval import Interval
from milp_agt.core.planes import LinearBounds
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.linear_map import LinearMap, LinearPlanes, Scale, as_array
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

    def to(self, device: torch.device) -> Combine:
        scales = tuple(s if isinstance(s, float) else s.to(device) for s in self.scales)
        return replace(self, scales=scales, constant=_moved(self.constant, device))

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
        total: Tensor | None = None
        for j, (scale, tensor) in enumerate(zip(self.scales, inputs, strict=True)):
            aligned = self._aligned(tensor, j)
            term = aligned if isinstance(scale, float) and scale == 1.0 else scale * aligned
            total = term if total is None else total + term
        assert total is not None
        return total if self.constant is None else total + self.constant

    def interval(self, *inputs: Interval) -> Interval:
        # Every term t of a sum may be off by gamma |t|; t - gamma |t| increases in t, so that each end
        # is widened by the terms that it is made of.
        ends: list[Tensor | None] = [None, None, None, None]
        for j, (scale, box) in enumerate(zip(self.scales, inputs, strict=True)):
            low, high = _scaled(scale, self._aligned(box.lower, j), self._aligned(box.upper, j))
            terms = (low, high, low.abs(), high.abs())
            ends = [t if e is None else e + t for e, t in zip(ends, terms, strict=True)]
        lower, upper, size_lower, size_upper = (e for e in ends if e is not None)
        if self.constant is not None:
            lower, upper = lower + self.constant, upper + self.constant
            size = self.constant.abs()
            size_lower, size_upper = size_lower + size, size_upper + size
        factor = gamma(2 * len(inputs) + 8 + self.summed)
        return Interval(lower, upper).widen(size_lower * factor + TINY, size_upper * factor + TINY)

    def terms(self) -> int:
        return len(self.scales) + self.summed

    def rounds_in_run(self) -> bool:
        return True

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """A plain sum; else scales and constants are made by the run, with up to 16 roundings for each.

        Batch normalisation needs most: ``1 / sqrt(variance + eps)`` takes four with that of eps, its
        products with weight and mean two, and the affine function itself two for each term.
        """
        plain = self.constant is None and all(s == 1.0 for s in self.scales if _is_number(s))
        plain = plain and all(map(_is_number, self.scales))
        size: Tensor | float = 0.0 if self.constant is None else self.constant.abs()
        for j, (scale, box) in enumerate(zip(self.scales, inputs, strict=True)):
            size = size + self._aligned(_size(scale) * box.magnitude, j)
        assert isinstance(size, Tensor)
        rounded = len(inputs) + self.summed + (0 if plain else 17)
        return size * precision.gamma(rounded) + precision.tiny

    def transpose(
        self, coefficients: Tensor, samples: int, diagonal: bool = False
    ) -> tuple[Tensor, ...]:
        pulled = []
        for scale, batched in zip(self.scales, self.batched, strict=True):
            term = (
                coefficients if isinstance(scale, float) and scale == 1.0 else coefficients * scale
            )
            if any(self.batched) and not batched and not diagonal:
                repeats = samples // term.shape[1]
                term = term.sum(1) * repeats if repeats > 1 else term.sum(1)
            pulled.append(term)
        return tuple(pulled)

    def relax(self, *inputs: Interval) -> LinearBounds:
        size: Tensor | None = None
        for j, (scale, box) in enumerate(zip(self.scales, inputs, strict=True)):
            term = self._aligned(_size(scale) * box.magnitude.amax(0), j)
            size = term if size is None else size + term
        assert size is not None
        offset = None
        if self.constant is not None:
            size = size + self.constant.abs()
            offset = self.constant.expand(size.shape).unsqueeze(0)
        samples = size.shape[0] if any(self.batched) else 1
        alike = all(isinstance(scale, float) for scale in self.scales)
        elementwise = len(self.scales) if alike else 0
        return LinearPlanes(self, samples, offset, offset, size, elementwise)

    def encode(
        self, encoder: Encoder, inputs: tuple[Expression, ...], ranges: tuple[Interval, ...]
    ) -> Expression:
        samples = max(
            (e.shape[0] for e, b in zip(inputs, self.batched, strict=True) if b), default=0
        )
        terms = []
        for scale, expression, batched in zip(self.scales, inputs, self.batched, strict=True):
            if samples and not batched:
                index = np.arange(expression.size).reshape(1, *expression.shape)
                expression = expression.take(np.repeat(index, samples, axis=0))
            terms.append(expression.scale(as_array(scale)))
        total = add(terms)
        if self.constant is not None:
            total = total.shift(as_array(self.constant))
        return total.plus_error(self._rounding(ranges))

    def _rounding(self, ranges: tuple[Interval, ...]) -> Array:
        return as_array(self.relax(*ranges).magnitude * gamma(2 * len(ranges) + 8 + self.summed))

    def vjp(
        self, graph: Graph, node: Node, cotangent: Node, wanted: tuple[bool, ...]
    ) -> tuple[Node | None, ...]:
        pulled: list[Node | None] = []
        for scale, batched, want in zip(self.scales, self.batched, wanted, strict=True):
            if not want:
                pulled.append(None)
                continue
            one = isinstance(scale, float) and scale == 1.0
            term = cotangent if one else Combine.build(graph, [(scale, cotangent)])
            pulled.append(
                graph.add(SumSamples(len(term.shape)), term)
                if node.batched and not batched
                else term
            )
        return tuple(pulled)


@register
@dataclass(frozen=True, eq=False)
class Affine(LinearMap):
    """``v = u M^T + bias`` on the last axis, with a constant matrix M of shape (out, in)."""

    matrix: Tensor
    bias: Tensor | None = None
    key = "affine"
    exactness = "exact up to rounding"

    def to(self, device: torch.device) -> Affine:
        return Affine(self.matrix.to(device), _moved(self.bias, device))

    def infer(self, *inputs: Signature) -> Signature:
        (source,) = inputs
        if source.shape[-1:] != (self.matrix.shape[1],):
            raise EncodingError(
                f"A constant matrix {tuple(self.matrix.shape)} needs {self.matrix.shape[1]} inputs",
                f"shape {source.shape}",
            )
        return Signature((*source.shape[:-1], self.matrix.shape[0]), source.batched)

    def value(self, *inputs: Tensor) -> Tensor:
        result = inputs[0] @ self.matrix.T
        return result if self.bias is None else result + self.bias

    def interval(self, *inputs: Interval) -> Interval:
        (box,) = inputs
        positive, negative = self.matrix.clamp(min=0.0).T, self.matrix.clamp(max=0.0).T
        lower = box.lower @ positive + box.upper @ negative
        upper = box.upper @ positive + box.lower @ negative
        size_lower = box.lower.abs() @ positive - box.upper.abs() @ negative
        size_upper = box.upper.abs() @ positive - box.lower.abs() @ negative
        if self.bias is not None:
            lower, upper = lower + self.bias, upper + self.bias
            size = self.bias.abs()
            size_lower, size_upper = size_lower + size, size_upper + size
        factor = self._gamma()
        return Interval(lower, upper).widen(size_lower * factor + TINY, size_upper * factor + TINY)

    def rounds_in_run(self) -> bool:
        return True

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        size = inputs[0].magnitude @ self.matrix.abs().T
        if self.bias is not None:
            size = size + self.bias.abs()
        return size * precision.gamma(self.terms() + 2) + precision.tiny

    def terms(self) -> int:
        return self.matrix.shape[1]

    def _gamma(self) -> float:
        return gamma(3 * self.matrix.shape[1] + 10)

    def transpose(
        self, coefficients: Tensor, samples: int, diagonal: bool = False
    ) -> tuple[Tensor, ...]:
        return (coefficients @ self.matrix,)

    def relax(self, *inputs: Interval) -> LinearBounds:
        size = inputs[0].magnitude.amax(0) @ self.matrix.abs().T
        offset = None
        if self.bias is not None:
            size = size + self.bias.abs()
            offset = self.bias.expand(size.shape).unsqueeze(0)
        return LinearPlanes(self, 1, offset, offset, size)

    def encode(
        self, encoder: Encoder, inputs: tuple[Expression, ...], ranges: tuple[Interval, ...]
    ) -> Expression:
        (expression,) = inputs
        out, width = self.matrix.shape
        blocks = expression.size // width
        linear_map = sp.kron(sp.eye_array(blocks), self.matrix.cpu().numpy(), format="csr")
        result = expression.apply(sp.csr_matrix(linear_map), (*expression.shape[:-1], out))
        if self.bias is not None:
            result = result.shift(self.bias.cpu().numpy())
        return result.plus_error(as_array(self.relax(*ranges).magnitude * self._gamma()))

    def vjp(
        self, graph: Graph, node: Node, cotangent: Node, wanted: tuple[bool, ...]
    ) -> tuple[Node | None, ...]:
        return (graph.add(Affine(self.matrix.T.contiguous()), cotangent),)


@register
@dataclass(frozen=True)
class Reshape(LinearMap):
    """The same elements in another shape (C order), the sample axis left alone."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    key = "reshape"
    exactness = "exact"

    def infer(self, *inputs: Signature) -> Signature:
        if inputs[0].shape != self.before:
            raise EncodingError(f"A reshape from {self.before}", f"shape {inputs[0].shape}")
        return Signature(self.after, inputs[0].batched)

    def rounds_in_run(self) -> bool:
        return False

    def value(self, *inputs: Tensor) -> Tensor:
        lead = inputs[0].shape[: inputs[0].dim() - len(self.before)]
        return inputs[0].reshape(*lead, *self.after)

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.value(inputs[0].lower), self.value(inputs[0].upper))

    def transpose(
        self, coefficients: Tensor, samples: int, diagonal: bool = False
    ) -> tuple[Tensor, ...]:
        lead = coefficients.shape[: coefficients.dim() - len(self.after)]
        return (coefficients.reshape(*lead, *self.before),)

    def relax(self, *inputs: Interval) -> LinearBounds:
        return LinearPlanes(self, 1, None, None, self.value(inputs[0].magnitude.amax(0)))

    def encode(
        self, encoder: Encoder, inputs: tuple[Expression, ...], ranges: tuple[Interval, ...]
    ) -> Expression:
        lead = inputs[0].shape[: len(inputs[0].shape) - len(self.before)]
        return inputs[0].reshape((*lead, *self.after))

    def vjp(
        self, graph: Graph, node: Node, cotangent: Node, wanted: tuple[bool, ...]
    ) -> tuple[Node | None, ...]:
        return (graph.add(Reshape(self.after, self.before), cotangent),)


def _scaled(scale: Scale, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of ``scale * [lower, upper]``; the sign of the scale decides which end is which."""
    if isinstance(scale, float):
        if scale == 1.0:
            return lower, upper
        return (scale * lower, scale * upper) if scale >= 0 else (scale * upper, scale * lower)
    first, second = scale * lower, scale * upper
    return torch.minimum(first, second), torch.maximum(first, second)


def _is_number(scale: Scale) -> bool:
    return isinstance(scale, float)


def _size(scale: Scale) -> Scale:
    return abs(scale) if isinstance(scale, float) else scale.abs()


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
