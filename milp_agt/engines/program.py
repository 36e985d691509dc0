"""Programs over a window of training steps: encode once, then one solve for each objective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder, as_arrays
from milp_agt.core.expression import Expression, add
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.program import Program
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.results import Limits, Termination
from milp_agt.engines.relaxed import RelaxedStep
from milp_agt.engines.step import Schedule, State, Step, velocity_of
from milp_agt.errors import EncodingError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.univariate import Univariate
from milp_agt.moves import MoveSet
from milp_agt.poison import Poison
from milp_agt.solvers.base import Solver
from milp_agt.tracing import FEATURES, LABELS, StepGraph


@dataclass(frozen=True)
class EncodedWindow:
    """A program whose feasible set holds every run through the window, and its final state."""

    program: Program
    state: dict[str, Expression]


@dataclass(frozen=True)
class ProgramReport:
    """What bounding a state by programs took: sizes, solves, and what was left to the cheaper bound."""

    size: dict[str, int]
    solves: int
    skipped: int
    limited: int
    seconds: float


class _Moves:
    """Selection and perturbation columns, shared over the steps as the adversary's powers demand."""

    def __init__(self, encoder: Encoder, poison: Poison, restriction: Restriction) -> None:
        self.encoder, self.poison, self.restriction = encoder, poison, restriction
        self._selection: dict[int, Expression] = {}
        self._features: dict[int, Expression] = {}
        self._labels: dict[int, Expression] = {}
        self._budgeted: list[Expression] = []

    def select(self, step: Step) -> Expression:
        """Columns ``s_i`` of a batch, (n,); zero for samples that cannot be poisoned."""
        shared = self.poison.static or not self.poison.per_batch
        known = self._selection if shared else {}
        parts = []
        for sample, is_open in zip(step.samples.tolist(), step.poison.open.tolist(), strict=True):
            if sample not in known:
                known[sample] = self._column(sample, is_open)
                if is_open and not self.poison.per_batch:
                    self._budgeted.append(known[sample])
            parts.append(known[sample])
        selection = stacked(parts, (len(parts),))
        if self.poison.per_batch:
            self._limit(parts)
        return selection

    def _column(self, sample: int, is_open: bool) -> Expression:
        if not is_open or sample in self.restriction.outside:
            return Expression.of(np.zeros(1))
        low = 1.0 if sample in self.restriction.inside else 0.0
        return self.encoder.columns(np.full(1, low), np.ones(1), integer=self.encoder.exact_phases)

    def _limit(self, selected: Sequence[Expression]) -> None:
        total = stacked(selected, (len(selected),))
        ones = sp.csr_matrix(np.ones((1, len(selected))))
        self.encoder.rows(total.apply(ones, (1,)), -np.inf, float(self.poison.budget))

    def close(self) -> None:
        """The budget row over the data set."""
        if self._budgeted:
            self._limit(self._budgeted)

    def features(self, step: Step, selection: Expression) -> Expression:
        """Nominal features plus admissible moves of the selected samples."""
        poison = step.poison
        moves, box = poison.feature_moves, poison.feature_box()
        return self._moved(poison.features, moves, box, self._features, step, selection)

    def labels(self, step: Step, selection: Expression) -> Expression:
        """Nominal encoded labels plus admissible moves of the selected samples."""
        poison = step.poison
        moves, box = poison.label_moves, poison.label_box()
        return self._moved(poison.labels, moves, box, self._labels, step, selection)

    def _moved(
        self,
        nominal: Tensor,
        moves: MoveSet | None,
        box: Interval,
        known: dict[int, Expression],
        step: Step,
        selection: Expression,
    ) -> Expression:
        """Nominal values plus moves; a static adversary moves each sample once."""
        values = Expression.of(nominal.cpu().numpy())
        if moves is None:
            return values
        if not self.poison.static:
            known.clear()
        samples = step.samples.tolist()
        new = np.array([row for row, s in enumerate(samples) if s not in known], dtype=np.int64)
        if new.size:
            fresh = moves.take(torch.from_numpy(new).to(nominal.device)).encode(
                self.encoder, selection.take(new)
            )
            parts = np.arange(fresh.size).reshape(new.size, -1)
            known.update(
                {samples[row]: fresh.take(part) for row, part in zip(new, parts, strict=True)}
            )
        # x + e is rounded in the run.
        rounding = 2.0**-52 * box.magnitude.amax(0).cpu().numpy()
        return add([values, stacked([known[s] for s in samples], values.shape)]).blur(rounding)


