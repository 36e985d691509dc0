"""Contract tests over the registry of operations: interval and linear bounds, exact extremes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from checks_debt import DebtCase, check_debt, debt_case
from checks_rules import (
    check_interval,
    check_isotonic,
    check_leaf_boxes,
    check_point_is_exact,
    check_poisoned_sum,
    check_relax,
    check_residual,
    random_coefficients,
)
from checks_steps import (
    check_step_interval,
    check_step_linear,
    check_update,
    check_walk_of_update,
    mlp,
    small_data,
    step_case,
)
from draws import (
    KINDS,
    MODERATE,
    TOL,
    Draw,
    all_instances,
    draws,
    make_box,
    make_boxes,
    non_leaves,
    poison_of,
    univariate_instances,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from instances import INSTANCES, NEGATIVE_SLOPES, SAMPLES, Instance, Long, per_sample

import milp_agt as agt
from milp_agt.core.graph import Graph
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.rounding import gamma
from milp_agt.engines.joint import Masks
from milp_agt.errors import EncodingError, SoundnessError
from milp_agt.formulations import bilinear
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.leaves import Constant, Features, Labels, Parameter
from milp_agt.formulations.loss import get_loss
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.reciprocal import Reciprocal
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.step import STEEPEST, Step
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.tanh import Tanh
from milp_agt.moves import Vertices
from milp_agt.schedules import InverseTimeDecay
from milp_agt.training import Training, UpdateRule

FAST = settings(max_examples=15, deadline=None, derandomize=True)
BOUNDED = [i for i in all_instances() if i.has_interval]


def test_every_operation_has_instances() -> None:
    assert set(INSTANCES) == set(non_leaves())
    for key, group in INSTANCES.items():
        assert group, f"operation '{key}' has no instance: add one to INSTANCES"
        assert all(i.op.key == key for i in group)
    names = [i.label for i in all_instances()]
    assert len(names) == len(set(names))


def test_every_operation_says_how_exact_it_is() -> None:
    for op in non_leaves().values():
        assert op.exactness


@pytest.mark.parametrize("instance", BOUNDED, ids=str)
@FAST
@given(draw=draws())
@example(draw=Draw(KINDS, ("apart",), 1))
def test_interval_holds_sampled_values(instance: Instance, draw: Draw) -> None:
    rng = draw.rng
    check_interval(instance, make_boxes(instance, draw.kinds, draw.relations, rng), rng)


@pytest.mark.parametrize("instance", INSTANCES["bilinear"], ids=str)
@pytest.mark.parametrize("limit", [0, 2**25], ids=["midpoint radius", "ends"])
@FAST
@given(draw=draws())
def test_products_by_matrices_hold_sampled_values(
    instance: Instance, limit: int, draw: Draw
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bilinear, "EXACT_PRODUCTS_LIMIT", limit)
        patch.setattr(bilinear, "THICK", 0)
        rng = draw.rng
        boxes = make_boxes(instance, draw.kinds, draw.relations, rng)
        check_interval(instance, boxes, rng)
        check_relax(instance, boxes, rng)


@pytest.mark.parametrize("uniform", [False, True], ids=["each", "uniform"])
@pytest.mark.parametrize("instance", all_instances(), ids=str)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(draw=draws())
@example(draw=Draw(KINDS, ("apart",), 2))
def test_linear_bounds_hold(instance: Instance, uniform: bool, draw: Draw) -> None:
    rng = draw.rng
    check_relax(instance, make_boxes(instance, draw.kinds, draw.relations, rng), rng, uniform)


@pytest.mark.parametrize("instance", all_instances(), ids=str)
def test_uniform_coefficients_pull_like_repeated_ones(instance: Instance) -> None:
    if not instance.out.batched:
        return
    rng = np.random.default_rng(0)
    boxes = make_boxes(instance, MODERATE, ("nested",), rng)
    planes = instance.op.relax(*boxes)
    c = random_coefficients(instance, 4, True, rng)
    repeated = planes.pull(c.expand(-1, SAMPLES, *instance.out.shape).contiguous())
    for uniform, each, signature in zip(planes.pull(c), repeated, instance.inputs, strict=True):
        target = (4, SAMPLES, *signature.shape) if signature.batched else (4, *signature.shape)
        size = 1e-12 * (1.0 + each.abs())
        assert bool(((uniform.expand(target) - each.expand(target)).abs() <= size).all())


@pytest.mark.parametrize("instance", BOUNDED, ids=str)
@FAST
@given(draw=draws())
def test_zero_width_gives_the_value(instance: Instance, draw: Draw) -> None:
    check_point_is_exact(instance, make_boxes(instance, draw.kinds, ("single",), draw.rng))


@pytest.mark.parametrize("instance", BOUNDED, ids=str)
@FAST
@given(draw=draws())
def test_smaller_boxes_give_smaller_intervals(instance: Instance, draw: Draw) -> None:
    rng = draw.rng
    check_isotonic(instance, make_boxes(instance, draw.kinds, draw.relations, rng), rng)


@pytest.mark.parametrize("instance", univariate_instances(), ids=str)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(draw=draws())
def test_residual_is_exact_for_any_slope(instance: Instance, draw: Draw) -> None:
    box = make_box(per_sample(4), draw.kinds, "single", draw.rng, instance.domain)
    check_residual(instance, box.lower[0].flatten().numpy(), box.upper[0].flatten().numpy())


@pytest.mark.parametrize("instance", univariate_instances(), ids=str)
def test_residual_is_exact_on_a_dense_table(instance: Instance) -> None:
    rng = np.random.default_rng(3)
    box = make_box(per_sample(8), KINDS, "single", rng, instance.domain)
    low, high = box.lower[0].flatten().numpy(), box.upper[0].flatten().numpy()
    check_residual(instance, low, high, grid=3001)


def test_exponential_has_a_kink_at_its_cap() -> None:
    low, high = np.array([600.0, 699.0, 700.0, 650.0]), np.array([800.0, 1e4, 900.0, 700.0])
    check_residual(INSTANCES["exponential"][0], low, high)


def test_a_leaf_has_no_rules_but_the_constant() -> None:
    constant = Constant.of(torch.tensor([1.0, 2.0]))
    assert constant.interval().contains(constant.value())
    for leaf in (Parameter((2,)), Features((2,)), Labels((2,))):
        for rule in (leaf.value, leaf.interval, leaf.relax):
            with pytest.raises(EncodingError):
                rule()


# ------------------------------------------------------------------------------- boxes and steps


def _box(*pairs: tuple[float, float]) -> Interval:
    low, high = (torch.tensor([[p[k] for p in pairs]], dtype=torch.float64) for k in (0, 1))
    return Interval(low, high)


def test_step_at_its_kink() -> None:
    """Stable on iff l > 0, stable off iff u <= 0; l = 0 < u is ambiguous."""
    tiny = 5e-324
    found = Step().interval(
        _box((0.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (tiny, 1.0), (-1.0, tiny), (0.0, tiny))
    )
    assert found.lower.tolist() == [[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]
    assert found.upper.tolist() == [[0.0, 1.0, 0.0, 1.0, 1.0, 1.0]]
    points = torch.tensor([0.0, -0.0, tiny, -tiny], dtype=torch.float64)
    assert Step().value(points).tolist() == [0, 0, 1, 0]


def test_step_planes_are_the_lines_through_the_kink() -> None:
    """``a >= z / (2u)`` and ``a <= 1 - z / (2l)`` where ambiguous, slope zero where stable."""
    low, high = (
        torch.tensor([-2.0, 0.0, 0.5, -3.0]).double(),
        torch.tensor([4.0, 1.0, 1.0, 0.0]).double(),
    )
    below, above = Step().slopes(Interval(low, high))
    assert below.tolist() == [0.125, 0.5, 0.0, 0.0]
    assert above.tolist() == [0.25, 0.0, 0.0, 0.0]
    planes = Step().relax(Interval(low[None], high[None]))
    assert planes.lower[0].tolist() == pytest.approx([0.0, 0.0, 1.0, 0.0], abs=1e-14)
    assert planes.upper[0].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0], abs=1e-14)


def test_step_slopes_stay_below_their_limit() -> None:
    edge = torch.tensor([1e-300, 1e-9, 1e-6, 1e-5]).double()
    for slopes in Step().slopes(Interval(-edge, edge)):
        assert float(slopes.abs().max()) <= STEEPEST


@pytest.mark.parametrize("k", NEGATIVE_SLOPES)
def test_relu_planes_are_chord_and_line(k: float) -> None:
    """Chord ``(u - k l) / (u - l)``; the line has slope 1 if u > -l, else k; exact where stable."""
    low, high = (
        torch.tensor([-1.0, -3.0, 1.0, -2.0]).double(),
        torch.tensor([2.0, 1.0, 2.0, -1.0]).double(),
    )
    line = [1.0, k, 1.0, k]
    chord = [(2.0 + k) / 3.0, (1.0 + 3.0 * k) / 4.0, 1.0, k]
    below, above = Relu(k).slopes(Interval(low, high))
    assert below.tolist() == pytest.approx(line if k <= 1 else chord)
    assert above.tolist() == pytest.approx(chord if k <= 1 else line)
    planes = Relu(k).relax(Interval(low[None], high[None]))
    stable = planes.upper[0, 2:] - planes.lower[0, 2:]
    assert float(stable.abs().max()) <= 1e-13


@pytest.mark.parametrize("k", NEGATIVE_SLOPES)
def test_relu_value_and_the_derivative_at_the_kink(k: float) -> None:
    z = torch.tensor([-2.0, -0.0, 0.0, 3.0]).double()
    assert torch.equal(Relu(k).value(z), torch.nn.functional.leaky_relu(z, k))
    graph = Graph()
    source = graph.add(Features((4,)))
    one = graph.add(Labels((4,)))
    (pulled,) = Relu(k).vjp(graph, graph.add(Relu(k), source), one, (True,))
    from milp_agt.core.evaluate import evaluate

    found = evaluate(graph, {source.name: z[None], one.name: torch.ones(1, 4).double()})
    assert found[pulled.name][0].tolist() == pytest.approx([k, k, k, 1.0], abs=1e-15)


def test_derivatives_are_the_formulas() -> None:
    x = torch.linspace(-3.0, 3.0, 41, dtype=torch.float64)
    s, t = torch.sigmoid(x), torch.tanh(x)
    assert torch.allclose(Sigmoid().derivative(x), s * (1 - s), rtol=1e-14, atol=0)
    assert torch.allclose(Tanh().derivative(x), 1 - t * t, rtol=1e-12, atol=1e-15)
    assert torch.allclose(Exponential().derivative(x), torch.exp(x))
    assert torch.allclose(Reciprocal().derivative(x.abs() + 1), -1 / (x.abs() + 1) ** 2)
    assert torch.allclose(Quadratic(0.3, -2.0, 5.0).derivative(x), 0.6 * x - 2.0)
    for op, point in (
        (Sigmoid(), x),
        (Tanh(), x),
        (Reciprocal(), x.abs() + 1),
        (Quadratic(2.0, 1.0, 3.0), x),
    ):
        tracked = point.clone().requires_grad_()
        op.value(tracked).sum().backward()
        assert torch.allclose(tracked.grad, op.derivative(point), rtol=1e-12, atol=1e-14)


def test_stationary_points_have_the_slope() -> None:
    """The closed forms in the docstrings: f'(x) = m at the points that are returned."""
    for op, slopes in (
        (Sigmoid(), [1e-12, 1e-3, 0.1, 0.2, 0.25 - 1e-9]),
        (Tanh(), [1e-12, 1e-3, 0.5, 1 - 1e-9]),
        (Exponential(), [1e-9, 1.0, 1e9]),
        (Reciprocal(), [-1e-9, -1.0, -1e9]),
        (Quadratic(-1.0, 1.0, 0.0), [-5.0, 0.0, 5.0]),
    ):
        m = torch.tensor(slopes, dtype=torch.float64)
        points = [p for p in op.stationary(m) if not bool((p == 700.0).all())]
        assert points
        for point in points:
            assert torch.allclose(op.derivative(point), m, rtol=1e-7, atol=1e-12)


