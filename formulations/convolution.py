"""Convolution with constant weights, and its transpose: linear maps that are never written out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.interval import Interval
from milp_agt.formulations.linear_map import Shape, Weighted
from milp_agt.formulations.registry import register
from milp_agt.formulations.windows import Windows


@register
@dataclass(frozen=True, eq=False)
class Convolution(Weighted):
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

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        out = (self.kernel.shape[0], *self.windows.out)
        return (out, self.windows.image) if self.transposed else (self.windows.image, out)

    @property
    def constant(self) -> Tensor | None:
        return None if self.bias is None else self.bias[:, None, None]

    @property
    def weights(self) -> Tensor:
        return self.kernel

    @property
    def flipped(self) -> Convolution:
        return replace(self, bias=None, transposed=not self.transposed)

    def by(self, weights: Tensor, u: Tensor) -> Tensor:
        """cuDNN is left out: its transforms do not keep the elementwise error bound of a sum of
        products that ``gamma`` stands for."""
        w, flat = self.windows, u.reshape(-1, *u.shape[-3:])
        with torch.backends.cudnn.flags(enabled=False):
            if not self.transposed:
                found = functional.conv2d(
                    flat, weights, None, w.stride, w.padding, w.dilation, self.groups
                )
            else:
                found = functional.conv_transpose2d(
                    flat, weights, None, w.stride, w.padding, w.rest, self.groups, w.dilation
                )
        return found.reshape(*u.shape[:-3], *found.shape[1:])

    def terms(self) -> int:
        """Any element is a sum of at most this many products, plus a bias."""
        per_group = max(self.kernel.shape[0] // self.groups, self.kernel.shape[1])
        return per_group * self.windows.elements

    def interval(self, *inputs: Interval) -> Interval:
        """Points, and boxes around 0, need a quarter of the products."""
        (box,) = inputs
        if box.lower is box.upper:
            centre, size = self.linear(box.lower), self.absolute(box.lower.abs())
            return self.shifted(centre, centre, size, size)
        if torch.equal(box.lower, -box.upper):
            size = self.absolute(box.upper)
            return self.shifted(-size, size, size, size)
        return super().interval(box)

    def sparse(self) -> sp.csr_matrix:
        w = self.windows
        channels, out = w.image[0], self.kernel.shape[0]
        index = w.index().reshape(self.groups, channels // self.groups * w.elements, w.positions)
        kernel = self.kernel.cpu().reshape(self.groups, out // self.groups, -1)
        every = torch.arange(out * w.positions)
        entries = torch.broadcast_tensors(
            every.reshape(self.groups, out // self.groups, 1, w.positions),
            index.unsqueeze(1),
            kernel.unsqueeze(-1),
        )
        kept = (entries[1] >= 0).flatten()
        rows, columns, data = (part.flatten()[kept].numpy() for part in entries)
        shape = (out * w.positions, channels * w.image[1] * w.image[2])
        matrix = sp.csr_matrix((data, (rows, columns)), shape=shape)
        return sp.csr_matrix(matrix.T) if self.transposed else matrix
