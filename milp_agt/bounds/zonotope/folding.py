"""Larger sets with less in them: without the least flips; and coordinates alone: signs and projections."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.state import HybridZonotope
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma

# The share of the memory that generators of flips may take.
FLIPS_SHARE = 32


def most_flips(size: int, memory: int) -> int:
    """How many flips are generators, with two coefficients for each coordinate."""
    return max(1, memory // (FLIPS_SHARE * 16 * size))


def with_flips(zonotope: HybridZonotope, most: int) -> HybridZonotope:
    """The same, or a larger set, with at most the ``most`` flips that move most, and those with C3.

    What another one adds to a coordinate, ``F phi + Q rho`` with rho <= U phi, lies between
    ``-pos(-F + U pos(-Q))`` and ``pos(F + U pos(Q))``: noise of its own sample where only that can flip
    it, else of everyone, in the newest group, onto which nothing came yet. Flips that rows read stay.
    """
    flips, noise = zonotope.flips, zonotope.noise
    if flips.rows or flips.count <= most:
        return zonotope
    bends = flips.largest * zonotope.on_bend
    worth = zonotope.on_phase.abs().sum(0) + bends.abs().sum(0)
    worth[flips.limited] = torch.inf
    keep = worth.topk(max(most, flips.limits)).indices.sort().values
    gone = torch.ones_like(flips.alone)
    gone[keep] = False
    alone, others = (part[gone[part]] for part in (flips.paid_alone, flips.paid_by_all))
    below, above = noise.below.clone(), noise.above.clone()
    down, up = noise.down.clone(), noise.up.clone()
    grow = 1.0 + gamma(4.0 * flips.count + 8.0)
    for part, owned in ((alone, True), (others, False)):
        phase, bend = zonotope.on_phase[:, part], bends[:, part]
        error = gamma(8) * (phase.abs() + bend.abs())
        for sign, every, own in ((-1.0, below, down), (1.0, above, up)):
            moved = sign * phase + (sign * bend).clamp(min=0.0)
            moved = (moved.clamp(min=0.0) + error) * grow
            if owned:
                own[-1].index_add_(1, flips.own[part], moved)
                own[-1] += (grow - 1.0) * own[-1].abs()
            else:
                every[-1] = (every[-1] + moved.sum(1)) * grow
    return replace(
        zonotope,
        flips=flips.only(keep),
        on_phase=zonotope.on_phase[:, keep],
        on_bend=zonotope.on_bend[:, keep],
        noise=replace(noise, below=below, above=above, down=down, up=up),
    )


def sign_of(box: Interval, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``sign(x)`` of coordinates in a box, (p,): the sign at the centre, and how far it may be below and
    above."""
    middle = torch.sign(centre)
    return middle, middle - torch.sign(box.lower), torch.sign(box.upper) - middle


def projected(
    zonotope: HybridZonotope, box: Interval, used: int, ends: tuple[float, float]
) -> HybridZonotope:
    """The set after the first ``used`` coordinates, which lie in ``box``, are clamped to an interval.

    A coordinate whose centre is inside keeps its generators: what the clamp takes away is at most how far
    its box lies beyond the end. One whose centre is outside becomes that end, and noise up to where the
    clamped box reaches. Both are noise of everyone, in the newest group, onto which nothing came yet.
    """
    low, high = ends
    lower, upper = box.lower[:used], box.upper[:used]
    centre = zonotope.centre[:used]
    inside = (centre >= low) & (centre <= high)
    clamped = centre.clamp(low, high)
    from_below = torch.where(
        inside, (upper - high).clamp(min=0.0), clamped - lower.clamp(low, high)
    )
    from_above = torch.where(inside, (low - lower).clamp(min=0.0), upper.clamp(low, high) - clamped)
    grow = 1.0 + gamma(8)
    keep = torch.ones_like(zonotope.centre)
    keep[:used] = inside.to(keep)
    noise = zonotope.noise
    onto = noise.onto * keep[:, None]
    below, above = noise.below.clone(), noise.above.clone()
    onto[-1] = torch.eye(zonotope.size, dtype=onto.dtype, device=onto.device)
    # The newest group acts on its own coordinate alone, so that its noise there goes with the generators.
    parts = {name: getattr(noise, name).clone() for name in ("down", "up", "charge")}
    for name, part in parts.items():
        part[-1] *= keep[:, None]
        parts[name] = part
    below[-1] *= keep
    above[-1] *= keep
    below[-1, :used] += from_below * grow + TINY
    above[-1, :used] += from_above * grow + TINY
    new = zonotope.centre.clone()
    new[:used] = clamped
    return replace(
        zonotope,
        centre=new,
        on_moves=zonotope.on_moves
        if zonotope.is_folded
        else zonotope.on_moves * keep[:, None, None],
        on_phase=zonotope.on_phase * keep[:, None],
        on_bend=zonotope.on_bend * keep[:, None],
        noise=replace(noise, onto=onto, below=below, above=above, **parts),
        squares=zonotope.squares * keep[:, None, None],
    )
