"""Multipliers of the rows of flips: one number for each direction and row, all of them valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.core.stacked import Stacked


@dataclass(frozen=True)
class Multipliers(Stacked):
    """Nonnegative multipliers for r directions.

    Attributes:
        rows: of C1 and C2, (2, r, q).
        limits: of C3, (r, l).
        paid: what samples pay for C3 if they are poisoned, ``limits @ threshold``, (r, m).
    """

    AXES: ClassVar = {"rows": 1}

    rows: Tensor
    limits: Tensor
    paid: Tensor

    @staticmethod
    def of(rows: Tensor, limits: Tensor, flips: Flips) -> Multipliers:
        return Multipliers(rows, limits, limits @ flips.threshold)

    @staticmethod
    def none(directions: int, flips: Flips) -> Multipliers:
        zero = flips.threshold.new_zeros
        m = flips.threshold.shape[1]
        return Multipliers(
            zero(2, directions, flips.rows), zero(directions, flips.limits), zero(directions, m)
        )

    def mixed(self, weights: Tensor) -> Multipliers:
        """Sums with nonnegative weights (k, r), for k directions."""
        paid = self.paid.new_zeros(len(weights), self.paid.shape[1])
        if self.limits.shape[1]:
            paid = weights @ self.paid
        return Multipliers(weights @ self.rows, weights @ self.limits, paid)

    def with_rows(self, keep: Tensor) -> Multipliers:
        return Multipliers(self.rows[..., keep], self.limits, self.paid)

    def with_limits(self, keep: Tensor, flips: Flips) -> Multipliers:
        """Only some of C3; ``flips`` have these alone."""
        return Multipliers.of(self.rows, self.limits[:, keep], flips)

    def beyond(self, start: Multipliers, share: float) -> Multipliers:
        """From ``start`` ``share`` times as far as here, none below 0; ``paid`` is not kept."""
        rows = start.rows + share * (self.rows - start.rows)
        limits = start.limits + share * (self.limits - start.limits)
        return Multipliers(rows.clamp(min=0.0), limits.clamp(min=0.0), self.paid)