def test_no_stationary_point_is_harmless() -> None:
    slopes = torch.tensor([-1.0, 0.0, 0.3, 2.0, 1e6]).double()
    box = Interval(torch.full((1, 5), -2.0).double(), torch.full((1, 5), 3.0).double())
    for op in (Sigmoid(), Tanh(), Exponential(), Quadratic(1.0, 0.0, 0.0)):
        found = op.residual(slopes, box)
        assert bool(torch.isfinite(found.lower).all() and torch.isfinite(found.upper).all())


def test_bilinear_planes_are_corners_of_the_residual() -> None:
    """``p = b_c``, ``q = a_c``; offsets are the extremes of ``a b - p a - q b`` over the corners."""
    rng = np.random.default_rng(0)
    instance = next(i for i in INSTANCES["bilinear"] if i.label == "elementwise")
    a, b = make_boxes(instance, MODERATE, ("nested",), rng)
    planes = Einsum("na,na->na").relax(a, b)
    p, q = b.centre[CLEAN], a.centre[CLEAN]
    for s in (0, 1):
        corners = torch.stack(
            [
                x * y - p * x - q * y
                for x in (a.lower[s], a.upper[s])
                for y in (b.lower[s], b.upper[s])
            ]
        )
        size = 1e-13 * (1.0 + planes.magnitude)
        assert bool(((planes.lower[s] - corners.amin(0)).abs() <= size).all())
        assert bool(((planes.upper[s] - corners.amax(0)).abs() <= size).all())


