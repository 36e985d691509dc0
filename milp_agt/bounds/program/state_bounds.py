"""Solves of many objectives over one program, ordered by possible gain; both ends of the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.bounds.program.incumbents import EncodedBatch, Incumbents, incumbents_of
from milp_agt.bounds.program.window import EncodedWindow
from milp_agt.bounds.program.witness import Witness
from milp_agt.bounds.step import State
from milp_agt.core.expression import Array, Expression, Index, stacked, widened
from milp_agt.core.interval import Interval
from milp_agt.core.program import SIZES, Program
from milp_agt.core.results import Limits, SolveResult, Termination
from milp_agt.core.workers import on_workers
from milp_agt.errors import EncodingError
from milp_agt.solvers.solver import Solver

ROUNDING = 2.0**-50  # relative error of adding the constant to a bound, relative to both


@dataclass(frozen=True)
class SolveOptions:
    """How a program engine solves.

    Attributes:
        solver: the back end.
        limits: of each solve.
        worth: the least possible gain of an objective to solve; others keep the cheaper bound.
        deadline: a time of ``time.monotonic`` at which the whole run ends; None for no deadline.
        workers: processes of joblib (loky, or the backend of ``joblib.parallel_config``, a dask cluster
            for instance); 1 solves in this process.
    """

    solver: Solver
    limits: Limits = field(default_factory=Limits)
    worth: float = 0.0
    deadline: float | None = None
    workers: int = 1


@dataclass(frozen=True)
class Objectives:
    """Forms ``matrix @ columns + constant`` to be bounded from below, each within ``error``.

    Attributes:
        matrix: (objectives, columns).
        constant, error: (objectives,).
        gain: the most that a bound can gain over the known one, (objectives,).
        batches: the data of the steps, over the columns of the program.
    """

    program: Program
    matrix: sp.csr_matrix
    constant: Array
    error: Array
    gain: Array
    batches: tuple[EncodedBatch, ...] = ()

    @staticmethod
    def of(
        program: Program, forms: Expression, gain: Array, batches: Sequence[EncodedBatch] = ()
    ) -> Objectives:
        """Forms over the columns of a program, with the smallest part of it that bounds them."""
        wanted = np.unique(forms.matrix.indices).astype(np.int64)
        matrix = widened(forms.matrix, program.lower.size)
        part, kept = program.needed_for(wanted)
        matrix = sp.csr_matrix(matrix[:, kept])
        still = np.clip(0.0, program.lower, program.upper)  # for columns without influence here
        data = tuple(batch.over(kept, still) for batch in batches)
        return Objectives(part, matrix, forms.constant, forms.error, gain, data)


@dataclass(frozen=True)
class ProgramReport:
    """Lower bounds of objectives by programs, and what they took.

    Attributes:
        bounds: (objectives,); ``-inf`` where nothing was proved.
        size: of the program.
        solves: number of objectives given to a solver.
        skipped: number with too little to gain.
        limited: number that reached a limit, of their own or of the run.
        lost: number whose worker died twice.
        incumbents: the data of points found by the solver, as starts for attacks, step by step.
    """

    bounds: Array = field(repr=False)
    size: dict[str, int]
    solves: int
    skipped: int
    limited: int
    lost: int
    seconds: float
    incumbents: tuple[Sequence[Incumbents], ...] = field(default=(), repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """What a record of a step keeps."""
        names = ("solves", "skipped", "limited", "lost")
        return {**self.size, **{name: getattr(self, name) for name in names}}


@dataclass
class Programs:
    """Programs over the steps of a run that ended, which questions add objectives to.

    Attributes:
        options: how to solve.
        witness: final states of real runs, which every answer must admit; None for none.
        of_state: the adversary's choices in the programs that bounded the state after the steps.
        reports: one report per question, in the order of the questions.
        notes: questions that kept their cheaper bounds, and why.
    """

    options: SolveOptions
    witness: Witness | None = None
    of_state: tuple[Sequence[Incumbents], ...] = ()
    reports: list[ProgramReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def incumbents(self) -> tuple[Sequence[Incumbents], ...]:
        """The adversary's choices in programs for the state and for the questions so far."""
        asked = (own for report in self.reports for own in report.incumbents)
        return (*self.of_state, *asked)


