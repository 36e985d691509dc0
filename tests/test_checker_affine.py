"""Affine forms of the checker: rules at sampled points, trained models in their boxes, exact cases."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Replay
from problems import problem

from milp_agt.checker import affine, layers, training
from milp_agt.checker.affine import Form, Pass, Symbols
from milp_agt.checker.boxes import Box, Unbounded

SAMPLES, WIDTH, NOISE, BUDGET = 5, 2, 3, 2


def symbols_of(rng: np.random.Generator, size: float) -> Symbols:
    low, high = (
        -size * rng.uniform(0, 1, (SAMPLES, WIDTH)),
        size * rng.uniform(0, 1, (SAMPLES, WIDTH)),
    )
    return Symbols(low, high, (slice(0, SAMPLES),), BUDGET)


def drawn(rng: np.random.Generator, shape: tuple[int, ...], size: float, states: bool) -> Form:
    """Random forms; with ``states`` those of samples."""
    count = SAMPLES * WIDTH + NOISE
    rest = size * rng.uniform(0, 0.2, (2, 2, *shape)) if states else np.zeros((2, *shape))
    if states:
        rest[:, 1] += rest[:, 0]  # a poisoned sample has the larger rest; parameters have none
    scale = size * rng.normal(size=(*shape, count)) / 4
    return Form(rng.normal(size=shape), scale, -rest[0], rest[1])


class Chosen:
    """One choice of the adversary and of all noise, and the values of forms at it."""

    def __init__(self, rng: np.random.Generator, symbols: Symbols) -> None:
        self.rng, self.poisoned = rng, np.zeros(SAMPLES, bool)
        self.poisoned[rng.choice(SAMPLES, rng.integers(BUDGET + 1), replace=False)] = True
        share = np.where(
            rng.random((SAMPLES, WIDTH)) < 0.5,
            rng.integers(0, 2, (SAMPLES, WIDTH)),
            rng.random((SAMPLES, WIDTH)),
        )
        moves = symbols.low + share * (symbols.high - symbols.low)
        moves[~self.poisoned] = 0.0
        self.values = np.concatenate([moves.ravel(), rng.choice([-1.0, 1.0, 0.3], NOISE)])

    def centre(self, form: Form) -> np.ndarray:
        return form.c + form.s @ self.values

    def rests(self, form: Form) -> tuple[np.ndarray, np.ndarray]:
        if form.low.ndim == form.c.ndim:
            return form.low, form.high
        at = self.poisoned.astype(int), np.arange(SAMPLES)
        return form.low[at], form.high[at]

    def draw(self, form: Form) -> np.ndarray:
        low, high = self.rests(form)
        return self.centre(form) + low + self.rng.integers(0, 2, low.shape) * (high - low)

    def holds(self, form: Form, value: np.ndarray) -> bool:
        low, high = self.rests(form)
        gap = value - self.centre(form)
        return bool(((low <= gap) & (gap <= high)).all())


def of_problem(loss: str, *kinds: str) -> layers.Problem:
    own = tuple(layers.Layer(kind, slope=0.1) for kind in kinds)
    return layers.Problem(
        own, loss, (np.arange(SAMPLES),), (layers.Rule(0.1),), layers.ARITHMETICS["float64"]
    )


@pytest.mark.parametrize("size", [0.02, 0.5, 2.0])
def test_rules_hold_at_sampled_points(size: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(12):
        symbols = symbols_of(rng, size)
        own, every = np.arange(SAMPLES), np.ones(SAMPLES, bool)
        rows, bias = drawn(rng, (3, 4), size, False), drawn(rng, (3,), size, False)
        x, delta = drawn(rng, (SAMPLES, 4), size, True), drawn(rng, (SAMPLES, 3), size, True)
        y = affine.points(np.eye(3)[rng.integers(0, 3, SAMPLES)], x.s.shape[-1])
        step = Pass(of_problem("cross_entropy"), symbols, own)
        z = step.dense(rows, x, bias)
        h, at, slopes = step.activated(layers.Layer("relu"), z)
        leaky = step.activated(layers.Layer("leaky_relu", slope=0.2), z)[0]
        back, total = step.pulled(delta, at, slopes), step.summed(delta, x, every)
        alone, p = step.summed(delta, None, every), step.loss(z, y)
        one = Form(z.c[:, :1], z.s[:, :1], z.low[..., :1], z.high[..., :1])
        target = affine.points(np.ones((SAMPLES, 1)), x.s.shape[-1])
        bce = Pass(of_problem("bce"), symbols, own).loss(one, target)
        mse = Pass(of_problem("mse"), symbols, own).loss(z, y)
        box, own_box = affine.ranges(rows, symbols), affine.own_ranges(x, symbols, own)
        for _ in range(40):
            chosen = Chosen(rng, symbols)
            w, b, u, d = (chosen.draw(form) for form in (rows, bias, x, delta))
            assert ((box.lo <= w) & (w <= box.hi)).all()
            state = chosen.poisoned.astype(int), own
            assert ((own_box.lo[state] <= u) & (u <= own_box.hi[state])).all()
            assert chosen.holds(z, u @ w.T + b)
            value = chosen.draw(z)
            assert chosen.holds(h, np.maximum(value, 0.0))
            assert chosen.holds(leaky, np.where(value > 0, value, 0.2 * value))
            assert chosen.holds(back, d * (value > 0))
            assert chosen.holds(total, d.T @ u)
            assert chosen.holds(alone, d.sum(0))
            odds = np.exp(value - value.max(1, keepdims=True))
            assert chosen.holds(p, odds / odds.sum(1, keepdims=True) - y.c)
            assert chosen.holds(bce, 1 / (1 + np.exp(-value[:, :1])) - 1.0)
            assert chosen.holds(mse, 2 / 3 * (value - y.c))


@pytest.mark.parametrize("rule", ["dense", "activated", "pulled", "summed"])
def test_a_rest_that_is_too_small_shows(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(Pass, rule)

    def tight(*arguments: Any) -> Any:
        found = original(*arguments)
        form = found[0] if isinstance(found, tuple) else found
        middle, half = (
            (form.high + form.low) / 2,
            (form.high - form.low) * (0.1 if rule == "dense" else 0.25),
        )
        smaller = Form(form.c, form.s, middle - half, middle + half)
        return (smaller, *found[1:]) if isinstance(found, tuple) else smaller

    monkeypatch.setattr(Pass, rule, tight)
    with pytest.raises(AssertionError):
        test_rules_hold_at_sampled_points(0.5)


def bounded(given: Any, loss: str) -> dict[str, Box]:
    """Boxes of a problem of the test suite with one hidden layer of relu."""
    replay = Replay(given)
    poison, order = replay.poison, given.training.batch_order(len(given.features))
    rules = given.training.update_rules(len(order))
    own = layers.Problem(
        (
            layers.Layer("dense", "0.weight", "0.bias"),
            layers.Layer("relu"),
            layers.Layer("dense", "2.weight", "2.bias"),
        ),
        loss,
        order,
        tuple(layers.Rule(r.rate, r.momentum, r.weight_decay, nesterov=r.nesterov) for r in rules),
        layers.ARITHMETICS["float64"],
    )
    assert affine.covers(own)
    x, y = poison.features.numpy(), poison.labels.numpy()
    samples = layers.Samples(Box.point(x[None]), Box.point(y[None]))
    ends = [box.expand_states(2) for box in (poison.feature_box(), poison.label_box())]
    moved = layers.Samples(*(Box(b.lower[1:].numpy(), b.upper[1:].numpy()) for b in ends))
    poisoned = layers.Poisoned(moved, poison.open.numpy(), poison.budget)
    initial = {n: v.numpy() for n, v in replay.step_graph.initial.items()}
    once = poison.static and not poison.per_batch
    forms, symbols = affine.train(own, initial, samples, poisoned, not once)
    return affine.boxes(forms, symbols)


THREATS = {
    "features": {"kind": "features", "radius": 0.05},
    "labels": {"kind": "labels"},
    "both, in every batch": {"kind": "both", "radius": 0.05, "scope": "batch", "budget": 1},
    "features, anew": {"kind": "features", "radius": 0.05, "static": False},
}


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy"])
def test_trained_models_lie_in_the_boxes(loss: str, threat: str) -> None:
    """Random, corner and unit-flipping attacks, trained in torch, without a tolerance."""
    run = {"momentum": 0.5, "weight_decay": 0.1, "batch_size": 4, "epochs": 2, "learning_rate": 0.1}
    options = dict(THREATS[threat])
    kind = str(options.pop("kind"))
    given, _, _ = problem(loss, kind, run | {"nesterov": kind == "labels"}, count=6, **options)
    boxes, replay = bounded(given, loss), Replay(given)
    generator = torch.Generator().manual_seed(0)
    attacks = [replay.random(200, generator, corner) for corner in (True, False)]
    attacks += list(replay.by_units(20, generator, 8)) if kind == "features" else []
    for attack in attacks:
        final = replay.run(attack)[-1]
        for name, box in boxes.items():
            value = final[name].numpy()
            assert ((box.lo <= value) & (value <= box.hi)).all(), name


def line(budget: int, steps: int) -> tuple[Any, ...]:
    """A linear model whose labels move: its forms are exact."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2)), rng.normal(size=(4, 1))
    own = layers.Problem(
        (layers.Layer("dense", "w", "b"),),
        "mse",
        (np.arange(4),) * steps,
        (layers.Rule(0.1, 0.5),) * steps,
        layers.ARITHMETICS["float64"],
    )
    samples = layers.Samples(Box.point(x[None]), Box.point(y[None]))
    moved = layers.Samples(samples.x, Box(y[None] - 0.1, y[None] + 0.1))
    poisoned = layers.Poisoned(moved, np.ones(4, bool), budget)
    return own, {"w": np.array([[0.5, -0.5]]), "b": np.zeros(1)}, samples, poisoned


