"""The sum over the samples: where the adversary's budget is spent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions
from milp_agt.core.graph import LinearBounds, Operation, Signature, Tensors
from milp_agt.core.interval import Boxes, Interval, as_array
from milp_agt.core.rounding import FLOAT64, Precision, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.linear_map import LinearPlanes
from milp_agt.formulations.registry import register


@register
@dataclass(frozen=True)
class SumSamples(Operation):
    """``v = sum_i u_i`` over the sample axis: where the adversary's budget is spent.

    The box of the sum under a budget is the engine's business (the k samples that hurt most); the
    walk and the programs see a plain sum.

    Attributes:
        precision: of the run, and the most samples of a batch. A run in reduced precision is off by
            ``gamma(samples + 2) sum_i |u_i|`` of its own unit besides what every rule grants anyway.
            That covers the product that each term may be, so that no node of it is needed.
    """

    rank: int
    precision: Precision = FLOAT64
    largest: int = 0
    key = "sum_samples"
    rounds_in_run = False  # not beyond what its own rules say :meth:`within` a precision
    exactness = (
        "exact; interval: the sum of the `budget` largest poisoning differences (SEMin/SEMax)"
    )

    def infer(self, *inputs: Signature) -> Signature:
        (source,) = inputs
        if not source.batched:
            raise EncodingError("A sum over samples needs a sample axis", f"shape {source.shape}")
        return Signature(source.shape, False)

    def within(self, precision: Precision, largest: int) -> SumSamples:
        """The same sum of at most ``largest`` samples in a run of a precision."""
        return SumSamples(self.rank, precision, largest)

    def widened(self, box: Interval, size: Tensor) -> Interval:
        """The box of a sum of terms of which ``sum_i |u_i| <= size``, with the rounding of the run."""
        return box if self.precision == FLOAT64 else box.widen(self._run_error(size))

    def _run_error(self, size: Tensor) -> Tensor:
        precision = self.precision
        error = size * precision.gamma(self.largest + 2) + precision.tiny
        return torch.where(size <= precision.largest, error, torch.inf)

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sum(inputs[0].dim() - self.rank - 1)

    def interval(self, *inputs: Interval) -> Interval:
        raise EncodingError("A sum over samples was bounded alone", "", "use the interval engine")

    def transpose(self, coefficients: Tensor, samples: int, diagonal: bool = False) -> Tensors:
        return (coefficients.unsqueeze(1),)

    def relax(self, *inputs: Interval) -> LinearBounds:
        return self.planes(inputs[0].magnitude.amax(0).sum(0))

    def planes(self, magnitude: Tensor) -> LinearPlanes:
        """Planes where sums of absolute values are known to be at most ``magnitude``."""
        if self.precision == FLOAT64:
            return LinearPlanes(self, 1, None, None, magnitude, elementwise=1)
        error = self._run_error(magnitude).unsqueeze(0)
        return LinearPlanes(self, 1, -error, error, magnitude + error[0], elementwise=1)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        (expression,) = inputs
        samples, shape = expression.shape[0], expression.shape[1:]
        size = expression.size // samples
        linear_map = sp.kron(np.ones((1, samples)), sp.eye_array(size), format="csr")
        sizes = ranges[0].magnitude.amax(0).sum(0)
        rounding = sizes * gamma(2 * samples + 8)
        if self.precision != FLOAT64:
            rounding = rounding + self._run_error(sizes)
        return expression.apply(sp.csr_matrix(linear_map), shape).plus_error(as_array(rounding))
