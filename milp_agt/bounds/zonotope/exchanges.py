"""Whole samples exchanged: the gradient of a chosen sample gives way to something else."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.form import Form, holding_zero, plus
from milp_agt.bounds.zonotope.state import HybridZonotope
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.exchange import Exchange, ExchangePlanes
from milp_agt.threats.poison import Poison


def selection_box(poison: Poison, columns: Tensor, batch: int) -> Interval:
    """Which share of each sample is exchanged if it is clean, and if it may be chosen, (2 or 1, n, 1)."""
    chosen = columns[:, 0] >= 0
    states = torch.stack([torch.zeros_like(chosen), chosen][: poison.states])
    return poison.selection_box(states, batch)


def exchanged(
    op: Exchange, argument: Form, gradients: Interval, selection: Interval, width: int
) -> Form:
    """``v_i = (1 - s_i) u_i + s_i kappa_i`` as ``slope u_i + d_i`` with ``d_i`` in the offsets of the planes.

    The planes hold for every u in its box and every kappa that the operation admits, in the state of a
    clean sample and in that of a chosen one. There, where ``width`` is 1, d_i is its middle times the
    move of the sample, which is 1 if it is chosen and 0 if not, and noise of the sample up to the ends: so
    what exchanging a sample takes away is one generator through all coordinates and steps. With width
    0, or where nobody is chosen, all of d_i is noise.

    Args:
        gradients: box of u, (2, n, *shape).
        width: coordinates of a move.
    """
    planes = op.relax(gradients, selection)
    assert isinstance(planes, ExchangePlanes)
    slope, form = planes.slope, argument
    if not (isinstance(slope, float) and slope == 1.0):
        like = argument.centre
        factor = like.new_tensor(slope) if isinstance(slope, float) else slope
        form = replace(argument.scaled(factor), centre=factor * like)
    states = torch.zeros_like(argument.centre).expand(2, *argument.centre.shape)
    offsets = Interval(states + planes.lower, states + planes.upper)
    size = planes.magnitude + argument.size + offsets.magnitude.amax(0)
    on_moves = form.on_moves
    if width:
        middle = 0.5 * offsets.lower[1] + 0.5 * offsets.upper[1]
        on_moves = plus(on_moves, middle[None])
        shift = torch.stack([torch.zeros_like(middle), middle])
        offsets = Interval(offsets.lower - shift, offsets.upper - shift)
    error = gamma(32) * size + TINY
    rest = holding_zero(form.rest.plus(offsets).widen(error))
    return replace(form, rest=rest, size=size, on_moves=on_moves)


def unless_emptied(
    zonotope: HybridZonotope, before: Interval, after: Interval, own: int
) -> HybridZonotope:
    """The set after a step that is skipped if its batch is emptied: then the state is the one before.

    For any choice of samples the set holds a point with the generators of that run, somewhere in its box
    ``after``. In a run that skips the step the state is in ``before``, and the difference is noise of one of
    the samples, all of which are removed then: in the newest group, onto which nothing came yet.
    """
    noise, grow = zonotope.noise, 1.0 + gamma(8)
    down, up = noise.down.clone(), noise.up.clone()
    down[-1, :, own] += (after.upper - before.lower).clamp(min=0.0) * grow + TINY
    up[-1, :, own] += (before.upper - after.lower).clamp(min=0.0) * grow + TINY
    return replace(zonotope, noise=replace(noise, down=down, up=up))
