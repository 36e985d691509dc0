"""What constant linear maps have in common: planes that lose only rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from milp_agt.core.expression import Array
from milp_agt.core.graph import Operation

Scale = float | Tensor


class LinearMap(Operation):
    """A constant linear map."""

    def terms(self) -> int:
        """Terms of the longest sum."""
        return 1


class _Linear(Protocol):
    def transpose(
        self, coefficients: Tensor, samples: int, diagonal: bool = False
    ) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True, slots=True)
class LinearPlanes:
    """``v = L u + constant``: the pull is the transpose of L; only rounding is lost.

    ``elementwise`` is how many inputs there are if every element of the result reads those at its
    own place with the same scales, so that coefficients of a part may be pulled alone; else 0.
    """

    op: _Linear
    samples: int
    lower: Tensor | None
    upper: Tensor | None
    magnitude: Tensor
    elementwise: int = 0

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> tuple[Tensor, ...]:
        return self.op.transpose(coefficients, self.samples, diagonal)

    def narrow(
        self, axis: int, index: Tensor
    ) -> tuple[LinearPlanes, tuple[int | None, ...]] | None:
        return (self, (axis,) * self.elementwise) if self.elementwise else None


def as_array(scale: Scale) -> Array:
    if isinstance(scale, float):
        return np.asarray(scale, dtype=np.float64)
    return np.asarray(scale.detach().cpu().numpy(), dtype=np.float64)
