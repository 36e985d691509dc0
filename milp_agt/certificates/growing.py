"""Trees of certificates: who is poisoned and how, split where the checker cannot follow an answer."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.checker.affine import Pass
from milp_agt.checker.boxes import Unbounded
from milp_agt.checker.forms import Form, Symbols
from milp_agt.checker.proof import LEAF, PHASE, WHERE, WHO, Reached, leaves, reached
from milp_agt.checker.statement import Question, Statement
from milp_agt.checker.steps import moving, train

Array = npt.NDArray[Any]
Row = tuple[float, float, float]
HARM = ("targeted", "backdoor")  # kinds that count where something goes wrong


@dataclass
class _Node:
    """A part of the threat, as the tree that leads to it alone, and its children once it is split.

    Attributes:
        known: what the checker proves of it; None where it proves nothing, or was not asked.
        lack: points that were certified and that the checker does not prove by itself; infinite for no bound.
    """

    given: Statement
    known: Reached | None
    lack: float
    row: Row = (LEAF, 0.0, 0.0)
    children: tuple[_Node, ...] = ()

    def rows(self) -> list[Row]:
        return [self.row, *(row for child in self.children for row in child.rows())]

    def leaves(self) -> list[Reached]:
        """What is proved of the leaves, in their order."""
        own = [] if self.known is None else [self.known]
        return [each for child in self.children for each in child.leaves()] or own


def grown(given: Statement, most: int) -> tuple[Array, list[Reached]] | None:
    """A tree with ``most`` leaves or fewer that prove more points of the questions, and what they prove; None
    for none.

    The leaf that lacks most is split first: while several samples may be the poisoned one, by who it is (and
    where nothing is proved of them all, nothing is asked of fewer before they are one); then in the middle of
    what moves furthest; where that proves no more, by the phase of a unit if this does.
    """
    root = _node(given)
    heap, number, leaves, open_ = [(-root.lack, 0, root)], 1, 1, 1
    # Each leaf that lacks a point takes another one at least.
    while given.poisoned.open.any() and heap and leaves + open_ <= most:
        *_, node = heapq.heappop(heap)
        least = np.inf
        for row in _cuts(node.given):
            parts = _split(node, row)
            after = sum(part.lack for part in parts)
            if not node.children or after < least:
                least, node.row, node.children = after, row, parts
            if least < 2.0 * node.lack or node.lack == np.inf:
                break
        leaves, open_ = leaves + 1, open_ - 1
        for child in node.children:
            if child.lack > 0:
                heapq.heappush(heap, (-child.lack, number, child))
                number, open_ = number + 1, open_ + 1
    lacking = -heap[0][0] if heap else 0.0
    return (np.array(root.rows()), root.leaves()) if lacking < root.lack else None


def _node(given: Statement) -> _Node:
    try:
        (known,) = reached(given)
    except Unbounded:
        return _Node(given, None, np.inf)
    pairs = zip(given.questions, known.ends, strict=True)
    found = [(each, replace(each, least=ends[0], most=ends[1])) for each, ends in pairs]
    return _Node(given, known, sum(max(0.0, safe(each) - safe(own)) for each, own in found))


def safe(asked: Question) -> float:
    """At how many points nothing can go wrong, as a question claims; 0 for one about a loss."""
    if asked.kind == "loss":
        return 0.0
    return len(asked.encoded) - asked.most if asked.kind in HARM else asked.least


def _split(node: _Node, row: Row) -> tuple[_Node, ...]:
    """The children of a node that is cut, and what each of them lacks."""
    tree = np.array([row, (LEAF, 0.0, 0.0), (LEAF, 0.0, 0.0)])
    parts = [replace(part, tree=None) for part in leaves(replace(node.given, tree=tree))]
    return tuple(
        _Node(part, None, np.inf)
        if node.lack == np.inf and part.poisoned.open.sum() > 1
        else _node(part)
        for part in parts
    )


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
