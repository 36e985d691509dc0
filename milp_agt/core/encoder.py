"""Builds a program from expressions: columns, rows, on/off rows for poisoned samples, phases."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from torch import Tensor

from milp_agt.core.expression import Array, Expression, add, widened
from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.program import Program


class Encoder:
    """Collects the columns and rows of a :class:`Program`.

    Attributes:
        exact_phases: True keeps the phases of relu and step integral (``milp``), False relaxes them
            to [0, 1] (``lp``).
        selection: columns ``s_i`` of the batch that is being encoded, shape (samples,); None where no
            sample of it can be poisoned.
    """

    def __init__(self, exact_phases: bool) -> None:
        self.exact_phases = exact_phases
        self.selection: Expression | None = None
        self.origin = ""
        self._lower: list[Array] = []
        self._upper: list[Array] = []
        self._integer: list[npt.NDArray[np.bool_]] = []
        self._rows: list[sp.csr_matrix] = []
        self._row_lower: list[Array] = []
        self._row_upper: list[Array] = []
        self._row_origin: list[tuple[str, int]] = []
        self._columns = 0
        self._row_count = 0
        self._phases: dict[int, tuple[Expression, Expression]] = {}

    def columns(
        self, lower: Array, upper: Array, integer: bool | npt.NDArray[np.bool_] = False
    ) -> Expression:
        """Fresh columns with bounds; ``lower`` gives the shape, ``integer`` is for all or for each."""
        size = lower.size
        self._lower.append(np.asarray(lower, dtype=np.float64).reshape(-1))
        self._upper.append(np.asarray(upper, dtype=np.float64).reshape(-1))
        self._integer.append(np.full(size, integer))
        first, self._columns = self._columns, self._columns + size
        matrix = sp.csr_matrix(
            (np.ones(size), np.arange(first, first + size), np.arange(size + 1)),
            shape=(size, self._columns),
        )
        return Expression(matrix, np.zeros(size), np.zeros(size), lower.shape)

    def rows(self, expression: Expression, lower: Array | float, upper: Array | float) -> None:
        """Rows ``lower <= expression <= upper``; rows with two infinite sides are left out."""
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
        keep = np.flatnonzero(np.isfinite(low) | np.isfinite(high))
        if keep.size == 0:
            return
        if not self._row_origin or self._row_origin[-1][0] != self.origin:
            self._row_origin.append((self.origin, self._row_count))
        self._rows.append(sp.csr_matrix(expression.matrix)[keep])
        self._row_lower.append(low[keep])
        self._row_upper.append(high[keep])
        self._row_count += keep.size

    def at_least(self, expression: Expression, offsets: Tensor) -> None:
        """On/off rows ``expression >= clean - (clean - poisoned) s_i``.

        ``offsets`` has shape (states, *expression.shape). Valid for ``s_i`` in {0, 1} if the clean
        offset holds for ``s_i = 0`` and the poisoned one for ``s_i = 1``; with relaxed ``s_i`` the
        rows are those of the convex hull of both.
        """
        values = offsets.detach().cpu().numpy()
        clean = values[CLEAN].reshape(-1)
        charge = np.zeros_like(clean)
        if len(values) > 1:
            # Rounded up, so that clean - charge is at most the poisoned offset.
            difference = clean - values[POISONED].reshape(-1)
            charge = np.where(difference == 0.0, 0.0, np.nextafter(difference, np.inf))
        if self.selection is None or not charge.any():
            worst = values.min(0).reshape(expression.shape)
            self.rows(expression, worst, np.inf)
            return
        per_sample = expression.size // self.selection.size
        sample = np.repeat(np.arange(self.selection.size), per_sample)
        paid = self.selection.take(sample).scale(charge)
        self.rows(add([expression.reshape((expression.size,)), paid]), clean, np.inf)

    def at_most(self, expression: Expression, offsets: Tensor) -> None:
        """On/off rows ``expression <= clean + (poisoned - clean) s_i``."""
        self.at_least(expression.scale(-1.0), -offsets)

    def bounded(self, expression: Expression, box: Interval) -> Expression:
        """Columns equal to ``expression``, with the bounds of ``box`` in on/off form.

        ``box`` has a leading axis of states. Elements that are already single columns or constants
        are returned as they are.
        """
        if expression.is_single_columns:
            return expression
        hull = box.hull()
        fresh = self.columns(*as_arrays(hull, expression.shape))
        self.rows(add([fresh, expression.scale(-1.0)]), 0.0, 0.0)
        self.conditional(fresh, box)
        return fresh

    def conditional(self, expression: Expression, box: Interval) -> None:
        """Rows ``l_clean - (l_clean - l_poisoned) s_i <= expression <= ...`` where the states differ."""
        if self.selection is not None and box.lower.shape[0] > 1:
            self.at_least(expression, box.lower)
            self.at_most(expression, box.upper)

    def phase(self, argument: Expression, ambiguous: npt.NDArray[np.bool_]) -> Expression:
        """The phase ``a = [z > 0]`` of the ambiguous elements of ``z``, shared by all who ask.

        Returns columns in [0, 1], shape (count of ambiguous elements,). On the kink both phases
        are admitted (closure).
        """
        known = self._phases.get(id(argument))
        if known is None:
            count = int(ambiguous.sum())
            columns = self.columns(np.zeros(count), np.ones(count), integer=self.exact_phases)
            # The argument is kept so that its id stays taken.
            known = self._phases[id(argument)] = (argument, columns)
        return known[1]

    def finish(self) -> Program:
        rows = [widened(block, self._columns) for block in self._rows]
        matrix = sp.vstack(rows, format="csr") if rows else sp.csr_matrix((0, self._columns))
        return Program(
            lower=np.concatenate([np.zeros(0), *self._lower]),
            upper=np.concatenate([np.zeros(0), *self._upper]),
            integer=np.concatenate([np.zeros(0, dtype=bool), *self._integer]),
            matrix=sp.csr_matrix(matrix),
            row_lower=np.concatenate([np.zeros(0), *self._row_lower]),
            row_upper=np.concatenate([np.zeros(0), *self._row_upper]),
            row_origin=tuple(self._row_origin),
        )


def as_arrays(box: Interval, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Both ends of a box without states as numpy arrays of ``shape``."""
    lower = box.lower.detach().cpu().numpy()
    upper = box.upper.detach().cpu().numpy()
    return np.broadcast_to(lower, shape).copy(), np.broadcast_to(upper, shape).copy()