def test_einsum_refuses_what_it_cannot_do() -> None:
    with pytest.raises(EncodingError):
        Einsum("nh,nd->hd")
    with pytest.raises(EncodingError):
        SumSamples(1).interval(Interval.point(torch.zeros(1, 2, 2)))


def test_interval_arithmetic_of_boxes() -> None:
    box = Interval(torch.tensor([-1.0, math.nan]), torch.tensor([2.0, math.nan]))
    wide = box.widen(0.5)
    assert wide.lower.tolist() == [-1.5, -math.inf]
    assert wide.upper.tolist() == [2.5, math.inf]
    left, right = (
        Interval(torch.zeros(2), torch.ones(2)),
        Interval(torch.full((2,), 0.5), torch.full((2,), 3.0)),
    )
    met = left.meet(right)
    assert met.lower.tolist() == [0.5, 0.5]
    assert met.upper.tolist() == [1.0, 1.0]
    for broken in (
        Interval(torch.full((2,), 2.0), torch.full((2,), 3.0)),
        Interval.point(torch.full((2,), math.nan)),
    ):
        with pytest.raises(SoundnessError):
            left.meet(broken)


def test_gamma_is_the_formula() -> None:
    u = 2.0**-53
    for k in (1, 8, 1000.0, 1e6):
        assert gamma(k) == pytest.approx(k * u / (1 - k * u), rel=1e-15)


