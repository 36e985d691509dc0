"""Branch and bound in which every bound is proved, independently of the tolerances of any solver."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from milp_agt.core.program import Array, Index, Program
from milp_agt.core.results import Limits, Termination
from milp_agt.solvers.curves import Curves, Envelopes
from milp_agt.solvers.safe import clip_multipliers, safe_bound
from milp_agt.solvers.session import SolverAnswer

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


# A score for each place that may be violated, and the split at one of them.
Scored = tuple[Array, Callable[[int], Split]]


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
        largest, chosen = 0.0, None
        for score, cut in (
            self._at_integers(point, paid),
            self._at_terms(node, point, paid, share, gap),
            self._at_curves(node, point, paid, share, gap),
        ):
            if score.max(initial=0.0) > largest:
                best = int(score.argmax())
                largest, chosen = float(score[best]), cut(best)
        return chosen

    def _at_integers(self, point: Array, paid: Array) -> Scored:
        values = point[self._integer]
        fraction = np.abs(values - np.round(values))

        def cut(best: int) -> Split:
            below = math.floor(values[best])
            return Split(int(self._integer[best]), below, below + 1.0)

        return np.where(fraction > WHOLE, fraction * paid[self._integer], 0.0), cut

    def _at_terms(
        self, node: Program, point: Array, paid: Array, share: Array, gap: float
    ) -> Scored:
        result, *operands = node.products.T
        violated = np.abs(point[result] - point[operands[0]] * point[operands[1]])
        wide = np.stack([share[own] for own in operands])

        def cut(best: int) -> Split:
            return _cut(node, int(operands[int(wide[:, best].argmax())][best]), point)

        return _worth(violated * paid[result], wide.max(0), gap), cut

    def _at_curves(
        self, node: Program, point: Array, paid: Array, share: Array, gap: float
    ) -> Scored:
        argument, result = self._curves.argument, self._curves.result
        violated = np.abs(point[result] - self._curves.value(point[argument]))
        score = _worth(violated * paid[result], share[argument], gap)
        return score, lambda best: _cut(node, int(argument[best]), point)


def _worth(score: Array, share: Array, gap: float) -> Array:
    """Scores, 0 where a column is narrow or where all such terms together cost at most the gap."""
    return np.where((share <= NARROW) | (score <= gap / max(1, score.size)), 0.0, score)


def _cut(node: Program, column: int, point: Array) -> Split:
    low, high = float(node.lower[column]), float(node.upper[column])
    room = MIDDLE * (high - low)
    at = min(max(float(point[column]), low + room), high - room)
    return Split(column, at, at)


Relax = Callable[[Program, Array, float], SolverAnswer]

ABSOLUTE_GAP = 1e-9  # in units of the scaled objective


@dataclass(frozen=True, order=True)
class TreeNode:
    """An open box.

    Attributes:
        bound: proved for every point of the program in the box.
        number: minus the number of its creation, so that the newest comes first among equals.
        split: None if there is nothing left to branch on.
        ended: termination of its relaxation.
        changed, lower, upper: columns whose bounds differ from the root's, and these bounds.
    """

    bound: float
    number: int
    split: Split | None
    ended: Termination
    changed: Index
    lower: Array
    upper: Array


class Tree:
    """Best-first search over boxes of the columns, split at fractions, violated bilinear terms and
    violated functions.

    The bound of a box is the larger of the :func:`safe_bound` of its relaxation (the rows of the program,
    and those of :class:`Envelopes` over the box) and the bound of its parent box. A box is dropped only if
    its ends cross, or multipliers prove it empty: their safe bound for the objective 0 is positive (Farkas).
    So the least bound of all remaining boxes is valid whatever the solver of the relaxations reports: its
    answers only decide where to branch and when to stop.

    Args:
        program: may have integer columns, bilinear terms and functions.
        relax: solves the relaxation of a node (its rows and bounds, with integer columns relaxed) for
            costs (columns,), within a number of seconds. The multipliers of an INFEASIBLE answer are a
            ray that proves it.
        costs: (columns,), scaled so that the largest is about 1.
        limits: seconds, relative gap and nodes.
    """

    def __init__(self, program: Program, relax: Relax, costs: Array, limits: Limits) -> None:
        self._program, self._relax, self._costs, self._limits = program, relax, costs, limits
        self._envelopes = Envelopes(program)
        self._branching = Branching(program)
        self._seconds = math.inf if limits.time is None else limits.time
        self._began = perf_counter()
        self._open: list[TreeNode] = []
        self._point: Array | None = None
        self._value = math.inf  # of the best point
        self._made = 0

    def search(self) -> SolverAnswer:
        """The proved least bound over all boxes; INFEASIBLE if all of them are proved to be empty."""
        ended = Termination.OPTIMAL
        self._visit(self._program.lower, self._program.upper, -math.inf)
        while self._open:
            top = self._open[0]
            if top.bound >= self._value - self._gap():
                break
            if top.split is None:
                ended = top.ended
                break
            nodes = self._limits.nodes
            if self._left() <= 0.0 or (nodes is not None and self._made >= nodes):
                ended = Termination.BOUND_ONLY
                break
            heapq.heappop(self._open)
            for lower, upper in self._halves(top, top.split):
                self._visit(lower, upper, top.bound)
        word = f"{self._made} nodes, {len(self._open)} open"
        if not self._open:
            return SolverAnswer(Termination.INFEASIBLE, word, proved=True)
        return SolverAnswer(ended, word, bound=self._open[0].bound, point=self._point, proved=True)

    def _left(self) -> float:
        return self._seconds - (perf_counter() - self._began)

    def _gap(self) -> float:
        best = self._value
        return ABSOLUTE_GAP + (self._limits.gap * abs(best) if math.isfinite(best) else 0.0)

    def _halves(self, node: TreeNode, split: Split) -> list[tuple[Array, Array]]:
        lower, upper = self._program.lower.copy(), self._program.upper.copy()
        lower[node.changed], upper[node.changed] = node.lower, node.upper
        below, above = upper.copy(), lower.copy()
        below[split.column], above[split.column] = split.left, split.right
        return [(lower, below), (above, upper)]

    def _visit(self, lower: Array, upper: Array, known: float) -> None:
        """Bound a box and keep it unless it is proved to be empty."""
        self._made += 1
        if (lower > upper).any():
            return
        node = self._envelopes.over(lower, upper)
        answer = self._relax(node, self._costs, self._left())
        multipliers = clip_multipliers(node, answer.multipliers)
        if answer.termination is Termination.INFEASIBLE:
            if safe_bound(node, np.zeros_like(self._costs), multipliers) > 0.0:
                return
            multipliers = np.zeros_like(multipliers)
        bound = max(known, safe_bound(node, self._costs, multipliers))
        said = answer.point
        if said is None or not np.isfinite(said).all():
            said = 0.5 * lower + 0.5 * upper
        point = np.clip(said, lower, upper)
        split = self._branching.split(node, point, multipliers, self._gap())
        if split is None and answer.termination is Termination.OPTIMAL:
            value = float(self._costs @ point)
            if value < self._value:
                self._value, self._point = value, point
        changed = np.flatnonzero((lower > self._program.lower) | (upper < self._program.upper))
        ended = (
            Termination.OPTIMAL
            if answer.termination is Termination.OPTIMAL
            else Termination.BOUND_ONLY
        )
        ends = lower[changed], upper[changed]
        heapq.heappush(self._open, TreeNode(bound, -self._made, split, ended, changed, *ends))
