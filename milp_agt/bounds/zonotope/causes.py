"""What bounds of linear forms are made of: who is charged, and for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.ascent import maximiser
from milp_agt.bounds.zonotope.dual import Bound, Directions, gathered
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.multipliers import Multipliers
from milp_agt.bounds.zonotope.questions import ascended, lowest
from milp_agt.bounds.zonotope.samples import SampleGenerators

if TYPE_CHECKING:
    from milp_agt.bounds.zonotope.engine import ZonotopePass


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
    noise = d.base + (paid * d.up).sum(1)
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
