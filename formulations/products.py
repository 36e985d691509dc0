"""Scalar products in a program: folded, as planes, or as columns with McCormick rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Index, add, stacked
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.rounding import TINY, gamma

# Products whose planes are off by less than this share of their size get no column.
FLAT = 2.0**-44


@dataclass(frozen=True)
class Products:
    """The operands of many scalar products of one node, while they are encoded.

    Attributes:
        inputs, ranges: the operands and their boxes, (states, [samples], *shape).
        index: for each scalar product the flat index of its element in either operand.
        batched: the products are ordered by sample first.
    """

    encoder: Encoder
    inputs: tuple[Expression, Expression]
    ranges: tuple[Interval, Interval]
    index: tuple[Index, Index]
    batched: bool

    def encode(self) -> Expression:
        """One element for each scalar product, (products,)."""
        boxes = (_flat(self.ranges[0], self.index[0]), _flat(self.ranges[1], self.index[1]))
        fixed = [_is_point(box) for box in boxes]
        linear = fixed[0] | fixed[1]
        plane = _is_point(boxes[0].clean) | _is_point(boxes[1].clean)
        plane |= not self.encoder.envelopes
        plane &= not self.encoder.exact_products
        plane = (plane | _is_flat(*boxes)) & ~linear
        parts = [np.flatnonzero(m) for m in (linear, plane, ~linear & ~plane)]
        made = [
            make(part, *(_picked(box, part) for box in boxes))
            for make, part in zip((self._linear, self._planes, self._columns), parts, strict=True)
            if part.size
        ]
        back = np.argsort(np.concatenate(parts))
        return stacked(made, (-1,)).take(back)

    def _operands(self, part: Index) -> tuple[Expression, Expression]:
        first, second = (
            _flattened(expression).take(index[part])
            for expression, index in zip(self.inputs, self.index, strict=True)
        )
        return first, second

    def _linear(self, part: Index, box_a: Interval, box_b: Interval) -> Expression:
        """An operand is one and the same number, whoever is poisoned."""
        a, b = self._operands(part)
        fixed_a, fixed_b = _is_point(box_a), _is_point(box_b)
        by_a = np.where(fixed_a, box_a.lower[CLEAN].cpu().numpy(), 0.0)
        by_b = np.where(fixed_b & ~fixed_a, box_b.lower[CLEAN].cpu().numpy(), 0.0)
        return add([b.scale(by_a), a.scale(by_b)])

    def _planes(self, part: Index, box_a: Interval, box_b: Interval) -> Expression:
        """The planes through the centres of the clean ranges, without a column."""
        a, b = self._operands(part)
        q, p = box_a.clean.centre[0], box_b.clean.centre[0]
        slack = 4 * (box_a.magnitude * box_b.magnitude).amax(0) * gamma(32) + TINY
        away = _away(box_a, box_b, q, p)
        form = add([a.scale(p.cpu().numpy()), b.scale(q.cpu().numpy())])
        offsets = Interval(away.lower - p * q - slack, away.upper - p * q + slack)
        with self._selected(part):
            return self.encoder.with_slack(form, offsets)

    def _selected(self, part: Index) -> AbstractContextManager[None]:
        return self.encoder.selected(part if self.batched else None, self.index[0].size)

    def _columns(self, part: Index, box_a: Interval, box_b: Interval) -> Expression:
        """A column for each product, with the McCormick rows of both states and of the centres."""
        encoder = self.encoder
        a, b = self._operands(part)
        size = (box_a.magnitude * box_b.magnitude).amax(0)
        slack = 4 * size * gamma(16) + TINY
        exact: tuple[Index, Index] | None = None
        if encoder.exact_products:
            exact = self._pure(part)
        column = encoder.columns_of(_product_box(box_a, box_b).widen(slack))
        if exact is not None:
            encoder.product(column.matrix.indices.astype(np.int64), *exact)
        with self._selected(part):
            for (q, p), is_lower, lazy in _rows(box_a, box_b):
                away = _away(box_a, box_b, q, p)
                form = add([column, a.scale(-p.cpu().numpy()), b.scale(-q.cpu().numpy())])
                if is_lower:
                    encoder.at_least(form, away.lower - p * q - slack, lazy)
                else:
                    encoder.at_most(form, away.upper - p * q + slack, lazy)
        return column

    def _pure(self, part: Index) -> tuple[Index, Index]:
        """Columns of both operands; an element that stands in many products gets one."""
        found = []
        for expression, box, index in zip(self.inputs, self.ranges, self.index, strict=True):
            used, position = np.unique(index[part], return_inverse=True)
            some = _flattened(expression).take(used)
            pure = self.encoder.pure(some, _flat(box, used))
            found.append(pure[position.reshape(-1)])
        return found[0], found[1]


def _rows(box_a: Interval, box_b: Interval) -> Iterator[tuple[tuple[Tensor, Tensor], bool, bool]]:
    """Slopes (q, p) of the rows, whether each is a lower one, and whether it may wait.

    Where the states have one box the two corners of a side are the envelope (McCormick 1976); the
    centres follow from them. With two boxes the row through the centres is what the walk uses.
    """
    clean, worst = (box_a.clean, box_b.clean), (box_a.hull(), box_b.hull())
    split = box_a.lower.shape[0] > 1 or box_b.lower.shape[0] > 1
    if split:
        centre = (clean[0].centre[0], clean[1].centre[0])
        yield centre, True, False
        yield centre, False, False
    ends = [(clean[0].lower[0], clean[0].upper[0], clean[1].lower[0], clean[1].upper[0])]
    if split:
        ends.append((worst[0].lower, worst[0].upper, worst[1].lower, worst[1].upper))
    for low_a, high_a, low_b, high_b in ends:
        yield (low_a, low_b), True, split
        yield (high_a, high_b), True, split
        yield (low_a, high_b), False, split
        yield (high_a, low_b), False, split


def _away(a: Interval, b: Interval, q: Tensor, p: Tensor) -> Interval:
    """Range of ``a b - p a - q b + p q = (a - q)(b - p)``."""
    return _product_box(Interval(a.lower - q, a.upper - q), Interval(b.lower - p, b.upper - p))


def _flattened(expression: Expression) -> Expression:
    return expression.reshape((expression.size,))


def _is_point(box: Interval) -> npt.NDArray[np.bool_]:
    """Mask of the elements with one and the same value in all states; ``box`` is (states, count)."""
    same = (box.lower == box.upper).all(0) & (box.lower == box.lower[:1]).all(0)
    return np.asarray(same.cpu().numpy(), dtype=np.bool_)


def _is_flat(a: Interval, b: Interval) -> npt.NDArray[np.bool_]:
    """Mask of the products that planes give to almost the last digit: operands known to rounding."""
    off_a, off_b = (0.5 * (i.hull().upper - i.hull().lower) for i in (a, b))
    size = (a.magnitude * b.magnitude).amax(0)
    return np.asarray((off_a * off_b <= FLAT * size).cpu().numpy(), dtype=np.bool_)


def _picked(box: Interval, part: Index) -> Interval:
    chosen = torch.from_numpy(part).to(box.lower.device)
    return Interval(box.lower[:, chosen], box.upper[:, chosen])


def _flat(box: Interval, index: Index) -> Interval:
    """Ranges of the operand of each scalar product, shape (states, products)."""
    picked = torch.from_numpy(index).to(box.lower.device)
    return Interval(box.lower.flatten(1)[:, picked], box.upper.flatten(1)[:, picked])


def _product_box(a: Interval, b: Interval) -> Interval:
    corners = torch.stack(
        torch.broadcast_tensors(
            a.lower * b.lower, a.lower * b.upper, a.upper * b.lower, a.upper * b.upper
        )
    )
    return Interval(corners.amin(0), corners.amax(0))
