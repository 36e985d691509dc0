"""Linear questions about the last states: directions on the final set, and what their bounds are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.ascent import ascend, maximiser
from milp_agt.bounds.zonotope.branching import EndTrees, branched_on
from milp_agt.bounds.zonotope.dual import Bound, Directions, Multipliers, bound, gathered
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.bounds.zonotope.squares import narrowed, spared
from milp_agt.bounds.zonotope.state import AT_ONCE
from milp_agt.core.rounding import TINY, gamma

if TYPE_CHECKING:
    from milp_agt.bounds.zonotope.engine import ZonotopePass


def least(
    forward: ZonotopePass, coefficients: Mapping[str, Tensor], searching: bool = True
) -> Tensor:
    """Lower bounds of linear forms of the state over all that training reaches, (rows,).

    Coefficients by tensor of the state, (rows, *shape). Rounding of this bound is covered. Without
    ``searching`` multipliers are those of the ends of the state.
    """
    steps = forward.effort.last if searching else 0
    pieces = [low for low, _, _ in _pieces(forward, coefficients, steps)]
    return torch.cat(pieces)


def least_by_branching(
    forward: ZonotopePass,
    coefficients: Mapping[str, Tensor],
    wanted: Tensor,
    seconds: float,
    workers: int = 1,
) -> tuple[Tensor, EndTrees]:
    """As :func:`least`, by a tree of each form over units and phases, with these trees.

    Args:
        wanted: forms whose bound is at least this are not searched further, (rows,); inf for none.
        seconds: a limit, at which the bounds so far count.
        workers: processes that the forms are dealt out to.
    """
    zonotope = forward.zonotope
    rows = torch.cat([coefficients[name].flatten(1) for name in forward.layout.slices], 1)
    centre, error = _at_centre(forward, rows)
    enough = (centre - error - wanted) * (1.0 - gamma(32)) - TINY
    found = branched_on(zonotope, forward.bounds, -rows, enough, seconds, workers)
    low = centre - found.most - error - gamma(8) * (centre.abs() + found.most.abs())
    return _known(low), found.trees


def _at_centre(forward: ZonotopePass, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Values of rows at the centre, and what rounding does to them."""
    centre = forward.zonotope.centre
    error = gamma(8.0 * forward.zonotope.size + 64.0) * (rows.abs() @ centre.abs()) + TINY
    return rows @ centre, error


