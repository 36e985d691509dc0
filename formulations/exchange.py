"""Whole samples exchanged: the gradient of a sample gives way to something else in the sum of a batch."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions
from milp_agt.core.graph import LinearBounds, Operation, Signature, Tensors
from milp_agt.core.interval import CLEAN, Boxes, Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.registry import register


@dataclass(frozen=True, slots=True)
class ExchangePlanes:
    """``slope u + lower[s] <= v <= slope u + upper[s]``, and nothing of the selection.

    One slope for all samples is a float: coefficients that are the same for every sample stay so.
    """

    slope: float | Tensor
    lower: Tensor
    upper: Tensor
    magnitude: Tensor

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> Tensors:
        rows, samples = coefficients.shape[:2]
        on_source = coefficients
        if not (isinstance(self.slope, float) and self.slope == 1.0):
            on_source = coefficients * self.slope
        return on_source, coefficients.new_zeros(rows, samples, 1)


@dataclass(frozen=True)
class Exchange(Operation):
    """``v_i = (1 - s_i) u_i + s_i kappa_i`` with ``kappa_i`` anything in the box :meth:`others`.

    ``u`` are the gradients of the samples of a batch, (n, *shape), and ``s`` the selection, (n, 1):
    s_i = 0 keeps the gradient of sample i. The selection is no function of the parameters, so that the
    planes have slope 0 on it and ``1 - max s_i`` on u_i, taken for the clean sample: 1, except where
    a part of every gradient is exchanged. Given kappa and u, v is linear in s_i, and the other way
    round, so that offsets are extremes over the ends of s_i and the boxes.

    ``budget`` is the count of samples that are exchanged at most, or added to the batch: rounding
    is granted for as many further terms of the sum in the run.
    """

    budget: int

    @abstractmethod
    def others(self, gradients: Interval, selection: Interval) -> Interval:
        """Box of ``kappa``, (1 or states, n or 1, *shape), rounding in the run included."""

    def infer(self, *inputs: Signature) -> Signature:
        source, selection = inputs
        if not source.batched or selection != Signature((1,), True):
            raise EncodingError(
                f"'{self.key}' needs gradients with a sample axis and one number for each sample",
                f"{source} and {selection}",
            )
        return source

    def interval(self, *inputs: Interval) -> Interval:
        hull, _, selection = self._mixed(inputs, torch.zeros((), dtype=torch.float64))
        return hull.widen(self._slack(selection, hull.magnitude))

    def _mixed(self, inputs: Boxes, slope: Tensor) -> tuple[Interval, Tensor, Interval]:
        """Box of ``v - slope u``, the sizes of its terms, and the selection beside the gradients."""
        gradients, selection, others = inputs[0], _aligned(*inputs), self.others(*inputs)
        kept = [_times(1.0 - end - slope, gradients) for end in _ends(selection)]
        new = [_times(end, others) for end in _ends(selection)]
        sums = [a.plus(b) for a, b in zip(kept, new, strict=True)]
        sizes = [a.magnitude + b.magnitude for a, b in zip(kept, new, strict=True)]
        return Interval.holding(sums), torch.maximum(*sizes), selection

    def _slack(self, selection: Interval, size: Tensor) -> Tensor:
        """Rounding of what is exchanged; a gradient that is surely kept is the value itself."""
        error = gamma(4 * self.budget + 64) * size + TINY
        return torch.where(selection.upper == 0.0, torch.zeros_like(error), error)

    def relax(self, *inputs: Interval) -> LinearBounds:
        slope = 1.0 - _aligned(*inputs).upper[CLEAN]
        hull, size, selection = self._mixed(inputs, slope)
        size = size + slope.abs() * inputs[0].magnitude
        offsets = hull.widen(self._slack(selection, 2.0 * size))
        first = float(slope.flatten()[0])
        return ExchangePlanes(
            first if bool((slope == first).all()) else slope,
            offsets.lower,
            offsets.upper,
            size.amax(0) * (1.0 + gamma(4 * self.budget + 128)) + TINY,
        )

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        """The planes, with offsets that depend on the column of the selection."""
        planes = self.relax(*ranges)
        assert isinstance(planes, ExchangePlanes)
        slope = planes.slope if isinstance(planes.slope, float) else planes.slope.cpu().numpy()
        kept = inputs[0].scale(slope).plus_error((planes.magnitude * gamma(8)).cpu().numpy())
        return encoder.with_slack(kept, Interval(planes.lower, planes.upper))


@register
@dataclass(frozen=True)
class Substitute(Exchange):
    """Any gradient that clipping admits: ``kappa_i`` in ``[-bound, bound]`` in every coordinate.

    With ``ball`` the gradients of all parameters together have no norm above ``bound``, and so has
    kappa; the box does not know that, walks do (:mod:`milp_agt.bounds.linear.window_bounds`).

    A *substituted* sample has s_i = 1. *Inserted* samples, j <= k of them beside the n of the batch,
    are a share of every sample: the mean over n + j samples is ``(1 - rho) g + rho kappa`` with
    ``rho = j / (n + j)``, g the mean over the n, and kappa the mean of the new ones, which lies in the
    same convex set. So every s_i = rho is in ``[0, k / (n + k)]``; with the slope ``1 - k / (n + k)`` the
    rest, ``(k / (n + k) - rho) g + rho kappa``, is ``k / (n + k)`` times a point of that set.
    """

    bound: float
    ball: bool = False
    key = "substitute"
    exactness = "slope of the kept part; offsets exact over what clipping admits"

    def value(self, *inputs: Tensor) -> Tensor:
        """With kappa = 0."""
        gradients, selection = inputs
        return (1.0 - _expanded(selection, gradients)) * gradients

    def others(self, gradients: Interval, selection: Interval) -> Interval:
        full = torch.full_like(gradients.lower[:1, :1], self.bound)
        return Interval(-full, full)


@register
@dataclass(frozen=True)
class Remove(Exchange):
    """The mean of the samples that are left: ``kappa_i = sum_j (1 - s_j) u_j / sum_j (1 - s_j)``.

    Let R be the removed samples of a batch of n, j < n of them, and m the mean of the others. Then
    ``n m = (n - j) m + j m = sum over i not in R of u_i + sum over i in R of m``: the sum of the batch in
    which every removed sample has the gradient m. Divided by n, it is the mean over n - j samples, for every
    j at once. Emptied batches are not described; their step is skipped.

    The box of m, where sample i is removed and at most k in all: the least mean of the lower ends of
    the others without the r largest of those that can be removed, r < k, and alike above. Where all
    can be removed, r = k - 1 is the least: leaving out the largest never raises a mean. The boxes of the
    samples that are left are those of the states in which they may be. With more than two states,
    or with one in which all are known to be removed or to stay, every state is a case with its own removed
    samples, and m is the mean over exactly the others. The whole batch has to be at hand.
    """

    key = "remove"
    exactness = "slope 1; offsets from the range of the mean over any samples that may be left"

    def value(self, *inputs: Tensor) -> Tensor:
        """With the other samples only in the mean."""
        gradients, selection = inputs
        axis = gradients.dim() - _rank(gradients, selection) - 1
        chosen = _expanded(selection, gradients)
        stays = (1.0 - chosen).expand(gradients.shape)
        weight = stays.sum(axis, keepdim=True) - stays
        mean = ((stays * gradients).sum(axis, keepdim=True) - stays * gradients) / weight
        return torch.where(chosen == 0.0, gradients, stays * gradients + chosen * mean)

    def others(self, gradients: Interval, selection: Interval) -> Interval:
        if selection.lower.shape[0] > 2 or _is_one_case(selection):
            return _mean_of_case(gradients, _aligned(gradients, selection))
        return self._means(gradients, _aligned(gradients, selection))

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        """Of one case: the mean of the samples that are left is a linear function of them."""
        gradients, selection = ranges
        if not _is_one_case(selection):
            return super().encode(encoder, inputs, ranges)
        gone = selection.upper[0].flatten().cpu().numpy() > 0.0
        left = np.where(gone, 0.0, 1.0) / max(1, int((~gone).sum()))
        mean = np.where(gone[:, None], left, np.diag(np.where(gone, 0.0, 1.0)))
        each = inputs[0].size // len(gone)
        matrix = sp.csr_matrix(sp.kron(sp.csr_matrix(mean), sp.identity(each), format="csr"))
        size = left @ gradients.magnitude.amax(0).flatten(1).cpu().numpy()
        error = gamma(8 * (len(gone) + self.budget) + 128) * size + TINY
        blur = np.where(gone[:, None], error, 0.0).reshape(inputs[0].shape)
        return inputs[0].apply(matrix, inputs[0].shape).plus_error(blur)

    def _means(self, gradients: Interval, selection: Interval) -> Interval:
        """Box of the mean of those that are left, for each sample that is removed, (1, n, *shape)."""
        may_stay = selection.lower < 1.0
        lower = torch.where(may_stay, gradients.lower, torch.inf).amin(0)
        upper = torch.where(may_stay, gradients.upper, -torch.inf).amax(0)
        can_go = selection.upper.amax(0) > 0.0
        count = len(lower)
        removed = min(self.budget, int(can_go.sum()), count - 1)
        if removed < 1:
            return Interval(lower.unsqueeze(0), upper.unsqueeze(0))
        size = torch.maximum(lower.abs(), upper.abs()).sum(0)
        error = gamma(4 * count + 64) * 4.0 * size / (count - removed) + TINY
        low = _least_mean(lower, can_go, removed)
        high = -_least_mean(-upper, can_go, removed)
        return Interval(low.unsqueeze(0), high.unsqueeze(0)).widen(error)


def _least_mean(values: Tensor, can_go: Tensor, removed: int) -> Tensor:
    """For each i the least mean of the others when up to ``removed - 1`` of them go, (n, *shape)."""
    largest = torch.where(can_go, values, -torch.inf).topk(removed, dim=0).values
    rest = values.sum(0) - values
    first = removed if bool(can_go.all()) else 1
    means = []
    for count in range(first, removed + 1):
        # The count - 1 largest of the others: i itself gives way to the next one.
        gone = largest[:count].sum(0) - torch.maximum(values, largest[count - 1])
        means.append((rest - gone) / (len(values) - count))
    return Interval.spanning(means).lower


def _is_one_case(selection: Interval) -> bool:
    """Whether there is one state, in which every sample is known to be removed or to stay."""
    known = (selection.lower == selection.upper) & (selection.lower == selection.lower.round())
    return len(selection.lower) == 1 and bool(known.all())


def _mean_of_case(gradients: Interval, selection: Interval) -> Interval:
    """The mean over exactly the samples that are left, (cases, 1, *shape)."""
    stays = (selection.upper == 0.0).to(gradients.lower.dtype)
    left = stays.sum(1, keepdim=True).clamp(min=1.0)

    def mean(ends: Tensor) -> Tensor:
        return torch.where(stays > 0, ends, 0.0).sum(1, keepdim=True) / left

    error = gamma(4 * gradients.lower.shape[1] + 64) * mean(gradients.magnitude) + TINY
    return Interval(mean(gradients.lower), mean(gradients.upper)).widen(error)


def _rank(gradients: Tensor, selection: Tensor) -> int:
    return gradients.dim() - selection.dim() + 1


def _expanded(selection: Tensor, gradients: Tensor) -> Tensor:
    """(..., n, 1) beside (..., n, *shape)."""
    return selection.reshape(*selection.shape[:-1], *[1] * _rank(gradients, selection))


def _aligned(gradients: Interval, selection: Interval) -> Interval:
    return selection.each(lambda end: _expanded(end, gradients.lower))


def _ends(box: Interval) -> tuple[Tensor, Tensor]:
    return box.lower, box.upper


def _times(factor: Tensor, box: Interval) -> Interval:
    """``factor * box``, and 0 where the factor is 0, however large the box."""
    hull = Interval.spanning(factor * end for end in _ends(box))
    return hull.each(lambda end: torch.where(factor == 0.0, 0.0, end))
