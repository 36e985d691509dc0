"""Checks of programs against points, solved exactly and row by row in rationals.

Every ``check_*`` function raises AssertionError where a rule breaks its contract, so that a mutant
that is one per cent too tight can be shown to fail the very same check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import highspy
import numpy as np
import pytest
import scipy.sparse as sp
from checks_rules import dot, no_nones, random_coefficients, state_patterns
from checks_steps import StepCase
from draws import TOL, Array, sample_points, say, states_of, values_at
from instances import SAMPLES, Instance
from torch import Tensor

from milp_agt.bounds import program as program_engine
from milp_agt.bounds.program import EncodedWindow
from milp_agt.bounds.program import window as window_room
from milp_agt.core.encoder import Encoder, SelectionColumns, as_arrays
from milp_agt.core.expression import Expression, widened
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.program import Program
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.heaviside import Heaviside as StepFunction
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.sign import Sign


class Watched:
    """A program in HiGHS with rows for some expressions, whose sides can be moved at will."""

    def __init__(self, program: Program, expressions: Sequence[Expression]) -> None:
        columns, rows = program.lower.size, program.row_lower.size
        # A value lies between the two ends of its slack: [0] is watched from above, [1] from below.
        ends = [[e.below, e.above] if e.slack is not None else [e] for e in expressions]
        self._ends = ends
        blocks = [program.matrix, *(widened(e.matrix, columns) for pair in ends for e in pair)]
        matrix = sp.csr_matrix(sp.vstack(blocks, format="csr"))
        self.expressions, self.columns = expressions, columns
        self._watched = matrix[rows:]
        self._index = np.arange(rows, matrix.shape[0], dtype=np.int32)
        lp = highspy.HighsLp()
        lp.num_row_, lp.num_col_ = matrix.shape
        lp.col_cost_ = np.zeros(columns)
        lp.col_lower_, lp.col_upper_ = program.lower, program.upper
        free = np.full(matrix.shape[0] - rows, np.inf)
        lp.row_lower_ = np.concatenate([program.row_lower, -free])
        lp.row_upper_ = np.concatenate([program.row_upper, free])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = matrix.indptr
        lp.a_matrix_.index_ = matrix.indices
        lp.a_matrix_.value_ = matrix.data
        if program.integer.any():
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            lp.integrality_ = [kinds[int(i)] for i in program.integer]
        self.model = highspy.Highs()
        for key, value in {
            "output_flag": False,
            "threads": 1,
            "primal_feasibility_tolerance": TOL.feasible,
            "mip_feasibility_tolerance": TOL.feasible,
        }.items():
            self.model.setOptionValue(key, value)
        self.model.passModel(lp)
        self._integral = bool(program.integer.any())

    def _sides(self, values: Sequence[Array | None]) -> tuple[Array, Array]:
        low, high = [], []
        for pair, value in zip(self._ends, values, strict=True):
            for rank, expression in enumerate(pair):
                free = np.full(expression.size, np.inf)
                if value is None:
                    low.append(-free)
                    high.append(free)
                    continue
                flat = value.reshape(-1)
                slack = expression.error + TOL.watch * (1.0 + np.abs(flat))
                low.append(
                    -free if (len(pair), rank) == (2, 0) else flat - expression.constant - slack
                )
                high.append(
                    free if (len(pair), rank) == (2, 1) else flat - expression.constant + slack
                )
        return np.concatenate(low), np.concatenate(high)

    def is_feasible(self, values: Sequence[Array | None]) -> bool:
        """Is there a feasible point at which the watched expressions have these values?"""
        low, high = self._sides(values)
        self.model.changeRowsBounds(low.size, self._index, low, high)
        self.model.changeColsCost(
            self.columns, np.arange(self.columns, dtype=np.int32), np.zeros(self.columns)
        )
        # Presolve calls points infeasible that hold all rows to a few times the tolerance.
        return self._run("off") is not None

    def minimise(self, weights: Sequence[Array | None]) -> float:
        """Minimum of a linear form of the watched expressions over the program."""
        low, high = self._sides([None] * len(weights))
        self.model.changeRowsBounds(low.size, self._index, low, high)
        flat = np.concatenate(
            [
                np.zeros(e.size) if w is None else w.reshape(-1)
                for e, w in zip(self.expressions, weights, strict=True)
            ]
        )
        constant = np.concatenate([e.constant for e in self.expressions])
        cost = self._watched.T @ flat
        self.model.changeColsCost(self.columns, np.arange(self.columns, dtype=np.int32), cost)
        found = self._run("on" if self._integral else "off")
        assert found is not None, "an encoding is infeasible"
        return found + float(constant @ flat)

    def _run(self, presolve: str) -> float | None:
        self.model.setOptionValue("presolve", presolve)
        self.model.run()
        status = self.model.getModelStatus()
        if status in (
            highspy.HighsModelStatus.kInfeasible,
            highspy.HighsModelStatus.kUnboundedOrInfeasible,
        ):
            return None
        assert status in (
            highspy.HighsModelStatus.kOptimal,
            highspy.HighsModelStatus.kModelEmpty,
        ), status
        return float(self.model.getInfo().objective_function_value)


@dataclass
class Encoded:
    """One encoded operation over input columns, with selection columns where states differ."""

    program: Program
    inputs: list[Expression]
    selection: Expression | None
    out: Expression

    @cached_property
    def watched(self) -> Watched:
        some = [] if self.selection is None else [self.selection]
        return Watched(self.program, [self.out, *self.inputs, *some])


def encode_operation(
    instance: Instance, boxes: Sequence[Interval], exact: bool, encoder: Encoder | None = None
) -> Encoded:
    encoder = Encoder(exact) if encoder is None else encoder
    if states_of(boxes) > 1:
        columns = encoder.columns(np.zeros(SAMPLES), np.ones(SAMPLES), integer=exact)
        encoder.selection = SelectionColumns.of(columns)
    inputs = []
    for box in boxes:
        hull = box.hull()
        column = encoder.columns(*as_arrays(hull, tuple(hull.lower.shape)))
        encoder.conditional(column, box)
        inputs.append(column)
    if hasattr(encoder, "armed"):
        encoder.armed = True
    out = instance.op.encode(encoder, tuple(inputs), tuple(boxes))
    if out.slack is not None:  # an error without a column: give the result one
        out = encoder.bounded(out, instance.op.interval(*boxes))
    selection = None if encoder.selection is None else encoder.selection.states[0]
    return Encoded(encoder.finish(), inputs, selection, out)


def check_encoding(
    instance: Instance,
    boxes: Sequence[Interval],
    exact: bool,
    rng: np.random.Generator,
    count: int = 8,
    encoder: Encoder | None = None,
) -> Encoded:
    """Sampled points with their true output are feasible, for every pattern of states."""
    encoded = encode_operation(instance, boxes, exact, encoder)
    shape = (SAMPLES, *instance.out.shape) if instance.out.batched else instance.out.shape
    assert encoded.out.shape == shape
    for states in state_patterns(boxes, rng):
        points = sample_points(boxes, instance.inputs, states, count, rng)
        values = values_at(instance.op, points, rng)
        for k in range(count):
            fixed: list[Array | None] = [values[k].numpy(), *(p[k].numpy() for p in points)]
            if encoded.selection is not None:
                fixed.append(states.astype(np.float64))
            assert encoded.watched.is_feasible(fixed), say(
                instance, "a true point is cut off", list(fixed)
            )
    return encoded


def linear_minimum(instance: Instance, boxes: Sequence[Interval], c: Tensor) -> float:
    """The least value of the linear bound of ``c.v`` over the boxes and all patterns of states."""
    planes = instance.op.relax(*boxes)
    pulled = no_nones(planes.backward(c.unsqueeze(0)), c.unsqueeze(0), instance)
    total, states = 0.0, states_of(boxes)
    each = np.zeros((states, SAMPLES))
    positive, negative = c.clamp(min=0.0), c.clamp(max=0.0)
    for term, box, signature in zip(pulled, boxes, instance.inputs, strict=True):
        wide = box.expand_states(states) if signature.batched else box
        low = term.clamp(min=0.0) * wide.lower + term.clamp(max=0.0) * wide.upper
        if signature.batched:
            each += low.reshape(states, SAMPLES, -1).sum(-1).numpy()
        else:
            total += float(low.sum())
    if planes.lower is not None and planes.upper is not None:
        offsets = positive * planes.lower + negative * planes.upper
        if instance.out.batched:
            each += offsets.reshape(len(offsets), SAMPLES, -1).sum(-1).numpy()
        else:
            total += float(offsets[CLEAN].sum())
    return total + float(each.min(0).sum())


def check_support(
    instance: Instance, boxes: Sequence[Interval], rng: np.random.Generator, forms: int = 4
) -> None:
    """linear <= lp <= milp <= sampled values, for minima of random forms of the output."""
    lp = encode_operation(instance, boxes, exact=False)
    # Without phases the two programs are the same but for the integral selection.
    has_phases = instance.op.key in ("relu", "step", "max_pool")
    milp = encode_operation(instance, boxes, exact=True) if has_phases else lp
    c = random_coefficients(instance, max(forms, 2), False, rng)
    samples = []
    for states in state_patterns(boxes, rng):
        points = sample_points(boxes, instance.inputs, states, 100, rng)
        samples.append(dot(c.numpy(), instance.op.value(*points).numpy()))
    best = np.concatenate(samples, axis=1).min(1)
    magnitude = instance.op.relax(*boxes).magnitude
    for row in range(len(c)):
        scale = 1.0 + float((c[row].abs() * magnitude).sum())
        nothing: list[Array | None] = [None] * len(boxes)
        some = [None] if lp.selection is not None else []
        weights = [c[row].numpy(), *nothing, *some]
        of_lp = lp.watched.minimise(weights)
        of_milp = milp.watched.minimise(weights) if has_phases else of_lp
        of_linear = linear_minimum(instance, boxes, c[row])
        assert of_milp <= float(best[row]) + TOL.support * scale, say(
            instance, "milp above a sampled value", (of_milp, best[row])
        )
        assert of_lp <= of_milp + TOL.support * scale, say(
            instance, "lp above milp", (of_lp, of_milp)
        )
        assert of_linear <= of_lp + TOL.support * scale, say(
            instance, "lp below the linear bound", (of_linear, of_lp)
        )


def true_columns(instance: Instance, point: Tensor, box: Interval, states: Array | None) -> Array:
    """All columns of an encoded univariate operation at a point of its argument."""
    op, z = instance.op, point.numpy().reshape(-1)
    value = op.value(point).numpy().reshape(-1)
    parts = [] if states is None else [states.astype(np.float64)]
    parts.append(z)
    if isinstance(op, Relu | StepFunction):
        hull = box.hull()
        ambiguous = ((hull.lower <= 0) & (hull.upper > 0)).numpy().reshape(-1)
        parts.append((z[ambiguous] > 0).astype(np.float64))
        if isinstance(op, Relu):
            parts.append(value[ambiguous])
    elif isinstance(op, Clip):
        hull = box.hull()
        bent = ~op.is_linear_on(hull).numpy().reshape(-1)
        low = hull.lower.numpy().reshape(-1)[
            bent
        ]  # a range that begins at a kink decides its phase
        parts += [value[bent], *(((z[bent] > k) | (low >= k)).astype(np.float64) for k in op.kinks)]
    elif isinstance(op, Sign):
        bent = ~op.is_linear_on(box.hull()).numpy().reshape(-1)
        parts += [(z[bent] > 0).astype(np.float64), (z[bent] < 0).astype(np.float64)]
    else:
        parts.append(value)
    return np.concatenate(parts)


def _whole(values: Array) -> Array:
    """Floats as whole numbers of the smallest one, 2^-1074: exact, and without fractions to reduce."""
    ratios = [float(v).as_integer_ratio() for v in values.reshape(-1)]
    whole = [n << (1075 - d.bit_length()) for n, d in ratios]
    return np.array(whole, dtype=object).reshape(values.shape)


def exact_violation(program: Program, points: Sequence[Array]) -> float:
    """Largest violation of a row or bound by one of the points, in exact arithmetic."""
    x, matrix = _whole(np.stack(points, 1)), program.matrix
    sides = [_whole(program.lower)[:, None] - x, x - _whole(program.upper)[:, None]]
    worst, one = max(0, *(int(side.max()) for side in sides if side.size)) << 1074, 1 << 1074
    data = _whole(matrix.data)
    for i, (low, high) in enumerate(zip(program.row_lower, program.row_upper, strict=True)):
        part = slice(matrix.indptr[i], matrix.indptr[i + 1])
        activity = data[part] @ x[matrix.indices[part]] if part.stop > part.start else 0 * x[0]
        if np.isfinite(low):
            worst = max(worst, (one * int(_whole(np.array([low]))[0]) - activity).max())
        if np.isfinite(high):
            worst = max(worst, (activity - one * int(_whole(np.array([high]))[0])).max())
    return float(Fraction(worst, one * one))


def check_rows_exactly(
    instance: Instance, boxes: Sequence[Interval], rng: np.random.Generator, count: int = 6
) -> None:
    """The value that the float64 run computes satisfies every row in exact arithmetic."""
    encoded = encode_operation(instance, boxes, exact=True)
    for states in state_patterns(boxes, rng):
        (points,) = sample_points(boxes, instance.inputs, states, count, rng)
        some = None if encoded.selection is None else states
        columns = [true_columns(instance, point, boxes[0], some) for point in points]
        found = exact_violation(encoded.program, columns)
        assert found == 0.0, say(instance, "a row cuts the float value off by", found)


class RecordedMoves(window_room.MoveColumns):
    """The moves of the adversary, kept so that a test can fix them."""

    last: RecordedMoves

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        RecordedMoves.last = self


@dataclass
class EncodedStep:
    """The program of one step and the expressions that decide everything in it."""

    window: EncodedWindow
    case: StepCase
    watched: Watched
    labels: list[int]
    features: list[int]
    selected: list[int]

    def values(
        self, state: dict[str, Tensor], after: dict[str, Tensor] | None, x: Tensor, y: Tensor
    ) -> list[Array | None]:
        poison = self.case.step.poison
        values: list[Array | None] = [state[n].numpy() for n in self.case.state]
        values += [None if after is None else after[n].numpy() for n in self.window.state]
        moved = ((x != poison.features).flatten(1).any(1) | (y != poison.labels).any(1)).numpy()
        values += [np.full(1, float(moved[i])) for i in self.selected]
        values += [(x[i] - poison.features[i]).numpy() for i in self.features]
        values += [(y[i] - poison.labels[i]).numpy() for i in self.labels]
        return values


def encode_step(case: StepCase, exact: bool) -> EncodedStep:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_room, "MoveColumns", RecordedMoves)
        window = program_engine.Window(
            case.step_graph, case.schedule, [case.relaxed], case.poison, exact
        ).program()
    moves = RecordedMoves.last
    first, states = 0, []
    for box in case.state.values():
        size = box.lower.numel()
        matrix = sp.csr_matrix(
            (np.ones(size), np.arange(first, first + size), np.arange(size + 1)),
            shape=(size, first + size),
        )
        states.append(Expression(matrix, np.zeros(size), np.zeros(size), (size,)))
        first += size
    row = {int(s): i for i, s in enumerate(case.step.samples)}
    parts = [moves._selection, moves._features, moves._labels]
    expressions = [*states, *window.state.values()]
    for part in parts:
        expressions += list(part.values())
    kept = [[row[s] for s in part] for part in parts]
    return EncodedStep(
        window, case, Watched(window.program, expressions), kept[2], kept[1], kept[0]
    )


def check_encoded_step(
    case: StepCase, exact: bool, rng: np.random.Generator, count: int = 4
) -> EncodedStep:
    """The nominal step and poisoned ones are feasible, and give the state that the run gives."""
    encoded = encode_step(case, exact)
    for corners in (True, False):
        states = case.states(count, rng)
        x, y = case.attacks(count, int(rng.integers(2**30)), corners)
        after = case.after(states, x, y)
        for k in range(count):
            values = encoded.values(
                {n: v[k] for n, v in states.items()},
                {n: v[k] for n, v in after.items()},
                x[k],
                y[k],
            )
            assert encoded.watched.is_feasible(values), f"run {k} is no point of the program"
    return encoded
