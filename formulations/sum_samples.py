"""The sum over the samples: where the adversary's budget is spent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression
from milp_agt.core.graph import Operation, Signature
from milp_agt.core.influence import Influence
from milp_agt.core.interval import Interval
from milp_agt.core.planes import LinearBounds
from milp_agt.core.rounding import gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.linear_map import FEW_TERMS, LinearPlanes, as_array
from milp_agt.formulations.registry import register


@register
@dataclass(frozen=True)
class SumSamples(Operation):
    """``v = sum_i u_i`` over the sample axis: where the adversary's budget is spent.

    The box of the sum under a budget is the engine's business (the k samples that hurt most); the
    walk and the programs see a plain sum.
    """

    rank: int
    key = "sum_samples"
    exactness = (
        "exact; interval: the sum of the `budget` largest poisoning differences (SEMin/SEMax)"
    )

    def infer(self, *inputs: Signature) -> Signature:
        (source,) = inputs
        if not source.batched:
            raise EncodingError("A sum over samples needs a sample axis", f"shape {source.shape}")
        return Signature(source.shape, False)

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sum(inputs[0].dim() - self.rank - 1)

    def interval(self, *inputs: Interval) -> Interval:
        raise EncodingError("A sum over samples was bounded alone", "", "use the interval engine")

    has_influence = True

    def influence(self, *inputs: Influence) -> Influence:
        (own,) = inputs
        total = Interval(own.base.lower.sum(1), own.base.upper.sum(1))
        moved = Influence(total, own.down.sum(1), own.up.sum(1), own.budget)
        size = own.hull().magnitude[0].sum(0)
        return moved.settled(size, 8.0 * own.base.lower.shape[1] + FEW_TERMS)

    def relax_influence(self, *inputs: Influence) -> LinearBounds:
        return self.relax(inputs[0].hull())

    def transpose(
        self, coefficients: Tensor, samples: int, diagonal: bool = False
    ) -> tuple[Tensor, ...]:
        return (coefficients.unsqueeze(1),)

    def relax(self, *inputs: Interval) -> LinearBounds:
        return self.planes(inputs[0].magnitude.amax(0).sum(0))

    def planes(self, magnitude: Tensor) -> LinearPlanes:
        """Planes where sums of absolute values are known to be at most ``magnitude``."""
        return LinearPlanes(self, 1, None, None, magnitude, elementwise=1)

    def encode(
        self, encoder: Encoder, inputs: tuple[Expression, ...], ranges: tuple[Interval, ...]
    ) -> Expression:
        (expression,) = inputs
        samples, shape = expression.shape[0], expression.shape[1:]
        size = expression.size // samples
        linear_map = sp.kron(np.ones((1, samples)), sp.eye_array(size), format="csr")
        rounding = self.relax(*ranges).magnitude * gamma(2 * samples + 8)
        return expression.apply(sp.csr_matrix(linear_map), shape).plus_error(as_array(rounding))
