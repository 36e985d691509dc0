"""The box of the final parameters over all cells, end by end."""

from __future__ import annotations

import torch

from milp_agt.bounds.cells.goals import Ends
from milp_agt.bounds.cells.plan import Cover
from milp_agt.bounds.cells.search import Limits, Search
from milp_agt.bounds.step import State
from milp_agt.core.interval import Interval

# What may stay between bounds and real trainings, as a share of what trainings span; trainings that
# are drawn to know that span, and how many share a pass.
GAP, DRAWN, AT_ONCE = 0.02, 2048, 256


def box_of_parameters(plan: Cover, limits: Limits, known: State) -> State:
    """A box that holds the parameters of every poisoned run, (1, *shape) each.

    ``known`` is a box that holds them, too: where it is as tight, nothing is searched. The search ends at
    a limit, or once no end is further than ``GAP`` of the span from what real trainings reach.
    """
    run = plan.run
    used = run.layout.parameters
    eye = torch.eye(run.layout.size, dtype=torch.float64, device=run.start.lower.device)[:used]
    span = _span(plan)[:used]
    # Parameters that nothing moves are measured by the others.
    scale = span.clamp(min=max(1e-12, 0.2 * float(span.mean())))
    goal = Ends(torch.cat([eye, -eye]), scale.repeat(2), GAP)
    boxes = [known[name] for name in run.step_graph.parameters]
    lower, upper = (
        torch.cat([getattr(box, end)[0].flatten() for box in boxes]) for end in ("lower", "upper")
    )
    ends = torch.cat([lower, -upper])[:, None]
    start = Interval(ends, torch.full_like(ends, torch.inf))
    search = Search(run, goal, plan.selections, limits, known=start)
    lower = search.run().bounds.lower[:, 0]
    found = {}
    for name, part in run.layout.slices.items():
        if part.start < used:
            shape = (1, *run.layout.shapes[name])
            low, high = lower[:used][part], -lower[used:][part]
            found[name] = Interval(low.reshape(shape), high.reshape(shape))
    return found


def _span(plan: Cover) -> torch.Tensor:
    """How far real trainings at corners of the moves are apart in each coordinate of the state, (P,)."""
    run, count = plan.run, len(plan.selections)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(count, generator=generator)[:DRAWN].to(plan.selections.device)
    least = torch.full_like(run.start.lower, torch.inf)
    largest = -least
    for part in order.repeat(max(1, min(4, DRAWN // count))).split(AT_ONCE):
        samples = plan.selections[part]
        lower, upper = run.moves.ranges(samples)
        coin = torch.rand(lower.shape, generator=generator).to(lower) < 0.5
        state = run.trained(samples, torch.where(coin, lower, upper))
        flat = torch.cat([state[name].flatten(1) for name in run.layout.slices], 1)
        least = torch.minimum(least, flat.amin(0))
        largest = torch.maximum(largest, flat.amax(0))
    return largest - least
