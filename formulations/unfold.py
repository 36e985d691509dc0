"""Unfolding an image into the columns under sliding windows, and its transpose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from milp_agt.formulations.linear_map import MapOfOne, Shape
from milp_agt.formulations.registry import register
from milp_agt.formulations.windows import Windows


@register
@dataclass(frozen=True)
class Unfold(MapOfOne):
    """Columns of the pixels under each window (zeros outside the image), or the transposed map.

    Forward it copies, (channels, height, width) -> (channels * elements, positions); transposed it
    adds up what belongs to one pixel. A trainable convolution is a product of the kernel with the
    unfolded image.
    """

    windows: Windows
    transposed: bool = False
    key = "unfold"
    exactness = "exact; the transposed map up to rounding"

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        shapes = (self.windows.image, self.windows.columns)
        return (shapes[1], shapes[0]) if self.transposed else shapes

    @property
    def flipped(self) -> Unfold:
        return replace(self, transposed=not self.transposed)

    def terms(self) -> int:
        return self.windows.elements if self.transposed else 1

    def linear(self, u: Tensor) -> Tensor:
        return self.windows.fold(u) if self.transposed else self.windows.unfold(u)

    def sparse(self) -> sp.csr_matrix:
        index = self.windows.index().flatten().numpy()
        kept = np.flatnonzero(index >= 0)
        shape = (index.size, int(np.prod(self.windows.image)))
        matrix = sp.csr_matrix((np.ones(kept.size), (kept, index[kept])), shape=shape)
        return sp.csr_matrix(matrix.T) if self.transposed else matrix
