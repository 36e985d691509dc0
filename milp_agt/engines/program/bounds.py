"""Objectives over one program: dual bounds of every entry of the state, met with what is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.core.expression import stacked, widened
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits, Termination
from milp_agt.engines.program.window import EncodedWindow
from milp_agt.engines.step import State
from milp_agt.errors import EncodingError
from milp_agt.solvers.base import Solver


@dataclass(frozen=True)
class ProgramReport:
    """What bounding a state by programs took: sizes, solves, and what was left to the cheaper bound."""

    size: dict[str, int]
    solves: int
    skipped: int
    limited: int
    seconds: float


@dataclass(frozen=True)
class SolveOptions:
    """How a program engine solves: back end, limits of one solve, and when the whole run must end.

    ``worth`` is the width below which an entry is left to the cheaper bound; ``deadline`` is a time
    of ``time.monotonic``.
    """

    solver: Solver
    limits: Limits = field(default_factory=Limits)
    worth: float = 0.0
    deadline: float | None = None


def bound_state(
    encoded: EncodedWindow, box: State, options: SolveOptions
) -> tuple[State, ProgramReport]:
    """Meet of ``box`` with the dual bounds of both ends of every entry of the state.

    Raises:
        EncodingError: the program is infeasible, although the nominal run is feasible.
        SoundnessError: the meet is empty.
    """
    started = time.monotonic()
    names = list(encoded.state)
    rows = stacked([encoded.state[n].reshape((encoded.state[n].size,)) for n in names], (-1,))
    ends = {1.0: rows.below, -1.0: rows.above}
    columns = np.concatenate([end.matrix.indices for end in ends.values()])
    program, kept = encoded.program.needed_for(np.unique(columns).astype(np.int64))
    lower = np.concatenate([box[n].lower.cpu().numpy().reshape(-1) for n in names])
    upper = np.concatenate([box[n].upper.cpu().numpy().reshape(-1) for n in names])
    new_lower, new_upper = lower.copy(), upper.copy()
    solves = limited = 0
    worth = (upper - lower) > options.worth
    session = options.solver.open(program)
    try:
        for sign, target in ((1.0, new_lower), (-1.0, new_upper)):
            end = ends[sign]
            matrix = widened(end.matrix, encoded.program.matrix.shape[1])[:, kept]
            for j in np.flatnonzero(worth):
                limits = _remaining(options)
                if limits is None:
                    limited += 1
                    continue
                objective = sign * matrix[[j]].toarray()[0]
                outcome = session.minimise(objective, limits)
                solves += 1
                if outcome.termination is Termination.INFEASIBLE:
                    raise EncodingError(
                        "The program of a training step must be feasible",
                        f"'{outcome.raw_status}' for entry {j} of the state",
                        "please report this run: the nominal training is a feasible point",
                    )
                if outcome.termination is not Termination.OPTIMAL:
                    limited += 1
                if outcome.dual_bound is None or np.isnan(outcome.dual_bound):
                    continue
                slack = end.error[j] + 2.0**-50 * (abs(end.constant[j]) + abs(outcome.dual_bound))
                bound = outcome.dual_bound + sign * end.constant[j] - slack
                target[j] = sign * bound
    finally:
        session.close()
    report = ProgramReport(
        size=program.size,
        solves=solves,
        skipped=int(2 * (~worth).sum()),
        limited=limited,
        seconds=time.monotonic() - started,
    )
    return _met(box, names, new_lower, new_upper), report


def _remaining(options: SolveOptions) -> Limits | None:
    """Limits of the next solve; None when the time of the whole run is over."""
    if options.deadline is None:
        return options.limits
    left = options.deadline - time.monotonic()
    if left <= 0:
        return None
    own = options.limits.time
    return Limits(
        min(left, own) if own is not None else left, options.limits.gap, options.limits.nodes
    )


def _met(
    box: State,
    names: Sequence[str],
    lower: npt.NDArray[np.float64],
    upper: npt.NDArray[np.float64],
) -> State:
    sizes = [box[n].lower.numel() for n in names]
    lows, highs = torch.from_numpy(lower).split(sizes), torch.from_numpy(upper).split(sizes)
    new: State = {}
    for name, low, high in zip(names, lows, highs, strict=True):
        like: Tensor = box[name].lower
        solved = Interval(low.to(like).reshape(like.shape), high.to(like).reshape(like.shape))
        new[name] = box[name].meet(solved, f"'{name}' by program and by cheaper relaxations")
    return new
