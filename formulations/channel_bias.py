"""A trainable bias for each channel, repeated over the axes behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions
from milp_agt.core.graph import Graph, Node, Pulled, Signature, Tensors, Wanted
from milp_agt.core.interval import Boxes, Interval
from milp_agt.errors import EncodingError
from milp_agt.formulations.linear import Affine, Combine, Reshape
from milp_agt.formulations.linear_map import LinearPlanes, Scale
from milp_agt.formulations.registry import register
from milp_agt.formulations.sum_samples import SumSamples


@register
@dataclass(frozen=True)
class ChannelBias(Combine):
    """``v_nc... = u_nc... + b_c`` for u with a sample axis and b without, of shape (channels,)."""

    scales: tuple[Scale, ...] = (1.0, 1.0)
    batched: tuple[bool, ...] = (True, False)
    extents: tuple[int, ...] = ()
    key = "channel_bias"

    def infer(self, *inputs: Signature) -> Signature:
        images, bias = inputs
        fits = images.batched and not bias.batched and len(bias.shape) == 1
        if not fits or images.shape != (*bias.shape, *self.extents):
            asked = f"A bias for each channel of (channels, *{self.extents})"
            raise EncodingError(asked, f"{images} and {bias}")
        return images

    def _aligned(self, tensor: Tensor, j: int) -> Tensor:
        """(..., channels) -> (..., 1, channels, 1, ...): over the samples and the axes behind."""
        if self.batched[j]:
            return tensor
        return tensor.reshape(*tensor.shape[:-1], 1, tensor.shape[-1], *[1] * len(self.extents))

    def transpose(self, coefficients: Tensor, samples: int, diagonal: bool = False) -> Tensors:
        axes = tuple(range(-len(self.extents), 0))
        by_channel = coefficients.sum(axes) if axes else coefficients
        return coefficients, super().transpose(by_channel, samples, diagonal)[1]

    def relax(self, *inputs: Interval) -> LinearPlanes:
        return replace(super().relax(*inputs), elementwise=0)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        images, bias = inputs
        index = np.repeat(np.arange(bias.size), math.prod(self.extents))
        return super().encode(encoder, (images, bias.take(index.reshape(images.shape[1:]))), ranges)

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
