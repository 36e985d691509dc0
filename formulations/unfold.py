"""Unfolding an image into the columns under sliding windows, and its transpose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from torch import Tensor

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
@dataclass(frozen=True)
class Unfold(LinearMap):
    """Columns of the pixels under each window (zeros outside the image), or the transposed map.

    Forward it copies, (channels, height, width) -> (channels * elements, positions); transposed it
    adds up what belongs to one pixel. A trainable convolution is a product of the kernel with the
    unfolded image.
    """

    windows: Windows
    transposed: bool = False
    key = "unfold"
    exactness = "exact; the transposed map up to rounding"

    def terms(self) -> int:
        return self.windows.elements if self.transposed else 1

    @property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shapes = (self.windows.image, self.windows.columns)
        return (shapes[1], shapes[0]) if self.transposed else shapes

    def infer(self, *inputs: Signature) -> Signature:
        (source,) = inputs
        before, after = self._shapes
        if source.shape != before:
            raise EncodingError(f"Unfolding shape {before}", f"shape {source.shape}")
        return Signature(after, source.batched)

    def value(self, *inputs: Tensor) -> Tensor:
        return self.windows.fold(inputs[0]) if self.transposed else self.windows.unfold(inputs[0])

    def interval(self, *inputs: Interval) -> Interval:
        (box,) = inputs
        ends = Interval(self.value(box.lower), self.value(box.upper))
        if not self.transposed:
            return ends
        factor = self._gamma()
        return ends.widen(
            self.value(box.lower.abs()) * factor + TINY, self.value(box.upper.abs()) * factor + TINY
        )

    def _gamma(self) -> float:
        return gamma(3 * self.windows.elements + 10)

    def transpose(
        self, coefficients: Tensor, samples: int, diagonal: bool = False
    ) -> tuple[Tensor, ...]:
        return (replace(self, transposed=not self.transposed).value(coefficients),)

    def relax(self, *inputs: Interval) -> LinearBounds:
        return LinearPlanes(self, 1, None, None, self.value(inputs[0].magnitude.amax(0)))

    def encode(
        self, encoder: Encoder, inputs: tuple[Expression, ...], ranges: tuple[Interval, ...]
    ) -> Expression:
        (expression,) = inputs
        before, after = self._shapes
        index = self.windows.index().flatten().numpy()
        kept = np.flatnonzero(index >= 0)
        shape = (index.size, int(np.prod(self.windows.image)))
        matrix = sp.csr_matrix((np.ones(kept.size), (kept, index[kept])), shape=shape)
        blocks = expression.size // int(np.prod(before))
        own = matrix.T if self.transposed else matrix
        linear_map = sp.kron(sp.eye_array(blocks), own, format="csr")
        lead = expression.shape[: len(expression.shape) - len(before)]
        result = expression.apply(sp.csr_matrix(linear_map), (*lead, *after))
        return result.plus_error(self._rounding(ranges)) if self.transposed else result

    def _rounding(self, ranges: tuple[Interval, ...]) -> Array:
        error = self.relax(*ranges).magnitude * self._gamma()
        return np.asarray(error.detach().cpu().numpy(), dtype=np.float64)

    def vjp(
        self, graph: Graph, node: Node, cotangent: Node, wanted: tuple[bool, ...]
    ) -> tuple[Node | None, ...]:
        return (graph.add(replace(self, transposed=not self.transposed), cotangent),)
