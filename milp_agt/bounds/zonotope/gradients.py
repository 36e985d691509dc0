"""The summed gradients of all parameters as one vector, and what clips them all together."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.layout import Layout
from milp_agt.bounds.zonotope.pieces import Summed
from milp_agt.bounds.zonotope.state import HybridZonotope
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.training.training import NORM_SHIFT


@dataclass(frozen=True)
class Gradient:
    """The summed gradients of all parameters as one vector, (p, ...).

    Attributes:
        on_moves: (p, entries, width), an entry for each sample and part.
        on_phase, on_bend: on the flips of this step, (p, f).
        charge: on those with rows, (p, q).
        down, up: noise of each sample generator, (p, m).
        squares: (p, entries, width^2), or 0 of them, see squares.py.
    """

    centre: Tensor
    size: Tensor
    on_state: Tensor
    on_moves: Tensor
    on_phase: Tensor
    on_bend: Tensor
    charge: Tensor
    below: Tensor
    above: Tensor
    down: Tensor
    up: Tensor
    squares: Tensor

    def times(self, factor: float) -> Gradient:
        """All of it times a positive number."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Gradient(*(factor * part for part in parts))

    @staticmethod
    def of(old: HybridZonotope, layout: Layout, summed: Summed) -> Gradient:
        used, columns = layout.parameters, summed.columns
        zero = old.centre.new_zeros
        flips, batch, width = summed.flips.count, len(columns), old.samples.width
        any_squares = any(form.squares is not None for form in summed.gradients.values())
        found = Gradient(
            centre=zero(used),
            size=zero(used),
            on_state=zero(used, used),
            on_moves=zero(used, 0 if old.is_folded else batch, width),
            on_phase=zero(used, flips),
            on_bend=zero(used, flips),
            charge=zero(used, summed.flips.rows),
            below=zero(used),
            above=zero(used),
            down=zero(used, old.samples.count),
            up=zero(used, old.samples.count),
            squares=zero(used, batch, width**2 if any_squares else 0),
        )
        known = (columns >= 0).nonzero()[:, 0]
        for name, form in summed.gradients.items():
            at = layout.slices[name]
            found.centre[at] = form.centre.flatten()
            found.size[at] = form.size.flatten()
            if form.on_state is not None:
                found.on_state[at] = form.on_state.flatten(1).T
            if form.on_moves is not None:
                found.on_moves[at] = form.on_moves.flatten(2).permute(2, 1, 0)
            if form.squares is not None:
                found.squares[at] = form.squares.flatten(2).permute(2, 1, 0)
            for target, part in (
                (found.on_phase, form.on_phase),
                (found.on_bend, form.on_bend),
                (found.charge, form.charge),
            ):
                target[at] = part.flatten(1).T
            found.below[at] = -form.base.lower.flatten()
            found.above[at] = form.base.upper.flatten()
            low, high = (end.flatten(1).T for end in (-form.charges.lower, form.charges.upper))
            found.down[at] = _in_columns(low, columns, known, old.samples.count)
            found.up[at] = _in_columns(high, columns, known, old.samples.count)
            if form.owed is not None:
                low, high = (end.flatten(1).T for end in (-form.owed.lower, form.owed.upper))
                for target, more in ((found.down, low), (found.up, high)):
                    error = gamma(4) * (target[at] + more.abs())
                    target[at] += more + error
        return found


def _in_columns(values: Tensor, columns: Tensor, known: Tensor, count: int) -> Tensor:
    """Numbers of the samples of a batch, (p, n), at their generators, (p, m)."""
    out = values.new_zeros(len(values), count)
    out[:, columns[known]] = values[:, known]
    return out


