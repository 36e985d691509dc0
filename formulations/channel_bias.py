"""A trainable bias for each channel, repeated over the axes behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions, add
from milp_agt.core.graph import Graph, Node, Pulled, Signature, Wanted
from milp_agt.core.interval import Boxes, Interval
from milp_agt.core.planes import LinearBounds, Tensors
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.linear import Affine, Reshape
from milp_agt.formulations.linear_map import LinearMap, LinearPlanes, as_array
from milp_agt.formulations.registry import register
from milp_agt.formulations.sum_samples import SumSamples


@register
@dataclass(frozen=True)
class ChannelBias(LinearMap):
    """``v_nc... = u_nc... + b_c`` for u with a sample axis and b without, of shape (channels,)."""

    extents: tuple[int, ...]
    summed: int = 0
    key = "channel_bias"
    rounds_in_run = True
    exactness = "exact up to rounding"

    def infer(self, *inputs: Signature) -> Signature:
        images, bias = inputs
        fits = images.batched and not bias.batched and len(bias.shape) == 1
        if not fits or images.shape != (*bias.shape, *self.extents):
            raise EncodingError(
                f"A bias for each channel of (channels, *{self.extents})",
                f"{images} and {bias}",
            )
        return images

    def _spread(self, bias: Tensor) -> Tensor:
        """(..., channels) -> (..., 1, channels, 1, ...): over the samples and the axes behind."""
        return bias.reshape(*bias.shape[:-1], 1, bias.shape[-1], *[1] * len(self.extents))

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + self._spread(inputs[1])

    def terms(self) -> int:
        return 2 + self.summed

    def _gamma(self) -> float:
        return gamma(12 + self.summed)

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        images, bias = (box.magnitude for box in inputs)
        return (images + self._spread(bias)) * precision.gamma(2 + self.summed) + precision.tiny

    def interval(self, *inputs: Interval) -> Interval:
        images, bias = inputs
        low, high = self._spread(bias.lower), self._spread(bias.upper)
        factor = self._gamma()
        return Interval(images.lower + low, images.upper + high).widen(
            (images.lower.abs() + low.abs()) * factor + TINY,
            (images.upper.abs() + high.abs()) * factor + TINY,
        )

    def transpose(self, coefficients: Tensor, samples: int, diagonal: bool = False) -> Tensors:
        on_bias = coefficients
        if self.extents:
            on_bias = on_bias.sum(tuple(range(-len(self.extents), 0)))
        if diagonal:
            return coefficients, on_bias
        repeats = samples // on_bias.shape[-2]
        on_bias = on_bias.sum(-2)
        return coefficients, on_bias * repeats if repeats > 1 else on_bias

    def relax(self, *inputs: Interval) -> LinearBounds:
        images, bias = (box.magnitude.amax(0) for box in inputs)
        size = images + self._spread(bias)
        return LinearPlanes(self, size.shape[-len(self.extents) - 2], None, None, size)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        images, bias = inputs
        samples, positions = images.shape[0], math.prod(self.extents)
        index = np.repeat(np.arange(bias.size), positions)
        spread = bias.take(np.tile(index, samples).reshape(images.shape))
        return add([images, spread]).plus_error(
            as_array(self.relax(*ranges).magnitude * self._gamma())
        )

    def vjp(self, graph: Graph, node: Node, cotangent: Node, wanted: Wanted) -> Pulled:
        if not wanted[1]:
            return cotangent, None
        channels, total = node.shape[0], cotangent
        if self.extents:
            positions = math.prod(self.extents)
            flat = graph.add(Reshape(node.shape, (channels, positions)), cotangent)
            ones = torch.ones(1, positions, dtype=torch.float64)
            summed = graph.add(Affine(ones), flat)
            total = graph.add(Reshape((channels, 1), (channels,)), summed)
        return cotangent if wanted[0] else None, graph.add(SumSamples(1), total)
