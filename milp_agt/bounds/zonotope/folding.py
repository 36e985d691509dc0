"""Flips beyond what memory allows, as noise: a larger set, whose cost does not grow from step to step."""

from __future__ import annotations

from dataclasses import replace

import torch

from milp_agt.bounds.zonotope.state import HybridZonotope
from milp_agt.core.rounding import gamma

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
                own[-1].index_add_(1, flips.own[part], moved).mul_(grow)
            else:
                every[-1] = (every[-1] + moved.sum(1)) * grow
    return replace(
        zonotope,
        flips=flips.only(keep),
        on_phase=zonotope.on_phase[:, keep],
        on_bend=zonotope.on_bend[:, keep],
        noise=replace(noise, below=below, above=above, down=down, up=up),
    )
