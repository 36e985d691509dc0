"""Trees of certificates: who is poisoned and how, split where the checker cannot follow an answer."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.checker.affine import Pass
from milp_agt.checker.boxes import Unbounded
from milp_agt.checker.forms import Form, Symbols
from milp_agt.checker.proof import LEAF, PHASE, WHERE, WHO, answer, leaves, reached
from milp_agt.checker.statement import Question, Statement
from milp_agt.checker.steps import moving, train

Array = npt.NDArray[Any]
Row = tuple[float, float, float]


@dataclass
class _Node:
    """A part of the threat, as the tree that leads to it alone, and its children once it is split."""

    given: Statement
    row: Row = (LEAF, 0.0, 0.0)
    children: tuple[_Node, ...] = ()

    def rows(self) -> list[Row]:
        return [self.row, *(row for child in self.children for row in child.rows())]


def grown(given: Statement, most: int) -> Array | None:
    """A tree with ``most`` leaves or fewer whose leaves prove more points of the questions; None for none.

    The leaf that lacks most is split first: while several samples may be the poisoned one, by who it is;
    then in the middle of what moves furthest; where that proves no more, by the phase of a unit if this does.
    """
    shares = [asked for asked in given.questions if asked.kind != "loss"]
    root = _Node(given)
    first = _missing(given, shares)
    heap, number, lacking = [(-first, 0, root)], 1, first
    while given.poisoned.open.any() and number < most and -heap[0][0] > 0:
        before, _, node = heapq.heappop(heap)
        least = np.inf
        for row in _cuts(node.given):
            pairs = _split(node.given, row, shares)
            after = sum(lack for _, lack in pairs)
            if not node.children or after < least:
                least, node.row, parts = after, row, pairs
                node.children = tuple(child for child, _ in parts)
            if least < -2.0 * before:
                break
        for child, lack in parts:
            heapq.heappush(heap, (-lack, number, child))
            number += 1
        lacking = max(-heap[0][0], 0)
    return np.array(root.rows()) if lacking < first else None


def _missing(given: Statement, asked: Sequence[Question]) -> float:
    """Points that were certified and that the checker does not prove by itself; infinite for no bound."""
    try:
        cases = reached(given)
        return sum(max(0.0, each.least - answer(each, cases)[0]) for each in asked)
    except Unbounded:
        return np.inf


def _split(given: Statement, row: Row, asked: Sequence[Question]) -> list[tuple[_Node, float]]:
    """The children of a node that is cut, and what each of them lacks."""
    parts = leaves(replace(given, tree=np.array([row, (LEAF, 0.0, 0.0), (LEAF, 0.0, 0.0)])))
    own = [replace(part, tree=None) for part in parts]
    return [(_Node(part), _missing(part, asked)) for part in own]


def _cuts(given: Statement) -> Iterator[Row]:
    """How a node may be split: (kind, what, value)."""
    own = np.flatnonzero(given.poisoned.open)
    if len(own) > 1:
        yield WHO, float(own[len(own) // 2]), 0.0
        return
    ends = given.poisoned.samples
    low, high = (
        np.concatenate([getattr(ends.x, end)[0, own[0]], getattr(ends.y, end)[0, own[0]]])
        for end in ("lo", "hi")
    )
    widest = int((high - low).argmax())
    yield WHERE, float(widest), float(0.5 * low[widest] + 0.5 * high[widest])
    phase = _phase(given, int(own[0]), np.flatnonzero(high > low))
    if phase is not None:
        yield phase


class _Flips(Exception):
    """The first step in which phases may flip, and which one of them reaches furthest beyond its kink."""


def _phase(given: Statement, sample: int, columns: Array) -> Row | None:
    """A phase to force, of the first step in which one may flip: later ones follow from earlier ones."""
    problem = given.problem
    x, y = given.samples.x.lo[0], given.samples.y.lo[0]

    def look(step: int, state: Mapping[str, Form], symbols: Symbols) -> dict[str, Array]:
        if step == len(problem.batches):
            return {}
        batch = problem.batches[step]
        own = np.where(batch == sample, 1, -1)  # slot 0 is nobody's
        forced = {number: sign for at, number, sign in given.phases if at == step}
        one = Pass(problem, symbols, own, {}, step, forced)
        both = moving(np.concatenate([x, y], 1)[batch], symbols, own, columns)
        one.forward(state, both[:, : x.shape[1]])
        before = len(symbols.flips)
        found, beyond = one.symbols.names[before:, 1], one.symbols.most[before:]
        free = ~np.isin(found, list(forced))
        if free.any():
            raise _Flips(step, int(found[free][beyond[free].argmax()]))
        return {}

    try:
        with np.errstate(all="ignore"):
            train(given, look)
    except _Flips as first:
        step, number = first.args
        return PHASE, float(step), float(number)
    except Unbounded:
        return None
    return None
