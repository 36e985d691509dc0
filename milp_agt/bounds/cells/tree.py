"""The tree over selections and cells of moves: its data, and how a leaf is split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from milp_agt.bounds.cells.cell import Cell, Cells
from milp_agt.bounds.cells.form import States
from milp_agt.bounds.cells.moves import Phases
from milp_agt.bounds.cells.passing import Origins, Run
from milp_agt.bounds.cells.training_step import Passage
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import gamma

# With more phases in doubt than this, what one of them costs at the end says little.
MANY = 100
# A cell is cut by the phases of its step in doubt into about so many parts at once.
PARTS = 32
# Parts on both sides of a phase that share more than this of a cell: noise blurs where it changes.
BLURRED = 0.5
# A cell of less than this share of the whole range is not halved again.
THIN = 1e-6


class Kind(StrEnum):
    """What sets a child apart from its parent."""

    SELECTION = "selection"  # which samples are poisoned; the parent is the whole threat
    PHASE = "phase"  # whether an argument is above its kink
    HALF = "half"  # on which side of a value a coordinate of the moves is


@dataclass(frozen=True)
class Branch:
    """A node of the tree as plain data, so that the cover can be checked without the search.

    The children of a node cover it: every selection of the largest size for the root, both sides of a
    phase, or both halves of a coordinate. A side that is missing holds no run: its cell is empty.

    Attributes:
        parent: number of the parent; -1 for the root.
        what: the samples of a selection; step, sample, source and element of a phase; the coordinate.
        side: 1 for a phase that is on and for the half above, else 0.
        value: where the halves meet.
    """

    parent: int
    kind: Kind
    what: tuple[int, ...]
    side: int = 0
    value: float = 0.0

    def moved(self, first: int) -> Branch:
        """The same node where its tree begins at number ``first``."""
        return self if self.parent < 0 else replace(self, parent=self.parent + first)


@dataclass(frozen=True)
class Doubt:
    """The earliest step of a leaf at which a phase is not known.

    Attributes:
        states: before the step, of this leaf alone.
        worth: what the new noise of the step is worth for what is asked, by coordinate, (P,); None where
            the pass was given up, or ended with more than ``MANY`` phases in doubt.
    """

    step: int
    states: States
    worth: Tensor | None


@dataclass(frozen=True)
class Leaf:
    """A cell of the moves of a selection, with all that is known of it.

    Attributes:
        number: in the tree.
        samples: the selection, (k,).
        forced: phases that are known; ``cell`` has no meaning.
        origin: where its pass begins: the step, and the states before it; None before the first.
        bounds: of the forms that are asked, (n, forms), the best so far.
        doubt: the phase to split by; None where none is in doubt, or none is worth it.
        pull: how far each coordinate moves what is asked, (K,).
        towards: signs of the moves that harm the worst form most, (K,).
    """

    number: int
    samples: Tensor
    cell: Cell
    forced: Phases
    origin: tuple[int, States] | None
    bounds: Interval
    doubt: Doubt | None
    pull: Tensor
    towards: Tensor


def origins_of(run: Run, leaves: Sequence[Leaf]) -> tuple[list[Origins], list[int]]:
    """Where leaves start, by step, and the order in which they come."""
    steps = sorted({0 if leaf.origin is None else leaf.origin[0] for leaf in leaves})
    found, order = [], []
    for step in steps:
        own = [
            number
            for number, leaf in enumerate(leaves)
            if (0 if leaf.origin is None else leaf.origin[0]) == step
        ]
        order += own
        mine = [leaves[number] for number in own]
        fresh = _begun(run, mine)
        if step:
            parts = [leaf.origin[1] for leaf in mine if leaf.origin is not None]
            states = _recentred(States.cat(parts), fresh.states.cells, run.layout.size)
            fresh = replace(fresh, step=step, states=states)
        found.append(fresh)
    return found, order


def _begun(run: Run, leaves: Sequence[Leaf]) -> Origins:
    """The cells of leaves before the first step, with all phases that are known."""
    begun = run.begin(torch.stack([m.samples for m in leaves]), [m.cell for m in leaves])
    known = [
        replace(m.forced, cell=torch.full_like(m.forced.cell, k)) for k, m in enumerate(leaves)
    ]
    return replace(begun, forced=Phases.cat(known))


def _recentred(states: States, cells: Cells, size: int) -> States:
    """The same sets around the centres of cells within those that they were made for."""
    shift = (cells.centre - states.cells.centre)[..., None]
    moved = (states.on_moves @ shift)[..., 0]
    magnitude = states.centre.abs() + (states.on_moves.abs() @ shift.abs())[..., 0]
    error = gamma(4.0 * shift.shape[1] + 16.0) * magnitude
    noise = states.noise.clone()
    # The newest noise acts on each coordinate alone.
    noise[:, :, -size:] += torch.diag_embed(error)
    return replace(states, cells=cells, centre=states.centre + moved, noise=noise)


Grow = Callable[[Branch], int]  # adds a node to the tree and says its number


def split(run: Run, leaves: Sequence[Leaf], grow: Grow) -> list[Leaf]:
    """The children of leaves, which cover them; halves of those without a phase in doubt."""
    found = []
    by_step: dict[tuple[int, bool], list[Leaf]] = {}
    for leaf in leaves:
        if leaf.doubt is None:
            found += halves(leaf, grow)
        else:
            by_step.setdefault((leaf.doubt.step, leaf.doubt.worth is None), []).append(leaf)
    for (step, crowded), own in by_step.items():
        found += (_by_lines if crowded else _by_phase)(run, step, own, grow)
    return found


def is_thin(run: Run, leaf: Leaf) -> bool:
    """Whether a cell is too small to be halved."""
    lower, upper = run.moves.ranges(leaf.samples[None])
    share = (leaf.cell.upper - leaf.cell.lower) / (upper - lower)[0].clamp(min=1e-300)
    return bool((share < THIN).all())


def halves(leaf: Leaf, grow: Grow) -> list[Leaf]:
    """Both halves of the coordinate that moves most of what is asked, from the first step on."""
    cell = leaf.cell
    length = cell.upper - cell.lower
    weight = length * leaf.pull if bool((length * leaf.pull > 0.0).any()) else length
    coordinate = int(weight.argmax())
    middle = float(cell.centre[coordinate])
    found = []
    for side in (0, 1):
        normal = torch.zeros_like(cell.lower)
        normal[coordinate] = -1.0 if side else 1.0
        part = cell.cut(normal, -middle if side else middle)
        if part is not None:
            number = grow(Branch(leaf.number, Kind.HALF, (coordinate,), side, middle))
            found.append(replace(leaf, number=number, cell=part, origin=None, doubt=None))
    return found


def _passage(run: Run, step: int, leaves: Sequence[Leaf], tracked: bool) -> Passage:
    """The step in doubt of leaves."""
    parts = [leaf.doubt.states for leaf in leaves if leaf.doubt is not None]
    own = _begun(run, leaves)
    return Passage(
        run.schedule,
        run.steps[step],
        replace(States.cat(parts), cells=own.states.cells),
        run.layout,
        run.moves,
        own.forced,
        tracked={} if tracked else None,
    )


def _by_phase(run: Run, step: int, leaves: Sequence[Leaf], grow: Grow) -> list[Leaf]:
    """Both sides of the phase whose noise costs what is asked most."""
    passage = _passage(run, step, leaves, tracked=True)
    doubts = [leaf.doubt for leaf in leaves if leaf.doubt is not None]
    worth = torch.stack([doubt.worth for doubt in doubts if doubt.worth is not None])
    with torch.enable_grad():
        fresh = passage.advanced().noise[:, :, -run.layout.size :].diagonal(dim1=1, dim2=2)
        tracked = passage.tracked or {}
        slopes = torch.autograd.grad(
            (worth * fresh).sum(), list(tracked.values()), allow_unused=True
        )
    costs = _costs(passage, tracked, slopes)
    phases = passage.ambiguous()
    cost = torch.stack([costs[s] for s in range(len(passage.sources))])
    where = _places(passage, phases)
    each = cost[phases.source, phases.cell, where, phases.element]
    found = []
    for number, leaf in enumerate(leaves):
        mine = (phases.cell == number).nonzero()[:, 0]
        if not len(mine):
            found += halves(leaf, grow)
            continue
        best = mine[each[mine].argmax()][None]
        found += _parts(leaf, _lines(passage, leaf, number, phases.take(best)), grow)
    return found


def _by_lines(run: Run, step: int, leaves: Sequence[Leaf], grow: Grow) -> list[Leaf]:
    """The parts into which all phases of a step cut a cell: the pass can go on without doubt in this step.

    Until that step nothing was in doubt, so that what blurs phases there is noise of the second order in
    the size of the cell: a cell all of whose phases are blurred is halved.
    """
    passage = _passage(run, step, leaves, tracked=False)
    passage.ranges()
    phases = passage.ambiguous()
    found = []
    for number, leaf in enumerate(leaves):
        mine = phases.take((phases.cell == number).nonzero()[:, 0])
        lines = _lines(passage, leaf, number, mine) if len(mine) else []
        shared = [line.shared(leaf.cell) for line in lines]
        clear = [line for line, share in zip(lines, shared, strict=True) if share < BLURRED]
        if not clear and lines and is_thin(run, leaf):
            clear = [min(zip(shared, lines, strict=True), key=lambda pair: pair[0])[1]]
        found += _parts(leaf, clear, grow) if clear else halves(leaf, grow)
    return found


def _places(passage: Passage, phases: Phases) -> Tensor:
    """Where the samples of phases are in the batch."""
    return (passage.step.samples == phases.sample[:, None]).to(torch.int64).argmax(1)


def _costs(
    passage: Passage, tracked: dict[str, Tensor], slopes: Sequence[Tensor | None]
) -> list[Tensor]:
    """What every phase costs, (B, n, elements) for each source; padded to the largest."""
    count, batch = len(passage.states), passage.step.size
    widest = max(passage.nodes[name].signature.size for name in passage.sources)
    found = [passage.states.centre.new_zeros(count, batch, widest) for _ in passage.sources]
    for (name, half), slope in zip(tracked.items(), slopes, strict=True):
        if slope is None:
            continue
        source = passage.sources.index(passage.nodes[name].inputs[0])
        part = (slope * half).detach().flatten(2)
        found[source][:, :, : part.shape[2]] += torch.nan_to_num(part)
    return found


@dataclass(frozen=True)
class Line:
    """A phase that moves decide: its argument lies within ``spread`` of ``middle + along . e``.

    Attributes:
        what: step, sample, source and element.
    """

    what: tuple[int, int, int, int]
    along: Tensor
    middle: float
    spread: float

    def sides(self, cell: Cell) -> tuple[Cell | None, Cell | None]:
        """The parts of a cell where the phase can be on, and off; None for none."""
        # On: 0 < middle + along . e + spread. Off: middle + along . e - spread <= 0.
        return (
            cell.cut(-self.along, self.middle + self.spread),
            cell.cut(self.along, self.spread - self.middle),
        )

    def shared(self, cell: Cell) -> float:
        """The share of a cell that lies on both sides."""
        total = sum(part.size for part in self.sides(cell) if part is not None)
        return (total - cell.size) / max(cell.size, 1e-300)


def _lines(passage: Passage, leaf: Leaf, row: int, phases: Phases) -> list[Line]:
    """Phases of one leaf by the moves that decide them; clearest and most central ones first."""
    states = passage.states.take(torch.tensor([row]))
    # Without the moves: the noise alone.
    still = replace(states, on_moves=torch.zeros_like(states.on_moves))
    found = []
    for source in phases.source.unique().tolist():
        own = phases.take((phases.source == source).nonzero()[:, 0])
        form = passage.whole(passage.forms[passage.sources[source]])
        some = form.elements(row, _places(passage, own), own.element)
        along = states.moves_of(some)[0]
        down, up = still.reach_of(replace(some, on_moves=None))
        spread = torch.maximum(down, up)[0].tolist()
        middle = (some.centre[0] - along @ states.cells.centre[0]).tolist()
        for k, (sample, element) in enumerate(
            zip(own.sample.tolist(), own.element.tolist(), strict=True)
        ):
            what = (passage.step.index, sample, source, element)
            found.append(Line(what, along[k], middle[k], spread[k]))
    return found


def _parts(leaf: Leaf, lines: Sequence[Line], grow: Grow) -> list[Leaf]:
    """The leaf with each phase on, and with it off, one phase after the other."""
    assert leaf.doubt is not None
    origin = (leaf.doubt.step, leaf.doubt.states)
    parts = [replace(leaf, origin=origin, doubt=None)]
    for line in lines:
        if len(parts) < PARTS:
            parts = [child for part in parts for child in _sides(part, line, grow)]
    return parts


def _sides(leaf: Leaf, line: Line, grow: Grow) -> list[Leaf]:
    """The leaf with a phase on, and with it off; a side whose cell is empty is left out."""
    found = []
    for on, cell in zip((1, 0), line.sides(leaf.cell), strict=True):
        if cell is None:
            continue
        step, sample, source, element = line.what
        new = Phases(
            *(torch.tensor([part]) for part in (0, step, source, sample, element, bool(on)))
        )
        number = grow(Branch(leaf.number, Kind.PHASE, line.what, on))
        forced = Phases.cat([leaf.forced, new])
        found.append(replace(leaf, number=number, cell=cell, forced=forced))
    return found
