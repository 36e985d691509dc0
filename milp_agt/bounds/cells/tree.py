"""The tree over selections and cells of moves: its data, and how a leaf is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from milp_agt.bounds.cells.cell import Cell
from milp_agt.bounds.cells.form import States, joined
from milp_agt.bounds.cells.moves import Phases
from milp_agt.bounds.cells.passing import Origins, Run
from milp_agt.bounds.cells.training_step import Passage
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import gamma

# With more phases in doubt than this a cell is halved: each phase would say little.
MANY = 100


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


@dataclass(frozen=True)
class Doubt:
    """The earliest step of a leaf at which a phase is not known.

    Attributes:
        states: before the step, of this leaf alone.
        worth: what the new noise of the step is worth for what is asked, by coordinate, (P,).
    """

    step: int
    states: States
    worth: Tensor


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
        fresh = run.begin(torch.stack([leaf.samples for leaf in mine]), [m.cell for m in mine])
        if step:
            parts = [leaf.origin[1] for leaf in mine if leaf.origin is not None]
            states = _recentred(joined(parts, fresh.states.cells), parts, run.layout.size)
            fresh = Origins(step, states, fresh.forced)
        known = [
            replace(m.forced, cell=torch.full_like(m.forced.cell, k)) for k, m in enumerate(mine)
        ]
        found.append(replace(fresh, forced=Phases.cat(known)))
    return found, order


def _recentred(states: States, parts: Sequence[States], size: int) -> States:
    """The same sets around the centres of cells within those that they were made for."""
    old = torch.cat([part.cells.centre for part in parts])
    shift = (states.cells.centre - old)[..., None]
    moved = (states.on_moves @ shift)[..., 0]
    magnitude = states.centre.abs() + (states.on_moves.abs() @ shift.abs())[..., 0]
    error = gamma(4.0 * shift.shape[1] + 16.0) * magnitude
    noise = states.noise.clone()
    # The newest noise acts on each coordinate alone.
    noise[:, :, -size:] += torch.diag_embed(error)
    return replace(states, centre=states.centre + moved, noise=noise)


@dataclass(frozen=True)
class Child:
    """A part of a leaf, before it is bounded."""

    leaf: Leaf
    branch: Branch


def split(run: Run, leaves: Sequence[Leaf]) -> list[Child]:
    """The children of leaves, which cover them; halves of those without a phase in doubt."""
    children = []
    by_step: dict[int, list[Leaf]] = {}
    for leaf in leaves:
        if leaf.doubt is None:
            children += halves(leaf)
        else:
            by_step.setdefault(leaf.doubt.step, []).append(leaf)
    for step, own in by_step.items():
        children += _by_phase(run, step, own)
    return children


def halves(leaf: Leaf) -> list[Child]:
    """Both halves of the coordinate that moves most of what is asked."""
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
            branch = Branch(leaf.number, Kind.HALF, (coordinate,), side, middle)
            found.append(Child(replace(leaf, cell=part, origin=None, doubt=None), branch))
    return found


def _by_phase(run: Run, step: int, leaves: Sequence[Leaf]) -> list[Child]:
    doubts = [leaf.doubt for leaf in leaves if leaf.doubt is not None]
    parts = [doubt.states for doubt in doubts]
    own = run.begin(torch.stack([leaf.samples for leaf in leaves]), [leaf.cell for leaf in leaves])
    states = joined(parts, own.states.cells)
    known = [
        replace(m.forced, cell=torch.full_like(m.forced.cell, k)) for k, m in enumerate(leaves)
    ]
    passage = Passage(
        run.schedule,
        run.steps[step],
        states,
        run.layout,
        run.moves,
        Phases.cat(known),
        tracked={},
    )
    worth = torch.stack([doubt.worth for doubt in doubts])
    with torch.enable_grad():
        fresh = passage.advanced().noise[:, :, -run.layout.size :].diagonal(dim1=1, dim2=2)
        tracked = passage.tracked or {}
        slopes = torch.autograd.grad(
            (worth * fresh).sum(), list(tracked.values()), allow_unused=True
        )
    costs = _costs(passage, tracked, slopes)
    phases = passage.ambiguous()
    cost = torch.stack([costs[s] for s in range(len(passage.sources))])
    where = (passage.step.samples == phases.sample[:, None]).to(torch.int64).argmax(1)
    each = cost[phases.source, phases.cell, where, phases.element]
    children = []
    for number, leaf in enumerate(leaves):
        mine = (phases.cell == number).nonzero()[:, 0]
        if not len(mine):
            children += halves(leaf)
            continue
        best = int(mine[each[mine].argmax()])
        place = int(phases.sample[best]), int(phases.source[best]), int(phases.element[best])
        children += _sides(passage, leaf, number, int(where[best]), place)
    return children


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


def _sides(
    passage: Passage, leaf: Leaf, row: int, where: int, place: tuple[int, int, int]
) -> list[Child]:
    """The leaf with a phase on, and with it off; a side whose cell is empty is left out."""
    sample, source, element = place
    form = passage.whole(passage.forms[passage.sources[source]])
    states, doubt = passage.states.take(torch.tensor([row])), leaf.doubt
    assert doubt is not None
    one = form.element(row, where, element)
    along = states.moves_of(one)[0, 0]
    # Without the moves: the noise alone.
    still = replace(states, on_moves=torch.zeros_like(states.on_moves))
    down, up = still.reach_of(replace(one, on_moves=None))
    spread = float(torch.maximum(down, up))
    middle = float(one.centre) - float(along @ states.cells.centre[0])
    found = []
    for on in (1, 0):
        # On: 0 < middle + along . e + spread. Off: middle + along . e - spread <= 0.
        cell = (
            leaf.cell.cut(-along, middle + spread) if on else leaf.cell.cut(along, spread - middle)
        )
        if cell is None:
            continue
        new = torch.tensor([doubt.step, source, sample, element])
        forced = Phases(
            torch.cat([leaf.forced.cell, new[:1] * 0]),
            torch.cat([leaf.forced.step, new[:1]]),
            torch.cat([leaf.forced.source, new[1:2]]),
            torch.cat([leaf.forced.sample, new[2:3]]),
            torch.cat([leaf.forced.element, new[3:]]),
            torch.cat([leaf.forced.on, torch.tensor([bool(on)])]),
        )
        branch = Branch(leaf.number, Kind.PHASE, (doubt.step, sample, source, element), on)
        origin = (doubt.step, doubt.states)
        found.append(
            Child(replace(leaf, cell=cell, forced=forced, origin=origin, doubt=None), branch)
        )
    return found
