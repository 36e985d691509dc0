"""One tensor of the next optimiser state as a combination of the old state and the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.expression import Array
from milp_agt.core.interval import Interval
from milp_agt.core.planes import LinearBounds
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.linear_map import LinearPlanes, as_array
from milp_agt.formulations.registry import register


@register
@dataclass(frozen=True, eq=False)
class OptimiserStep(Combine):
    """``v = sum_j scale_j u_j`` of nodes without a sample axis; the run adds terms up to ``size_j |u_j|``.

    Each operand stands once, with its scale in front, so that its box is used once: a negative
    ``1 - rate * weight_decay`` turns it around. The run never forms such a scale: it rounds both terms,
    however much cancels, so that rounding is charged to ``sizes``.
    """

    sizes: tuple[float, ...] = ()
    key = "optimiser_step"
    exactness = "exact up to rounding"

    @staticmethod
    def of(scales: tuple[float, ...], sizes: tuple[float, ...], rank: int) -> OptimiserStep:
        return OptimiserStep(scales, None, (False,) * len(scales), rank, tuple(map(abs, sizes)))

    def to(self, device: torch.device) -> OptimiserStep:
        return self

    def _size(self, inputs: tuple[Interval, ...]) -> Tensor:
        total: Tensor | None = None
        for size, box in zip(self.sizes, inputs, strict=True):
            term = size * box.magnitude
            total = term if total is None else total + term
        assert total is not None
        return total

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """Scalars are rounded to the precision of the run, then products and sums in any order.

        The longest chain has less than 24: mean, penalty, weight decay, momentum, Nesterov and rate,
        each the conversion of a scalar, a product and a sum, fused or not.
        """
        return self._size(inputs) * precision.gamma(32) + precision.tiny

    def interval(self, *inputs: Interval) -> Interval:
        error = self._size(inputs) * gamma(24) + TINY
        return self._exact(*inputs).widen(error)

    def _exact(self, *inputs: Interval) -> Interval:
        lower: Tensor | None = None
        upper: Tensor | None = None
        for scale, box in zip(self.scales, inputs, strict=True):
            assert isinstance(scale, float)
            first, second = scale * box.lower, scale * box.upper
            low, high = (first, second) if scale >= 0 else (second, first)
            lower = low if lower is None else lower + low
            upper = high if upper is None else upper + high
        assert lower is not None
        assert upper is not None
        return Interval(lower, upper)

    def relax(self, *inputs: Interval) -> LinearBounds:
        return LinearPlanes(self, 1, None, None, self._size(inputs).amax(0))

    def _rounding(self, ranges: tuple[Interval, ...]) -> Array:
        return as_array(self._size(ranges).amax(0) * gamma(64))