def test_lines_are_bounded_exactly() -> None:
    """Some poisoned labels reach the ends of the box."""
    own, initial, samples, poisoned = line(2, 6)
    box = affine.boxes(*affine.train(own, initial, samples, poisoned, False))["w"]
    reached = []
    for chosen in itertools.combinations(range(4), 2):
        for signs in itertools.product((-0.1, 0.1), repeat=2):
            y = samples.y.lo.copy()
            y[0, list(chosen), 0] += signs
            ends = training.train(own, initial, layers.Samples(samples.x, Box.point(y)))["w"]
            reached.append((ends.lo[0], ends.hi[0]))
    low, high = np.min([r[0] for r in reached], 0), np.max([r[1] for r in reached], 0)
    assert (np.abs(box.lo[0] - low) <= 1e-9).all()
    assert (np.abs(box.hi[0] - high) <= 1e-9).all()
    assert (box.lo[0] <= low + 1e-12).all()
    assert (high - 1e-12 <= box.hi[0]).all()


def test_questions_are_tighter_by_forms() -> None:
    """Outputs of lines at test points, whose parameters move together."""
    own, initial, samples, poisoned = line(2, 6)
    forms, symbols = affine.train(own, initial, samples, poisoned, False)
    x = np.random.default_rng(1).normal(size=(5, 2))
    _, by_forms = affine.outputs(own, forms, symbols, x)
    state = affine.boxes(forms, symbols)
    by_boxes = layers.forward(own, state, Box.point(x[None]))[-1]
    assert ((by_forms.hi - by_forms.lo) < (by_boxes.hi - by_boxes.lo)[0]).all()
    for _ in range(50):
        y = samples.y.lo.copy()
        y[0, :2] += np.random.default_rng(2).uniform(-0.1, 0.1, (2, 1))
        final = training.train(own, initial, layers.Samples(samples.x, Box.point(y)))
        value = layers.forward(own, final, Box.point(x[None]))[-1]
        assert (by_forms.lo <= value.hi[0]).all()
        assert (value.lo[0] <= by_forms.hi).all()


def test_too_many_coefficients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affine, "NUMBERS", 10)
    with pytest.raises(Unbounded, match="coefficients"):
        affine.train(*line(1, 2), False)
