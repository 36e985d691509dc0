"""Dual bounds of every entry of the state by programs, met with the known box."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from milp_agt.bounds.program.incumbents import Incumbents, incumbents_of
from milp_agt.bounds.program.solves import Evidence, Objectives, SolveOptions, minimise
from milp_agt.bounds.program.window import EncodedWindow
from milp_agt.bounds.program.witness import Witness
from milp_agt.bounds.step import State
from milp_agt.core.expression import Array, stacked
from milp_agt.core.interval import Interval
from milp_agt.core.program import SIZES


@dataclass(frozen=True)
class ProgramReport:
    """Report on bounds by programs: sizes, solves, and objectives that kept the cheaper bound.

    ``evidence`` has the program, unless nothing was solved; ``size`` is its size. ``incumbents`` are the
    data of points found by the solver, as starts for attacks, step by step.
    """

    size: dict[str, int]
    solves: int
    skipped: int
    limited: int
    lost: int
    seconds: float
    evidence: tuple[Evidence, ...] = field(repr=False)
    incumbents: tuple[Sequence[Incumbents], ...] = field(default=(), repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """What a record of a step keeps."""
        return {
            **self.size,
            "solves": self.solves,
            "skipped": self.skipped,
            "limited": self.limited,
            "lost": self.lost,
        }


def improved(
    known: Array, gain: Array, build: Callable[[], Objectives], options: SolveOptions
) -> tuple[Array, ProgramReport]:
    """``max(known, dual bound)`` of every objective that may gain more than ``worth``.

    Args:
        known: lower bounds already proved, (objectives,).
        gain: the most that each of them may gain, (objectives,).
        build: the program with all objectives, in their order; made only if there is something to solve.

    Raises:
        EncodingError: the program is infeasible, although the nominal run or an attacked one is feasible.
    """
    started = time.monotonic()
    wanted = gain > options.worth
    late = options.deadline is not None and started >= options.deadline
    skipped, empty = int((~wanted).sum()), dict.fromkeys(SIZES, 0)
    if late or not wanted.any():
        return known, ProgramReport(empty, 0, skipped, int(wanted.sum()), 0, 0.0, ())
    asked = build()
    solved = minimise(asked, options)
    points = incumbents_of(asked.batches, solved.points)
    report = ProgramReport(
        asked.program.size,
        solved.solves,
        skipped,
        solved.limited,
        solved.lost,
        time.monotonic() - started,
        (Evidence(asked, solved.multipliers),),
        (points,) if points else (),
    )
    return np.maximum(known, solved.bounds), report


def bound_state(
    encoded: EncodedWindow, box: State, options: SolveOptions, witness: Witness | None = None
) -> tuple[State, ProgramReport]:
    """Meet of ``box`` with the dual bounds of both ends of every entry of the state, by one program.

    Raises:
        EncodingError: the program is infeasible, although the nominal run is feasible.
        SoundnessError: the meet is empty, or a run of ``witness`` lies outside a bound.
    """
    names = list(box)
    known = ends_of(box, names)
    gain = np.tile(_widths(known), 2)
    found, report = improved(known[0], gain, lambda: both_ends(encoded, names, gain), options)
    if witness is not None:
        witness.check_state(names, found, options.solver.name)
    return _met(box, found[None]), report


def both_ends(encoded: EncodedWindow, names: Sequence[str], gain: Array) -> Objectives:
    """Objectives for the lower ends of all entries of the state after a window, then negative upper ends."""
    new = [encoded.state[name] for name in names]
    rows = stacked([e.reshape((e.size,)) for e in new], (-1,))
    # -theta is bounded from below by the negative upper end.
    both = stacked([rows.below, rows.above.scale(-1.0)], (-1,))
    return Objectives.of(encoded.program, both, gain, encoded.batches)


def ends_of(state: State, names: Sequence[str]) -> Array:
    """Both ends of a box as lower bounds, (cases, 2 * entries): lower ends, negative upper ends."""
    low = torch.cat([state[name].lower.flatten(1) for name in names], 1)
    high = torch.cat([state[name].upper.flatten(1) for name in names], 1)
    return np.asarray(torch.cat([low, -high], 1).cpu().numpy())


def _widths(ends: Array) -> Array:
    lower, negative_upper = np.split(ends.min(0), 2)
    widths: Array = -negative_upper - lower
    return widths


def _met(box: State, ends: Array) -> State:
    """The meet of a box with lower bounds of its ends, (cases, 2 * entries), see :func:`ends_of`."""
    sizes = [b.lower[0].numel() for b in box.values()]
    low_ends, high_ends = torch.from_numpy(ends).chunk(2, 1)
    lows, highs = low_ends.split(sizes, 1), (-high_ends).split(sizes, 1)
    new: State = {}
    for name, low, high in zip(box, lows, highs, strict=True):
        like: Tensor = box[name].lower
        solved = Interval(low.to(like).reshape(like.shape), high.to(like).reshape(like.shape))
        new[name] = box[name].meet(solved, f"'{name}' by program and by cheaper relaxations")
    return new