def stacked(parts: Sequence[Expression], shape: tuple[int, ...]) -> Expression:
    """Expressions one after the other as one tensor."""
    width = max(p.matrix.shape[1] for p in parts)
    blocks = [
        sp.csr_matrix((p.matrix.data, p.matrix.indices, p.matrix.indptr), shape=(p.size, width))
        for p in parts
    ]
    return Expression(
        sp.csr_matrix(sp.vstack(blocks, format="csr")),
        np.concatenate([p.constant for p in parts]),
        np.concatenate([p.error for p in parts]),
        shape,
    )


def encode_window(
    step_graph: StepGraph,
    schedule: Schedule,
    window: Sequence[RelaxedStep],
    poison: Poison,
    exact_phases: bool,
    restriction: Restriction = UNRESTRICTED,
) -> EncodedWindow:
    """The program of the last steps: w copies of the step graph joined at the states.

    Raises:
        EncodingError: a node without finite bounds.
    """
    encoder = Encoder(exact_phases)
    moves = _Moves(encoder, poison, restriction)
    state: dict[str, Expression] | None = None
    for relaxed in window:
        encoder.origin = f"step {relaxed.step.index}: state"
        columns: dict[str, Expression] = {}
        for name, box in relaxed.state.items():
            if state is None:
                shape = tuple(box.lower.shape[1:])
                columns[name] = encoder.columns(*as_arrays(box.hull(), shape))
            else:
                columns[name] = encoder.bounded(state[name], box)
        state = _encode_step(step_graph, schedule, relaxed, encoder, moves, columns)
    moves.close()
    assert state is not None
    return EncodedWindow(encoder.finish(), state)


def _encode_step(
    step_graph: StepGraph,
    schedule: Schedule,
    relaxed: RelaxedStep,
    encoder: Encoder,
    moves: _Moves,
    state: dict[str, Expression],
) -> dict[str, Expression]:
    step, boxes = relaxed.step, relaxed.ranges.boxes
    known = dict(state)
    encoder.selection = None
    if step.poison.is_clean:
        known[FEATURES] = Expression.of(step.poison.features.cpu().numpy())
        known[LABELS] = Expression.of(step.poison.labels.cpu().numpy())
    else:
        encoder.selection = moves.select(step)
        known[FEATURES] = moves.features(step, encoder.selection)
        known[LABELS] = moves.labels(step, encoder.selection)
    curved = {
        name
        for node in schedule.all
        if isinstance(node.op, (Univariate, Einsum))
        for name in node.inputs
    }
    for node in schedule.all:
        if node.name in known:
            continue
        encoder.origin = f"step {step.index}: {node.name}"
        inputs = tuple(known[name] for name in node.inputs)
        ranges = tuple(boxes[name] for name in node.inputs)
        expression = node.op.encode(encoder, inputs, ranges)
        if node.name in curved:
            expression = encoder.bounded(expression, boxes[node.name])
        known[node.name] = expression
    return _encode_update(step_graph, relaxed, known)


def _encode_update(
    step_graph: StepGraph, relaxed: RelaxedStep, known: dict[str, Expression]
) -> dict[str, Expression]:
    step = relaxed.step
    new: dict[str, Expression] = {}
    for name in step_graph.parameters:
        operands = [name, step_graph.gradients[name]]
        targets = [(name, step.theta_scalars, step.theta_sizes)]
        if step.has_velocity:
            operands.insert(1, velocity_of(name))
            targets.append((velocity_of(name), step.velocity_scalars, step.velocity_scalars))
        sizes = [relaxed.state[o].magnitude[CLEAN].cpu().numpy() for o in operands[:-1]]
        sizes.append(relaxed.planes[operands[-1]].magnitude.cpu().numpy())
        for target, scalars, bounds in targets:
            total = add([known[o].scale(s) for o, s in zip(operands, scalars, strict=True)])
            size = sum(abs(s) * z for s, z in zip(bounds, sizes, strict=True))
            new[target] = total.blur(size * (64 * 2.0**-53))
    return new


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
    columns = encoded.program.matrix.shape[1]
    matrix = sp.csr_matrix(
        (rows.matrix.data, rows.matrix.indices, rows.matrix.indptr), shape=(rows.size, columns)
    )
    lower = np.concatenate([box[n].lower.cpu().numpy().reshape(-1) for n in names])
    upper = np.concatenate([box[n].upper.cpu().numpy().reshape(-1) for n in names])
    new_lower, new_upper = lower.copy(), upper.copy()
    solves = limited = 0
    worth = (upper - lower) > options.worth
    session = options.solver.open(encoded.program)
    try:
        for sign, target in ((1.0, new_lower), (-1.0, new_upper)):
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
                slack = rows.error[j] + 2.0**-50 * (abs(rows.constant[j]) + abs(outcome.dual_bound))
                bound = outcome.dual_bound + sign * rows.constant[j] - slack
                target[j] = sign * bound
    finally:
        session.close()
    report = ProgramReport(
        size=encoded.program.size,
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
