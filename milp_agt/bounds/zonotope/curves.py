"""Curved functions of one argument: a line through the value at the centre, and what f is off it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.form import Form, holding_zero, together
from milp_agt.bounds.zonotope.owed import Owing, Shares, Split
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.univariate import Smooth, Univariate


def curved(
    op: Univariate, argument: Form, box: Interval, shares: Shares | None, owing: Owing
) -> Form:
    """``f(c) + m (u - c)`` and what f is off that line over the range ``box`` of the argument; ``shares`` say
    who moves a clean sample how far."""
    centre = argument.centre
    if isinstance(op, Smooth):
        slope = straighter(op, centre, box)
    else:
        lower, upper = op.slopes(box.of_clean)
        slope = 0.5 * lower + 0.5 * upper
    slope = torch.nan_to_num(slope, posinf=0.0, neginf=0.0)
    planes = op.relax_with((slope, slope), box)
    assert planes.lower is not None
    assert planes.upper is not None
    value = op.value(centre)
    at_centre = value - slope * centre
    size = value.abs() + slope.abs() * (argument.size + centre.abs())
    error = gamma(16) * size + TINY
    off = Interval(planes.lower - at_centre, planes.upper - at_centre).widen(error)
    form = replace(argument.scaled(slope), centre=value)
    off, owed = holding_zero(off), None
    size = size + (form.rest.magnitude + off.magnitude).amax(0)
    if shares is not None and isinstance(op, Smooth):
        off, owed = owing(off, off_line(op, slope, centre, shares))
    rest = form.rest.plus(off)
    return replace(form, rest=rest, size=size, owed=together(form.owed, owed))


def straighter(op: Smooth, centre: Tensor, box: Interval) -> Tensor:
    """The slope at the centre, or of the chord of clean samples where f is nearer to that in all states, as
    it is over a range, (states, n, *shape), that goes far to one side."""
    tangent, chord = op.derivative(centre), op.chord(box.of_clean)
    one, other = (op.residual(line, box).width for line in (tangent, chord))
    return torch.where((other < one).all(0), chord, tangent)


def off_line(op: Smooth, slope: Tensor, centre: Tensor, shares: Shares) -> Split:
    """Of ``f(c + d) - f(c) - slope d``.

    What is owed is all of it over the range with the total of a generator; or, towards either side, a line
    through 0 and what f is off that, if it is less. Of a sample that is poisoned alone, and moves for sure,
    it is nearly a number, of either sign.
    """
    value = op.value(centre)

    def over(box: Interval, line: Tensor) -> Interval:
        """Offsets of f from a line through (c, f(c)) with a slope for each of the generators."""
        line = line.expand(box.lower.shape)
        flat = line.flatten(0, 1)
        planes = op.relax_with((flat, flat), box.each(lambda end: end.flatten(0, 1)[None]))
        at_centre = value - line * centre
        size = value.abs() + line.abs() * (box.magnitude + centre.abs())
        assert planes.lower is not None
        assert planes.upper is not None
        low, high = (end.reshape(line.shape) - at_centre for end in (planes.lower, planes.upper))
        return Interval(low, high).widen(gamma(16) * size + TINY)

    def around(part: Interval) -> Interval:
        wide = Interval(centre + part.lower, centre + part.upper)
        return wide.widen(gamma(4) * wide.magnitude + TINY)

    whole, anyway = over(around(shares.total), slope), over(around(shares.base), slope)
    anyway = holding_zero(anyway)
    if shares.others is not None:
        return Split(anyway, whole, whole=True)
    whole = holding_zero(whole)
    low, high = torch.zeros_like(whole.lower), torch.zeros_like(whole.lower)
    for sign in (-1.0, 1.0):
        end = (shares.total.upper if sign > 0 else -shares.total.lower).clamp(min=0.0)
        reach = shares.each.upper + shares.base.upper
        if sign < 0:
            reach = -(shares.each.lower + shares.base.lower)
        zero = torch.zeros_like(end)
        side = around(Interval(zero, end) if sign > 0 else Interval(-end, zero))
        line = op.chord(side)
        offsets, steep = holding_zero(over(side, line)), sign * (line - slope)
        steep = steep + torch.sign(steep) * gamma(16) * (line.abs() + slope.abs())
        more = gamma(64) * (line.abs() + slope.abs()) * reach
        low = torch.minimum(low, steep.clamp(max=0.0) * reach + offsets.lower - more)
        high = torch.maximum(high, steep.clamp(min=0.0) * reach + offsets.upper + more)
    grow = 1.0 + gamma(16)
    owed = Interval(torch.maximum(whole.lower, low * grow), torch.minimum(whole.upper, high * grow))
    return Split(anyway, owed)
