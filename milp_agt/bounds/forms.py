"""Lower bounds that are linear in a state, row by row, with the rounding they carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma


@dataclass
class Forms:
    """Lower bounds ``coefficients . state + constant - error`` of some quantities, one per row.

    Attributes:
        coefficients: on the tensors of a state, (rows, *shape) each.
        constant: for each case, (rows, cases or 1).
        magnitude: sum of the absolute values of all terms so far, (rows,); rounding errors are at
            most ``gamma(operations) * magnitude``.
        operations: upper bound on the length of any chain of roundings so far.
    """

    coefficients: dict[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    operations: float = 0.0

    @staticmethod
    def start(coefficients: dict[str, Tensor], constant: Tensor | None = None) -> Forms:
        first = next(iter(coefficients.values()))
        zero = first.new_zeros(first.shape[0])
        start = zero if constant is None else constant
        return Forms(coefficients, start.unsqueeze(1), start.abs())

    @property
    def rows(self) -> int:
        return len(self.constant)

    def plus(self, other: Forms) -> Forms:
        """The sums, row by row, with the same tensors of the state."""
        return Forms(
            {name: on + other.coefficients[name] for name, on in self.coefficients.items()},
            self.constant + other.constant,
            self.magnitude + other.magnitude,
            max(self.operations, other.operations),
        )

    def paying(self, worst_case: Tensor) -> Forms:
        """The forms minus their worst case over the poisoned samples, (rows, cases)."""
        magnitude = self.magnitude + worst_case.amax(1)
        return Forms(
            self.coefficients, self.constant - worst_case, magnitude, self.operations + 1.0
        )

    def part(self, rows: Tensor) -> Forms:
        """The forms of these rows only."""
        return Forms(
            {name: on[rows] for name, on in self.coefficients.items()},
            self.constant[rows],
            self.magnitude[rows],
            self.operations,
        )

    def where(self, wins: Tensor, other: Forms) -> Forms:
        """These rows where the mask (rows,) says so, else the others."""
        on = self.coefficients.items()
        return Forms(
            {
                n: torch.where(wins.reshape(-1, *[1] * (c.dim() - 1)), c, other.coefficients[n])
                for n, c in on
            },
            torch.where(wins[:, None], self.constant, other.constant),
            torch.where(wins, self.magnitude, other.magnitude),
            max(self.operations, other.operations),
        )

    def concretise(self, state: Mapping[str, Interval], worst_case: Tensor) -> Tensor:
        """Lower bounds over the boxes of a state, minus the worst case, (rows, cases or states).

        ``worst_case`` is (rows, cases), or (rows, states) for forms of a single sample with one case.
        Rounding is subtracted; a NaN bound becomes -inf.
        """
        bound, magnitude, terms = self.constant, self.magnitude, 0
        for name, coefficient in self.coefficients.items():
            box = state[name]
            flat = coefficient.flatten(1)
            positive = flat.clamp(min=0.0)
            low, high = box.lower.flatten(1), box.upper.flatten(1)
            bound = bound + positive @ low.T + (flat - positive) @ high.T
            magnitude = magnitude + flat.abs() @ box.magnitude.amax(0).flatten()
            terms += flat.shape[1]
        size = magnitude.unsqueeze(1) + worst_case
        error = gamma(self.operations + terms + 64) * 4.0 * size + TINY
        bound = bound - worst_case - error
        return torch.where(torch.isnan(bound), -torch.inf, bound)