# ------------------------------------------------------------------- softmax and loss gradients


def _gradient_graph(loss: str, outputs: int, width: int) -> tuple[Graph, str]:
    graph = Graph()
    prediction = graph.add(Features((outputs,)), name="f")
    labels = graph.add(Labels((width,)), name="y")
    return graph, get_loss(loss).gradient(graph, prediction, labels).name


def _gradient_box(loss: str, logits: Interval, labels: Interval) -> Interval:
    graph, name = _gradient_graph(loss, logits.lower.shape[-1], labels.lower.shape[-1])
    boxes = {"f": logits, "y": labels}
    for node in graph:
        if node.inputs:
            boxes[node.name] = node.op.interval(*(boxes[i] for i in node.inputs))
    return boxes[name]


def _softmax(f: np.ndarray) -> np.ndarray:
    e = np.exp(f.astype(Long) - f.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


LOGIT_BOXES = {
    "ordinary": lambda rng, k: (rng.normal(size=k), rng.random(k)),
    "point": lambda rng, k: (rng.normal(size=k), np.zeros(k)),
    "hundred": lambda rng, k: (100.0 * np.arange(k) + rng.normal(size=k), rng.random(k)),
    "thousand": lambda rng, k: (1000.0 * np.arange(k)[::-1] + rng.normal(size=k), rng.random(k)),
    "wide": lambda rng, k: (rng.normal(size=k), 500.0 * rng.random(k)),
    "large": lambda rng, k: (1e6 + rng.normal(size=k), rng.random(k)),
}


@pytest.mark.parametrize("kind", LOGIT_BOXES)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_softmax_box_is_exact(classes: int, kind: str) -> None:
    """Equal to the extremes over the corners of the box; in [0, 1] up to rounding; never NaN."""
    rng = np.random.default_rng(classes)
    centre, radius = LOGIT_BOXES[kind](rng, classes)
    low, high = centre - radius, centre + radius
    logits = Interval(torch.from_numpy(low)[None, None], torch.from_numpy(high)[None, None])
    found = _gradient_box(
        "cross_entropy", logits, Interval.point(torch.zeros(1, 1, classes).double())
    )
    lower, upper = found.lower[0, 0].numpy(), found.upper[0, 0].numpy()
    assert np.isfinite(lower).all()
    assert np.isfinite(upper).all()
    assert (lower >= -1e-13).all()
    assert (upper <= 1 + 1e-12).all()
    corners = np.array(list(itertools.product(*zip(low, high, strict=True))))
    values = _softmax(corners)
    allowed = 1e-13 * (1.0 + np.abs(centre).max())
    assert (lower <= values.min(0).astype(np.float64)).all()
    assert (upper >= values.max(0).astype(np.float64)).all()
    assert (lower >= values.min(0) - allowed).all()
    assert (upper <= values.max(0) + allowed).all()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_softmax_formula(classes: int) -> None:
    """``p_j = 1 / (1 + sum_{k != j} exp(f_k - f_j))``; the gradient is ``softmax(f) - onehot(y)``."""
    from milp_agt.core.evaluate import evaluate

    rng = np.random.default_rng(0)
    f = torch.from_numpy(rng.normal(size=(6, classes)) * 5)
    labels = torch.from_numpy(rng.integers(0, classes, 6))
    y = get_loss("cross_entropy").encode(labels, classes)
    graph, name = _gradient_graph("cross_entropy", classes, classes)
    found = evaluate(graph, {"f": f, "y": y})[name]
    by_formula = torch.stack(
        [1 / sum(torch.exp(f[:, k] - f[:, j]) for k in range(classes)) for j in range(classes)], -1
    )
    assert torch.allclose(found, by_formula - y, atol=TOL.torch)


def test_gradients_of_the_other_losses_are_the_formulas() -> None:
    from milp_agt.core.evaluate import evaluate

    f = torch.linspace(-3, 3, 13, dtype=torch.float64).reshape(-1, 1)
    y = (torch.arange(13) % 2).double().reshape(-1, 1)
    sign = 2 * y - 1
    expected = {
        "bce": torch.sigmoid(f) - y,
        "hinge": -sign * (1 - sign * f > 0).double(),
        "mse": 2 * (f - y),
    }
    for loss, gradient in expected.items():
        graph, name = _gradient_graph(loss, 1, 1)
        assert torch.allclose(evaluate(graph, {"f": f, "y": y})[name], gradient, atol=1e-15)
    graph, name = _gradient_graph("mse", 3, 3)
    f, y = f[:12].reshape(4, 3), y[:12].reshape(4, 3)
    assert torch.allclose(evaluate(graph, {"f": f, "y": y})[name], 2 * (f - y) / 3)


# ------------------------------------------------------------------- poisoned sum, debt, update


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("budget", [0, 1, 2, 4])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(draw=draws(), pieces=st.integers(1, 3))
def test_poisoned_sum_is_exact(budget: int, masked: bool, draw: Draw, pieces: int) -> None:
    """``sum clean - topk max(0, clean - poisoned)``, against all admissible sets."""
    rng = draw.rng
    # Of a sample that is known to be poisoned, "no move" is still an admissible move.
    relation = "nested" if masked else "apart"
    parts = [make_box(per_sample(2), draw.kinds, relation, rng) for _ in range(2)]
    terms = Interval(
        torch.cat([p.lower for p in parts], 1)[:, :4], torch.cat([p.upper for p in parts], 1)[:, :4]
    )
    masks = Masks()
    if masked and budget >= 1:
        masks = Masks(
            torch.tensor([True, False, False, False]), torch.tensor([False, False, True, False])
        )
    check_poisoned_sum(terms, budget, masks, pieces, rng)


ONE_BATCH = ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (4, 3, 2, 1, 0))
BATCHES = ((0, 1, 2), (3, 4), (2, 0, 4), (1, 3))