def minimise(objectives: Objectives, options: SolveOptions) -> ProgramReport:
    """Bound every objective that may gain more than ``worth``, the largest possible gain first.

    Raises:
        EncodingError: the program is infeasible, although the nominal run, or an attacked one, is feasible.
        SolverUnavailableError: the solver refuses the program.
        InvalidInputError: several workers without joblib.
    """
    started = time.monotonic()
    order = np.argsort(-objectives.gain, kind="stable")
    order = order[objectives.gain[order] > options.worth]
    if options.workers > 1:
        found, lost = _in_parallel(objectives, order, options)
    else:
        found, lost = _solve(objectives, order, options.solver, options.limits, _left(options)), 0
    bounds = np.full(objectives.gain.size, -np.inf)
    limited = order.size - len(found) - lost
    for number, outcome in found.items():
        if outcome.termination is Termination.INFEASIBLE:
            raise EncodingError(
                "The program of a training step must be feasible",
                f"'{outcome.raw_status}' for objective {number}",
                "please report this run: the nominal training is a feasible point",
            )
        limited += outcome.termination is not Termination.OPTIMAL
        if outcome.dual_bound is None or np.isnan(outcome.dual_bound):
            continue
        constant = float(objectives.constant[number])
        slack = objectives.error[number] + ROUNDING * (abs(constant) + abs(outcome.dual_bound))
        bounds[number] = outcome.dual_bound + constant - slack
    points = [outcome.hint for outcome in found.values() if outcome.hint is not None]
    data = incumbents_of(objectives.batches, points)
    return ProgramReport(
        bounds,
        objectives.program.size,
        len(found),
        objectives.gain.size - order.size,
        limited,
        lost,
        time.monotonic() - started,
        (data,) if data else (),
    )


def _left(options: SolveOptions) -> float | None:
    return None if options.deadline is None else options.deadline - time.monotonic()


def _solve(
    objectives: Objectives, numbers: Index, solver: Solver, limits: Limits, seconds: float | None
) -> dict[int, SolveResult]:
    """Solve some objectives one after the other; objectives after the time limit are missing.

    ``seconds`` instead of a deadline, because the clocks of two machines differ.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    found: dict[int, SolveResult] = {}
    if not numbers.size:
        return found
    session = solver.open(objectives.program)
    try:
        for number in numbers.tolist():
            own = limits
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0.0:
                    break
                own = replace(limits, time=left if limits.time is None else min(left, limits.time))
            found[number] = session.minimise(objectives.matrix[[number]].toarray()[0], own)
    finally:
        session.close()
    return found


def _in_parallel(
    objectives: Objectives, order: Index, options: SolveOptions
) -> tuple[dict[int, SolveResult], int]:
    """:func:`_solve` on many processes, and how many objectives were lost with their workers."""
    pieces = [order[k :: options.workers] for k in range(min(options.workers, order.size))]
    answers = on_workers(
        _solve,
        pieces,
        lambda piece: (objectives, piece, options.solver, options.limits, _left(options)),
        options.workers,
    )
    found = {number: result for answer in answers.values() for number, result in answer.items()}
    done = _left(options)
    over = done is not None and done <= 0.0
    lost = 0 if over else sum(n not in found for n in order.tolist())
    return found, lost


def improved(
    known: Array, gain: Array, build: Callable[[], Objectives], options: SolveOptions
) -> tuple[Array, ProgramReport]:
    """``max(known, dual bound)`` of every objective that may gain more than ``worth``.

    Args:
        known: lower bounds already proved, (objectives,).
        gain: the most that each of them may gain, (objectives,).
        build: the program with all objectives, in their order; made only if there is something to solve.

    Raises: as :func:`minimise`.
    """
    started, wanted = time.monotonic(), gain > options.worth
    late = options.deadline is not None and started >= options.deadline
    if late or not wanted.any():
        count, none = int(wanted.sum()), np.full_like(known, -np.inf)
        empty = dict.fromkeys(SIZES, 0)
        return known, ProgramReport(none, empty, 0, len(gain) - count, count, 0, 0.0)
    report = minimise(build(), options)
    report = replace(report, seconds=time.monotonic() - started)
    return np.maximum(known, report.bounds), report


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
