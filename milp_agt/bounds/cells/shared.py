"""A search by several processes: the selections dealt out, each with its own tree."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from milp_agt.bounds.cells.goals import Goal
from milp_agt.bounds.cells.passing import Run
from milp_agt.bounds.cells.plan import Cover
from milp_agt.bounds.cells.search import Decided, Limits, Search
from milp_agt.bounds.cells.tree import Branch
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
