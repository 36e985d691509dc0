"""Trees of certificates: who is poisoned and how, split where the checker cannot follow an answer."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.checker.boxes import Unbounded
from milp_agt.checker.proof import answer, reached
from milp_agt.checker.statement import Question, Statement
from milp_agt.checker.tree import LEAF, WHERE, WHO, leaves

Array = npt.NDArray[Any]


@dataclass
class _Node:
    """A part of the threat, as the tree that leads to it alone, and its children once it is split."""

    given: Statement
    row: tuple[float, float, float] = (LEAF, 0.0, 0.0)
    children: tuple[_Node, ...] = ()

    def rows(self) -> list[tuple[float, float, float]]:
        return [self.row, *(row for child in self.children for row in child.rows())]


def grown(given: Statement, most: int) -> Array | None:
    """A tree with ``most`` leaves or fewer whose leaves prove more points of the questions; None for none.

    The leaf that lacks most is split first: while several samples may be the poisoned one, by who it is;
    then in the middle of what moves furthest.
    """
    shares = [asked for asked in given.questions if asked.kind != "loss"]
    root = _Node(given)
    first = _missing(given, shares)
    heap, number, lacking = [(-first, 0, root)], 1, first
    while given.poisoned.open.any() and number < most and -heap[0][0] > 0:
        _, _, node = heapq.heappop(heap)
        node.row = _cut(node.given)
        split = np.array([node.row, (LEAF, 0.0, 0.0), (LEAF, 0.0, 0.0)])
        parts = leaves(replace(node.given, tree=split))
        node.children = tuple(_Node(part) for part in parts)
        for child in node.children:
            child.given = replace(child.given, tree=None)
            heapq.heappush(heap, (-_missing(child.given, shares), number, child))
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


def _cut(given: Statement) -> tuple[float, float, float]:
    """How to split: (kind, what, value)."""
    own = np.flatnonzero(given.poisoned.open)
    if len(own) > 1:
        return WHO, float(own[len(own) // 2]), 0.0
    ends = given.poisoned.samples
    low, high = (
        np.concatenate([getattr(ends.x, end)[0, own[0]], getattr(ends.y, end)[0, own[0]]])
        for end in ("lo", "hi")
    )
    widest = int((high - low).argmax())
    return WHERE, float(widest), float(0.5 * low[widest] + 0.5 * high[widest])
