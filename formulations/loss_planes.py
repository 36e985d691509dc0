"""Linear bounds of losses in the forms that decide them: tangents and chords of convex functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma

Plane = tuple[Tensor, Tensor]  # slope (..., n, forms) and offset (..., n)


@dataclass(frozen=True)
class LossPlanes:
    """Planes below and above the loss of each point, in its forms m.

    For every m in the box that they were made for

        slope_lower . m + lower  <=  loss(m)  <=  slope_upper . m + upper,

    with room for the rounding of the planes and of an evaluated loss.

    Attributes:
        slope_lower, slope_upper: (..., n, forms), finite.
        lower, upper: (..., n); infinite where nothing is known.
    """

    slope_lower: Tensor
    slope_upper: Tensor
    lower: Tensor
    upper: Tensor

    @staticmethod
    def of(below: Plane, above: Plane, error: Tensor) -> LossPlanes:
        """Planes that hold but for ``error``, (..., n)."""
        slopes, offsets = [], []
        for (slope, offset), sign in ((below, -1.0), (above, 1.0)):
            shifted = offset + sign * error
            known = torch.isfinite(shifted)
            slopes.append(torch.where(known.unsqueeze(-1), slope, 0.0))
            offsets.append(torch.where(known, shifted, sign * torch.inf))
        return LossPlanes(*slopes, *offsets)

    def turned(self, other: LossPlanes, box: Interval) -> LossPlanes:
        """Planes with the slopes of others: the offsets pay for the turn over the box."""
        largest, forms = box.magnitude, box.lower.shape[-1]

        def turn(own: Tensor, slope: Tensor, offset: Tensor) -> Interval:
            ends = torch.stack([(own - slope) * box.lower, (own - slope) * box.upper])
            size = offset.abs() + ((own.abs() + slope.abs()) * largest).sum(-1)
            error = gamma(32 + 4 * forms) * size
            return Interval(
                offset + ends.amin(0).sum(-1) - error, offset + ends.amax(0).sum(-1) + error
            )

        lower = turn(self.slope_lower, other.slope_lower, self.lower).lower
        upper = turn(self.slope_upper, other.slope_upper, self.upper).upper
        return LossPlanes(
            other.slope_lower,
            other.slope_upper,
            lower.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf),
            upper.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf),
        )


def convex_planes(
    box: Interval, value: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]
) -> LossPlanes:
    """Of ``sum_k f(m_k)``, f convex: tangents at the centres, chords over the box.

    A line is above a convex function on an interval if it is at both ends. ``derivative`` may be off by
    64 units in the last place.
    """
    low, high, centre = box.lower, box.upper, box.centre
    width = high - low
    narrow = width <= 1e-7 * (1.0 + box.magnitude)
    tangent = derivative(centre)
    at_low, at_high, at_centre = value(low), value(high), value(centre)
    chord = torch.where(narrow, tangent, (at_high - at_low) / torch.where(narrow, 1.0, width))
    below = at_centre - tangent * centre
    above = torch.maximum(at_low - chord * low, at_high - chord * high)
    values = torch.maximum(torch.maximum(at_low, at_high), at_centre)
    size = (values + 4.0 * (tangent.abs() + chord.abs()) * box.magnitude).sum(-1)
    error = gamma(128 + 8 * low.shape[-1]) * size + TINY
    return LossPlanes.of((tangent, below.sum(-1)), (chord, above.sum(-1)), error)


def log_sum_exp_planes(box: Interval) -> LossPlanes:
    """Of ``log(1 + sum_k exp(-m_k))``: tangent at the centre; above, the chords of the exponentials
    under the tangent of the logarithm at their sum (Wei et al. 2023, section 3).

    Everything is scaled by ``exp(-shift)``, so that nothing overflows.
    """
    low, high, centre = box.lower, box.upper, box.centre
    shift = (-low).amax(-1, keepdim=True).clamp(min=0.0)
    largest, count = box.magnitude, low.shape[-1]

    zero = torch.zeros_like(centre[..., :1])
    weights = torch.softmax(torch.cat([zero, -centre], -1), -1)[..., 1:]
    at_centre = torch.logsumexp(torch.cat([zero, -centre], -1), -1)
    below = at_centre + (weights * centre).sum(-1)

    at_low, at_high = torch.exp(-low - shift), torch.exp(-high - shift)
    width = high - low
    narrow = width <= 1e-7 * (1.0 + largest)
    chord = (at_high - at_low) / torch.where(narrow, 1.0, width)
    chord = torch.where(narrow, -torch.exp(-centre - shift), chord)
    offset = torch.maximum(at_low - chord * low, at_high - chord * high)
    one = torch.exp(-shift).squeeze(-1)
    total = one + (chord * centre + offset).sum(-1)
    slope = chord / total.unsqueeze(-1)
    above = shift.squeeze(-1) + torch.log(total) - 1.0 + (one + offset.sum(-1)) / total

    # exp and the softmax are off by 16 units, and by one for each unit of their arguments.
    arguments = 1.0 + largest + shift
    size_below = at_centre + 4.0 * (weights * largest * arguments).sum(-1)
    terms = one * (1.0 + shift.squeeze(-1)) + (
        (at_low + offset.abs() + 2.0 * chord.abs() * largest) * arguments
    ).sum(-1)
    size_above = shift.squeeze(-1) + torch.log(total).abs() + 1.0 + 4.0 * terms / total
    error = gamma(128 + 16 * count) * (size_below + size_above) + TINY
    return LossPlanes.of((-weights, below), (slope, above), error)
