"""The checker's rules: enclosures of functions and layers, and boxes that hold every trained run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Replay
from certified import boxes_of, data_of, forms_of, run_of
from problems import problem

from milp_agt.checker import affine, forms, functions, layers, proof, training
from milp_agt.checker.boxes import TINY, Box, Unbounded, corners, down, exact, matmul, total, up
from milp_agt.checker.layers import ARITHMETICS, Layer, Rule
from milp_agt.checker.statement import Statement

LINE, SQUARE = Layer("dense", "w"), Layer("dense", "w", "b")


def test_elementary_functions_are_enclosed() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(size=60) * 10.0 ** rng.uniform(-4, 2, 60), [0.0, -745.0, 700.0, 1e-300]]
    )
    for f in (functions.exp, functions.sigmoid, functions.tanh):
        with np.errstate(over="ignore"):
            near, true = f(Box.point(x)), f(Box.point(exact(x)))
        assert (near.lo <= true.hi).all()
        assert (true.lo <= near.hi).all()
        assert (near.hi - near.lo <= 2.0**-45 * np.maximum(1.0, near.hi)).all()
    size = np.abs(x) + 1e-9
    back = functions.exp(functions.log(Box.point(size)))
    assert ((back.lo <= size) & (size <= back.hi)).all()
    logits = rng.normal(size=(8, 4)) * 5
    near, true = functions.softmax(Box.point(logits)), functions.softmax(Box.point(exact(logits)))
    assert (near.lo <= true.hi).all()
    assert (true.lo <= near.hi).all()
    with np.errstate(over="ignore"):
        huge = functions.softmax(Box.point(np.array([[1e5, -1e5, 0.0]])))
    assert huge.lo[0, 0] > 1 - 1e-12
    assert huge.hi[0, 1] < 1e-12


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": lambda t: torch.nn.functional.leaky_relu(t, 0.1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_layers_contain_what_points_give(kind: str) -> None:
    """Values and cotangents of points lie in the images of their boxes, and reach the ends."""
    rng = np.random.default_rng(1)
    middle, radius = rng.normal(size=(1, 6, 8)), rng.uniform(0.1, 1.0, size=(1, 6, 8))
    z = Box(middle - radius, middle + radius)
    delta = Box(rng.normal(size=z.lo.shape) - 0.2, rng.normal(size=z.lo.shape) + 4.0)
    layer, arithmetic = Layer(kind, slope=0.1 * (kind == "leaky_relu")), ARITHMETICS["float64"]
    value = layers.activation(layer, z, arithmetic)
    pulled = layers.pulled(layer, z, value, delta, arithmetic)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    for share, end in itertools.product(np.linspace(0, 1, 201), (delta.lo, delta.hi)):
        point = torch.from_numpy(np.clip(z.lo + share * (z.hi - z.lo), z.lo, z.hi)).requires_grad_()
        image = ACTIVATIONS[kind](point)
        image.backward(torch.from_numpy(end))
        assert point.grad is not None
        seen.append((image.detach().numpy(), point.grad.numpy()))
    for box, values in zip((value, pulled), zip(*seen, strict=True), strict=True):
        low, high = np.min(values, 0), np.max(values, 0)
        assert (box.lo <= low).all()
        assert (high <= box.hi).all()
        assert (box.hi - box.lo <= (high - low) * 1.01 + 1e-3).all()


def test_products_are_enclosed() -> None:
    rng = np.random.default_rng(2)
    a, b = (
        Box(m - r, m + r)
        for m, r in [(rng.normal(size=(5, 4)), rng.uniform(0, 1, (5, 4))) for _ in "ab"]
    )
    true = total(*corners(exact(a), exact(b)))
    near, whole = total(*corners(a, b)), matmul(a, Box(b.lo.T, b.hi.T))
    assert ((near.lo <= true.lo) & (true.hi <= near.hi)).all()
    assert (np.diagonal(whole.lo) <= near.lo + 1e-12).all()
    assert (near.hi - 1e-12 <= np.diagonal(whole.hi)).all()
    low, high = corners(a, b)
    assert (low <= high).all()


def test_rounding_outwards_goes_at_least_one_number_further() -> None:
    """Of all sizes, those around powers of two among them; hardly further than that."""
    powers = np.ldexp(1.0, np.arange(-1074, 1023))
    near = [np.nextafter(powers, end) for end in (0.0, np.inf)]
    drawn = np.random.default_rng(0).integers(0, 2**62, 10_000).view(np.float64)
    values = np.concatenate([[0.0], powers, *near, drawn[np.isfinite(drawn)], -drawn])
    for outwards, end in ((up, np.inf), (down, -np.inf)):
        found, past = outwards(values), values
        assert (abs(found - values) >= abs(np.nextafter(values, end) - values)).all()
        for _ in range(3):
            past = np.nextafter(past, end)
        assert (abs(found - values) <= abs(past - values) + TINY).all()
        assert ((found > values) == (end > 0)).all()


def test_ties_are_counted_for_the_worse() -> None:
    """Wrong where a number at least is right, right where a number at most is; of the worst case."""
    tiny = 5e-324
    low = np.array([[[0.0], [tiny], [-tiny]], [[tiny], [tiny], [-1.0]]])
    high = np.array([[[0.0], [1.0], [-tiny]], [[1.0], [1.0], [0.0]]])
    assert proof.count_right(Box(low, high), np.zeros(3)[:, None]) == (1, 3)
    assert proof.count_right(Box(low[:1], high[:1]), np.zeros(3)[:, None]) == (1, 2)


def test_infinity_and_underflow_prove_nothing() -> None:
    with np.errstate(all="ignore"):
        for number in (
            lambda: Box.point(np.array([1e308])) + Box.point(np.array([1e308])),
            lambda: functions.exp(Box.point(np.array([1e4]))),
            lambda: Box(np.array([np.nan]), np.array([0.0])),
            lambda: forms.near(Fraction(1, 2**1070), np.zeros(1)),
        ):
            with pytest.raises(Unbounded):
                number()
    assert forms.near(Fraction(0), np.zeros(1)) == 0.0
    # 1e-40 is no normal float32: the run may take it for 0.
    leaky = Layer("leaky_relu", slope=1e-40)
    found = layers.activation(leaky, Box.point(np.array([-1e29])), ARITHMETICS["float32"])
    assert found.hi[0] >= 0.0


THREATS: dict[str, dict[str, Any]] = {
    "features": {"kind": "features", "radius": 0.05},
    "labels": {"kind": "labels"},
    "both, in every batch": {"kind": "both", "radius": 0.05, "scope": "batch", "budget": 1},
    "features, anew": {"kind": "features", "radius": 0.05, "static": False},
}
NORMS: dict[str, dict[str, Any]] = {
    norm: {"kind": "features", "radius": 0.1, "norm": norm} for norm in ("1", "2")
}


CURVED = [("bce", "tanh"), ("cross_entropy", "sigmoid")]
PAIRS = [(loss, "relu") for loss in ("mse", "bce", "cross_entropy", "hinge")] + CURVED


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize(
    ("method", "loss", "bends"),
    [("interval", loss, "tanh") for loss, bends in PAIRS if bends == "relu"]
    + [("affine", *pair) for pair in PAIRS],
)
def test_trained_models_lie_in_the_boxes(method: str, loss: str, bends: str, threat: str) -> None:
    """Random, corner and unit-flipping attacks, trained in torch, without a tolerance."""
    run = {"momentum": 0.5, "weight_decay": 0.1, "batch_size": 4, "epochs": 2, "learning_rate": 0.1}
    options = dict((THREATS | NORMS)[threat])
    kind = str(options.pop("kind"))
    layer = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid}[bends]
    run |= {"nesterov": kind == "labels"}
    given, _, _ = problem(loss, kind, run, activation=layer, count=6, **options)
    boxes, replay = boxes_of(given, bends, method), Replay(given)
    generator = torch.Generator().manual_seed(0)
    attacks = [replay.random(150, generator, corner) for corner in (True, False)]
    attacks += list(replay.by_units(20, generator, 8)) if kind == "features" else []
    for attack in attacks:
        final = replay.run(attack)[-1]
        for name, box in boxes.items():
            value = final[name].numpy()
            assert ((box.lo <= value) & (value <= box.hi)).all(), name


@pytest.mark.parametrize("norm", NORMS)
def test_trained_models_lie_in_the_boxes_of_norms(norm: str) -> None:
    test_trained_models_lie_in_the_boxes("affine", "mse", "relu", norm)


@pytest.mark.parametrize("threat", ["both, in every batch", "features, anew"])
def test_trained_models_lie_in_the_boxes_by_parts_of_batches(threat: str) -> None:
    test_trained_models_lie_in_the_boxes("parts", "bce", "relu", threat)


@pytest.mark.parametrize("norm", [1, 2])
def test_support_of_norms_is_exact(norm: int) -> None:
    rng = np.random.default_rng(0)
    radius, by = rng.uniform(0, 1, (3, 4)), rng.normal(size=(3, 4))
    symbols = forms.Symbols.none(4, 1, norm).with_slots(-radius, radius, radius)
    scaled = by * radius
    best = scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)
    if norm == 1:
        best = np.sign(scaled) * (abs(scaled) == abs(scaled).max(-1, keepdims=True))
    gain = (by * radius * best).sum(-1)
    assert np.linalg.norm(best, norm, -1).max() <= 1.0 + 1e-12
    for found in (symbols.support(by), exact(symbols).support(exact(by)).astype(float)):
        assert (gain * (1 - 1e-14) <= found).all()
        assert (found <= gain * (1 + 1e-14)).all()


def test_one_step_of_a_line_is_bounded_exactly() -> None:
    """Attacks reach the ends of the box: no bound in it could be smaller."""
    x, y = np.array([[1.0], [2.0], [-1.0]]), np.array([[0.5], [1.0], [0.0]])
    own, poisoned = data_of(x, y, 2, moved_y=0.2)
    line = run_of("mse", LINE, batches=[range(3)])
    box = training.train(line, {"w": np.array([[0.7]])}, own, poisoned)["w"]
    reached = []
    for chosen in itertools.combinations(range(3), 2):
        for signs in itertools.product((-0.2, 0.2), repeat=2):
            target = y.copy()
            target[list(chosen), 0] += signs
            reached.append(0.7 - 0.1 * np.mean(2 * (0.7 * x - target) * x))
    assert box.lo[0, 0, 0] <= min(reached) <= max(reached) <= box.hi[0, 0, 0]
    assert box.hi[0, 0, 0] - box.lo[0, 0, 0] <= (max(reached) - min(reached)) * (1 + 1e-12)


TINY_RUNS = [
    *itertools.product(("relu", "leaky_relu"), ("mse", "bce", "cross_entropy", "hinge")),
    ("tanh", "mse"),
    ("sigmoid", "bce"),
]
LONG = ("affinesigmoid", "affineleaky_relu", "intervalleaky_relu")


@pytest.mark.parametrize(
    ("activation", "loss", "method"),
    [
        pytest.param(*run, method, marks=pytest.mark.slow if method + run[0] in LONG else ())
        for run, method in itertools.product(TINY_RUNS, ("interval", "affine"))
    ],
)
def test_fractions_agree_with_floats(activation: str, loss: str, method: str) -> None:
    """Exact arithmetic gives boxes inside those of floats, and hardly smaller ones."""
    rng = np.random.default_rng(0)
    outputs = 3 if loss == "cross_entropy" else 1
    x = rng.normal(size=(4, 2))
    y = np.eye(3)[[0, 1, 2, 0]] if outputs == 3 else np.array([[0.0], [1.0], [1.0], [0.0]])
    shape = {"a": (2, 2), "b": (2,), "c": (outputs, 2)}
    initial = {name: rng.normal(size=size) for name, size in shape.items()}
    bent = (
        Layer("dense", "a", "b"),
        Layer(activation, slope=0.1 * (activation == "leaky_relu")),
        Layer("dense", "c"),
    )
    rule = Rule(0.3, 0.5 if loss == "bce" else 0.0, 0.1)
    given = run_of(loss, *bent, batches=[range(4), range(1, 4)], rules=[rule])
    samples, poisoned = data_of(x, y, 1, moved_x=0.05)
    floats = Statement(given, samples, poisoned, method, initial)
    near, true = (proof.reached(each)[0].boxes for each in (floats, exact(floats)))
    for name, box in true.items():
        assert (near[name].lo <= box.lo).all()
        assert (box.hi <= near[name].hi).all()
        gap = np.maximum(near[name].hi - box.hi, box.lo - near[name].lo)
        assert float(gap.max()) <= 1e-12


@pytest.mark.parametrize("dampening", [-2.0, 0.0, 1.0, 3.0])
def test_rounding_of_affine_forms_under_any_dampening(dampening: float) -> None:
    """What the run may round off is granted whatever the sign of 1 - dampening."""
    rule = Rule(0.5, momentum=0.5, dampening=dampening)
    given = run_of("mse", LINE, batches=[[0]], rules=[rule], numbers="float32")
    zero = np.zeros((1, 1))

    def form(value: float) -> forms.Form:
        return forms.Form(zero + value, np.zeros((1, 1, 0)), zero, zero, np.zeros((1, 1, 1)))

    symbols = forms.Symbols.none(0, 0).with_slots(*[np.zeros((1, 0))] * 3)
    step = affine.Pass(given, symbols, np.arange(1), {})
    state = {"w": form(1.0), "velocity of w": form(0.0)}
    for new in step.updated(rule, "w", state, form(100.0), 1).values():
        assert (new.low < 0).all()
        assert (new.high > 0).all()


@pytest.mark.parametrize("gone", range(3))
def test_the_first_step_that_is_taken_is_not_dampened(gone: int) -> None:
    """Without the sample of the first batch a run begins with the second one, as torch runs it."""
    x, y = np.array([[1.0], [-2.0], [0.5]]), np.array([[0.3], [1.0], [-0.7]])
    rules = [Rule(0.5, momentum=0.5, dampening=tau) for tau in (0.0, 0.4, 0.4)]
    own = run_of("mse", LINE, batches=[[0], [1], [2]], rules=rules)
    given = Statement(own, *data_of(x, y, 1), "listed", {"w": np.zeros((1, 1))})
    box = proof._run_on(given, [{gone: 0}]).boxes["w"]
    w = torch.nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    opt = torch.optim.SGD([w], lr=0.5, momentum=0.5, dampening=0.4)
    for sample in set(range(3)) - {gone}:
        opt.zero_grad()
        (torch.from_numpy(x[sample]) @ w - torch.from_numpy(y[sample])).square().sum().backward()
        opt.step()
    end = w.item()
    assert max(abs(end - box.lo[0, 0, 0]), abs(end - box.hi[0, 0, 0])) < 1e-12


UNDERFLOWS: dict[str, Any] = {
    # Moves of 1e100 pass a rate and a feature of 1e-330 together, and then a rate that is huge.
    "a coefficient": ([[0.0, 0.0], [1e-150, 1.0]], [-0.5, 0.0], 1e100, [Rule(1e-180), Rule(1e150)]),
    # momentum times velocity is 0 in the run, and not where the rate was multiplied before.
    "momentum": (
        [[1.0, 0.0]] * 2,
        [-5e-201] * 2,
        0.0,
        [Rule(0.0, 1e-150), Rule(1e300, 1e-150, dampening=1.0)],
    ),
}


@pytest.mark.parametrize("name", UNDERFLOWS)
def test_runs_whose_factors_underflow_lie_in_the_boxes(name: str) -> None:
    rows, labels, move, rules = UNDERFLOWS[name]
    x, y = np.array(rows), np.array(labels)[:, None]
    given = run_of("mse", LINE, batches=[[0], [1]], rules=rules)
    moved = x.copy()
    moved[0, 0] += move
    w, v = np.zeros((1, 2)), np.zeros((1, 2))
    for sample, rule in enumerate(rules):
        d = 2 * (moved[sample] @ w.T - y[sample]) * moved[sample]
        v = rule.momentum * v + (1 - rule.dampening) * d
        w = w - rule.rate * v
    first = {"w": np.zeros((1, 2))}
    own, threat = data_of(x, y, 1, moved_x=(x, moved), open_=[True, False])
    by_forms = forms_of(given, first, own, threat, False).boxes()
    for box in (by_forms["w"], training.train(given, first, own, threat)["w"]):
        assert (box.lo[0] <= w).all()
        assert (w <= box.hi[0]).all()


def _tight(box: Box, share: float = 0.01) -> Box:
    moved = share * (box.hi - box.lo)
    return Box(box.lo + moved, box.hi - moved)


def _tight_boxes(found: Any) -> Any:
    return {name: _tight(box) for name, box in found.items()}


MUTANTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "the worst samples": (training, "largest", lambda found: 0.99 * found),
    "the update": (training, "updated", _tight_boxes),
    "the loss": (layers, "loss_gradient", _tight),
    "a dense layer": (layers, "dense", _tight),
    "sigmoid": (functions, "sigmoid", _tight),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_that_is_too_tight_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any rule one percent too tight, a poisoned run of one step leaves the box."""
    x, y = np.array([[1.0], [2.0], [-1.0]]), np.array([[1.0], [0.0], [1.0]])
    given = run_of("bce", SQUARE, batches=[range(3)], rules=[Rule(1.0)])
    start = {"w": np.array([[0.7]]), "b": np.array([0.1])}
    own, poisoned = data_of(x, y, 1, moved_x=0.3, moved_y=(0.0, 1.0))
    values = []
    for sample, shift, label in itertools.product(range(3), (-0.3, 0.3), (0.0, 1.0)):
        at_x, at_y = x.copy(), y.copy()
        at_x[sample] += shift
        at_y[sample] = label
        p = 1 / (1 + np.exp(-(0.7 * at_x + 0.1)))
        values.append(0.1 - float(np.mean(p - at_y)))

    def holds() -> bool:
        box = training.train(given, start, own, poisoned)["b"]
        return bool(box.lo.item() <= min(values) and max(values) <= box.hi.item())

    assert holds()
    module, attribute, tighter = MUTANTS[name]
    honest = getattr(module, attribute)
    monkeypatch.setattr(module, attribute, lambda *a, **options: tighter(honest(*a, **options)))
    assert not holds()
