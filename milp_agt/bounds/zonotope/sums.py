"""Sums over the samples of a batch: what each sample can add, and what is there whoever is poisoned."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.form import Form, SummedForm, led
from milp_agt.bounds.zonotope.rows import Slots
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.threats.poison import Poison


def summed(form: Form, flips: Flips, slots: Slots, columns: Tensor, symbols: int) -> SummedForm:
    """The sum of a form whose coefficients on the state are summed already.

    Args:
        flips: of this step, in the order of their numbers.
        columns: sample generators of the batch, (n,), -1 for samples that stay clean.
        symbols: of a sample, that coefficients on the state are sums over.
    """
    rest, count = form.rest, len(columns)
    size = form.size.sum(0)
    down = (rest.lower[0] - rest.lower[-1]).clamp(min=0.0)
    up = (rest.upper[-1] - rest.upper[0]).clamp(min=0.0)
    closed = (columns < 0).to(up).reshape(-1, *[1] * (up.dim() - 1))
    low = (rest.lower[0] - down * closed).sum(0)[None]
    high = (rest.upper[0] + up * closed).sum(0)[None]
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
    own = torch.zeros_like(down).index_add(0, sample[loose], charge[loose])
    others = flips.paid_by_all
    every = charge[others[flips.row_of[others] < 0]].sum(0) * grow
    return SummedForm(
        form.centre.sum(0),
        size,
        on_state,
        form.on_moves,
        at_flips(form.on_phase),
        at_flips(form.on_bend),
        charge[flips.column],
        Interval(low - every, high + every).widen(error),
        Interval(-(down + own) * grow, (up + own) * grow),
    )


def folded(form: SummedForm, samples: SampleGenerators, poison: Poison) -> SummedForm:
    """The sum with the moves of its samples as noise that is there if they are poisoned.

    ``c . e`` lies between ``-support(-c)`` and ``support(c)``: exact for each element, but elements no longer
    move together. ``poison`` has the moves of the samples of the sum.
    """
    if form.on_moves is None:
        return form
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
