"""Sums over the samples of a batch: what each sample can add, and what is there whoever is poisoned."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.form import Form, SummedForm, by_part, led
from milp_agt.bounds.zonotope.rows import Slots
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma


def summed(form: Form, flips: Flips, slots: Slots, columns: Tensor, symbols: int) -> SummedForm:
    """The sum of a form whose coefficients on the state are summed already.

    Args:
        flips: of this step, in the order of their numbers.
        columns: sample generators of the batch, (n, parts), -1 for samples that stay clean.
        symbols: of a sample, that coefficients on the state are sums over.
    """
    rest, count = form.rest, len(columns)
    size = form.size.sum(0)
    parts = columns.shape[1]
    under, down = by_part(-rest.lower, parts)
    over, up = by_part(rest.upper, parts)
    closed = (columns < 0).to(up).T.reshape(parts, count, *[1] * (up.dim() - 2))
    low = -(under + (down * closed).sum(0)).sum(0)[None]
    high = (over + (up * closed).sum(0)).sum(0)[None]
    error = gamma(8 * (count + symbols) + 64) * size + TINY
    slot, sample = _at(slots)
    on_state = form.on_state
    assert on_state is None or isinstance(on_state, Tensor)

    def at_flips(part: Tensor | None) -> Tensor:
        if part is None:
            return size.new_zeros(len(slot), *size.shape)
        return led(part, len(slots.number))[slot, sample]

    charge = at_flips(form.charge)
    grow = 1.0 + gamma(8.0 * len(slots.number) + 8.0)
    loose = flips.paid_alone[flips.row_of[flips.paid_alone] < 0]
    part = (columns[sample[loose]] == flips.own[loose][:, None]).to(torch.int64).argmax(1)
    down, up = (end.transpose(0, 1).flatten(0, 1) for end in (down, up))
    own = torch.zeros_like(down).index_add(0, sample[loose] * parts + part, charge[loose])
    others = flips.paid_by_all
    every = charge[others[flips.row_of[others] < 0]].sum(0) * grow
    return SummedForm(
        form.centre.sum(0),
        size,
        on_state,
        None if form.on_moves is None else form.on_moves.repeat_interleave(parts, 1),
        at_flips(form.on_phase),
        at_flips(form.on_bend),
        charge[flips.column],
        Interval(low - every, high + every).widen(error),
        Interval(-(down + own) * grow, (up + own) * grow),
        form.owed
        and form.owed.each(lambda end: end.sum(1)).widen(
            gamma(8 * count + 64) * form.owed.magnitude.sum(1)
        ),
        form.squares,
    )


def folded(form: SummedForm, samples: SampleGenerators, columns: Tensor) -> SummedForm:
    """The sum with the moves of its samples as noise that is there if they are poisoned.

    ``c . e`` lies between ``-support(-c)`` and ``support(c)``: exact for each element, but elements no longer
    move together. ``columns`` are the generators of the entries of the sum; those that are -1 have no move.
    """
    if form.on_moves is None:
        return form
    if not samples.count:  # as many coefficients, of no generator
        return replace(form, on_moves=None)
    poison = samples.poison.take(columns.clamp(min=0))
    coefficients = form.on_moves.flatten(2) if form.on_moves.dim() > 2 else form.on_moves[..., None]
    coefficients = coefficients.permute(2, 1, 0)
    grow = 1.0 + gamma(8.0 * samples.width + 64.0)
    down, up = (
        (samples.support(part, poison) * grow).T.reshape(form.charges.upper.shape)
        for part in (-coefficients, coefficients)
    )
    charges = Interval(form.charges.lower - down, form.charges.upper + up)
    return replace(form, on_moves=None, charges=charges)


def _at(slots: Slots) -> tuple[Tensor, Tensor]:
    """Slot and sample of each flip of this step, in the order of their numbers."""
    slot, sample = (slots.number >= 0).nonzero(as_tuple=True)
    order = slots.number[slot, sample].argsort()
    return slot[order], sample[order]
