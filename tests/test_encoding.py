"""Programs: every operation's rows hold at true points, and cut no looser than the linear bounds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from checks_encoding import (
    check_encoded_step,
    check_encoding,
    check_rows_exactly,
    check_support,
    encode_operation,
    encode_step,
)
from checks_steps import StepCase, mlp, small_data, step_case
from draws import MODERATE, all_instances, make_boxes, univariate_instances
from instances import Instance

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.core.encoder import Encoder, SelectionColumns
from milp_agt.core.expression import Expression, add
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.errors import EncodingError
from milp_agt.formulations.heaviside import Heaviside
from milp_agt.formulations.relu import Relu
from milp_agt.solvers import get_solver
from milp_agt.training.training import Training

PALETTES = {
    "straddle": ("straddle",),
    "mixed": MODERATE,
    "zero-ends": ("zero_low", "zero_high", "point"),
}
STATES = {
    "single": ("single",),
    "nested": ("nested",),
    "apart": ("apart",),
    "some": ("nested", "single"),
}


WITH_PHASES = [i for i in all_instances() if i.op.key in ("relu", "step", "max_pool")]


def _cases(instances: Sequence[Instance], states: Sequence[str] = tuple(STATES)) -> list[Any]:
    """Every instance with every relation of its states and every palette, (states, palette) of each.

    Palettes and every second relation take turns in the quick ones. Mixed states need two operands.
    """
    cases = []
    for turn, instance in enumerate(instances):
        palettes = list(PALETTES) if instance in WITH_PHASES else ["straddle", "mixed"]
        possible = [s for s in states if s != "some" or len(instance.inputs) > 1]
        quick, others = [], []
        for (place, relation), (number, palette) in itertools.product(
            enumerate(possible), enumerate(palettes)
        ):
            rests = (turn + place) % 2 or (turn + place // 2 + number) % len(palettes)
            here = others if rests else quick
            here.append((relation, palette))
        cases += [
            pytest.param(instance, quick, id=str(instance)),
            pytest.param(instance, others, marks=pytest.mark.slow, id=f"{instance}-others"),
        ]
    return cases


BOXED = ("instance", "drawn")
Drawn = list[tuple[str, str]]


def _boxes(instance: Instance, states: str, palette: str) -> tuple[Interval, ...]:
    rng = np.random.default_rng(0)
    boxes = make_boxes(instance, PALETTES[palette], STATES[states], rng)
    if instance.domain == "exponent":
        boxes = tuple(Interval(0.3 * b.lower, 0.3 * b.upper) for b in boxes)
    return boxes


@pytest.mark.parametrize(BOXED, _cases(all_instances()))
def test_true_points_are_feasible(instance: Instance, drawn: Drawn) -> None:
    for case in drawn:
        boxes = _boxes(instance, *case)
        check_encoding(instance, boxes, False, np.random.default_rng(0), count=4)


@pytest.mark.parametrize(BOXED, _cases(WITH_PHASES, ("single", "nested", "apart")))
def test_true_points_are_feasible_with_integral_phases(instance: Instance, drawn: Drawn) -> None:
    for case in drawn:
        boxes = _boxes(instance, *case)
        check_encoding(instance, boxes, True, np.random.default_rng(0), count=2)


@pytest.mark.parametrize(BOXED, _cases(all_instances()))
def test_minima_are_nested(instance: Instance, drawn: Drawn) -> None:
    """linear bound <= lp <= milp <= sampled values."""
    for case in drawn:
        check_support(instance, _boxes(instance, *case), np.random.default_rng(0), forms=2)


@pytest.mark.parametrize(BOXED, _cases(univariate_instances(), ("single", "nested", "apart")))
def test_float_values_satisfy_the_rows_exactly(instance: Instance, drawn: Drawn) -> None:
    for case in drawn:
        check_rows_exactly(instance, _boxes(instance, *case), np.random.default_rng(0))


# -------------------------------------------------------------------------------- the encoder alone


def _point(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_on_off_rows_are_the_formula() -> None:
    """``expression >= clean - (clean - poisoned) s``, and the mirror image for upper ends."""
    encoder = Encoder(exact_phases=False)
    encoder.selection = SelectionColumns.of(encoder.columns(np.zeros(2), np.ones(2)))
    x = encoder.columns(np.full(2, -10.0), np.full(2, 10.0))
    encoder.at_least(x, _point([[1.0, 2.0], [-3.0, 2.5]]))
    encoder.at_most(x, _point([[5.0, 6.0], [7.0, 6.0]]))
    built = encoder.finish()
    for s in (0.0, 0.5, 1.0):
        low = np.array([1.0 - 4.0 * s, 2.0 + 0.5 * s])
        high = np.array([5.0 + 2.0 * s, 6.0])
        for value, feasible in (
            (low, True),
            (high, True),
            (low - 1e-6, False),
            (high + 1e-6, False),
        ):
            point = np.concatenate([[s, s], value])
            assert (built.violation(point) <= 1e-12) is feasible


@pytest.mark.parametrize("side", ["below", "above"])
def test_an_error_that_grows_on_one_side_only_is_mapped_like_any_other(side: str) -> None:
    """Its other side reads no selection: a matrix without columns, which used to stop the program."""
    encoder = Encoder(exact_phases=False)
    encoder.selection = SelectionColumns.of(encoder.columns(np.zeros(2), np.ones(2)))
    x = encoder.columns(np.full(2, -10.0), np.full(2, 10.0))
    low, high = _point([[-1.0, -1.0]] * 2), _point([[1.0, 1.0]] * 2)
    if side == "below":
        low[1] = -3.0
    else:
        high[1] = 3.0
    mapped = encoder.with_slack(x, Interval(low, high)).apply(sp.csr_matrix([[1.0, -1.0]]), (1,))
    for s in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]):
        at = np.array([*s, 0.5, 0.25])
        down = 2.0 * s[0 if side == "below" else 1]
        up = 2.0 * s[1 if side == "below" else 0]
        ends = [float((end.matrix @ at + end.constant)[0]) for end in (mapped.below, mapped.above)]
        assert ends == pytest.approx([0.25 - 2.0 - down, 0.25 + 2.0 + up])


def test_without_selection_the_worst_offset_counts() -> None:
    encoder = Encoder(exact_phases=False)
    x = encoder.columns(np.full(1, -10.0), np.full(1, 10.0))
    encoder.at_least(x, _point([[1.0], [-3.0]]))
    built = encoder.finish()
    assert built.violation(np.array([-3.0])) <= 1e-12
    assert built.violation(np.array([-3.1])) > 0.05


def test_the_closure_admits_both_phases_at_the_kink() -> None:
    encoder = Encoder(exact_phases=True)
    box = Interval(_point([[-1.0]]), _point([[1.0]]))
    z = encoder.columns(box.lower[0].numpy(), box.upper[0].numpy())
    Heaviside().encode(encoder, (z,), (box,))
    built = encoder.finish()
    for point, feasible in (
        ((0.0, 0.0), True),
        ((0.0, 1.0), True),
        ((-0.1, 1.0), False),
        ((0.1, 0.0), False),
    ):
        assert (built.violation(np.array(point)) <= 1e-12) is feasible


@pytest.mark.parametrize("k", [0.0, 0.5, 1.5])
def test_milp_of_relu_is_exact(k: float) -> None:
    """At a fixed argument the program admits one value only."""
    instance = Instance("relu", Relu(k), univariate_instances()[0].inputs)
    boxes = (Interval(_point([[-1.0, -2.0]] * 3)[None], _point([[2.0, 1.0]] * 3)[None]),)
    encoded = encode_operation(instance, boxes, exact=True)
    z = np.array([[-0.5, 0.5], [0.0, 0.0], [1.5, -1.5]])
    value = np.where(z > 0, z, k * z)
    assert encoded.watched.is_feasible([value, z])
    for off in (1e-5, -1e-5):
        assert not encoded.watched.is_feasible([value + off * np.eye(3)[:, :2], z])


def test_infinite_ranges_are_refused() -> None:
    encoder = Encoder(exact_phases=False)
    encoder.columns(np.array([-np.inf]), np.array([1.0]))
    with pytest.raises(EncodingError, match="finite bounds"):
        encoder.finish()


def test_expressions_follow_linear_algebra() -> None:
    encoder = Encoder(exact_phases=False)
    x = encoder.columns(np.zeros((2, 3)), np.ones((2, 3)))
    y = encoder.columns(np.zeros((2, 3)), np.ones((2, 3)))
    values = np.arange(12.0)

    def at(expression: Expression) -> np.ndarray:
        width = expression.matrix.shape[1]
        return (expression.matrix @ values[:width] + expression.constant).reshape(expression.shape)

    a, b = values[:6].reshape(2, 3), values[6:].reshape(2, 3)
    scale = np.array([1.0, -2.0, 0.5])
    assert np.allclose(at(add([x.scale(scale), y.shift(3.0)])), a * scale + b + 3.0)
    assert np.allclose(at(y.take(np.array([[5, 0]]))), b.reshape(-1)[[5, 0]])
    assert np.allclose(at(x.reshape((3, 2))), a.reshape(3, 2))
    blurred = add([x.plus_error(1e-3), y.plus_error(2e-3)]).scale(-2.0)
    assert blurred.error.tolist() == pytest.approx([6e-3] * 6)
    assert not blurred.is_single_columns
    assert x.shift(1.0).is_single_columns


# -------------------------------------------------------------------------------------- whole steps

STEPS: dict[
    str, tuple[str, tuple[int, ...], agt.FeaturePoisoning | agt.LabelPoisoning, dict[str, object]]
] = {
    "bce-features": ("bce", (2, 2, 1), agt.FeaturePoisoning(budget=2, radius=0.1), {}),
    "bce-labels": ("bce", (2, 2, 1), agt.LabelPoisoning(budget=2), {"momentum": 0.5}),
    "hinge": ("hinge", (2, 2, 1), agt.FeaturePoisoning(budget=1, radius=0.2),
              {"weight_decay": 0.1}),
    "ce-2": ("cross_entropy", (2, 2, 2), agt.FeaturePoisoning(budget=1, radius=0.1, static=False),
             {}),
    "ce-3-both": ("cross_entropy", (2, 2, 3), agt.FeatureLabelPoisoning(budget=1, radius=0.1), {}),
    "mse-targets": ("mse", (2, 2, 1), agt.LabelPoisoning(budget=2, radius=0.3),
        {"momentum": 0.5, "nesterov": True}),
    "batch": ("bce", (2, 2, 1), agt.FeaturePoisoning(budget=1, radius=0.1, scope="batch"),
              {"batch_size": 3}),
    "clean": ("bce", (2, 2, 1), agt.FeaturePoisoning(budget=0, radius=0.1), {}),
    "some": ("bce", (2, 2, 1), agt.FeatureLabelPoisoning(budget=1, radius=0.1, samples=[0, 2]), {}),
}  # fmt: skip


def _case(name: str, width: float = 0.05) -> StepCase:
    loss, sizes, threat, options = STEPS[name]
    classes = 0 if loss == "mse" else max(2, sizes[-1])
    training = Training(loss=loss, learning_rate=0.5, **options)
    return step_case(
        mlp(*sizes, seed=3), small_data(4, 2, classes, seed=5), training, threat, width
    )


@pytest.mark.parametrize("exact", [False, True], ids=["lp", "milp"])
@pytest.mark.parametrize("name", STEPS)
def test_runs_are_points_of_the_program(name: str, exact: bool) -> None:
    check_encoded_step(_case(name), exact, np.random.default_rng(1))


def test_runs_without_budget_are_no_points() -> None:
    case = _case("bce-features")
    encoded = encode_step(case, exact=True)
    states = case.states(1, np.random.default_rng(0))
    state = {n: v[0] for n, v in states.items()}
    x = case.step.poison.features + 0.05
    values = encoded.values(state, None, x, case.step.poison.labels)
    assert not encoded.watched.is_feasible(values)
    x = case.step.poison.features.clone()
    x[0] += 0.11
    values = encoded.values(state, None, x, case.step.poison.labels)
    assert not encoded.watched.is_feasible(values)
    x = case.step.poison.features.clone()
    x[:2] += 0.1
    assert encoded.watched.is_feasible(encoded.values(state, None, x, case.step.poison.labels))


# Columns, rows, integer columns, bilinear terms of miqp.
SIZES = {
    "bce-features": (68, 350, 6, 43),
    "bce-labels": (66, 213, 9, 13),
    "hinge": (48, 154, 6, 28),
    "ce-3-both": (194, 1282, 14, 73),
    "clean": (36, 133, 1, 13),
    "some": (52, 278, 5, 25),
}


def _sizes_of(name: str, exact_products: bool) -> dict[str, int]:
    """Sizes of what is solved: the part of a program that its objectives need."""
    case = _case(name)
    window = program.Window(
        case.step_graph,
        case.schedule,
        [case.relaxed],
        case.poison,
        True,
        exact_products=exact_products,
    ).program()
    ends = [end for e in window.state.values() for end in (e.below, e.above)]
    wanted = np.unique(np.concatenate([e.matrix.indices for e in ends])).astype(np.int64)
    return window.program.needed_for(wanted)[0].size


def test_sizes_of_small_programs_are_pinned() -> None:
    """A change here is a change of the formulation."""
    sizes = {}
    for name in SIZES:
        found, exact = _sizes_of(name, False), _sizes_of(name, True)
        assert found["products"] == 0
        sizes[name] = (found["columns"], found["rows"], found["integers"], exact["products"])
    assert sizes == SIZES


def test_programs_are_sizes_of() -> None:
    """Stable units, constants and clean samples cost nothing."""
    case = _case("clean", width=0.0)
    window = program.Window(
        case.step_graph, case.schedule, [case.relaxed], case.poison, True, exact_products=True
    ).program()
    assert window.program.size["products"] == window.program.size["integers"] == 0
    # Two of four samples are open: the others have no selection and no perturbation.
    some, all_open = _sizes_of("some", False), _sizes_of("bce-features", False)
    assert some["columns"] < all_open["columns"]


def test_the_needed_part_has_the_same_bounds() -> None:
    case = _case("bce-features", width=0.02)
    window = program.Window(
        case.step_graph, case.schedule, [case.relaxed], case.poison, False
    ).program()
    whole = window.program
    for expression in window.state.values():
        row = expression.below.matrix[[0]]
        part, kept = whole.needed_for(np.unique(row.indices).astype(np.int64))
        assert part.size["rows"] < whole.size["rows"]
        assert (np.diff(kept) > 0).all()
        objective = np.zeros(whole.lower.size)
        objective[row.indices] = row.data
        bounds = [
            get_solver("highs").open(p).minimise(c, Limits()).dual_bound
            for p, c in ((whole, objective), (part, objective[kept]))
        ]
        assert bounds[0] == pytest.approx(bounds[1], abs=1e-8)
        assert len(set(part.row_owner)) > 1
