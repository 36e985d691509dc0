"""Products of two forms, and squared norms: bilinear at the centres, products of deviations as noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.form import (
    Form,
    Image,
    added_images,
    holding_zero,
    plus,
    together,
)
from milp_agt.bounds.zonotope.local import Local, OnState, added, mapped
from milp_agt.bounds.zonotope.owed import Owing, Shares, most_of, of_everyone, product, times_centre
from milp_agt.bounds.zonotope.pairs import Factor
from milp_agt.bounds.zonotope.rows import Slots
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.bounds.zonotope.squares import LOOSER, SHARE, of_moves
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.einsum import Letters, einsum, terms
from milp_agt.formulations.interval_products import box_of_products
from milp_agt.formulations.squared_norm import SquaredNorm

# How far a form lies below and above its centre, in each state.
RangeOf = Callable[[Form], tuple[Tensor, Tensor]]
ByPairs = Callable[[Letters, Factor, Factor], Interval | None]


@dataclass(frozen=True)
class Operand:
    """A factor.

    Attributes:
        away: range of its deviation from the centre, (states, [n], *shape); None for a constant.
        apart: whether the range is given sample by sample for a node without sample axis: what a
            parameter can be if this sample is clean, and if it may be poisoned.
        shares: of a clean sample, where it is told apart who owes what.
    """

    form: Form
    away: Interval | None
    apart: bool = False
    shares: Shares | None = None


@dataclass(frozen=True)
class OwnSquares:
    """``(A e)(B e)`` of the product of two factors, and the box of ``(A e) rb`` beside it.

    Attributes:
        matrices: (width^2, n, *shape), see squares.py.
        rest: (states, n, *shape).
    """

    matrices: Tensor
    rest: Interval


def multiplied(
    op: Einsum,
    first: Operand,
    second: Operand,
    slots: Slots,
    summed: bool = False,
    by_pairs: ByPairs | None = None,
    squares: OwnSquares | None = None,
    owing: Owing = of_everyone,
) -> Form:
    """``a b = a_c b_c + a_c db + da b_c + da db``, where the first three are affine in the generators.

    ``summed``: the coefficients on the state are added up over the samples, (p, *shape). ``by_pairs`` may
    know a smaller box of ``da db`` than ranges say, ``owing`` who owes it. ``squares`` are the part of it
    that is kept as it is; ``da`` and ``db`` are then without it.
    """
    a, b = first.form, second.form
    letters = op.letters
    size = op.value(a.size, b.size)

    images = added_images(
        a.images(lambda p: op.value(p, b.centre), lambda p: op.value(p, b.centre.abs())),
        b.images(lambda p: op.value(a.centre, p), lambda p: op.value(a.centre.abs(), p)),
    )
    swapped: Letters = (letters[1], letters[0], letters[2])
    rest = _times_centre(letters, a.rest, b.centre).plus(_times_centre(swapped, b.rest, a.centre))
    own = times_centre(letters, a.owed, b.centre, summed)
    owed = together(own, times_centre(swapped, b.owed, a.centre, summed))
    if first.away is not None and second.away is not None:
        more, charged = _second_order(op, first, second, slots, None if squares else by_pairs)
        if more is not None and first.shares and second.shares:
            by_sample = _by_sample(letters, first, second)
            more, own = owing(more, product(by_sample, first.shares, second.shares))
            if own is not None and summed:
                error = gamma(len(size) + 8) * own.magnitude.sum(1, keepdim=True)
                own = own.each(lambda end: end.sum(1, keepdim=True)).widen(error)
            owed = together(owed, own)
        rest = rest if more is None else rest.plus(more)
        images["charge"] = plus(images["charge"], charged)
    if squares is not None:
        rest = rest.plus(squares.rest)
    error = gamma(16.0 * terms(letters, a.centre, b.centre) + 256.0) * 4.0 * size + TINY
    rest = holding_zero(rest.widen(error))
    states = max(len(part.lower) for part in (rest, a.rest, b.rest))
    return Form(
        op.value(a.centre, b.centre),
        rest.expand_states(states) if letters[2].startswith("n") else rest,
        size,
        _on_state(op, a, b, summed),
        squares=None if squares is None else squares.matrices,
        **images,
        owed=owed,
    )


def besides_squares(
    letters: Letters, first: Operand, second: Operand, reach: Tensor, range_of: RangeOf
) -> tuple[Operand, Operand, OwnSquares | None]:
    """Both factors, and what is quadratic in the move of a sample, where that is a large part of a product of
    data with what the state moves as well; the range of this factor is then one without that move.

    ``reach`` of the moves of the samples, (n, width).
    """
    by_kind = {op.form.is_own: op for op in (first, second) if op.form.on_moves is not None}
    if len(by_kind) < 2:
        return first, second, None
    moved, data = by_kind[False], by_kind[True]
    coefficients, on_data = moved.form.on_moves, data.form.on_moves
    assert coefficients is not None
    assert on_data is not None
    assert moved.away is not None
    weights = reach.T.reshape(*reach.T.shape, *[1] * (coefficients.dim() - 2))
    own = (coefficients.abs() * weights).sum(0) * (1.0 + gamma(64 + 8 * len(weights)))
    if not bool(own.sum() > SHARE * moved.away.magnitude[-1].sum()):
        return first, second, None
    form = replace(moved.form, on_moves=None)
    down, up = range_of(form)
    away = Interval(-down, up).widen(gamma(8) * form.size + TINY)
    if bool((own + away.magnitude[-1]).sum() > LOOSER * moved.away.magnitude[-1].sum()):
        return first, second, None
    rest = replace(moved, away=away)
    sides = torch.stack([torch.zeros_like(own), own])
    own_box = Interval(-sides, sides)
    if moved is first:
        crossed = box_of_products(letters, own_box, data.form.rest)
        matrices = of_moves(letters, coefficients, on_data, reach)
        return rest, data, OwnSquares(matrices, crossed)
    crossed = box_of_products(letters, data.form.rest, own_box)
    matrices = of_moves(letters, on_data, coefficients, reach)
    return data, rest, OwnSquares(matrices, crossed)


def _on_state(op: Einsum, a: Form, b: Form, summed: bool) -> OnState:
    """Coefficients on the state; of a parameter that meets data they are symbols of each sample."""
    first, second, out = op.letters
    total: OnState = None
    for form, other, letters in (
        (a, b.centre, (first, second, out)),
        (b, a.centre, (second, first, out)),
    ):
        on_state = form.on_state
        if on_state is None:
            continue
        found: OnState
        if isinstance(on_state, Local):
            if summed:
                found = on_state.summed(letters, other)
            else:
                found = on_state.map(partial(_times, letters, other))
        elif summed:
            equation = f"...{letters[0]},...{letters[1]}->...{out.removeprefix('n')}"
            found = torch.einsum(equation, on_state, other)
        elif out.startswith("n"):
            sizes = dict(zip(letters[1], other.shape, strict=True))
            sizes |= dict(zip(letters[0], on_state.shape[1:], strict=True))
            shape = [sizes[letter] for letter in out[1:]]
            found = Local.entering(on_state, letters, other, shape, sizes["n"])
        else:
            found = einsum(letters, on_state, other)
        total = added(total, found)
    return total


def _times(letters: Letters, other: Tensor, part: Tensor) -> Tensor:
    return einsum(letters, part, other)


def _second_order(
    op: Einsum, first: Operand, second: Operand, slots: Slots, by_pairs: ByPairs | None
) -> tuple[Interval | None, Tensor | None]:
    """``da db`` as noise, and as noise that is there only if a flip happens.

    A factor that only flips move pays nothing while none happens.
    """
    assert first.away is not None
    assert second.away is not None
    if first.form.is_phase:
        return _times_flips(op.letters, first, second, slots)
    if second.form.is_phase:
        a, b, out = op.letters
        return _times_flips((b, a, out), second, first, slots)
    letters = _by_sample(op.letters, first, second)
    found = None
    if by_pairs is not None:
        one = Factor(first.form, first.away, letters[0])
        found = by_pairs(letters, one, Factor(second.form, second.away, letters[1]))
    return found or box_of_products(letters, first.away, second.away), None


def _times_flips(
    letters: Letters, phase: Operand, other: Operand, slots: Slots
) -> tuple[Interval | None, Tensor | None]:
    """``|Lp phi db| <= phi |Lp| |db|``: charged to the flip with the range of a clean sample where it can
    flip if its sample is clean, and what a poisoned one adds to its sample; else with the whole range.
    """
    assert other.away is not None
    assert phase.form.on_phase is not None
    letters = _by_sample(letters, phase, other)
    radius = other.away.magnitude
    clean, poisoned = radius[0], radius[-1]
    weight = phase.form.on_phase.abs()
    rank = weight.dim() - 2
    possible = slots.possible[0, : len(weight)].reshape(len(weight), -1, *[1] * rank)
    equation = f"Z{letters[0]},{letters[1]}->Z{letters[2]}"
    if clean.shape[0] == 1 and letters[1].startswith("n") and weight.shape[1] != 1:
        clean, poisoned = (
            part.expand(weight.shape[1], *part.shape[1:]) for part in (clean, poisoned)
        )
    anyway = torch.einsum(equation, weight * possible, clean)
    alone = torch.einsum(equation, weight * (1.0 - possible), poisoned)
    grow = 1.0 + gamma(64)
    more = torch.stack(
        [
            torch.einsum(equation, weight * possible, (in_state - clean).clamp(min=0.0)).sum(0)
            * grow
            for in_state in radius
        ]
    )
    rest = box_of_products(letters, phase.form.rest, other.away)  # what is no flip
    return rest.plus(Interval(-more, more)), (anyway + alone) * grow


def _by_sample(letters: Letters, first: Operand, second: Operand) -> Letters:
    """Letters for ranges, where those of parameters have a sample axis."""
    a, b, out = letters
    if first.apart and not a.startswith("n"):
        a = "n" + a
    if second.apart and not b.startswith("n"):
        b = "n" + b
    return a, b, out


def _times_centre(letters: Letters, rest: Interval, centre: Tensor) -> Interval:
    """A box times constants."""
    if not bool(rest.lower.any()) and not bool(rest.upper.any()):
        zero = centre.new_zeros(*[1] * (1 + len(letters[2])))
        return Interval(zero, zero)
    point = centre[None]
    return box_of_products(letters, rest, Interval(point, point))


def settled(operand: Operand, samples: SampleGenerators) -> Operand:
    """The same with what is owed as noise of everyone."""
    form = operand.form
    if form.owed is None:
        return operand
    rest = form.rest.widen(most_of(samples, form.owed))
    return replace(operand, form=replace(form, rest=rest, owed=None))


def squared(op: SquaredNorm, operands: Sequence[Operand]) -> Form:
    """``sum u^2 = sum c^2 + 2 c (u - c) + (u - c)^2``, the last term between 0 and its largest value.

    All operands have a sample axis; the result is (n, 1).
    """
    forms = [operand.form for operand in operands]

    on_state: OnState = None
    for form in forms:
        factor = 2.0 * form.centre
        on_state = added(on_state, mapped(form.on_state, partial(_times_summed, factor)))
    low = high = torch.zeros(1, dtype=torch.float64, device=forms[0].centre.device)
    for operand in operands:
        form, away = operand.form, operand.away
        ends = (2.0 * form.centre * form.rest.lower, 2.0 * form.centre * form.rest.upper)
        low = low + _summed(torch.minimum(*ends), 2)
        high = high + _summed(torch.maximum(*ends), 2)
        if away is not None:
            high = high + _summed(away.magnitude.square(), 2)
    size = sum(
        (_summed(4.0 * form.size.square(), 1) for form in forms[1:]),
        start=_summed(4.0 * forms[0].size.square(), 1),
    )
    terms = sum(form.centre[0].numel() for form in forms)
    error = gamma(16.0 * terms + 128.0) * size + TINY
    return Form(
        op.value(*(form.centre for form in forms)),
        holding_zero(Interval(low, high).widen(error)).expand_states(len(forms[0].rest.lower)),
        size,
        on_state,
        **added_images(*(form.images(*_doubled(form.centre)) for form in forms)),
    )


def _doubled(centre: Tensor) -> tuple[Image, Image]:
    """Twice the centre times coefficients, summed over the node, and the same for their sizes."""
    return (
        lambda part: _summed(2.0 * centre * part, 2),
        lambda part: _summed(2.0 * centre.abs() * part, 2),
    )


def _times_summed(factor: Tensor, part: Tensor) -> Tensor:
    return _summed(factor * part, 2)


def _summed(part: Tensor, lead: int) -> Tensor:
    """Sum over the axes of the node, behind ``lead`` others, kept as one of length 1."""
    flat = part.flatten(lead) if part.dim() > lead else part.unsqueeze(-1)
    return flat.sum(-1, keepdim=True)
