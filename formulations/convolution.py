"""Convolution with constant weights, and its transpose: linear maps that are never written out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression
from milp_agt.core.graph import Graph, Node, Signature
from milp_agt.core.interval import Interval
from milp_agt.core.planes import LinearBounds
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.linear_map import LinearMap, LinearPlanes
from milp_agt.formulations.registry import register
from milp_agt.formulations.windows import Windows


@register
@dataclass(frozen=True, eq=False)
class Convolution(LinearMap):
    """``v = kernel * u + bias`` on images, as ``torch.nn.functional.conv2d``, or its transpose.

    Forward, u has shape ``windows.image`` and v has shape (out channels, *windows.out). Transposed
    (the vector-Jacobian product, without bias), the other way round. The transpose of the map is a
    transposed convolution, so linear forms pass without a dense matrix.

    Attributes:
        kernel: (out channels, in channels / groups, height, width).
        bias: (out channels,), or None.
    """

    windows: Windows
    kernel: Tensor
    bias: Tensor | None = None
    groups: int = 1
    transposed: bool = False
    key = "convolution"
    exactness = "exact up to rounding"

    def to(self, device: torch.device) -> Convolution:
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, kernel=self.kernel.to(device), bias=bias)

    @property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of argument and result."""
        out = (self.kernel.shape[0], *self.windows.out)
        return (out, self.windows.image) if self.transposed else (self.windows.image, out)

    def infer(self, *inputs: Signature) -> Signature:
        (source,) = inputs
        before, after = self._shapes
        if source.shape != before:
            raise EncodingError(f"A convolution of images {before}", f"shape {source.shape}")
        return Signature(after, source.batched)

    def _map(self, images: Tensor, kernel: Tensor, transposed: bool) -> Tensor:
        """The linear part, on any leading axes.

        cuDNN is left out: its transforms do not keep the elementwise error bound of a sum of
        products that ``gamma`` stands for.
        """
        lead, flat = images.shape[:-3], images.reshape(-1, *images.shape[-3:])
        w = self.windows
        with torch.backends.cudnn.flags(enabled=False):
            if not transposed:
                found = functional.conv2d(
                    flat, kernel, None, w.stride, w.padding, w.dilation, self.groups
                )
            else:
                found = functional.conv_transpose2d(
                    flat, kernel, None, w.stride, w.padding, self._rest, self.groups, w.dilation
                )
        return found.reshape(*lead, *found.shape[1:])

    @property
    def _rest(self) -> tuple[int, int]:
        """Rows and columns of the image that no window reaches at the far end."""
        w = self.windows
        height, width = (
            extent + 2 * pad - step * (size - 1) - 1 - (count - 1) * stride
            for extent, pad, step, size, count, stride in zip(
                w.image[1:], w.padding, w.dilation, w.size, w.out, w.stride, strict=True
            )
        )
        return height, width

    def value(self, *inputs: Tensor) -> Tensor:
        return self._shifted(self._map(inputs[0], self.kernel, self.transposed))

    def _shifted(self, images: Tensor) -> Tensor:
        return images if self.bias is None else images + self.bias[:, None, None]

    def _gamma(self) -> float:
        return gamma(3 * self.terms() + 10)

    def terms(self) -> int:
        """Any element is a sum of at most this many products, plus a bias."""
        per_group = max(self.kernel.shape[0] // self.groups, self.kernel.shape[1])
        return per_group * self.windows.elements

    def interval(self, *inputs: Interval) -> Interval:
        (box,) = inputs
        if box.lower is box.upper:
            size = self._map(box.lower.abs(), self.kernel.abs(), self.transposed)
            if self.bias is not None:
                size = size + self.bias.abs()[:, None, None]
            return Interval.point(self.value(box.lower)).widen(size * self._gamma() + TINY)
        lower, upper, size_lower, size_upper = self._ends(box)
        if self.bias is not None:
            size = self.bias.abs()[:, None, None]
            size_lower, size_upper = size_lower + size, size_upper + size
        factor = self._gamma()
        return Interval(self._shifted(lower), self._shifted(upper)).widen(
            size_lower * factor + TINY, size_upper * factor + TINY
        )

    def _ends(self, box: Interval) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ends of the linear part over a box, and the sums of the sizes of their terms.

        With K+ and K- for the positive and the negative part of the kernel, the lower end is
        ``K+ l + K- u``. Boxes of what is never negative, and boxes around 0, need half as many products
        or less.
        """
        if torch.equal(box.lower, -box.upper):
            upper = self._map(box.upper, self.kernel.abs(), self.transposed)
            return -upper, upper, upper, upper
        positive, negative = self.kernel.clamp(min=0.0), self.kernel.clamp(max=0.0)

        def parts(with_positive: Tensor, with_negative: Tensor) -> tuple[Tensor, Tensor]:
            return (
                self._map(with_positive, positive, self.transposed),
                self._map(with_negative, negative, self.transposed),
            )

        low, high = parts(box.lower, box.upper), parts(box.upper, box.lower)
        if bool((box.lower >= 0).all()):
            small, large = low, high
        else:
            small = parts(box.lower.abs(), box.upper.abs())
            large = parts(box.upper.abs(), box.lower.abs())
        sizes = small[0] - small[1], large[0] - large[1]
        return low[0] + low[1], high[0] + high[1], *sizes

    def transpose(
        self, coefficients: Tensor, samples: int, diagonal: bool = False
    ) -> tuple[Tensor, ...]:
        return (self._map(coefficients, self.kernel, not self.transposed),)

    def relax(self, *inputs: Interval) -> LinearBounds:
        size = self._map(inputs[0].magnitude.amax(0), self.kernel.abs(), self.transposed)
        offset = None
        if self.bias is not None:
            size = size + self.bias.abs()[:, None, None]
            offset = self.bias[:, None, None].expand(size.shape).unsqueeze(0)
        return LinearPlanes(self, 1, offset, offset, size)

    def encode(
        self, encoder: Encoder, inputs: tuple[Expression, ...], ranges: tuple[Interval, ...]
    ) -> Expression:
        (expression,) = inputs
        before, after = self._shapes
        size = int(np.prod(before))
        blocks = expression.size // size
        linear_map = sp.kron(sp.eye_array(blocks), self._matrix(), format="csr")
        lead = expression.shape[: len(expression.shape) - 3]
        result = expression.apply(sp.csr_matrix(linear_map), (*lead, *after))
        if self.bias is not None:
            result = result.shift(self.bias.cpu().numpy()[:, None, None])
        return result.plus_error(_as_array(self.relax(*ranges).magnitude * self._gamma()))

    def _matrix(self) -> sp.csr_matrix:
        """The map as a sparse matrix over flattened images."""
        w = self.windows
        channels, out = w.image[0], self.kernel.shape[0]
        index = w.index().reshape(self.groups, channels // self.groups * w.elements, w.positions)
        kernel = self.kernel.cpu().reshape(self.groups, out // self.groups, -1)
        rows = torch.arange(out * w.positions).reshape(
            self.groups, out // self.groups, 1, w.positions
        )
        rows, columns, data = torch.broadcast_tensors(
            rows, index.unsqueeze(1), kernel.unsqueeze(-1)
        )
        kept = (columns >= 0).flatten()
        shape = (out * w.positions, channels * w.image[1] * w.image[2])
        matrix = sp.csr_matrix(
            (
                data.flatten()[kept].numpy(),
                (rows.flatten()[kept].numpy(), columns.flatten()[kept].numpy()),
            ),
            shape=shape,
        )
        return sp.csr_matrix(matrix.T) if self.transposed else matrix

    def vjp(
        self, graph: Graph, node: Node, cotangent: Node, wanted: tuple[bool, ...]
    ) -> tuple[Node | None, ...]:
        flipped = replace(self, bias=None, transposed=not self.transposed)
        return (graph.add(flipped, cotangent),)


def _as_array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)
