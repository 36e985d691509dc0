"""Picking elements, and its transpose: slices, permutations, concatenation, sums over axes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression
from milp_agt.core.graph import Graph, Node, Signature
from milp_agt.core.interval import Interval
from milp_agt.core.planes import LinearBounds
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.linear_map import LinearMap, LinearPlanes, as_array
from milp_agt.formulations.registry import register


@register
@dataclass(frozen=True)
class Gather(LinearMap):
    """``v_k = u_index(k)`` over the elements of a node in C order, or the transposed map.

    Transposed, ``v_j`` is the sum of all ``u_k`` with ``index(k) = j``, and 0 where there is none.

    Attributes:
        index: for each element of ``after`` its place in ``before``.
        before, after: shapes without the sample axis; swapped where transposed.
    """

    index: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    transposed: bool = False
    key = "gather"
    exactness = "exact; the transposed map up to rounding"

    def __post_init__(self) -> None:
        count, size = int(np.prod(self.after)), int(np.prod(self.before))
        if len(self.index) != count or not all(0 <= i < size for i in self.index):
            raise EncodingError(
                f"Picking {self.after} from {self.before}", f"{len(self.index)} indices"
            )

    @staticmethod
    def of(picked: Tensor, before: tuple[int, ...]) -> Gather:
        """Pick the elements whose numbers (in C order) stand in ``picked``."""
        index = tuple(int(i) for i in picked.flatten().tolist())
        return Gather(index, before, tuple(picked.shape))

    @property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.after, self.before) if self.transposed else (self.before, self.after)

    def infer(self, *inputs: Signature) -> Signature:
        (source,) = inputs
        before, after = self._shapes
        if source.shape != before:
            raise EncodingError(f"Picking from shape {before}", f"shape {source.shape}")
        return Signature(after, source.batched)

    def _apply(self, tensor: Tensor, transposed: bool) -> Tensor:
        before, after = (self.after, self.before) if transposed else (self.before, self.after)
        lead = tensor.shape[: tensor.dim() - len(before)]
        flat = tensor.reshape(*lead, int(np.prod(before)))
        index = torch.tensor(self.index, dtype=torch.int64, device=tensor.device)
        if not transposed:
            return flat.index_select(-1, index).reshape(*lead, *after)
        zeros = torch.zeros(*lead, int(np.prod(after)), dtype=flat.dtype, device=flat.device)
        return zeros.index_add(-1, index, flat).reshape(*lead, *after)

    def value(self, *inputs: Tensor) -> Tensor:
        return self._apply(inputs[0], self.transposed)

    def terms(self) -> int:
        return max(np.bincount(self.index, minlength=1).tolist()) if self.transposed else 1

    def _gamma(self) -> float:
        """A sum of one term is a copy."""
        return gamma(3 * self.terms() + 10) if self.terms() > 1 else 0.0

    def interval(self, *inputs: Interval) -> Interval:
        (box,) = inputs
        ends = Interval(self.value(box.lower), self.value(box.upper))
        factor = self._gamma()
        if factor == 0.0:
            return ends
        return ends.widen(
            self.value(box.lower.abs()) * factor + TINY, self.value(box.upper.abs()) * factor + TINY
        )

    def transpose(
        self, coefficients: Tensor, samples: int, diagonal: bool = False
    ) -> tuple[Tensor, ...]:
        return (self._apply(coefficients, not self.transposed),)

    def relax(self, *inputs: Interval) -> LinearBounds:
        return LinearPlanes(self, 1, None, None, self.value(inputs[0].magnitude.amax(0)))

    def encode(
        self, encoder: Encoder, inputs: tuple[Expression, ...], ranges: tuple[Interval, ...]
    ) -> Expression:
        (expression,) = inputs
        before, after = self._shapes
        count = len(self.index)
        size = int(np.prod(self.before))
        matrix = sp.csr_matrix((np.ones(count), (np.arange(count), self.index)), (count, size))
        blocks = expression.size // int(np.prod(before))
        own = matrix.T if self.transposed else matrix
        linear_map = sp.kron(sp.eye_array(blocks), own, format="csr")
        lead = expression.shape[: len(expression.shape) - len(before)]
        result = expression.apply(sp.csr_matrix(linear_map), (*lead, *after))
        if self._gamma() == 0.0:
            return result
        return result.plus_error(as_array(self.relax(*ranges).magnitude * self._gamma()))

    def vjp(
        self, graph: Graph, node: Node, cotangent: Node, wanted: tuple[bool, ...]
    ) -> tuple[Node | None, ...]:
        return (graph.add(replace(self, transposed=not self.transposed), cotangent),)
