"""Dual bounds of every entry of the state by programs, met with the known box."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from milp_agt.bounds.program.by_choice import Branched, minimise_leaves
from milp_agt.bounds.program.incumbents import Incumbents
from milp_agt.bounds.program.solves import Evidence, Objectives, SolveOptions
from milp_agt.bounds.program.tightening import Tightening
from milp_agt.bounds.program.window import EncodedWindow
from milp_agt.bounds.program.witness import Witness
from milp_agt.bounds.step import State
from milp_agt.core.expression import Array, stacked
from milp_agt.core.interval import Interval
from milp_agt.core.program import SIZES


@dataclass(frozen=True)
class ProgramReport:
    """Report on bounds by programs: sizes, solves, and objectives that kept the cheaper bound.

    ``evidence`` has every solved program; ``size`` is that of the largest. ``listed`` are the boxes of
    the choices, if there are any, met with the bounds proved for each. ``tightening`` reports on the ranges
    of the programs. ``incumbents`` are the data of points found by solvers, as starts for attacks, for
    each program step by step.
    """

    size: dict[str, int]
    solves: int
    skipped: int
    limited: int
    lost: int
    seconds: float
    evidence: tuple[Evidence, ...] = field(repr=False)
    listed: tuple[State, ...] = field(default=(), repr=False)
    tightening: Tightening = field(default_factory=Tightening)
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
            "tightened": self.tightening.tightened,
            "fixed": self.tightening.fixed,
        }

    @staticmethod
    def of(found: Branched, seconds: float, listed: tuple[State, ...] = ()) -> ProgramReport:
        sizes = [evidence.objectives.program.size for evidence in found.evidence]
        return ProgramReport(
            max(sizes, key=lambda size: size["columns"], default=dict.fromkeys(SIZES, 0)),
            found.solves,
            found.skipped,
            found.limited,
            found.lost,
            seconds,
            found.evidence,
            listed,
            incumbents=tuple(own for own in found.incumbents if own),
        )


def bound_state(
    encoded: EncodedWindow, box: State, options: SolveOptions, witness: Witness | None = None
) -> tuple[State, ProgramReport]:
    """Meet of ``box`` with the dual bounds of both ends of every entry of the state, by one program.

    Raises:
        EncodingError: the program is infeasible, although the nominal run is feasible.
        SoundnessError: the meet is empty, or a run of ``witness`` lies outside a bound.
    """
    return bound_choices(box, [box], lambda _: encoded, options, witness)


def bound_choices(
    box: State,
    listed: Sequence[State],
    build: Callable[[int], EncodedWindow],
    options: SolveOptions,
    witness: Witness | None = None,
) -> tuple[State, ProgramReport]:
    """:func:`bound_state`, choice by choice: ``listed`` are boxes that together contain the state.

    Each has an axis of choices; ``build`` returns the program of a choice, numbered through all of them.

    Raises:
        EncodingError: the program of a choice is infeasible.
        SoundnessError: the meet is empty, or a run of ``witness`` lies outside a bound.
    """
    started = time.monotonic()
    names = list(box)
    known = np.concatenate([ends_of(state, names) for state in listed])
    gain = np.tile(_widths(known), 2)
    found = minimise_leaves(
        known, gain, lambda choice: both_ends(build(choice), names, gain), options
    )
    if witness is not None:
        witness.check_state(names, found.least, options.solver.name)
    counts = np.cumsum([len(next(iter(state.values())).lower) for state in listed])
    parts = np.split(found.bounds, counts[:-1])
    own = tuple(_met(state, ends) for state, ends in zip(listed, parts, strict=True))
    report = ProgramReport.of(found, time.monotonic() - started, own)
    return _met(box, found.least[None]), report


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
