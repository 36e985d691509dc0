"""Dual bounds of every entry of the state over one program, met with what is known."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.core.expression import Array, stacked
from milp_agt.core.interval import Interval
from milp_agt.engines.program.objectives import Objectives, Solved, SolveOptions, minimise
from milp_agt.engines.program.tightening import Tightening
from milp_agt.engines.program.window import EncodedWindow
from milp_agt.engines.step import State


@dataclass(frozen=True)
class ProgramReport:
    """What bounding by a program took: sizes, solves, and what was left to the cheaper bound.

    ``objectives`` and ``multipliers`` are the evidence: see :class:`Solved`. ``tightening`` says what
    was done to the ranges that the program stands on.
    """

    size: dict[str, int]
    solves: int
    skipped: int
    limited: int
    lost: int
    seconds: float
    objectives: Objectives = field(repr=False)
    multipliers: Mapping[int, Array] = field(repr=False)
    tightening: Tightening = field(default_factory=Tightening)

    @staticmethod
    def of(objectives: Objectives, solved: Solved, seconds: float) -> ProgramReport:
        return ProgramReport(
            objectives.program.size,
            solved.solves,
            solved.skipped,
            solved.limited,
            solved.lost,
            seconds,
            objectives,
            solved.multipliers,
        )


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
    lower = np.concatenate([box[n].lower.cpu().numpy().reshape(-1) for n in names])
    upper = np.concatenate([box[n].upper.cpu().numpy().reshape(-1) for n in names])
    # -theta is bounded from below by the negative upper end.
    both = stacked([rows.below, rows.above.scale(-1.0)], (-1,))
    gain = np.concatenate([upper - lower] * 2)
    objectives = Objectives.of(encoded.program, both, gain)
    solved = minimise(objectives, options)
    new_lower = np.maximum(solved.bounds[: lower.size], lower)
    new_upper = np.minimum(-solved.bounds[lower.size :], upper)
    report = ProgramReport.of(objectives, solved, time.monotonic() - started)
    return _met(box, names, new_lower, new_upper), report


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
