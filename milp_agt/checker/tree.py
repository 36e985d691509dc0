"""A tree over who is poisoned and how: leaves that together hold every run of a threat.

For at most one poisoned sample, the same in the whole run. A node is a row (kind, what, value): a leaf; or
two nodes, which follow it, the first with all below it first. Of a node that asks WHO, the children have
the samples that may be poisoned with numbers below ``what``, and the others; of one that asks WHERE, which
has one such sample, those values of its features and labels whose entry ``what`` is at most ``value``, and at
least that; of one that asks for a PHASE, the runs in which the argument of an activation, number ``value``
(in the order of layers, samples of the batch and units) of those of step ``what``, is at most 0, and the
others. So the children of a node hold each of its runs, that on the data as given among them (it is one in
which the sample, at its own values, is poisoned); by induction the leaves hold those of the root.
In a leaf the run is bounded around the middle of its box: affine forms do not ask what was there before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from milp_agt.checker.boxes import Box
from milp_agt.checker.files import Rejected
from milp_agt.checker.layers import Samples
from milp_agt.checker.statement import Statement

LEAF, WHO, WHERE, PHASE = range(4)


def leaves(given: Statement) -> Iterator[Statement]:
    """The statement for each leaf; itself without a tree.

    Raises:
        Rejected: no tree.
    """
    waiting, used, whole = [given], 0, len(given.multipliers)
    for kind, what, value in [(LEAF, 0, whole)] if given.tree is None else given.tree.tolist():
        if not waiting or kind not in (LEAF, WHO, WHERE, PHASE):
            raise Rejected("claim.tree: a node that is none, or more nodes than a tree has")
        one = waiting.pop()
        if kind == LEAF:
            used += int(value)
            yield replace(one, multipliers=given.multipliers[used - int(value) : used])
        else:
            waiting += [_child(one, kind, int(what), value, side) for side in (True, False)]
    if waiting or used != whole:
        raise Rejected(
            "claim.tree: a node without its children, or not all multipliers in its leaves"
        )


def _child(one: Statement, kind: int, what: int, value: float, above: bool) -> Statement:
    poisoned = one.poisoned
    if kind == PHASE:
        return replace(one, phases=(*one.phases, (what, int(value), above)))
    if kind == WHO:
        side = (np.arange(len(poisoned.open)) >= what) == above
        return replace(one, poisoned=replace(poisoned, open=poisoned.open & side))
    width, own = one.samples.x.lo.shape[2], np.flatnonzero(poisoned.open)
    given, ranges = one.samples, poisoned.samples
    low = np.concatenate([ranges.x.lo, ranges.y.lo], 2)
    high = np.concatenate([ranges.x.hi, ranges.y.hi], 2)
    middle = np.concatenate([given.x.lo, given.y.lo], 2)
    inside = len(own) == 1 and 0 <= what < low.shape[2]
    if not inside or not low[0, own[0], what] <= value <= high[0, own[0], what]:
        raise Rejected("claim.tree: a box that is not there, or cut outside of itself")
    (low if above else high)[0, own, what] = value
    middle[0, own] = 0.5 * low[0, own] + 0.5 * high[0, own]
    box, point = (
        Samples(Box(a[..., :width], b[..., :width]), Box(a[..., width:], b[..., width:]))
        for a, b in ((low, high), (middle, middle))
    )
    # Moves are now those from the middle, of which a norm says nothing.
    return replace(one, samples=point, poisoned=replace(poisoned, samples=box, norm=0))
