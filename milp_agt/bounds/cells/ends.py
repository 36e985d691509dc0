"""The box of the final parameters over all cells, end by end."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.bounds.cells.goals import Ends
from milp_agt.bounds.cells.plan import Cover
from milp_agt.bounds.cells.search import Limits
from milp_agt.bounds.cells.shared import searched
from milp_agt.bounds.step import State
from milp_agt.core.interval import Interval

# What may stay between bounds and real trainings, as a share of what trainings span.
GAP = 0.02
# Trainings that are drawn to know that span, how many share a pass, and their share of the time.
DRAWN, AT_ONCE, TRIED = 2**14, 256, 0.1


def box_of_parameters(plan: Cover, limits: Limits, known: State, workers: int = 1) -> State:
    """A box that holds the parameters of every poisoned run, (1, *shape) each.

    ``known`` is a box that holds them, too: where it is as tight, nothing is searched. The search ends at
    a limit, or once no end is further than ``GAP`` of the span from what real trainings reach. Selections are
    dealt out to ``workers``.
    """
    run, begun = plan.run, time.monotonic()
    used = run.layout.parameters
    eye = torch.eye(run.layout.size, dtype=torch.float64, device=run.start.lower.device)[:used]
    least, largest = (end[:used] for end in _reached(plan, limits))
    span = largest - least
    # Parameters that nothing moves are measured by the others.
    scale = span.clamp(min=max(1e-12, 0.2 * float(span.mean())))
    goal = Ends(torch.cat([eye, -eye]), scale.repeat(2), GAP)
    boxes = [known[name] for name in run.step_graph.parameters]
    lower, upper = (
        torch.cat([getattr(box, end)[0].flatten() for box in boxes]) for end in ("lower", "upper")
    )
    ends = torch.cat([lower, -upper])[:, None]
    start = Interval(ends, torch.full_like(ends, torch.inf))
    limits = replace(limits, seconds=limits.seconds - (time.monotonic() - begun))
    decided = searched(plan, goal, limits, workers, start, torch.cat([least, -largest]))
    lower = decided.bounds.lower[:, 0]
    found = {}
    for name, part in run.layout.slices.items():
        if part.start < used:
            shape = (1, *run.layout.shapes[name])
            low, high = lower[:used][part], -lower[used:][part]
            found[name] = Interval(low.reshape(shape), high.reshape(shape))
    return found


def _reached(plan: Cover, limits: Limits) -> tuple[Tensor, Tensor]:
    """The least and the largest state of real trainings at corners of the moves, (P,) each.

    All corners of all selections, or ``DRAWN`` of them, in a share of the time.
    """
    run, (count, _) = plan.run, plan.selections.shape
    generator, begun = torch.Generator().manual_seed(0), time.monotonic()
    least = torch.full_like(run.start.lower, torch.inf)
    largest = -least
    corners = 2 ** (plan.selections.shape[1] * run.moves.width)
    total = count * corners
    order = torch.randperm(total, generator=generator)[:DRAWN].to(plan.selections.device)
    for part in order.split(AT_ONCE):
        samples = plan.selections[part // corners]
        lower, upper = run.moves.ranges(samples)
        bits = (part % corners)[:, None] >> torch.arange(lower.shape[1], device=part.device)
        state = run.trained(samples, torch.where(bits % 2 == 1, upper, lower))
        flat = torch.cat([state[name].flatten(1) for name in run.layout.slices], 1)
        least = torch.minimum(least, flat.amin(0))
        largest = torch.maximum(largest, flat.amax(0))
        if time.monotonic() - begun > TRIED * limits.seconds:
            break
    return least, largest