@pytest.mark.parametrize("what", ["x", "v", "r", "xv"])
@pytest.mark.parametrize("batches", [ONE_BATCH, BATCHES], ids=["full", "mini"])
@pytest.mark.parametrize("per_batch", [False, True], ids=["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
def test_debt_is_the_best_attack(
    static: bool, per_batch: bool, batches: tuple[tuple[int, ...], ...], what: str
) -> None:
    poison = poison_of(2, static, per_batch, what)
    case: DebtCase = debt_case(poison, batches, rows=3, seed=1)
    # A static adversary with a budget in each batch is bounded by parts of the data set.
    check_debt(case, tight=not (static and per_batch and batches is BATCHES))


def test_support_is_joint_over_the_label_coordinates() -> None:
    poison = poison_of(1, True, False, "v")
    c = torch.tensor([[[1.0, -1.0, 0.0]] * 5]).double()
    assert isinstance(poison.label_moves, Vertices)
    moves = torch.einsum("w,nlw->nl", c[0, 0], poison.label_moves.points)
    assert torch.equal(poison.support(None, c)[0], (-moves).amax(-1))


@pytest.mark.parametrize("what", ["x", "v", "r", "xr"])
def test_boxes_of_the_leaves_hold_the_moves(what: str) -> None:
    poison = poison_of(3, True, False, what)
    check_leaf_boxes(poison)
    selection = poison.sample_selection(torch.Generator().manual_seed(0), 64)
    assert selection.sum(1).max() == 3
    assert not bool(selection[:, 1].any())


UPDATES = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "turned": {"weight_decay": 15.0},
    "momentum": {"momentum": 0.9, "weight_decay": 0.05},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 20.0},
}


