"""Builds a program from expressions: columns, rows, on/off rows for poisoned samples, phases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from torch import Tensor

from milp_agt.core.expression import Array, Expression, Index, Slack, add, widened
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.program import SHARED, Curve, Function, Program

# Arguments for which solvers get functions exactly. They write sigmoid and tanh by exp(-z) and exp(2 z):
# SCIP cuts off points beyond its infinity of 1e20, and where a function is almost flat, a tolerance of
# 1e-9 on its value is a large one on its argument. At these ends slopes are at least 3e-4.
EXACT_WITHIN = {
    Function.EXP: (-8.0, 18.0),
    Function.SIGMOID: (-8.0, 8.0),
    Function.TANH: (-4.0, 4.0),
}
SHARED_ROWS = "shared"  # the origin of rows that belong to all of their columns


@dataclass(frozen=True, eq=False)
class SelectionColumns:
    """The state of each of some elements as columns in [0, 1], of which at most one is 1.

    Attributes:
        states: the columns ``s_i`` of each state but CLEAN, (n,) each.
    """

    states: tuple[Expression, ...]

    @staticmethod
    def of(*states: Expression) -> SelectionColumns:
        return SelectionColumns(states)

    @property
    def size(self) -> int:
        return self.states[0].size

    def take(self, index: Index) -> SelectionColumns:
        """Elements by index."""
        return SelectionColumns(tuple(state.take(index) for state in self.states))

    def paid(self, charges: Array) -> list[Expression]:
        """``charge * s_i`` for each state, for charges (states - 1, elements) ordered by sample."""
        sample = np.repeat(np.arange(self.size), charges.shape[1] // self.size)
        return [
            state.take(sample).scale(charge)
            for state, charge in zip(self.states, charges, strict=True)
            if charge.any()
        ]


class Encoder:
    """Collects the columns and rows of a :class:`Program`.

    Attributes:
        exact_phases: True keeps the phases of relu and step binary (``milp``), False relaxes them
            to [0, 1] (``lp``).
        exact_products: True keeps bilinear terms and functions in addition to the rows that relax
            them (``qcqp``, ``miqp``).
        envelopes: True gives scalar products a column with McCormick rows, False the planes of the
            linear bounds, which need neither column nor rows.
        selection: the states of the samples of the batch being encoded; None if no sample of it can
            be poisoned.
    """

    def __init__(
        self, exact_phases: bool, exact_products: bool = False, envelopes: bool = True
    ) -> None:
        self.exact_phases, self.exact_products = exact_phases, exact_products
        self.envelopes = envelopes
        self.selection: SelectionColumns | None = None
        self.origin = ""
        self._lower: list[Array] = []
        self._upper: list[Array] = []
        self._integer: list[npt.NDArray[np.bool_]] = []
        self._rows: list[sp.csr_matrix] = []
        self._row_lower: list[Array] = []
        self._row_upper: list[Array] = []
        self._row_owner: list[Index] = []
        self._column_owner: list[Index] = []
        self._owners: dict[str, int] = {SHARED_ROWS: SHARED}
        self._lazy: list[npt.NDArray[np.bool_]] = []
        self._products: list[Index] = []
        self._curves: list[Curve] = []
        self._columns = 0
        self._phases: dict[int, tuple[Expression, Expression]] = {}

    def fork(self) -> Encoder:
        """A copy that continues independently; existing expressions are valid in both."""
        other = copy(self)
        for name, held in vars(self).items():
            if isinstance(held, (list, dict)):
                setattr(other, name, held.copy())
        return other

    @contextmanager
    def selected(self, index: Index | None, size: int) -> Iterator[None]:
        """With one entry of the selection for each of some of ``size`` elements, ordered by sample.

        Without a selection where there is no index.
        """
        whole, self.selection = self.selection, None
        if whole is not None and index is not None:
            self.selection = whole.take(index // (size // whole.size))
        try:
            yield
        finally:
            self.selection = whole

    def columns(
        self, lower: Array, upper: Array, integer: bool | npt.NDArray[np.bool_] = False
    ) -> Expression:
        """New columns with bounds; ``lower`` gives the shape, ``integer`` is for all or for each."""
        size = lower.size
        first, self._columns = self._columns, self._columns + size
        self._lower.append(np.asarray(lower, dtype=np.float64).reshape(-1))
        self._upper.append(np.asarray(upper, dtype=np.float64).reshape(-1))
        self._integer.append(np.full(size, integer))
        self._column_owner.append(self._owner(size))
        return self.of_columns(np.arange(first, first + size), lower.shape)

    def columns_of(self, box: Interval, shape: tuple[int, ...] | None = None) -> Expression:
        """New columns with the bounds of a box in all states, of its own shape or one it broadcasts to."""
        hull = box.hull()
        return self.columns(*as_arrays(hull, shape or tuple(hull.lower.shape)))

    def of_columns(self, index: Index, shape: tuple[int, ...]) -> Expression:
        """The expression of existing columns, by their indices."""
        matrix = sp.csr_matrix(
            (np.ones(index.size), index.reshape(-1), np.arange(index.size + 1)),
            shape=(index.size, self._columns),
        )
        return Expression(matrix, np.zeros(index.size), np.zeros(index.size), shape)

    def rows(
        self, expression: Expression, lower: Array | float, upper: Array | float, lazy: bool = False
    ) -> None:
        """Rows ``lower <= expression <= upper``; rows with two infinite sides are dropped.

        ``lazy`` rows only tighten other rows: a solver may add them once they are violated.
        """
        if expression.slack is not None:
            self.rows(expression.above, lower, np.inf, lazy)
            self.rows(expression.below, -np.inf, upper, lazy)
            return
        # The shift by the constant is itself rounded; eps = 2 u of both terms covers it.
        constant, eps = expression.constant, np.finfo(np.float64).eps
        low = np.broadcast_to(lower, expression.shape).reshape(-1) - constant
        high = np.broadcast_to(upper, expression.shape).reshape(-1) - constant
        shifted = constant != 0.0

        def slack(side: Array) -> Array:
            rounded = shifted & np.isfinite(side)
            size = 2.0 * np.abs(constant) + np.abs(np.where(rounded, side, 0.0))
            return expression.error + eps * np.where(rounded, size, 0.0)

        low, high = low - slack(low), high + slack(high)
        # A row without columns would only state that a constant lies within its rounding.
        filled = np.diff(expression.matrix.indptr) > 0
        keep = np.flatnonzero((np.isfinite(low) | np.isfinite(high)) & filled)
        if keep.size == 0:
            return
        self._rows.append(sp.csr_matrix(expression.matrix)[keep])
        self._row_lower.append(low[keep])
        self._row_upper.append(high[keep])
        self._row_owner.append(self._owner(keep.size))
        self._lazy.append(np.full(keep.size, lazy))

    def _owner(self, size: int) -> Index:
        """The number of the current origin, for so many rows or columns."""
        return np.full(size, self._owners.setdefault(self.origin, len(self._owners)))

    def product(self, result: Index, first: Index, second: Index) -> None:
        """Bilinear terms ``result = first * second``, elementwise over columns."""
        self._products.append(np.stack([result, first, second], axis=-1).reshape(-1, 3))

    def curve(self, function: Function, result: Index, argument: Index, box: Interval) -> None:
        """Exact functions ``result = function(argument)``, elementwise over columns.

        Elements whose argument in ``box`` leaves :data:`EXACT_WITHIN` are only relaxed by rows.
        """
        least, most = EXACT_WITHIN[function]
        hull = box.hull()
        near = ((hull.lower >= least) & (hull.upper <= most)).reshape(-1).cpu().numpy()
        pairs = zip(result[near].tolist(), argument[near].tolist(), strict=True)
        self._curves += [Curve(function, r, a) for r, a in pairs]

    def pure(self, expression: Expression, box: Interval) -> Index:
        """A column equal to each element; new columns for elements that are not single columns."""
        flat = expression.reshape((expression.size,))
        hull = box.hull()
        low, high = as_arrays(hull, expression.shape)
        index = np.full(flat.size, -1, dtype=np.int64)
        one = np.flatnonzero(np.diff(flat.matrix.indptr) == 1)
        own = flat.matrix.indptr[one]
        index[one] = flat.matrix.indices[own]
        is_column = np.zeros(flat.size, dtype=np.bool_)
        is_column[one] = flat.matrix.data[own] == 1.0
        is_column &= (flat.constant == 0.0) & (flat.error == 0.0)
        rest = np.arange(flat.size) if flat.slack is not None else np.flatnonzero(~is_column)
        if rest.size:
            fresh = self.columns(low.reshape(-1)[rest], high.reshape(-1)[rest])
            self.rows(add([fresh, flat.take(rest).scale(-1.0)]), 0.0, 0.0)
            index[rest] = fresh.matrix.indices
        return index

    def with_slack(self, expression: Expression, offsets: Interval) -> Expression:
        """``expression`` plus an error in ``offsets`` (states, *shape), which depends on the sample's state.

        Equivalent to a column for the error with the rows of :meth:`conditional`, as long as every
        element is read once.
        """
        (low, down), (high, up) = self._charged(offsets.lower), self._charged(-offsets.upper)
        below, above = self._paid(expression, -down), self._paid(expression, up)
        none = Expression.of(np.zeros(expression.shape))
        return add([expression, replace(none, slack=Slack(below, above, low, -high))])

    def _charged(self, offsets: Tensor) -> tuple[Array, Array]:
        """The clean intercept (elements,), and how much lower it may be in each other state.

        These charges are (states - 1, elements), rounded to the safe side.
        """
        values = offsets.detach().cpu().numpy()
        values = values.reshape(len(values), -1)
        if self.selection is None:
            return values.min(0), np.zeros((0, values.shape[1]))
        # Rounded up, so that clean - charge is at most the poisoned intercept.
        difference = values[CLEAN] - values[1:]
        charges = np.where(difference == 0.0, 0.0, np.nextafter(difference, np.inf))
        return values[CLEAN], charges

    def _paid(self, expression: Expression, charges: Array) -> sp.csr_matrix:
        """``charge * s_i`` for each element, as a matrix over the columns."""
        if self.selection is None or not charges.any():
            return sp.csr_matrix((expression.size, 0))
        # A sample that cannot be poisoned has selection 0, so nothing is charged.
        return add(self.selection.paid(charges)).matrix

    def at_least(self, expression: Expression, offsets: Tensor, lazy: bool = False) -> None:
        """On/off rows ``expression >= clean - sum over the other states of (clean - offset) s_i``.

        ``offsets`` has shape (states, *expression.shape). Valid for ``s_i`` in {0, 1} if the clean
        offset holds where all ``s_i = 0`` and each other offset where its ``s_i = 1``; with relaxed
        ``s_i`` the rows describe the convex hull of all states.
        """
        clean, charges = self._charged(offsets)
        flat = expression.reshape((expression.size,))
        if self.selection is not None and charges.any():
            flat = add([flat, *self.selection.paid(charges)])
        self.rows(flat, clean, np.inf, lazy)

    def at_most(self, expression: Expression, offsets: Tensor, lazy: bool = False) -> None:
        """On/off rows ``expression <= clean + sum over the other states of (offset - clean) s_i``."""
        self.at_least(expression.scale(-1.0), -offsets, lazy)

    def bounded(self, expression: Expression, box: Interval) -> Expression:
        """Columns equal to ``expression``, with the bounds of ``box`` in on/off form.

        ``box`` has a leading axis of states. Elements that are already single columns or constants
        are returned as they are.
        """
        if expression.is_single_columns:
            return expression
        fresh = self.columns_of(box, expression.shape)
        self.rows(add([fresh, expression.scale(-1.0)]), 0.0, 0.0)
        self.conditional(fresh, box)
        return fresh

    def conditional(self, expression: Expression, box: Interval) -> None:
        """Rows ``l_clean - (l_clean - l_poisoned) s_i <= expression <= ...`` where the states differ."""
        if self.selection is not None and box.lower.shape[0] > 1:
            self.at_least(expression, box.lower, lazy=True)
            self.at_most(expression, box.upper, lazy=True)

    def phase(self, argument: Expression, ambiguous: npt.NDArray[np.bool_]) -> Expression:
        """The phase ``a = [z > 0]`` of the ambiguous elements of ``z``, shared by all calls with ``z``.

        Returns columns in [0, 1], shape (number of ambiguous elements,). At the kink both phases
        are admitted (closure).
        """
        known = self._phases.get(id(argument))
        if known is None:
            count = int(ambiguous.sum())
            columns = self.columns(np.zeros(count), np.ones(count), integer=self.exact_phases)
            # The argument is kept so that no other object can get its id.
            known = self._phases[id(argument)] = (argument, columns)
        return known[1]

    def finish(self) -> Program:
        rows = [widened(block, self._columns) for block in self._rows]
        matrix = sp.vstack(rows, format="csr") if rows else sp.csr_matrix((0, self._columns))
        matrix.sum_duplicates()
        none = np.zeros(0, dtype=np.int64)
        return Program(
            lower=np.concatenate([np.zeros(0), *self._lower]),
            upper=np.concatenate([np.zeros(0), *self._upper]),
            integer=np.concatenate([np.zeros(0, dtype=bool), *self._integer]),
            matrix=sp.csr_matrix(matrix),
            row_lower=np.concatenate([np.zeros(0), *self._row_lower]),
            row_upper=np.concatenate([np.zeros(0), *self._row_upper]),
            row_owner=np.concatenate([none, *self._row_owner]),
            column_owner=np.concatenate([none, *self._column_owner]),
            products=np.concatenate([np.zeros((0, 3), dtype=np.int64), *self._products]),
            curves=tuple(self._curves),
            lazy=np.concatenate([np.zeros(0, dtype=np.bool_), *self._lazy]),
        )


def as_arrays(box: Interval, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Lower and upper ends of a box without states as numpy arrays of ``shape``."""
    lower = box.lower.detach().cpu().numpy()
    upper = box.upper.detach().cpu().numpy()
    return np.broadcast_to(lower, shape).copy(), np.broadcast_to(upper, shape).copy()
