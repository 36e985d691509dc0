"""A whole training step as forms on the state before it, computed once for all later backward passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import OnMoves, PerturbationTerms
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.step import Step
from milp_agt.core.interval import Interval


@dataclass(frozen=True)
class ComposedStep:
    """Lower bounds of every signed entry of the state after a step: of ``theta_p``, then of ``-theta_p``.

    Entry e is at least ``coefficients[e] . state + constant[e] + moves[e] - charges[e]``, errors of all
    relaxations included. A form c of the new state with ``c+ = max(c, 0)`` and ``c- = max(-c, 0)`` is
    then at least ``c+ . (bounds of theta) + c- . (bounds of -theta)``: a backward pass through the step is
    one matrix product, for any number of samples and hidden units. Moves stay linear, so those of a
    static adversary are still added over the steps before their support is taken. The loss: the
    errors of one node enter all entries with one sign only. These errors are of second order in the
    width of the state.

    Attributes:
        coefficients: on the state before the step, (2 P, *shape) each, for P numbers of the state.
        constant: for each case, (2 P, cases or 1).
        magnitude: (2 P,), and operations: rounding as in :class:`Forms`.
        moves: of the batch, (2 P, n, ...).
    """

    coefficients: Mapping[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    operations: float
    moves: OnMoves = field(default_factory=OnMoves)

    def walk(self, step: Step, forms: Forms, perturbation: PerturbationTerms) -> Forms:
        """Carry forms on the state after the step to forms on the state before it."""
        weights = self._weights(forms)
        if not step.poison.is_clean:
            perturbation.add(step, self.moves.map(lambda ends: _weighed(weights, ends)))
        return self._combined(weights, forms)

    def carried(self, forms: Forms) -> Forms:
        """:meth:`walk` if the worst case is already subtracted from every entry."""
        return self._combined(self._weights(forms), forms)

    def _weights(self, forms: Forms) -> Tensor:
        """The factor of each signed entry, (rows, 2 P)."""
        on_new = torch.cat([forms.coefficients[name].flatten(1) for name in self.coefficients], 1)
        return torch.cat([on_new.clamp(min=0.0), (-on_new).clamp(min=0.0)], 1)

    def _combined(self, weights: Tensor, forms: Forms) -> Forms:
        return Forms(
            {name: _weighed(weights, on) for name, on in self.coefficients.items()},
            forms.constant + _weighed(weights, self.constant),
            forms.magnitude + weights @ self.magnitude,
            forms.operations + self.operations + 2.0 * len(self.magnitude) + 64.0,
        )


def _weighed(weights: Tensor, ends: Tensor) -> Tensor:
    return (weights @ ends.flatten(1)).reshape(len(weights), *ends.shape[1:])


@dataclass(frozen=True)
class PastStep:
    """Bounds of the state after a step before the window, valid for every poisoning of that step.

    Every signed entry of the state is bounded by a form on the state before the step, minus its worst
    case in this step. So no sample is needed any more, and forms at the beginning of their window go
    on to earlier boxes by matrix products: boxes in between no longer add up effects that cancel. The
    worst case of the step is subtracted entry by entry, as if each entry had its own adversary.

    Attributes:
        index: of the step.
        state: boxes before it.
        ends: bounds of the signed entries, without moves and charges.
    """

    index: int
    state: dict[str, Interval]
    ends: ComposedStep


class Collected:
    """Collects the forms of a composed step while its signed entries pass backward, some at a time."""

    def __init__(self, ends: int) -> None:
        self._ends = ends
        self._tensors: dict[str, Tensor] = {}
        self._operations = 0.0
        self._moves = OnMoves()

    def add(self, step: Step, on: OnMoves) -> None:
        """Store what a backward pass would add to a worst case."""
        self._moves = on

    def keep(self, ends: Tensor, forms: Forms) -> None:
        """Store the forms of these signed entries on the state before the step."""
        found = {
            **{f"on {name}": on for name, on in forms.coefficients.items()},
            "constant": forms.constant,
            "magnitude": forms.magnitude,
            "features": self._moves.features,
            "labels": self._moves.labels,
            "charges": self._moves.charges,
        }
        for name, rows in found.items():
            if rows is None:
                continue
            if name not in self._tensors:
                self._tensors[name] = rows.new_zeros(self._ends, *rows.shape[1:])
            self._tensors[name][ends] = rows
        self._operations = max(self._operations, forms.operations)

    def composed(self, state: Mapping[str, Interval]) -> ComposedStep:
        """The composed step from a state in these boxes."""
        coefficients = {name: self._tensors[f"on {name}"] for name in state}
        magnitude = self._tensors["magnitude"]
        for name, on in coefficients.items():
            # Sums of entries cancel; their rounding grows with the terms, not with the result.
            size = state[name].magnitude.amax(0).flatten()
            magnitude = magnitude + on.flatten(1).abs() @ size
        return ComposedStep(
            coefficients,
            self._tensors["constant"],
            magnitude,
            self._operations,
            OnMoves(*map(self._tensors.get, ("features", "labels", "charges"))),
        )
