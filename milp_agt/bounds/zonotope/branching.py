"""Branch and bound of directions over a hybrid zonotope: who is poisoned, and which phases flip."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.bounds import StateBounds
from milp_agt.bounds.zonotope.dual import Directions, Multipliers, Spread
from milp_agt.bounds.zonotope.node_dual import FREE, Known, Solved, solved
from milp_agt.bounds.zonotope.state import HybridZonotope
from milp_agt.core.stacked import Stacked
from milp_agt.core.workers import on_workers

# Steps of ascent of a root and of any other node, and how their size falls.
FIRST_STEPS, STEPS = 120, 30
FIRST_RATE, RATE = (0.15, 0.0045), (0.3, 0.01)
# Numbers of one tensor of a batch of nodes, and nodes of a batch.
NUMBERS, MOST_NODES = 2**21, 512
# Numbers that all open nodes keep.
MOST_KEPT = 2**27
# What units and phases count that no maximiser is torn between.
SETTLED = 0.01


@dataclass(frozen=True)
class EndTrees(Stacked):
    """Trees over the directions, as plain data, so that the cover can be checked without the search.

    One array entry for each node; the first are the roots, one for each direction. The children of a
    node know one unit or one phase more than it, one child on either side; both sides are there.

    Attributes:
        parent: number of the parent, -1 for roots, (nodes,).
        direction: (nodes,).
        variable: the unit, or the number of units plus that of the flip, that is known; -1 for roots.
        side: whether the unit is poisoned, or the phase flipped, bool.
        bound: proved of the direction in this node, (nodes,).
    """

    parent: Tensor
    direction: Tensor
    variable: Tensor
    side: Tensor
    bound: Tensor

    @staticmethod
    def of_all(parts: Sequence[tuple[EndTrees, Tensor]]) -> EndTrees:
        """All trees, each with the numbers that its directions have among all."""
        moved, first = [], 0
        for trees, numbers in parts:
            parent = torch.where(trees.parent < 0, -1, trees.parent + first)
            moved.append(replace(trees, parent=parent, direction=numbers[trees.direction]))
            first += len(trees.parent)
        return EndTrees.cat(moved)


@dataclass(frozen=True)
class Branched:
    """What a search found.

    Attributes:
        most: upper bounds of the directions, (r,).
        trees: with every node.
        limited: whether a limit came first.
    """

    most: Tensor
    trees: EndTrees
    limited: bool


@dataclass(frozen=True)
class _Nodes(Stacked):
    """Open nodes."""

    number: Tensor  # in the trees, (n,)
    direction: Tensor
    known: Known
    bound: Tensor
    alpha: Multipliers
    split: Tensor  # unit or phase to split by, -1 for none

    def __len__(self) -> int:
        return len(self.number)


def branched(
    zonotope: HybridZonotope,
    bounds: StateBounds,
    rows: Tensor,
    enough: Tensor,
    seconds: float,
    nodes: float = float("inf"),
) -> Branched:
    """Upper bounds of ``rows . (x - centre)`` over all states x of the set, (r,), best first.

    Every direction has a tree of its own. Each node is a part of the set in which some units are known to
    be poisoned or clean, and some phases flipped or not; it is bounded by the dual of its direction
    (:mod:`node_dual`). The bound of a direction is the largest one of its open nodes.

    Args:
        rows: (r, p), on the first p coordinates.
        enough: directions whose bound is at most this are not searched further, (r,); -inf for none.
        seconds, nodes: a limit, at which the bounds so far are returned.
    """
    return _Search(zonotope, bounds, rows, enough, seconds, nodes).run()


def branched_on(
    zonotope: HybridZonotope,
    bounds: StateBounds,
    rows: Tensor,
    enough: Tensor,
    seconds: float,
    workers: int,
) -> Branched:
    """:func:`branched` with the directions dealt out to processes; inf for those that a worker lost."""
    every = torch.arange(len(rows), device=rows.device)
    pieces = [every[k::workers] for k in range(min(workers, len(rows)))]
    if len(pieces) <= 1:
        return branched(zonotope, bounds, rows, enough, seconds)
    begun = time.monotonic()

    def given(part: Tensor) -> tuple[HybridZonotope, StateBounds, Tensor, Tensor, float]:
        left = seconds - (time.monotonic() - begun)
        return zonotope, bounds, rows[part], enough[part], left

    answers = on_workers(branched, pieces, given, workers)
    most = torch.full_like(enough, torch.inf)
    for number, answer in answers.items():
        most[pieces[number]] = answer.most
    trees = EndTrees.of_all([(answer.trees, pieces[k]) for k, answer in answers.items()])
    lost = len(answers) < len(pieces)
    return Branched(most, trees, lost or any(answer.limited for answer in answers.values()))


class _Search:
    def __init__(
        self,
        zonotope: HybridZonotope,
        bounds: StateBounds,
        rows: Tensor,
        enough: Tensor,
        seconds: float,
        nodes: float,
    ) -> None:
        self.begun, self.seconds, self.most_nodes = time.monotonic(), seconds, nodes
        self.zonotope, self.bounds, self.rows, self.enough = zonotope, bounds, rows, enough
        self.flips, self.samples = zonotope.flips, zonotope.samples
        units = len(self.samples.known)
        self.widest = max(1, self.samples.count * max(1, self.samples.width), self.flips.count)
        self.per_batch = max(16, min(MOST_NODES, NUMBERS // self.widest))
        self.per_node = units + self.flips.count + 2 * self.flips.rows + self.flips.limits
        self.trees: list[EndTrees] = []
        self.count = 0

    def run(self) -> Branched:
        open_ = self._roots()
        while True:
            chosen = self._chosen(open_)
            if not len(chosen):
                limited = False
                break
            if self._is_late() or len(open_) * self.per_node >= MOST_KEPT:
                limited = True
                break
            children = self._children(open_.take(chosen))
            stays = torch.ones(len(open_), dtype=torch.bool, device=chosen.device)
            stays[chosen] = False
            open_ = _Nodes.cat([open_.take(stays.nonzero()[:, 0]), children])
        return Branched(self._most(open_), EndTrees.cat(self.trees), limited)

    def _is_late(self) -> bool:
        return time.monotonic() - self.begun >= self.seconds or self.count >= self.most_nodes

    def _most(self, open_: _Nodes) -> Tensor:
        none = torch.full_like(self.enough, -torch.inf)
        return none.scatter_reduce(0, open_.direction, open_.bound, "amax")

    def _roots(self) -> _Nodes:
        every = torch.arange(len(self.rows), device=self.rows.device)
        known = Known.nothing(len(every), self.flips, self.samples)
        alpha, _ = self.bounds.shared(self.rows)
        bound = torch.full_like(self.enough, torch.inf)
        none = torch.full_like(every, -1)
        roots = _Nodes(none, every, known, bound, alpha, none)
        return self._bounded(roots, none, torch.zeros_like(none).bool(), FIRST_STEPS, FIRST_RATE)

    def _chosen(self, open_: _Nodes) -> Tensor:
        """The loosest nodes of each direction that is open, as many of each, (n,)."""
        useful = (open_.bound > self.enough[open_.direction]) & (open_.split >= 0)
        # A node that is settled bounds its direction: those below it change nothing.
        settled = torch.where(open_.split < 0, open_.bound, -torch.inf)
        floor = torch.full_like(self.enough, -torch.inf)
        floor = floor.scatter_reduce(0, open_.direction, settled, "amax")
        useful &= open_.bound > floor[open_.direction]
        at = useful.nonzero()[:, 0]
        at = at[open_.bound[at].argsort(descending=True)]
        at = at[open_.direction[at].argsort(stable=True)]
        direction = open_.direction[at]
        _, counts = direction.unique_consecutive(return_counts=True)
        rank = torch.arange(len(at), device=at.device)
        rank = rank - (counts.cumsum(0) - counts).repeat_interleave(counts)
        share = max(1, self.per_batch // (2 * max(1, len(counts))))
        return at[rank < share]

    def _children(self, parents: _Nodes) -> _Nodes:
        both = torch.arange(len(parents), device=self.rows.device).repeat_interleave(2)
        side = torch.arange(len(both), device=self.rows.device) % 2 == 1
        twins = parents.take(both)
        known = twins.known.with_side(twins.split, side, self.flips, self.samples)
        twins = replace(twins, known=known)
        return self._bounded(twins, twins.split, side, STEPS, RATE)

    def _bounded(
        self,
        nodes: _Nodes,
        variable: Tensor,
        side: Tensor,
        steps: int,
        rate: tuple[float, float],
    ) -> _Nodes:
        """Nodes with bounds and splits of their own; ``number`` and ``bound`` are those of parents."""
        pieces = []
        for part in torch.arange(len(nodes), device=self.rows.device).split(self.per_batch):
            own = nodes.take(part)
            steps = 0 if self._is_late() else steps
            d = self._directions(own.direction)
            found = solved(d, self.flips, self.samples, own.known, own.alpha, steps, rate)
            bound = torch.minimum(found.value, own.bound)
            number = self.count + part
            pieces.append(
                _Nodes(number, own.direction, own.known, bound, found.alpha, _split(own, found))
            )
        self.count += len(nodes)
        result = _Nodes.cat(pieces)
        self.trees.append(EndTrees(nodes.number, nodes.direction, variable, side, result.bound))
        return result

    def _directions(self, direction: Tensor) -> Directions:
        spread: Spread = self.zonotope.spread(self.rows[direction], self.bounds.terms)
        return spread.towards(torch.ones_like(spread.size))


def _split(nodes: _Nodes, found: Solved) -> Tensor:
    """The unit or phase that maximisers disagree on most, weighed by what it is worth; -1 for none."""
    share = torch.cat([found.chosen, found.happens], 1)
    if not share.shape[1]:  # all is noise, as insertions without flips are
        return torch.full_like(nodes.number, -1)
    free = torch.cat([nodes.known.units, nodes.known.flips], 1) == FREE
    torn = torch.minimum(share, 1.0 - share)
    least = SETTLED * found.worth.amax(1, keepdim=True).clamp(min=1e-300)
    score = torch.where(free, (torn + SETTLED) * (found.worth + least), -1.0)
    best, where = score.max(1)
    return torch.where(best > 0.0, where, -1)
