"""Rows of a node: its elements, sample by sample, as directions of the state and of its own sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.bounds import StateBounds
from milp_agt.bounds.zonotope.dual import Bound, Spread, bound
from milp_agt.bounds.zonotope.flips import Flips, widened
from milp_agt.bounds.zonotope.form import Form, by_part, led
from milp_agt.bounds.zonotope.local import Local
from milp_agt.bounds.zonotope.state import AT_ONCE, HybridZonotope
from milp_agt.core.rounding import gamma
from milp_agt.core.stacked import Stacked

# Numbers of one tensor of coefficients that stay in a cache, and how few rows are not cut for its sake.
CACHED, FEWEST = 2**20, 32


@dataclass
class Slots(Stacked):
    """The flips of a step by sample of the batch, while the step is taken.

    Few units of a sample flip: its flips take slots 0, 1, ... in the order in which they are found. Forms
    made before the last of them have fewer slots, and say nothing of the others.

    Attributes:
        number: of the flip among all, -1 where a sample has fewer, (slots, n).
        unit: its place among all elements with a kink, (slots, n).
        largest: how far beyond its kink a unit gets in each state of its sample, (states, slots, n).
        possible: whether it gets there, as numbers, (states, slots, n).
    """

    AXES: ClassVar = {"number": 1, "unit": 1, "largest": 2, "possible": 2}

    number: Tensor
    unit: Tensor
    largest: Tensor
    possible: Tensor

    @staticmethod
    def empty(states: int, samples: int, like: Tensor) -> Slots:
        none = torch.full((0, samples), -1, dtype=torch.int64, device=like.device)
        zero = like.new_zeros(states, 0, samples)
        return Slots(none, none, zero, zero)

    def add(
        self, first: int, units: Tensor, samples: Tensor, largest: Tensor, possible: Tensor
    ) -> None:
        """New flips, numbered from ``first`` on: their units and samples, (f,), and both of (states, f)."""
        order = samples.argsort(stable=True)
        _, sizes = samples[order].unique_consecutive(return_counts=True)
        rank = torch.arange(len(order), device=order.device)
        rank = rank - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        slot = torch.empty_like(rank)
        slot[order] = rank
        slot = slot + (self.number >= 0).sum(0)[samples]
        count = max(len(self.number), int(slot.max()) + 1)
        self.number, self.unit = (led(part, count, -1) for part in (self.number, self.unit))
        self.largest, self.possible = (
            led(part.transpose(0, 1), count).transpose(0, 1).clone()
            for part in (self.largest, self.possible)
        )
        self.number[slot, samples] = first + torch.arange(len(slot), device=slot.device)
        self.unit[slot, samples] = units
        self.largest[:, slot, samples] = largest
        self.possible[:, slot, samples] = possible

    def of(self, values: Tensor, first: int) -> Tensor | None:
        """Coefficients on their own flips of the elements of a node, numbered from ``first`` on, from what
        each flip adds, (n, elements): (slots, n, elements); None for 0."""
        elements = values.shape[1]
        out = values.new_zeros(len(self.number), len(values), elements)
        inside = (self.number >= 0) & (self.unit >= first) & (self.unit < first + elements)
        slot, sample = inside.nonzero(as_tuple=True)
        element = self.unit[slot, sample] - first
        out[slot, sample, element] = values[sample, element]
        return out if bool(out.any()) else None

    def moved(self, form: Form) -> tuple[Tensor, Tensor] | None:
        """How far flips of the own sample move a node down and up, (states, n, *shape); None for not at
        all."""
        parts = (form.on_phase, form.on_bend, form.charge)
        known = next((part for part in parts if part is not None), None)
        if known is None:
            return None
        count, rank = max(len(p) for p in parts if p is not None), known.dim() - 2
        possible, largest = (
            part[:, :count].reshape(len(part), count, -1, *[1] * rank)
            for part in (self.possible, self.largest)
        )
        known = led(known, count)
        on_phase, on_bend, charge = (None if p is None else led(p, count) for p in parts)
        found = []
        for sign in (-1.0, 1.0):
            cost = torch.zeros_like(known)
            if on_phase is not None:
                cost = cost + sign * on_phase
            if charge is not None:
                cost = cost + charge
            cost = cost.expand(len(possible), *cost.shape)
            if on_bend is not None:
                cost = cost + largest * (sign * on_bend).clamp(min=0.0)
            found.append((cost.clamp(min=0.0) * possible).sum(1))
        return found[0], found[1]


@dataclass(frozen=True)
class FlipRows(Stacked):
    """Some elements of a node.

    Attributes:
        samples, elements: which, (r,): samples of the batch, and flat elements of the node.
        own: sample generators of these samples, (r, parts).
        jacobian: (r, p).
        spread: these rows as directions, noise of the node and of its sample's flips included.
        plain: the same without what the flips of this step do.
    """

    samples: Tensor
    elements: Tensor
    own: Tensor
    jacobian: Tensor
    spread: Spread
    plain: Spread

    def both(self, zonotope: HybridZonotope, shared: StateBounds) -> tuple[Bound, Bound]:
        """Bounds upwards and downwards with shared multipliers."""
        ones = torch.ones_like(self.spread.below)
        supports: Sequence[Tensor | None] = (None, None)
        if not zonotope.flips.rows:
            supports = zonotope.samples.both_supports(self.spread.on_moves)
        up, down = (
            bound(
                replace(self.spread.towards(sign * ones), supports=known),
                zonotope.flips,
                alpha,
                zonotope.samples,
                more,
            )
            for sign, known, (alpha, more) in zip(
                (1.0, -1.0), supports, shared.added(self.jacobian), strict=True
            )
        )
        return up, down


def rows_of(
    form: Form,
    zonotope: HybridZonotope,
    shared: StateBounds,
    columns: Tensor,
    slots: Slots,
    keep: Tensor | None = None,
) -> Iterator[FlipRows]:
    """All elements of a node with a sample axis, some at a time, ordered by elements, then samples.

    ``keep`` (n, *shape) is a mask of the elements that are wanted; None for all.
    """
    samples, elements = len(columns), form.centre[0].numel()

    def flat(part: Tensor) -> Tensor:
        """(..., n, *shape) to (..., rows)."""
        lead = part.shape[: part.dim() - form.centre.dim()]
        return part.reshape(*lead, samples, elements).transpose(-1, -2).reshape(*lead, -1)

    on_state = form.on_state
    assert isinstance(on_state, Local)
    moved = slots.moved(form)
    low, high, sizes = flat(-form.rest.lower), flat(form.rest.upper), flat(form.size)
    more = None if moved is None else (flat(moved[0]), flat(moved[1]))
    owed = None if form.owed is None else (flat(-form.owed.lower).T, flat(form.owed.upper).T)
    on_moves = None if form.on_moves is None else flat(form.on_moves).T
    width = zonotope.samples.count * max(1, zonotope.samples.width)
    widest = max(1, width, zonotope.flips.count, zonotope.size)
    chunk = max(1, min(AT_ONCE // widest, max(FEWEST, CACHED // widest)))
    if chunk < samples * elements:  # those of one unit read few parameters
        chunk = min(chunk, samples)
    every = torch.arange(samples * elements, device=columns.device)
    for index in (every if keep is None else every[flat(keep)]).split(chunk):
        if not len(index):
            return
        sample = index % samples
        own = columns[sample]
        jacobian = on_state.rows(sample, index // samples)
        spread = zonotope.spread(jacobian, shared.terms, many=True)
        # Coefficients on the state are sums over symbols.
        longer = spread.operations + 4.0 * on_state.symbols
        spread = replace(spread, size=spread.size + sizes[index], operations=longer)
        if on_moves is not None:
            for column in own.T:
                at = (column >= 0).nonzero()[:, 0]
                spread.on_moves[at, column[at]] += on_moves[index[at]]
        if owed is not None:
            down, up = spread.down + owed[0][index], spread.up + owed[1][index]
            spread = replace(spread, down=down, up=up)
        plain = _with_noise(spread, low[:, index], high[:, index], own)
        spread = plain
        if more is not None:
            spread = _with_noise(plain, more[0][:, index], more[1][:, index], own)
        yield FlipRows(sample, index // samples, own, jacobian, spread, plain)


def _with_noise(spread: Spread, low: Tensor, high: Tensor, own: Tensor) -> Spread:
    """Noise of a sample with generators ``own`` (r, parts), (states, r) towards either side."""
    ends = []
    for total, by_sample, noise in (
        (spread.below, spread.down, low),
        (spread.above, spread.up, high),
    ):
        base, added = by_part(noise, own.shape[1])
        by_sample = by_sample.clone()
        for column, more in zip(own.T, added * (1.0 + gamma(4)), strict=True):
            at = (column >= 0).nonzero()[:, 0]
            by_sample[at, column[at]] += more[at]
        ends.append((total + base, by_sample))
    (below, down), (above, up) = ends
    return replace(spread, below=below, above=above, down=down, up=up)


def with_flips(
    spread: Spread, rows: FlipRows, form: Form, slots: Slots, before: Flips, known: Flips
) -> Spread:
    """The plain spread of rows where the flips of their own samples, this step's, are generators.

    ``known`` are these flips, ``before`` those of earlier steps.
    """
    count = before.count + known.count
    spread = replace(
        spread,
        on_phase=widened(spread.on_phase, count).clone(),
        on_bend=widened(spread.on_bend, count).clone(),
        charge=widened(spread.charge, before.rows + known.rows).clone(),
    )
    number = slots.number[:, rows.samples]  # (slots, r)
    slot, row = (number >= 0).nonzero(as_tuple=True)
    flip = number[slot, row]
    for target, part in (
        (spread.on_phase, form.on_phase),
        (spread.on_bend, form.on_bend),
    ):
        if part is not None:
            target[row, flip] += _at(led(part, len(number)), slot, rows, row)
    if form.charge is None or not len(flip):
        return spread
    charge = _at(led(form.charge, len(number)), slot, rows, row)
    local = flip - before.count
    own_row = known.row_of[local]
    kept = own_row >= 0
    spread.charge[row[kept], before.rows + own_row[kept]] += charge[kept]
    by_own = ~kept & known.alone[local] & (known.own[local] >= 0)
    by_all = ~kept & ~by_own
    noise = charge * (1.0 + gamma(8.0 * len(slots.number)))
    own = torch.zeros_like(spread.up)
    own.index_put_((row[by_own], known.own[local][by_own]), noise[by_own], accumulate=True)
    every = torch.zeros_like(spread.below).index_add(0, row[by_all], noise[by_all])
    return replace(
        spread,
        below=spread.below + every,
        above=spread.above + every,
        down=spread.down + own,
        up=spread.up + own,
    )


def _at(part: Tensor, slot: Tensor, rows: FlipRows, row: Tensor) -> Tensor:
    """Coefficients (slots, n, *shape) of some rows on some slots."""
    return (
        part.flatten(2)[slot, rows.samples[row], rows.elements[row]]
        if part.dim() > 2
        else (part[slot, rows.samples[row]])
    )
