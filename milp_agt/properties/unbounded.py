"""Models of which nothing is bounded: to see whether a question can be asked at all, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.program import OutputForms
from milp_agt.core.interval import Interval
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.reached import Reached


@dataclass(frozen=True)
class UnboundedModels(ReachableModels):
    """Answers with the values of the nominal model, in the shapes of bounds; certifies nothing.

    Every check of shapes, classes, targets and triggers runs as it will after training. It costs one
    forward pass of the test points, where bounds of a wide model may take minutes.
    """

    def bound(self, forms: OutputForms) -> Interval:
        """The values at the nominal model, (1, n, forms)."""
        return Interval.point(self.at_nominal(forms).unsqueeze(0))

    def bound_in_box(self, forms: OutputForms) -> Interval:
        """As :meth:`bound`."""
        return self.bound(forms)

    def refine(self, forms: OutputForms, known: Interval, points: Tensor) -> Interval:
        """What is known."""
        return known

    @property
    def everywhere(self) -> Sequence[Reached]:
        """No set: nothing is known of who is poisoned."""
        return ()

    def bound_sums(self, forms: OutputForms, weights: Tensor, known: Interval) -> Tensor:
        """No bound, (1, rows)."""
        return weights.new_full((1, len(weights)), -torch.inf)

    def bound_parameters(self, coefficients: Mapping[str, Tensor]) -> Interval:
        """No bound, (1, rows)."""
        rows = next(iter(coefficients.values()))
        low = rows.new_full((1, len(rows)), -torch.inf)
        return Interval(low, -low)
