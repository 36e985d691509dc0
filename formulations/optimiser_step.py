"""One tensor of the next optimiser state as a combination of the old state and the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from milp_agt.core.expression import Array
from milp_agt.core.interval import Boxes, Interval, as_array
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.linear_map import LinearPlanes, total
from milp_agt.formulations.registry import register


@register
@dataclass(frozen=True, eq=False)
class OptimiserStep(Combine):
    """``v = sum_j scale_j u_j`` of nodes without a sample axis; the run adds terms up to ``size_j |u_j|``.

    Each operand stands once, with its scale in front, so that its box is used once: a negative
    ``1 - rate * weight_decay`` turns it around. The run never forms such a scale: it rounds both terms,
    however much cancels, so that rounding is charged to ``sizes``. ``kept`` of the first operand enters
    in the last sum of the run only, as it is: 1 for a parameter, 0 for a velocity.
    """

    sizes: tuple[float, ...] = ()
    kept: float = 0.0
    key = "optimiser_step"
    exactness = "exact up to rounding"

    @staticmethod
    def of(
        scales: tuple[float, ...], sizes: tuple[float, ...], rank: int, kept: float = 0.0
    ) -> OptimiserStep:
        absolute = tuple(map(abs, sizes))
        return OptimiserStep(
            scales, batched=(False,) * len(scales), rank=rank, sizes=absolute, kept=kept
        )

    def _size(self, magnitudes: Sequence[Tensor]) -> Tensor:
        return total(size * u for size, u in zip(self.sizes, magnitudes, strict=True))

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """``gamma(2)`` of what is kept and ``gamma(16)`` of all other terms, and what underflow adds.

        Scalars are rounded to the precision of the run; products and sums may be fused. The longest chain
        is that of the penalty: the scalar, its product with the sign, the sum with the mean gradient, with
        weight decay, and with the momentum, scalar, product and sum of Nesterov, scalar and product of the
        rate, and the last sum, 11 in all. The gradient comes next, with two for the mean instead of the
        first three, and at most four for scales of losses whose gradients are accumulated: 14. Dampening
        takes two, where Nesterov's three are not. The old parameter is rounded in the last sum alone, but
        for its weight decay.
        """
        sizes = [box.magnitude for box in inputs]
        whole, kept = self._size(sizes), min(self.kept, self.sizes[0]) * sizes[0]
        rest = (whole - kept).clamp(min=0.0) + whole * 2.0**-50
        # What underflows is scaled by the rate afterwards.
        tiny = precision.tiny * max(1.0, *self.sizes)
        return kept * precision.gamma(2) + rest * precision.gamma(16) + tiny

    def interval(self, *inputs: Interval) -> Interval:
        error = self._size([box.magnitude for box in inputs]) * gamma(24) + TINY
        return Interval(*map(total, zip(*self.ends(inputs), strict=True))).widen(error)

    def relax(self, *inputs: Interval) -> LinearPlanes:
        size = self._size([box.magnitude for box in inputs]).amax(0)
        return LinearPlanes(self, 1, None, None, size)

    def encoded_error(self, ranges: Boxes) -> Array:
        return as_array(self.relax(*ranges).magnitude * gamma(64))
