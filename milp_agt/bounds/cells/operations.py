"""Forms of the results of operations, from what the operations say of themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from milp_agt.bounds.cells.form import Form, Span, added, hull
from milp_agt.bounds.zonotope.form import Form as SampleForm
from milp_agt.bounds.zonotope.form import plus
from milp_agt.bounds.zonotope.linear_maps import error_of, homogeneous, image_of, sizes
from milp_agt.bounds.zonotope.softmax import softmax_form
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.einsum import terms
from milp_agt.formulations.linear_map import LinearMap
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.univariate import Smooth, Univariate


def linear(op: LinearMap, inputs: Sequence[Form]) -> Form:
    """Exact on all coefficients, up to rounding."""
    plain = homogeneous(op)
    size = sizes(op, [form.size for form in inputs])
    error = error_of(op, size)

    def image(parts: Sequence[Tensor | None]) -> Tensor | None:
        return image_of(plain, [(p, form.centre) for p, form in zip(parts, inputs, strict=True)])

    spans = [form.on_state for form in inputs]
    at = hull([span for span in spans if span is not None] or [Span(0, size[:0])])
    on_state = image([None if span is None else span.over(at) for span in spans])

    def box(name: str) -> Tensor:
        parts = (Interval(-part, part) for part in (getattr(form, name) for form in inputs))
        return plain.interval(*parts).upper + error

    return Form(
        op.value(*(form.centre for form in inputs)),
        box("radius"),
        size,
        box("away"),
        None if on_state is None else Span(at.start, on_state),
        image([form.on_moves for form in inputs]),
        image([form.on_cut for form in inputs]),
    )


def product(op: Einsum, a: Form, b: Form, summed: bool = False) -> Form:
    """``a b = a_c b_c + a_c db + da b_c + da db``, the last term as noise; ``summed`` over the samples.

    Coefficients on the cut stay those of each sample.
    """
    multiply = op.summed_value if summed else op.value
    size = multiply(a.size, b.size)
    count = a.centre.shape[1] if summed else 1
    error = gamma(16.0 * terms(op.letters, a.centre, b.centre) + 16.0 * count + 256.0) * 4.0 * size
    error = error + TINY

    def left(part: Tensor) -> Tensor:
        return multiply(part, b.centre)

    def right(part: Tensor) -> Tensor:
        return multiply(a.centre, part)

    on_state = added(
        None if a.on_state is None else a.on_state.map(left),
        None if b.on_state is None else b.on_state.map(right),
    )
    on_moves = plus(
        None if a.on_moves is None else left(a.on_moves),
        None if b.on_moves is None else right(b.on_moves),
    )
    on_cut = plus(
        None if a.on_cut is None else op.value(a.on_cut, b.centre),
        None if b.on_cut is None else op.value(a.centre, b.on_cut),
    )
    first, second = a.centre.abs(), b.centre.abs()
    both = multiply(a.away, b.away) + error
    return Form(
        multiply(a.centre, b.centre),
        multiply(a.radius, second) + multiply(first, b.radius) + both,
        size,
        multiply(a.away, second) + multiply(first, b.away) + both,
        on_state,
        on_moves,
        on_cut,
    )


def summed(form: Form) -> Form:
    """The sum over the samples; coefficients on the cut stay those of each."""
    count = form.centre.shape[1]
    size = form.size.sum(1)
    error = gamma(8.0 * count + 64.0) * size + TINY
    return Form(
        form.centre.sum(1),
        form.radius.sum(1) + error,
        size,
        form.away.sum(1) + error,
        None if form.on_state is None else form.on_state.map(lambda part: part.sum(2)),
        None if form.on_moves is None else form.on_moves.sum(2),
        form.on_cut,
    )


def curved(op: Univariate, argument: Form, box: Interval, half: Tensor | None = None) -> Form:
    """``m u + middle +- half`` with the slope m of the thinnest strip around the function over a range.

    ``half``, (B, n, *shape), stands in for the half width of the strip where its gradient is asked for.
    """
    slope, lower, upper = strip(op, box)
    middle = 0.5 * lower + 0.5 * upper
    if half is None:
        half = torch.maximum(upper - middle, middle - lower)
    centre = slope * argument.centre + middle
    scaled = argument.scaled(slope)
    size = centre.abs() + slope.abs() * (argument.size + argument.centre.abs())
    size = size + middle.abs() + half
    error = gamma(16) * size + TINY
    values = op.interval(box)
    away = torch.maximum(values.upper - centre, centre - values.lower) + error
    away = torch.minimum(away, slope.abs() * argument.away + half + error)
    return Form(
        centre,
        scaled.radius + half + error,
        size,
        away,
        scaled.on_state,
        scaled.on_moves,
        scaled.on_cut,
    )


def strip(op: Univariate, box: Interval) -> tuple[Tensor, Tensor, Tensor]:
    """Slope m and range of ``f(u) - m u`` over a box, rounding of the run included, elementwise."""
    slopes = list(op.slopes(box))
    if isinstance(op, Smooth):
        slopes = [slopes[0], op.derivative(box.centre)]
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for slope in slopes:
        slope = torch.nan_to_num(slope, posinf=0.0, neginf=0.0)
        planes = op.relax_with((slope, slope), Interval(box.lower[None], box.upper[None]))
        assert planes.lower is not None
        assert planes.upper is not None
        found = (slope.expand_as(box.lower), planes.lower[0], planes.upper[0])
        if best is None:
            best = found
            continue
        wins = found[2] - found[1] < best[2] - best[1]
        best = (
            torch.where(wins, found[0], best[0]),
            torch.where(wins, found[1], best[1]),
            torch.where(wins, found[2], best[2]),
        )
    assert best is not None
    return best


def softmax(logits: Form, away: Interval) -> Form:
    """Softmax of three classes or more; ``away`` are the deviations of all differences, (B, n, c (c - 1))."""
    shape = logits.centre.shape
    radius = logits.radius.flatten(0, 1)[None]
    flat = SampleForm(
        logits.centre.flatten(0, 1),
        Interval(-radius, radius),
        logits.size.flatten(0, 1),
        None if logits.on_state is None else _flat(logits.on_state.values, shape),
        None if logits.on_moves is None else _flat(logits.on_moves, shape),
    )
    both = Interval(away.lower.flatten(0, 1)[None], away.upper.flatten(0, 1)[None])
    found = softmax_form(flat, both)
    low, high = found.rest.lower[0], found.rest.upper[0]
    middle = 0.5 * low + 0.5 * high
    size = found.size + middle.abs()
    half = torch.maximum(high - middle, middle - low) + gamma(8) * size
    centre = (found.centre + middle).reshape(shape)
    span = None
    if logits.on_state is not None and isinstance(found.on_state, Tensor):
        span = Span(logits.on_state.first, found.on_state.reshape(-1, *shape))
    return Form(
        centre,
        half.reshape(shape),
        size.reshape(shape),
        torch.maximum(1.0 - centre, centre) * (1.0 + gamma(256)) + gamma(256),
        span,
        None if found.on_moves is None else found.on_moves.reshape(-1, *shape),
    )


def _flat(part: Tensor, shape: torch.Size) -> Tensor:
    return part.expand(-1, *shape).flatten(1, 2)


def squared(op: SquaredNorm, forms: Sequence[Form]) -> Form:
    """``sum u^2 = sum c^2 + 2 c (u - c) + (u - c)^2``, the last term between 0 and its largest value."""

    def total(parts: Sequence[Tensor]) -> Tensor:
        return sum((p.flatten(2).sum(-1, keepdim=True) for p in parts[1:]), _last(parts[0], 2))

    on_state: Span | None = None
    on_moves: Tensor | None = None
    for form in forms:
        twice = 2.0 * form.centre
        if form.on_state is not None:
            values = _last(twice * form.on_state.values, 3)
            on_state = added(on_state, Span(form.on_state.first, values))
        if form.on_moves is not None:
            on_moves = plus(on_moves, _last(twice * form.on_moves, 3))
    count = sum(form.centre[0, 0].numel() for form in forms)
    size = total([4.0 * form.size.square() for form in forms])
    error = gamma(16.0 * count + 128.0) * size + TINY
    second = 0.5 * total([form.away.square() for form in forms])
    away = total([2.0 * form.centre.abs() * form.away for form in forms]) + second
    radius = total([2.0 * form.centre.abs() * form.radius for form in forms])
    return Form(
        op.value(*(form.centre for form in forms)) + second,
        radius + second + error,
        size,
        away + error,
        on_state,
        on_moves,
    )


def _last(part: Tensor, lead: int) -> Tensor:
    return part.flatten(lead).sum(-1, keepdim=True)
