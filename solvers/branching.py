"""Branching: where a box is split, at a fraction, a violated bilinear term or a violated function."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from milp_agt.core.program import Array, Program
from milp_agt.solvers.curves import Curves

WHOLE = 1e-6  # values this close to an integer count as integers
NARROW = 1e-9  # columns with at most this share of their width at the root are not split
MIDDLE = 0.2  # a split leaves at least this share of a column on either side
_UNPAID = 1e-3  # weight of a violation in a column without multipliers
_LARGEST = 1e50  # larger multipliers are capped


@dataclass(frozen=True)
class Split:
    """A column, the upper end of its left half and the lower end of its right half."""

    column: int
    left: float
    right: float


class Branching:
    """Finds the split with the largest violation, weighted by the multipliers in its column.

    Violations of a kind that together cost less than the gap are ignored.
    """

    def __init__(self, program: Program) -> None:
        self._integer = np.flatnonzero(program.integer)
        self._curves = Curves(program.curves)
        self._width = program.upper - program.lower

    def split(self, node: Program, point: Array, multipliers: Array, gap: float) -> Split | None:
        """The split of a box; None if the point has no violation that is worth one.

        Args:
            node: the program with the bounds of the box.
            point: of the relaxation, (columns,), within the box.
            multipliers: of its rows, (rows,), finite.
            gap: the error allowed in the bound of the box.
        """
        # After numerical trouble a solver may return any numbers.
        paid = _UNPAID + abs(node.matrix.T) @ np.minimum(np.abs(multipliers), _LARGEST)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(self._width > 0.0, (node.upper - node.lower) / self._width, 0.0)
        found = [
            self._at_integer(point, paid),
            self._at_term(node, point, paid, share, gap),
            self._at_curve(node, point, paid, share, gap),
        ]
        known = [one for one in found if one is not None]
        return max(known, key=lambda one: one[0])[1] if known else None

    def _at_integer(self, point: Array, paid: Array) -> tuple[float, Split] | None:
        if not self._integer.size:
            return None
        values = point[self._integer]
        fraction = np.abs(values - np.round(values))
        score = np.where(fraction > WHOLE, fraction * paid[self._integer], 0.0)
        best = int(score.argmax())
        if score[best] <= 0.0:
            return None
        below = math.floor(values[best])
        return float(score[best]), Split(int(self._integer[best]), below, below + 1.0)

    def _at_term(
        self, node: Program, point: Array, paid: Array, share: Array, gap: float
    ) -> tuple[float, Split] | None:
        if not len(node.products):
            return None
        result, *operands = node.products.T
        violated = np.abs(point[result] - point[operands[0]] * point[operands[1]])
        wide = np.stack([share[own] for own in operands])
        score = _worth(violated * paid[result], wide.max(0), gap)
        best = int(score.argmax())
        if score[best] <= 0.0:
            return None
        column = int(operands[int(wide[:, best].argmax())][best])
        return float(score[best]), _cut(node, column, point)

    def _at_curve(
        self, node: Program, point: Array, paid: Array, share: Array, gap: float
    ) -> tuple[float, Split] | None:
        if not len(self._curves):
            return None
        argument, result = self._curves.argument, self._curves.result
        violated = np.abs(point[result] - self._curves.value(point[argument]))
        score = _worth(violated * paid[result], share[argument], gap)
        best = int(score.argmax())
        if score[best] <= 0.0:
            return None
        return float(score[best]), _cut(node, int(argument[best]), point)


def _worth(score: Array, share: Array, gap: float) -> Array:
    """Scores, 0 where a column is narrow or where all such terms together cost at most the gap."""
    return np.where((share <= NARROW) | (score <= gap / score.size), 0.0, score)


def _cut(node: Program, column: int, point: Array) -> Split:
    low, high = float(node.lower[column]), float(node.upper[column])
    room = MIDDLE * (high - low)
    at = min(max(float(point[column]), low + room), high - room)
    return Split(column, at, at)
