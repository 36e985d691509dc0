"""A whole training step as forms on the state before it, made once for all later walks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import PerturbationTerms
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.step import Step
from milp_agt.core.interval import Interval


@dataclass(frozen=True)
class ComposedHead:
    """Forms on the parameters that bound one node, sample by sample, for all walks through a step.

    Where a batch is large, the part of a walk before a narrow node (the outputs, say) is the same for
    every row up to a factor for each sample: it is walked once for every element and sign, and each
    row takes a matrix product with the result.

    Attributes:
        node: name of the node v with k elements.
        forms: a column for each element, sign and sample, of lower bounds of v, then of -v,
            (numbers, 2 k n): coefficients on the parameters, the constants of the cases, the magnitude.
        shapes: of the parameters, in the order of their coefficients.
        features, charges: on the moves of the samples, (2 k, n, *shape), and (2 k, n, states - 1); or None.
        operations: roundings in a row.
    """

    node: str
    forms: Tensor
    shapes: Mapping[str, torch.Size]
    features: Tensor | None
    charges: Tensor | None
    operations: float

    @staticmethod
    def of(
        node: str,
        coefficients: Mapping[str, Tensor],
        constant: Tensor,
        magnitude: Tensor,
        features: Tensor | None,
        charges: Tensor | None,
        operations: float,
    ) -> ComposedHead:
        """From forms of single samples: coefficients (2 k, n, *shape), constants (2 k, n, cases)."""
        numbers = [on.flatten(0, 1).flatten(1).T for on in coefficients.values()]
        rows = [*numbers, constant.flatten(0, 1).T, magnitude.flatten().unsqueeze(0)]
        shapes = {name: on.shape[2:] for name, on in coefficients.items()}
        return ComposedHead(node, torch.cat(rows), shapes, features, charges, operations)

    @property
    def columns(self) -> int:
        return self.forms.shape[1]

    def combined(self, weights: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Coefficients, constants (rows, cases) and magnitudes (rows,) of sums with weights (rows, 2 k n)."""
        found = weights @ self.forms.T
        sizes = [shape.numel() for shape in self.shapes.values()]
        *parts, constant, magnitude = found.split(
            [*sizes, found.shape[1] - sum(sizes) - 1, 1], dim=1
        )
        coefficients = {
            name: part.reshape(len(found), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        return coefficients, constant, magnitude.squeeze(1)


@dataclass(frozen=True)
class ComposedStep:
    """Lower bounds of every end of the state after a step: of ``theta_p``, then of ``-theta_p``.

    End e is at least ``coefficients[e] . state + constant[e] + moves[e] - charges[e]``, errors of all
    relaxations included. A form c of the new state with ``c+ = max(c, 0)`` and ``c- = max(-c, 0)`` is
    then at least ``c+ . (ends of theta) + c- . (ends of -theta)``: a walk through the step is a matrix
    product, whatever the number of samples and hidden units. Moves stay linear, so that those of a
    static adversary are still added over the steps before their support is taken. What is lost is
    that the errors of one node enter all ends with one sign only; they are of second order in the
    width of the state.

    Attributes:
        coefficients: on the state before the step, (2 P, *shape) each, for P numbers of the state.
        constant: for each case, (2 P, cases or 1).
        magnitude: (2 P,), and operations: rounding as in :class:`Forms`.
        features, labels: on the moves of the batch, (2 P, n, ...); None where there are none.
        charges: (2 P, n, states - 1), or None.
    """

    coefficients: Mapping[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    operations: float
    features: Tensor | None = None
    labels: Tensor | None = None
    charges: Tensor | None = None

    def walk(self, step: Step, forms: Forms, perturbation: PerturbationTerms) -> Forms:
        """Carry forms on the state after the step to forms on the state before it."""
        weights = self._weights(forms)

        def moved(ends: Tensor | None) -> Tensor | None:
            return None if ends is None else _weighed(weights, ends)

        if not step.poison.is_clean:
            perturbation.add(step, moved(self.features), moved(self.labels), moved(self.charges))
        return self._combined(weights, forms)

    def carried(self, forms: Forms) -> Forms:
        """The same where the ends have paid what they owe, and nothing is left to any debt."""
        return self._combined(self._weights(forms), forms)

    def _weights(self, forms: Forms) -> Tensor:
        """How often each end is taken, (rows, 2 P)."""
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
    """What a step before the window has proved of the state after it, whoever was poisoned in it.

    Every end of the state is bounded by a form on the state before the step, of which all that poison
    can take in this step is subtracted. So no sample is needed any more, and forms that have reached
    the beginning of their window go on to earlier boxes by matrix products: boxes in between no longer
    add up what cancels along the way. Poison of the step is paid end by end, as if each end had its own.

    Attributes:
        index: of the step.
        state: boxes before it.
        ends: without moves and charges.
    """

    index: int
    state: dict[str, Interval]
    ends: ComposedStep


class Collected:
    """The ends of a shortcut while they are walked through their step, some at a time."""

    def __init__(self, ends: int) -> None:
        self._ends = ends
        self._tensors: dict[str, Tensor] = {}
        self._operations = 0.0
        self._moves: dict[str, Tensor | None] = {}

    def add(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        """Take what a walk would add to a debt."""
        self._moves = {"features": features, "labels": labels, "charges": charges}

    def keep(self, ends: Tensor, forms: Forms) -> None:
        """Store forms that were walked through the step as these ends."""
        found = {
            **{f"on {name}": on for name, on in forms.coefficients.items()},
            "constant": forms.constant,
            "magnitude": forms.magnitude,
            **self._moves,
        }
        for name, rows in found.items():
            if rows is None:
                continue
            if name not in self._tensors:
                self._tensors[name] = rows.new_zeros(self._ends, *rows.shape[1:])
            self._tensors[name][ends] = rows
        self._operations = max(self._operations, forms.operations)

    def composed(self, state: Mapping[str, Interval]) -> ComposedStep:
        """All ends, of a step from a state in these boxes."""
        coefficients = {name: self._tensors[f"on {name}"] for name in state}
        magnitude = self._tensors["magnitude"]
        for name, on in coefficients.items():
            # Sums of ends cancel: their rounding goes by the terms, not by what is left of them.
            size = state[name].magnitude.amax(0).flatten()
            magnitude = magnitude + on.flatten(1).abs() @ size
        return ComposedStep(
            coefficients,
            self._tensors["constant"],
            magnitude,
            self._operations,
            self._tensors.get("features"),
            self._tensors.get("labels"),
            self._tensors.get("charges"),
        )
