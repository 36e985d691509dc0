"""Linear forms of the last states: their coefficients, and bounds of them over a hybrid zonotope."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from milp_agt.bounds.forms import Forms
from milp_agt.bounds.program import FinalZonotope
from milp_agt.bounds.step import State
from milp_agt.bounds.zonotope import ZonotopePass, least, least_by_branching, least_by_sample
from milp_agt.core.deadline import Deadline
from milp_agt.core.rounding import TINY, gamma


def least_of_forms(
    forward: ZonotopePass,
    forms: Forms,
    state: State,
    rows: FinalZonotope | None = None,
    deadline: Deadline | None = None,
    searching: bool = True,
) -> Tensor:
    """Lower bounds of forms over a hybrid zonotope, and by programs on its rows, (rows, 1).

    Programs end by the deadline. Without ``searching`` multipliers are those of the state's ends.
    """
    found = least(forward, forms.coefficients, searching)
    if rows is not None:
        found = rows.least(forms.coefficients, found, deadline)
    return _with_rest(found, forms, state)


def branched_forms(
    forward: ZonotopePass, forms: Forms, state: State, wanted: Tensor, seconds: float, workers: int
) -> Tensor:
    """The same by a tree of each form, until it is above ``wanted``, (rows,), or seconds are over."""
    flat = forms.constant[:, 0]
    enough = wanted - flat + 1e-12 * (forms.magnitude + flat.abs())
    found, _ = least_by_branching(forward, forms.coefficients, enough, seconds, workers)
    return _with_rest(found, forms, state)


def by_sample_of_forms(forward: ZonotopePass, forms: Forms, state: State) -> tuple[Tensor, Tensor]:
    """The same for every set of poisoned samples: ``base`` (rows,) and ``dev`` (rows, N)."""
    base, dev = least_by_sample(forward, forms.coefficients)
    return _with_rest(base, forms, state)[:, 0], dev


def _with_rest(least: Tensor, forms: Forms, state: State) -> Tensor:
    """Bounds of coefficients (rows,) with the constants, less all rounding, (rows, 1)."""
    found = least.unsqueeze(1) + forms.constant
    magnitude, terms = forms.magnitude, 0
    for name, coefficient in forms.coefficients.items():
        flat = coefficient.abs().flatten(1)
        magnitude = magnitude + flat @ state[name].magnitude.amax(0).flatten()
        terms += flat.shape[1]
    size = magnitude.unsqueeze(1) + found.abs()
    found = found - (gamma(forms.operations + terms + 64) * 4.0 * size + TINY)
    return torch.where(torch.isnan(found), -torch.inf, found)


def on_state(state: State, coefficients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The coefficients with zeros for what a form does not name."""
    first = next(iter(coefficients.values()))
    return {
        name: coefficients.get(name, first.new_zeros(len(first), *box.lower.shape[1:]))
        for name, box in state.items()
    }