def shortened(mean: Gradient, box: Interval, clip: float) -> Gradient:
    """``F(g) = g min(1, clip / (|g| + shift))`` of the mean gradients g, all parameters together.

    With the centre c and its norm r_c, ``h = 1 / (|g| + shift)`` and h_c the same at the centre, let
    ``d = g - c``, ``n = c / r_c`` and D at least ``|d|``. Where F clips for sure it is its linear part

        F(c) + f d - k c (c . d),    f = clip h_c,  k = clip h_c^2 / r_c,

    and a rest R. As ``h - h_c = -(|g| - r_c) h h_c`` and ``|g| - r_c = n.d + q`` with
    ``q = (|d|^2 - (n.d)^2) / (|g| + r_c + n.d)``, which lies in ``[0, D^2 / (|g| + r_c - D)]``,

        R = -f ((h - h_c) (n.d) c + h (n.d) d + h q g),
        |R_p| <= f h (D^2 h_c |c_p| + D |d_p| + q |g_p|).

    Otherwise, or if that is less, the factor is ``m + e`` with its middle m and ``|e|`` at most half of its
    range, and ``e g`` is the rest. Where F never clips, it is g. Rests, and rounding of the run and of all
    products here, are noise of everyone.

    Args:
        mean: the mean gradients, (p, ...).
        box: their ranges, (P,), p or more.
    """
    count = len(mean.centre)
    box = Interval(box.lower[:count], box.upper[:count])
    largest, centre = box.magnitude, mean.centre
    grow, shrink = 1.0 + gamma(4 * count + 64), 1.0 - gamma(4 * count + 64)
    least = torch.where(
        (box.lower <= 0) & (box.upper >= 0), 0.0, torch.minimum(box.lower.abs(), box.upper.abs())
    )
    low, high = least.square().sum().sqrt() * shrink, largest.square().sum().sqrt() * grow
    if float(high + NORM_SHIFT) * (1.0 + gamma(8)) <= clip:
        return mean
    ends = [(clip / (end + NORM_SHIFT)).clamp(max=1.0) for end in (high, low)]
    middle = 0.5 * ends[0] + 0.5 * ends[1]
    half = (ends[1] - middle) * grow + gamma(8)
    found = _mapped(mean, middle, torch.zeros_like(middle), half * largest)
    norm = torch.linalg.vector_norm(centre)
    away = torch.maximum(box.upper - centre, centre - box.lower).clamp(min=0.0)
    reach = torch.linalg.vector_norm(away) * grow
    clips = float(low + NORM_SHIFT) * (1.0 - gamma(8)) >= clip
    if clips and bool(norm * shrink > 2.0 * reach):
        inverse = 1.0 / (norm + NORM_SHIFT)
        factor, steepest = clip * inverse, 1.0 / (low + NORM_SHIFT)
        bent = reach.square() / (low + norm * shrink - reach)
        rest = reach.square() * inverse * centre.abs() + reach * away + bent * largest
        rest = factor * steepest * rest * (1.0 + gamma(64))
        linear = _mapped(mean, factor, factor * inverse / norm, rest)
        if bool(rest.sum() < (half * largest).sum()):
            found = linear
    return found


def _mapped(mean: Gradient, factor: Tensor, along: Tensor, rest: Tensor) -> Gradient:
    """``factor x - along c (c . x)`` of deviations, ``factor c`` of the centre, and a rest on either side."""
    centre, count = mean.centre, len(mean.centre)
    matrix = factor * torch.eye(count, dtype=centre.dtype, device=centre.device)
    matrix = matrix - along * centre[:, None] * centre
    plus, minus = matrix.clamp(min=0.0), (-matrix).clamp(min=0.0)
    grow = 1.0 + gamma(8 * count + 64)

    def image(part: Tensor) -> Tensor:
        flat = part.flatten(1)
        on = centre[:, None] * (centre @ flat) if flat.shape[1] else flat
        return (factor * flat - along * on).reshape(part.shape)

    size = factor * mean.size + along * centre.abs() * (centre.abs() @ mean.size) + rest
    error = gamma(32.0 * count + 512.0) * size + TINY
    rounded = (grow - 1.0) * (plus + minus) @ torch.maximum(mean.down.abs(), mean.up.abs())
    return replace(
        mean,
        centre=factor * centre,
        size=size,
        on_state=image(mean.on_state),
        on_moves=image(mean.on_moves),
        on_phase=image(mean.on_phase),
        on_bend=image(mean.on_bend),
        charge=matrix.abs() @ mean.charge * grow,
        below=(plus @ mean.below + minus @ mean.above) * grow + rest + error,
        above=(plus @ mean.above + minus @ mean.below) * grow + rest + error,
        down=plus @ mean.down + minus @ mean.up + rounded,
        up=plus @ mean.up + minus @ mean.down + rounded,
    )
