"""Constant linear maps of forms: exact on every coefficient, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.form import Form, SummedForm, led
from milp_agt.bounds.zonotope.local import Local, OnState, Source, Term
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.convolution import Convolution
from milp_agt.formulations.linear import Affine, Combine
from milp_agt.formulations.linear_map import LinearMap


def homogeneous(op: LinearMap) -> LinearMap:
    """The map without its constant."""
    if isinstance(op, Combine):
        return op if op.constant is None else replace(op, constant=None)
    if isinstance(op, (Affine, Convolution)):
        return op if op.bias is None else replace(op, bias=None)
    return op


def of_forms(op: LinearMap, inputs: Sequence[Form], by_sample: Sequence[bool]) -> Form:
    """The image of forms: coefficients as values, boxes as boxes, rounding by the sizes of all terms.

    ``by_sample`` says which of them have a sample axis.
    """
    linear = homogeneous(op)
    size = sizes(op, [form.size for form in inputs])
    rest = linear.interval(*(form.rest for form in inputs)).widen(error_of(op, size))
    states = max(len(form.rest.lower) for form in inputs)

    def image(name: str) -> Tensor | None:
        return image_of(linear, [(getattr(form, name), form.centre) for form in inputs])

    charge = None
    given = [(form.charge, form.centre) for form in inputs]
    if any(part is not None for part, _ in given):
        parts = _filled(given)
        charge = linear.interval(*(Interval(-part, part) for part in parts)).upper
    lead = [len(f.owed.lower) for f in inputs if f.owed is not None]
    owed = [_owed_like(form.owed, form.centre, max(lead)) for form in inputs] if lead else []
    return Form(
        op.value(*(form.centre for form in inputs)),
        rest.expand_states(states),
        size,
        _on_state(linear, inputs, by_sample),
        image("on_moves"),
        image("on_phase"),
        image("on_bend"),
        charge,
        _owed(op, owed),
    )


def of_sums(op: LinearMap, inputs: Sequence[SummedForm]) -> SummedForm:
    """The same after a sum over samples."""
    inputs = [form.without_squares() for form in inputs]
    linear = homogeneous(op)
    size = sizes(op, [form.size for form in inputs])

    def image(name: str) -> Tensor | None:
        return image_of(linear, [(getattr(form, name), form.centre) for form in inputs])

    moved = [form for form in inputs if form.on_moves is not None]
    moves = linear.value(*(form.moves_like(moved[0]) for form in inputs)) if moved else None
    phase, bend = image("on_phase"), image("on_bend")
    lead = [len(f.owed.lower) for f in inputs if f.owed is not None]
    assert phase is not None
    assert bend is not None
    return SummedForm(
        op.value(*(form.centre for form in inputs)),
        size,
        image("on_state"),
        moves,
        phase,
        bend,
        linear.interval(*(Interval(-form.charge, form.charge) for form in inputs)).upper,
        linear.interval(*(form.base for form in inputs)).widen(error_of(op, size)),
        linear.interval(*(form.charges for form in inputs)),
        _owed(op, [_owed_like(f.owed, f.centre, max(lead)) for f in inputs] if lead else []),
    )


def _owed_like(owed: Interval | None, centre: Tensor, count: int) -> Interval:
    zero = torch.zeros_like(centre).expand(count, *centre.shape)
    return Interval(zero, zero) if owed is None else owed


def _owed(op: LinearMap, owed: Sequence[Interval]) -> Interval | None:
    """What is owed after a map."""
    if not owed:
        return None
    linear = homogeneous(op)
    sizes_of = linear.interval(*(Interval(-box.magnitude, box.magnitude) for box in owed))
    return linear.interval(*owed).widen(gamma(16.0 * op.terms() + 128.0) * sizes_of.magnitude)


def sizes(op: LinearMap, parts: Sequence[Tensor]) -> Tensor:
    """Sums of the sizes of the terms of a map."""
    return op.relax(*(Interval(-part[None], part[None]) for part in parts)).magnitude


def error_of(op: LinearMap, size: Tensor) -> Tensor:
    """Rounding of a map of forms and of its values in the run."""
    return gamma(16.0 * op.terms() + 128.0) * size + TINY


def image_of(linear: LinearMap, parts: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor | None:
    """The image of coefficients, those of each input beside its centre; None for 0."""
    if all(part is None for part, _ in parts):
        return None
    return linear.value(*_filled(parts))


def _on_state(linear: LinearMap, inputs: Sequence[Form], by_sample: Sequence[bool]) -> OnState:
    """Coefficients on the state; a plain sum of symbols has symbols of its own."""
    if not any(by_sample):
        return image_of(linear, [(_tensor(form.on_state), form.centre) for form in inputs])
    samples = next(len(f.centre) for f, own in zip(inputs, by_sample, strict=True) if own)
    given = [
        Local.broadcast(form.on_state, samples)
        if isinstance(form.on_state, Tensor)
        else form.on_state
        for form in inputs
    ]
    known = [each for each in given if each is not None]
    if not known:
        return None
    terms: list[Term] = []
    if type(linear) is Combine and all(isinstance(s, float) and s == 1.0 for s in linear.scales):
        split = [((), None) if each is None else each.split() for each in given]
        terms = [term for found, _ in split for term in found]
        given = [rest for _, rest in split]
    parts = {}
    for key in {key: None for each in given if each is not None for key in each.parts}:
        own = [None if each is None else each.parts.get(key) for each in given]
        # What has no sample axis is alike in all samples.
        own = [
            part if part is None or each else part[:, 0]
            for part, each in zip(own, by_sample, strict=True)
        ]
        image = image_of(linear, [(part, f.centre) for part, f in zip(own, inputs, strict=True)])
        assert image is not None
        parts[key] = image
    if terms:
        shape = inputs[0].centre.shape[1:] if by_sample[0] else inputs[0].centre.shape
        source = Source(terms, tuple(shape), samples)
        parts[source] = source.identity
    return Local(parts, known[0].parameters)


def _tensor(on_state: OnState) -> Tensor | None:
    assert not isinstance(on_state, Local)
    return on_state


def _filled(parts: Sequence[tuple[Tensor | None, Tensor]]) -> list[Tensor]:
    """Coefficients of all inputs, zeros where there are none."""
    lead = max(len(part) for part, _ in parts if part is not None)
    return [
        torch.zeros(1, dtype=centre.dtype, device=centre.device).expand(lead, *centre.shape)
        if part is None
        else led(part, lead)
        for part, centre in parts
    ]
