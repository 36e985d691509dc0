"""A step before the window as forms on the state before it, for every poisoning of that step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.forms import Forms
from milp_agt.core.interval import Interval


@dataclass(frozen=True)
class PastStep:
    """Lower bounds of every signed entry of the state after a step: of ``theta_p``, then of ``-theta_p``.

    Entry e is at least ``coefficients[e] . state + constant[e]``, errors of all relaxations and the worst
    case of the step subtracted, entry by entry, as if each had its own adversary. A form c of the new state
    with ``c+ = max(c, 0)`` and ``c- = max(-c, 0)`` is then at least ``c+ . (bounds of theta) + c- . (bounds
    of -theta)``: no sample is needed any more, and forms at the beginning of their window go on to earlier
    boxes by matrix products, so that boxes in between do not add up effects that cancel. The loss: the
    errors of one node, of second order in the width of the state, enter all entries with one sign only.

    Attributes:
        index: of the step.
        state: boxes before it.
        coefficients: on that state, (2 P, *shape) each, for P numbers of the state.
        constant: for each case, (2 P, cases or 1).
        magnitude: (2 P,), and operations: rounding as in :class:`Forms`.
    """

    index: int
    state: Mapping[str, Interval]
    coefficients: Mapping[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    operations: float

    def carried(self, forms: Forms) -> Forms:
        """Carry forms on the state after the step to forms on the state before it."""
        on_new = torch.cat([forms.coefficients[name].flatten(1) for name in self.coefficients], 1)
        weights = torch.cat([on_new.clamp(min=0.0), (-on_new).clamp(min=0.0)], 1)
        return Forms(
            {
                name: (weights @ on.flatten(1)).reshape(len(weights), *on.shape[1:])
                for name, on in self.coefficients.items()
            },
            forms.constant + weights @ self.constant,
            forms.magnitude + weights @ self.magnitude,
            forms.operations + self.operations + 2.0 * len(self.magnitude) + 64.0,
        )


class Collected:
    """The forms of a past step while its signed entries pass backward, some at a time."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Forms]] = []

    def keep(self, ends: Tensor, forms: Forms) -> None:
        """Store the forms of these signed entries on the state before the step, worst case subtracted."""
        self._parts.append((ends, forms))

    def past(self, index: int, state: Mapping[str, Interval]) -> PastStep:
        """The step from a state in these boxes."""
        order = torch.cat([ends for ends, _ in self._parts]).argsort()
        forms = [found for _, found in self._parts]
        coefficients = {
            name: torch.cat([own.coefficients[name] for own in forms])[order] for name in state
        }
        magnitude = torch.cat([own.magnitude for own in forms])[order]
        for name, on in coefficients.items():
            # Sums of entries cancel; their rounding grows with the terms, not with the result.
            magnitude = magnitude + on.flatten(1).abs() @ state[name].magnitude.amax(0).flatten()
        constant = torch.cat([own.constant for own in forms])[order]
        operations = max(own.operations for own in forms)
        return PastStep(index, state, coefficients, constant, magnitude, operations)
