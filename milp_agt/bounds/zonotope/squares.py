"""Squared norms of forms: linear at the centres, the squares of the deviations as noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.form import Form, holding_zero, plus
from milp_agt.bounds.zonotope.local import OnState, added, mapped
from milp_agt.bounds.zonotope.products import Operand
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.squared_norm import SquaredNorm


def squared(op: SquaredNorm, operands: Sequence[Operand]) -> Form:
    """``sum u^2 = sum c^2 + 2 c (u - c) + (u - c)^2``, the last term between 0 and its largest value.

    All operands have a sample axis; the result is (n, 1).
    """
    forms = [operand.form for operand in operands]

    def image(name: str) -> Tensor | None:
        total: Tensor | None = None
        for form in forms:
            part = getattr(form, name)
            factor = form.centre.abs() if name == "charge" else form.centre
            total = plus(total, None if part is None else _summed(2.0 * factor * part, 2))
        return total

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
        image("on_moves"),
        image("on_phase"),
        image("on_bend"),
        image("charge"),
    )


def _times_summed(factor: Tensor, part: Tensor) -> Tensor:
    return _summed(factor * part, 2)


def _summed(part: Tensor, lead: int) -> Tensor:
    """Sum over the axes of the node, behind ``lead`` others, kept as one of length 1."""
    flat = part.flatten(lead) if part.dim() > lead else part.unsqueeze(-1)
    return flat.sum(-1, keepdim=True)
