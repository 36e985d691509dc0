"""The squared Euclidean norm of all gradients of one sample together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions, add
from milp_agt.core.graph import LinearBounds, Operation, Signature, Tensors
from milp_agt.core.interval import CLEAN, Boxes, Interval
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.linear_map import total
from milp_agt.formulations.registry import register


@dataclass(frozen=True, slots=True)
class TangentPlanes:
    """``s = sum_k |u_k|^2`` between two parallel planes of slope ``2 a_k``.

    ``s - 2 a . u = |u - a|^2 - |a|^2``, whose extremes over a box are sums over the coordinates: with
    the centre as ``a`` the upper plane is the secant, the lower one the tangent there.
    """

    points: tuple[Tensor, ...]
    lower: Tensor
    upper: Tensor
    magnitude: Tensor
    batched: bool = True

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> Tensors:
        if not self.batched:
            rows = len(coefficients)
            return tuple(
                coefficients.reshape(rows, *[1] * a.dim()) * (2.0 * a) for a in self.points
            )
        return tuple(_spread(coefficients, a) * (2.0 * a) for a in self.points)


@register
@dataclass(frozen=True)
class SquaredNorm(Operation):
    """``s_i = sum_k |u_ki|^2`` for each sample i, over all axes of all inputs (of these ranks).

    Not ``batched``, inputs have no sample axis, and s is one number.
    Boxes may be infinite: the smallest square of a coordinate is finite whatever the largest is.
    """

    ranks: tuple[int, ...]
    batched: bool = True
    key = "squared_norm"
    rounds_in_run = True
    exactness = "secant and tangent of the whole sum; tangent rows at the centre and the corners"

    def infer(self, *inputs: Signature) -> Signature:
        ranks = tuple(len(i.shape) for i in inputs)
        if ranks != self.ranks or any(i.batched != self.batched for i in inputs):
            raise EncodingError(
                f"A squared norm of inputs of ranks {self.ranks}, with a sample axis: {self.batched}",
                f"{inputs}",
            )
        return Signature((1,), self.batched)

    def _summed(self, terms: Sequence[Tensor]) -> Tensor:
        """Sum over the own axes of every term, then over the terms: (..., 1)."""
        return total(
            (term.sum(tuple(range(-rank, 0))) if rank else term).unsqueeze(-1)
            for rank, term in zip(self.ranks, terms, strict=True)
        )

    def value(self, *inputs: Tensor) -> Tensor:
        return self._summed([u * u for u in inputs])

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """Also as the norm of norms: a root for each input, and its square, for two more sums in all."""
        size = self._summed([box.magnitude.square() for box in inputs])
        return size * precision.gamma(2 * self._terms(inputs) + 8) + precision.tiny

    def _terms(self, inputs: Sequence[Interval]) -> int:
        return sum(
            box.lower.shape[box.lower.dim() - rank :].numel()
            for rank, box in zip(self.ranks, inputs, strict=True)
        )

    def _gamma(self, inputs: Sequence[Interval]) -> float:
        """Covers the run's own sum, in any order and from norms of the parts, and ours."""
        return gamma(4 * self._terms(inputs) + 32)

    def interval(self, *inputs: Interval) -> Interval:
        exact = self._distances(inputs, [torch.zeros(())] * len(inputs))
        factor = self._gamma(inputs)
        box = exact.widen(exact.lower * factor + TINY, exact.upper * factor + TINY)
        return Interval(box.lower.clamp(min=0.0), box.upper)

    def _distances(self, inputs: Sequence[Interval], points: Sequence[Tensor]) -> Interval:
        """``[min, max]`` of ``sum |u - a|^2`` over the boxes, up to rounding."""
        low, high = [], []
        for box, point in zip(inputs, points, strict=True):
            below, above = box.lower - point, box.upper - point
            low.append(torch.maximum(below, -above).clamp(min=0.0).square())
            high.append(torch.maximum(above, -below).square())
        return Interval(self._summed(low), self._summed(high))

    def _sizes(self, magnitudes: Sequence[Tensor], points: Sequence[Tensor]) -> Tensor:
        """``sum (|u| + |a|)^2 + |a|^2``."""
        both = zip(magnitudes, points, strict=True)
        return self._summed([(u + a.abs()).square() + a * a for u, a in both])

    def _offsets(self, inputs: Sequence[Interval], points: Sequence[Tensor]) -> Interval:
        """``[min, max]`` of ``s - 2 a . u`` over the boxes of each state, rounding included."""
        away = self._distances(inputs, points)
        square = self._summed([a * a for a in points])
        slack = self._sizes([b.magnitude for b in inputs], points) * self._gamma(inputs) + TINY
        return Interval(away.lower - square - slack, away.upper - square + slack)

    def relax(self, *inputs: Interval) -> LinearBounds:
        points = tuple(box.centre[CLEAN] for box in inputs)
        offsets = self._offsets(inputs, points)
        size = self._sizes([b.magnitude.amax(0) for b in inputs], points)
        return TangentPlanes(points, offsets.lower, offsets.upper, size, self.batched)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        """A column for each sample; tangents at several points as on/off rows, and secants above them."""
        own = self.interval(*ranges)
        column = encoder.columns_of(own)
        for boxes in ([b.of_clean for b in ranges], [b.hull() for b in ranges]):
            points = {
                name: [getattr(b, name) for b in boxes] for name in ("centre", "lower", "upper")
            }
            for name, at in points.items():
                offsets = self._offsets(ranges, at)
                form = add([column, *self._slopes(inputs, at)])
                encoder.at_least(form, offsets.lower)
                if name == "centre":
                    encoder.at_most(form, offsets.upper)
        encoder.conditional(column, own)
        return column

    def _slopes(self, inputs: Expressions, points: Sequence[Tensor]) -> list[Expression]:
        """``-2 a_k . u_k`` for each sample."""
        terms = []
        for expression, point in zip(inputs, points, strict=True):
            samples = expression.shape[0] if self.batched else 1
            own = expression.size // samples
            on_own = sp.kron(sp.eye_array(samples), np.ones((1, own)), format="csr")
            scaled = expression.scale(-2.0 * point.detach().cpu().numpy())
            shape = (samples, 1) if self.batched else (1,)
            terms.append(scaled.apply(sp.csr_matrix(on_own), shape))
        return terms


def _spread(coefficients: Tensor, like: Tensor) -> Tensor:
    """(rows, samples, 1) in as many axes as it takes to multiply a tensor (samples, *shape)."""
    return coefficients.reshape(*coefficients.shape[:2], *[1] * (like.dim() - 1))