@pytest.mark.parametrize("loss", ["mse", "bce", "hinge"])
@pytest.mark.parametrize("options", UPDATES)
def test_one_step_stays_inside(options: str, loss: str) -> None:
    training = Training(loss=loss, learning_rate=0.1, **UPDATES[options])
    data = small_data(6, 2, 0 if loss == "mse" else 2, seed=4)
    case = step_case(mlp(2, 3, 1), data, training, agt.FeaturePoisoning(budget=2, radius=0.1))
    rng = np.random.default_rng(5)
    check_update(case, rng)
    check_step_interval(case, rng)
    check_step_linear(case, rng)
    check_walk_of_update(case, rng)


@pytest.mark.parametrize(
    "activation", [torch.nn.Sigmoid, torch.nn.Tanh, lambda: torch.nn.LeakyReLU(0.1)]
)
def test_one_step_of_three_classes_stays_inside(activation: type[torch.nn.Module]) -> None:
    training = Training(loss="cross_entropy", learning_rate=0.5)
    model = mlp(2, 3, 3, activation=activation)
    threat = agt.FeatureLabelPoisoning(budget=2, radius=0.05)
    case = step_case(model, small_data(5, 2, 3, seed=6), training, threat, width=0.01)
    rng = np.random.default_rng(7)
    check_update(case, rng)
    check_step_interval(case, rng)
    check_step_linear(case, rng)
    check_walk_of_update(case, rng)


@pytest.mark.parametrize(
    "options",
    [{"weight_decay": 10.0}, {"weight_decay": 10.0 / 1.5, "momentum": 0.5, "nesterov": True}],
)
def test_decay_that_cancels_theta(options: dict[str, float]) -> None:
    """``1 - rate * decay`` is 0 up to rounding, but theta' carries the rounding of theta."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False).double())
    rng = np.random.default_rng(0)
    for value in rng.normal(size=20):
        torch.nn.init.constant_(model[0].weight, value)
        data = torch.tensor([[1e-3]]).double(), torch.tensor([value * 1e-3 + 1e-3]).double()
        training = Training(loss="mse", learning_rate=0.1, **options)
        case = step_case(
            model, data, training, agt.FeaturePoisoning(budget=0, radius=0.0), width=0.0
        )
        check_step_interval(case, rng, count=2)
        check_step_linear(case, rng, count=2)


def test_update_rules_are_the_formulas() -> None:
    theta, velocity, gradient = 0.7, -0.3, 1.9
    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True)):
        rule = UpdateRule(0.1, momentum, 0.2, nesterov)
        new = momentum * velocity + gradient + 0.2 * theta
        direction = gradient + 0.2 * theta + momentum * new if nesterov else new
        a, b, c = rule.velocity_from
        assert a * theta + b * velocity + c * gradient == pytest.approx(new)
        a, b, c = rule.theta_from
        assert a * theta + b * velocity + c * gradient == pytest.approx(theta - 0.1 * direction)


def test_schedule_formula() -> None:
    schedule = InverseTimeDecay(decay=0.5, floor=0.03)
    for t in range(40):
        assert schedule.rate(0.2, t, 9) == max(0.2 / (1 + 0.5 * t), 0.03)
