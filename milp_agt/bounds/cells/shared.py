"""A search by several processes, the selections dealt out; the box of the final parameters, end by end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.bounds.cells.goals import Ends, Goal
from milp_agt.bounds.cells.passing import Run
from milp_agt.bounds.cells.plan import Cover
from milp_agt.bounds.cells.search import Decided, Limits, Search
from milp_agt.bounds.cells.tree import Branch
from milp_agt.bounds.step import State
from milp_agt.bounds.zonotope.layout import Layout
from milp_agt.core.interval import Interval
from milp_agt.core.workers import on_workers


def searched(
    cover: Cover,
    goal: Goal,
    limits: Limits,
    workers: int,
    known: Interval | None = None,
    reached: Tensor | None = None,
) -> Decided:
    """A search over all selections, on processes of joblib where there are several workers.

    Work of a worker that dies is done again; selections of one that dies once more keep what is known.
    All stop at the same instant, so that work done again gets the time that is left.

    Args:
        known: bounds of the forms that hold everywhere, (n, forms); None for none.
        reached: the least that real trainings are known to reach, (n,); None for none.

    Raises:
        SoundnessError: a real training outside the bounds of its own cell.
        InvalidInputError: several workers without joblib.
    """
    every = cover.selections
    pieces = [every[k::workers] for k in range(min(workers, len(every)))]
    until, begun = time.time() + limits.seconds, time.monotonic()

    def given(
        part: Tensor,
    ) -> tuple[Run, Goal, Tensor, float, float, Interval | None, Tensor | None]:
        return cover.run, goal, part, until, limits.nodes / len(pieces), known, reached

    if len(pieces) <= 1:
        return _alone(*given(every))
    answers = on_workers(_alone, pieces, given, workers)
    # What nobody searched are roots without a bound of their own.
    parts = [
        answers[k] if k in answers else Search(cover.run, goal, piece, Limits(0.0), known).run()
        for k, piece in enumerate(pieces)
    ]
    return _together(parts, goal, time.monotonic() - begun)


def _alone(
    run: Run,
    goal: Goal,
    selections: Tensor,
    until: float,
    nodes: float,
    known: Interval | None,
    reached: Tensor | None,
) -> Decided:
    search = Search(run, goal, selections, Limits(until - time.time(), nodes), known=known)
    if reached is not None:
        search.reached = reached.clone()
    return search.run()


def _together(parts: Sequence[Decided], goal: Goal, seconds: float) -> Decided:
    lower = torch.stack([part.bounds.lower for part in parts]).amin(0)
    upper = torch.stack([part.bounds.upper for part in parts]).amax(0)
    reached, worst = torch.stack([part.reached for part in parts]).min(0)
    point = torch.arange(len(reached), device=reached.device)
    samples, moves = (
        torch.stack([getattr(part, name) for part in parts])[worst, point]
        for name in ("samples", "moves")
    )
    margin = goal.margin(Interval(lower[None], upper[None]), reached)[0]
    tree: list[Branch] = []
    for part in parts:
        first = len(tree)
        tree += [branch.moved(first) for branch in part.tree]
    return Decided(
        Interval(lower, upper),
        reached,
        samples,
        moves,
        ~((margin > 0.0) | goal.lost(reached)),
        tuple(tree),
        seconds,
        any(part.limited for part in parts),
    )


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
    box = Layout.box(known[name] for name in run.step_graph.parameters)
    ends = torch.cat([box.lower, -box.upper])[:, None]
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
