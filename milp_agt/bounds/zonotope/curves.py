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

    What is owed is all of it over the range with the total of a generator. Of a sample that is poisoned
    alone, and moves for sure, it is nearly a number, of either sign.
    """
    value = op.value(centre)
    at_centre = value - slope * centre

    def over(part: Interval) -> Interval:
        """Where f is off the line, over deviations (m, n, *shape)."""
        box = Interval(centre + part.lower, centre + part.upper)
        box = box.widen(gamma(4) * box.magnitude + TINY)
        flat = slope.expand(box.lower.shape).flatten(0, 1)
        planes = op.relax_with((flat, flat), box.each(lambda end: end.flatten(0, 1)[None]))
        size = value.abs() + slope.abs() * (box.magnitude + centre.abs())
        assert planes.lower is not None
        assert planes.upper is not None
        low, high = (e.reshape(size.shape) - at_centre for e in (planes.lower, planes.upper))
        return Interval(low, high).widen(gamma(16) * size + TINY)

    anyway, owed = holding_zero(over(shares.base)), over(shares.total)
    if shares.others is not None:
        return Split(anyway, owed, whole=True)
    return Split(anyway, holding_zero(owed))
