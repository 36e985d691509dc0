"""Picking elements, and its transpose: slices, permutations, concatenation, sums over axes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.errors import EncodingError
from milp_agt.formulations.linear_map import MapOfOne, Shape
from milp_agt.formulations.registry import register


@register
@dataclass(frozen=True)
class Gather(MapOfOne):
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
        count, size = prod(self.after), prod(self.before)
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
    def shapes(self) -> tuple[Shape, Shape]:
        return (self.after, self.before) if self.transposed else (self.before, self.after)

    @property
    def flipped(self) -> Gather:
        return replace(self, transposed=not self.transposed)

    def linear(self, u: Tensor) -> Tensor:
        before, after = self.shapes
        lead = u.shape[: u.dim() - len(before)]
        flat = u.reshape(*lead, prod(before))
        index = torch.tensor(self.index, dtype=torch.int64, device=u.device)
        if not self.transposed:
            return flat.index_select(-1, index).reshape(*lead, *after)
        return flat.new_zeros(*lead, prod(after)).index_add(-1, index, flat).reshape(*lead, *after)

    def terms(self) -> int:
        return int(np.bincount(self.index, minlength=1).max()) if self.transposed else 1

    def sparse(self) -> sp.csr_matrix:
        count = len(self.index)
        entries = (np.ones(count), (np.arange(count), self.index))
        matrix = sp.csr_matrix(entries, shape=(count, prod(self.before)))
        return sp.csr_matrix(matrix.T) if self.transposed else matrix
