"""Which points does every poisoning leave alone? A search over selections and cells, worst first."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from milp_agt.bounds.cells.cell import Cell
from milp_agt.bounds.cells.goals import Goal
from milp_agt.bounds.cells.moves import Phases
from milp_agt.bounds.cells.passing import (
    Bounded,
    Passed,
    Run,
    passed,
)
from milp_agt.bounds.cells.tree import (
    MANY,
    Branch,
    Doubt,
    Kind,
    Leaf,
    is_thin,
    origins_of,
    split,
)
from milp_agt.core.interval import Interval
from milp_agt.errors import SoundnessError

# Cells that share a pass: 16, and more while a node of a step has fewer numbers than this in all of them.
LEAST, MOST, NUMBERS = 16, 64, 2**13
# Two orders of summation differ by less, relative to 1 + the form.
ROUNDED = 1e-9
# Numbers of the states that waiting leaves keep to go on from.
MOST_KEPT = 2**27


@dataclass(frozen=True)
class Limits:
    """When a search ends although points are open: after seconds, or nodes of the tree."""

    seconds: float = float("inf")
    nodes: float = float("inf")


@dataclass(frozen=True)
class Decided:
    """What a search found of each point.

    Attributes:
        bounds: of the forms over all poisoned models, (n, forms).
        reached: the least margin of a real training, (n,).
        samples, moves: the selection and the moves of that training, (n, k) and (n, K).
        open: points that are neither proved nor lost, (n,) bool.
        tree: all nodes, as data; the leaves cover the threat.
        seconds: time spent.
        limited: whether a limit ended the search.
    """

    bounds: Interval
    reached: Tensor
    samples: Tensor
    moves: Tensor
    open: Tensor
    tree: tuple[Branch, ...]
    seconds: float
    limited: bool


@dataclass
class Search:
    """The state of a search; :meth:`run` takes it to the end or to a limit.

    Attributes:
        selections: all of the largest size, (S, k): smaller ones are among their moves.
        known: bounds of the forms that hold everywhere, (n, forms); None for none.
    """

    training: Run
    asked: Goal
    selections: Tensor
    limits: Limits
    known: Interval | None = None
    tree: list[Branch] = field(default_factory=list)
    waiting: list[Leaf] = field(default_factory=list)
    kept: int = 0

    def __post_init__(self) -> None:
        points, forms = self.asked.shape
        like = self.training.start.lower
        self.begun = time.monotonic()
        self.closed = Interval(
            like.new_full((points, forms), torch.inf), like.new_full((points, forms), -torch.inf)
        )
        self.reached = like.new_full((points,), torch.inf)
        self.level = like.new_zeros(points)
        size = max(step.size for step in self.training.steps)
        widest = max(node.signature.size for node in self.training.forward if node.batched)
        self.batch = max(LEAST, min(MOST, NUMBERS // (size * widest)))
        size = self.selections.shape[1]
        self.samples = self.selections.new_full((points, size), -1)
        self.moves = like.new_zeros(points, size * self.training.moves.width)

    @property
    def lost(self) -> Tensor:
        return self.asked.lost(self.reached)

    def is_over(self) -> bool:
        out_of_time = time.monotonic() - self.begun >= self.limits.seconds
        return out_of_time or len(self.tree) >= self.limits.nodes

    def run(self) -> Decided:
        """Search until every point is decided, or a limit comes.

        Raises:
            SoundnessError: a real training outside the bounds of its own cell.
        """
        limited = False
        fresh = self._roots()
        while fresh or self.waiting:
            if self.is_over():
                limited = True
                break
            batch, fresh = fresh[: self.batch], fresh[self.batch :]
            if not batch:
                leaves = [leaf for leaf in self._pop(self.batch) if self._keeps(leaf)]
                fresh = split(self.training, leaves, self._grow)
                # A batch takes all steps from its first one on.
                fresh.sort(key=lambda leaf: 0 if leaf.origin is None else leaf.origin[0])
                continue
            for leaf in self._bounded(batch):
                self._push(leaf)
        for leaf in (*fresh, *self.waiting):
            self._close(leaf)
        lower, upper = self.closed.lower, self.closed.upper
        bounds = Interval(lower, upper)
        holds = self._margin(bounds) > 0.0
        return Decided(
            bounds,
            self.reached,
            self.samples,
            self.moves,
            ~(holds | self.lost),
            tuple(self.tree),
            time.monotonic() - self.begun,
            limited,
        )

    def _roots(self) -> list[Leaf]:
        points, forms = self.asked.shape
        unknown = self.training.start.lower.new_full((points, forms), torch.inf)
        lower, upper = self.training.moves.ranges(self.selections)
        found = []
        for samples, low, high in zip(self.selections, lower, upper, strict=True):
            branch = Branch(-1, Kind.SELECTION, tuple(samples.tolist()))
            leaf = Leaf(
                self._grow(branch),
                samples,
                Cell.box(low, high),
                Phases.none(),
                None,
                self.known or Interval(-unknown, unknown),
                None,
                torch.zeros_like(low),
                torch.zeros_like(low),
            )
            found.append(leaf)
        return found

    def _grow(self, branch: Branch) -> int:
        self.tree.append(branch)
        return len(self.tree) - 1

    # -- leaves

    def _open(self, leaf: Leaf) -> Tensor:
        """Points that are open in a leaf, (n,)."""
        return ~(self._margin(leaf.bounds) > 0.0) & ~self.lost

    def _margin(self, bounds: Interval) -> Tensor:
        box = Interval(bounds.lower[None], bounds.upper[None])
        return self.asked.margin(box, self.reached)[0]

    def _keeps(self, leaf: Leaf) -> bool:
        """Whether a leaf has open points; else it is closed."""
        if bool(self._open(leaf).any()):
            return True
        self._close(leaf)
        return False

    def _close(self, leaf: Leaf) -> None:
        """Count a leaf whose bounds stay as they are."""
        self.closed = Interval(
            torch.minimum(self.closed.lower, leaf.bounds.lower),
            torch.maximum(self.closed.upper, leaf.bounds.upper),
        )

    def _push(self, leaf: Leaf) -> None:
        if not self._keeps(leaf):
            return
        if leaf.doubt is None and is_thin(self.training, leaf):
            self._close(leaf)
            return
        size = _size_of(leaf)
        if self.kept + size > MOST_KEPT:  # halved from the first step on instead
            leaf, size = replace(leaf, doubt=None), 0
        self.kept += size
        self.waiting.append(leaf)

    def _pop(self, count: int) -> list[Leaf]:
        """The leaves to split next, and what to split them for."""
        self.waiting.sort(key=lambda leaf: -leaf.number)  # the deepest of equals first
        lower = torch.stack([leaf.bounds.lower for leaf in self.waiting])
        upper = torch.stack([leaf.bounds.upper for leaf in self.waiting])
        margins = self.asked.margin(Interval(lower, upper), self.reached)
        margins = torch.where(self.lost, torch.inf, margins)
        closed = self._margin(self.closed)[None]
        self.level = self.asked.level(torch.cat([margins, closed]))
        order = self.asked.urgency(margins, self.level).argsort(stable=True)[:count].tolist()
        found = [self.waiting[number] for number in order]
        chosen = set(order)
        self.waiting = [leaf for k, leaf in enumerate(self.waiting) if k not in chosen]
        self.kept -= sum(map(_size_of, found))
        return found

    def _bounded(self, leaves: Sequence[Leaf]) -> list[Leaf]:
        """Leaves with bounds of their own, and what to split them by."""
        self._train(leaves)
        wanted = torch.stack([self._open(leaf) for leaf in leaves])
        points = wanted.any(0).nonzero()[:, 0]
        if not len(points):
            return list(leaves)
        origins, order = origins_of(self.training, leaves)
        ordered = [replace(leaves[number], origin=None) for number in order]
        done = passed(self.training, origins, self.begun + self.limits.seconds)
        if done is None:
            return list(leaves)  # with the bounds that they have
        if not len(done.rows):
            return self._doubted(self._tightened(ordered, done, None, points), done, {})
        found = self.asked.bounded(self.training, done.states, points)
        ordered = self._tightened(ordered, done, found, points)
        return self._with_doubts(ordered, done, found, points)

    def _tightened(
        self, leaves: Sequence[Leaf], done: Passed, found: Bounded | None, points: Tensor
    ) -> list[Leaf]:
        result = list(leaves)
        for row in done.void.nonzero()[:, 0].tolist():
            none = torch.full_like(leaves[row].bounds.lower, torch.inf)
            result[row] = replace(leaves[row], bounds=Interval(none, -none))
        for at, row in enumerate(done.rows.tolist() if found is not None else ()):
            assert found is not None
            bounds = leaves[row].bounds
            lower, upper = bounds.lower.clone(), bounds.upper.clone()
            lower[points] = torch.maximum(lower[points], found.box.lower[at])
            upper[points] = torch.minimum(upper[points], found.box.upper[at])
            result[row] = replace(leaves[row], bounds=Interval(lower, upper), doubt=None)
        return result

    def _with_doubts(
        self, leaves: list[Leaf], done: Passed, found: Bounded, points: Tensor
    ) -> list[Leaf]:
        """How far coordinates, and the noise of the step in doubt, move what is open."""
        lower = self.asked.shifted(found.box.lower, points, self.reached)
        used = self.training.layout.parameters
        margins = torch.stack([self._open(leaves[row])[points] for row in done.rows.tolist()])
        position = {row: at for at, row in enumerate(done.rows.tolist())}
        level = self.level[points, None]
        open_ = (margins[:, :, None] & ~(lower > level)).flatten(1)  # (B, n * forms)
        gap = (level - lower).clamp(min=1e-9).flatten(1)
        unit = self.asked.unit(points).repeat_interleave(self.asked.shape[1])
        on_moves = found.on_moves / unit[:, None]
        found = replace(found, on_state=found.on_state / unit[:, None])
        pull = torch.einsum("bm,bmk->bk", open_ / gap, on_moves.abs())
        worst = torch.where(open_, -gap, torch.inf).argmin(1)
        for row, at in position.items():
            towards = -torch.sign(on_moves[at, worst[at]])
            leaves[row] = replace(leaves[row], pull=pull[at], towards=towards)
        worth: dict[int, Tensor] = {}
        for doubt in done.ambiguous:
            rows = [
                k
                for k, row in enumerate(doubt.rows.tolist())
                if row in position and int(done.doubtful[row]) <= MANY
            ]
            if not rows:
                continue
            own = torch.tensor([position[int(doubt.rows[k])] for k in rows])
            effect = (found.on_state[own] @ done.since[own, :used]).abs()  # (b, m, P)
            noise = (effect @ doubt.fresh[rows][..., None])[..., 0]
            weight = open_[own] * self.asked.weight(gap[own], noise)
            values = torch.einsum("bm,bmp->bp", weight, effect)
            worth |= {int(doubt.rows[k]): value for k, value in zip(rows, values, strict=True)}
        return self._doubted(leaves, done, worth)

    def _doubted(self, leaves: list[Leaf], done: Passed, worth: Mapping[int, Tensor]) -> list[Leaf]:
        """The leaves with the first step in doubt of each, and what its noise is worth."""
        for doubt in done.ambiguous:
            for k, number in enumerate(doubt.rows.tolist()):
                one = doubt.states.take(torch.tensor([k]))
                found = Doubt(doubt.step, one, worth.get(number))
                leaves[number] = replace(leaves[number], doubt=found)
        return leaves

    # -- real trainings

    def _train(self, leaves: Sequence[Leaf]) -> None:
        """Train on the centres and vertices of cells; a margin that is lost there decides a point."""
        tried = [leaf.cell.points(leaf.towards) for leaf in leaves]
        counts = torch.tensor([len(each) for each in tried])
        samples = torch.stack([leaf.samples for leaf in leaves]).repeat_interleave(counts, 0)
        moves = torch.cat(tried)
        points = (~self.lost).nonzero()[:, 0]
        if not len(points):
            return
        state = self.training.trained(samples, moves)
        values = self.asked.values(self.training, state, points)
        margin = self.asked.shown(values, points)
        least, where = margin.min(0)
        better = least < self.reached[points]
        chosen, from_ = points[better], where[better]
        self.reached[chosen] = least[better]
        self.samples[chosen], self.moves[chosen] = samples[from_], moves[from_]
        first = torch.cumsum(counts, 0) - counts
        for leaf, centre in zip(leaves, values[first], strict=True):
            self._inside(leaf, points, centre)

    def _inside(self, leaf: Leaf, points: Tensor, values: Tensor) -> None:
        """The training at the centre of a cell lies within what was proved of a cell around it."""
        if len(leaf.forced) or not self.training.moves.is_box:
            return  # the centre may lie outside
        below = leaf.bounds.lower[points] - values
        if bool((below > ROUNDED * (1.0 + values.abs())).any()):
            raise SoundnessError(
                "A real training must lie within the bounds of its cell",
                f"a form {float(below.max()):.3e} below its bound in node {leaf.number}",
                "please report this run",
            )


def _size_of(leaf: Leaf) -> int:
    """Numbers of the states that a leaf keeps."""
    return 0 if leaf.doubt is None else leaf.doubt.states.noise.numel()