def least_by_sample(
    forward: ZonotopePass, coefficients: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Lower bounds that know who is poisoned: each form is at least ``base - sum_{i in S} dev_i`` for
    every set S within the budget. ``base`` (rows,), ``dev`` (rows, N) over the samples of the data set.
    """
    samples = forward.zonotope.samples
    bases, devs = [], []
    for _, base, dev in _pieces(forward, coefficients):
        every = dev.new_zeros(len(dev), samples.samples)
        every.index_add_(1, samples.columns, dev * (1.0 + gamma(4 * samples.numbers.shape[1] + 8)))
        bases.append(base)
        devs.append(every)
    return torch.cat(bases), torch.cat(devs)


def ascended(
    forward: ZonotopePass, coefficients: Mapping[str, Tensor], steps: int | None = None
) -> Iterator[tuple[Tensor, Directions, Multipliers, Bound]]:
    """For some rows at a time: these, their opposites on the generators, multipliers, and the bound.

    ``steps`` are those of the search, by default those after the last step of training.
    """
    steps = forward.effort.last if steps is None else steps
    zonotope, samples = forward.zonotope, forward.zonotope.samples
    rows = torch.cat([coefficients[name].flatten(1) for name in forward.layout.slices], 1)
    widest = max(1, samples.count * samples.width, zonotope.flips.count, zonotope.size)
    for part in rows.split(max(1, AT_ONCE // widest)):
        down = -part
        spread = zonotope.spread(down, forward.bounds.terms)
        directions = spread.towards(torch.ones_like(spread.size))
        alpha, _ = forward.bounds.shared(down)
        alpha = ascend(directions, zonotope.flips, samples, alpha, steps)
        found = bound(directions, zonotope.flips, alpha, samples)
        yield part, directions, alpha, narrowed(found, directions, zonotope.flips, alpha, samples)


def lowest(forward: ZonotopePass, part: Tensor, found: Bound) -> Tensor:
    """Lower bounds of rows from the bounds of their opposites, rounding covered."""
    centre, error = _at_centre(forward, part)
    total = found.total(forward.zonotope.samples)
    return _known(centre - total - error - gamma(8) * (centre.abs() + total.abs()))


def _pieces(
    forward: ZonotopePass, coefficients: Mapping[str, Tensor], steps: int | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For some rows at a time: the bound, its part without samples, and what each sample may take."""
    for part, _, _, found in ascended(forward, coefficients, steps):
        centre, error = _at_centre(forward, part)
        reach = centre.abs() + found.total(forward.zonotope.samples).abs()
        base = centre - found.rest - found.slack - error - gamma(8) * (reach + found.rest.abs())
        yield lowest(forward, part, found), _known(base), found.dev


def _known(bounds: Tensor) -> Tensor:
    """What is no number proves nothing."""
    return torch.where(torch.isnan(bounds), -torch.inf, bounds)


class Cause(Enum):
    """What a bound is made of."""

    MOVES = "moves"
    OWN_FLIPS = "flips of poisoned samples"
    OTHER_FLIPS = "flips of clean samples"
    NOISE = "noise"
    ROUNDING = "rounding"
    PREDICTION = "predictions"  # of test points, in straight lines: of questions about these alone


@dataclass(frozen=True)
class Charges:
    """How far bounds of linear forms lie from the centre of the set, split up.

    Attributes:
        by_sample: what each sample of the data set is charged if it is poisoned, (rows, N), >= 0.
        by_cause: (rows,) each. Their sum is the distance, up to rounding of the sum.
    """

    by_sample: Tensor
    by_cause: Mapping[Cause, Tensor]

    @staticmethod
    def cat(parts: Sequence[Charges]) -> Charges:
        by_cause = {c: torch.cat([p.by_cause[c] for p in parts]) for c in parts[0].by_cause}
        return Charges(torch.cat([p.by_sample for p in parts]), by_cause)


def charges(forward: ZonotopePass, coefficients: Mapping[str, Tensor]) -> Charges:
    """Of the lower bounds that :func:`questions.least` has of these forms.

    A bound is what a maximiser of the Lagrangian reaches, at the multipliers of the bound. Its poisoned
    samples, moves and flips are charged what they add to the form themselves (see :func:`dual.bound`):

        moves      sum_{i in S} g_i e_i
        flips      for each one: its price, and what its rows C1, C2 and C3 pay; of samples in S, of others
        noise      what steps could not express in generators (curvature, products, moves that are
                   folded for lack of memory), a box at the start included
        rounding   of the set and of the evaluation

    What moves pay to rows of flips counts for the flips, so that these can be charged less than nothing.
    """
    samples, flips = forward.zonotope.samples, forward.zonotope.flips
    pieces = []
    for part, directions, alpha, found in ascended(forward, coefficients):
        every = found.dev.new_zeros(len(part), samples.samples)
        every.index_add_(1, samples.columns, found.dev)
        causes = _causes(directions, flips, alpha, samples, found)
        centre = part @ forward.zonotope.centre
        proved = found.rest + samples.worst(found.dev)
        causes[Cause.ROUNDING] = centre - lowest(forward, part, found) - proved
        pieces.append(Charges(every, causes))
    return Charges.cat(pieces)


def _causes(
    d: Directions, flips: Flips, alpha: Multipliers, samples: SampleGenerators, found: Bound
) -> dict[Cause, Tensor]:
    """The parts of ``rest + worst(dev)``, (r,) each."""
    opened = gathered(d, flips, alpha.rows, samples)
    paid, happens = maximiser(opened, flips, samples, alpha, found.dev)
    moves = samples.maximise(opened.moves) * paid.unsqueeze(-1)
    noise = d.base + (paid * (d.up - spared(d, opened.moves, samples))).sum(1)
    each = opened.costs * happens
    each[:, flips.limited] += alpha.limits * (paid @ flips.threshold.T - happens[:, flips.limited])
    if flips.rows:
        first, second = alpha.rows[0] / flips.least, alpha.rows[1] / flips.beyond
        charged = happens[:, flips.column] * d.charge
        rows = first * (flips.quiet - flips.margin + flips.above + paid @ flips.up.T)
        rows = rows + second * (flips.margin + flips.below + paid @ flips.down.T)
        rows = rows + (first - second) * (moves.flatten(1) @ flips.on_moves.flatten(1).T)
        each[:, flips.column] += rows - charged
        noise = noise + charged.sum(1)
    mine = flips.own >= 0
    if samples.count:
        by_poisoned = paid[:, flips.own.clamp(min=0)] * mine
    else:
        by_poisoned = torch.zeros_like(each)
    own = (each * by_poisoned).sum(1)
    return {
        Cause.MOVES: (d.on_moves * moves).sum((1, 2)),
        Cause.OWN_FLIPS: own,
        Cause.OTHER_FLIPS: each.sum(1) - own,
        Cause.NOISE: noise,
    }
