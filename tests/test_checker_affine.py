"""Affine forms of the checker: rules at sampled points, and exact cases."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from certified import data_of, forms_of, run_of

from milp_agt.checker import affine, forms, layers, training
from milp_agt.checker.affine import Pass
from milp_agt.checker.boxes import Box, Unbounded, largest
from milp_agt.checker.forms import Form, Symbols

SAMPLES, WIDTH, NOISE, FLIPS, BUDGET = 5, 2, 3, 3, 2


def symbols_of(rng: np.random.Generator, size: float) -> Symbols:
    low, high = (sign * size * rng.uniform(0, 1, (SAMPLES, WIDTH)) for sign in (-1, 1))
    shares = rng.choice([0.0, 0.4, 1.0], (FLIPS, SAMPLES))
    cover = np.sort(shares, 1)[:, -BUDGET:].sum(1)
    cover[0] = np.inf  # of which nothing is known
    symbols = Symbols.none(WIDTH, BUDGET).with_slots(low, high, 0 * low)
    most, none = size * rng.uniform(0.1, 1, FLIPS), np.zeros(FLIPS)
    y = Form(none, np.zeros((FLIPS, symbols.count)), -most, most)  # of which nothing else is known
    names, pays = np.zeros((FLIPS, 2), np.int64), np.zeros((FLIPS, 2, SAMPLES))
    parts = {"names": names, "most": most, "shares": shares, "cover": cover, "pays": pays}
    symbols = symbols.with_flips(y, most, most, **parts)
    owned, base = (size * rng.uniform(0, 0.3, shape) for shape in ((NOISE, SAMPLES), NOISE))
    return symbols.with_noise(base, owned, np.arange(FLIPS), size * rng.uniform(0, 0.3, FLIPS))


def drawn(
    rng: np.random.Generator, symbols: Symbols, shape: tuple[int, ...], size: float, states: bool
) -> Form:
    """Random forms; with ``states`` those of samples."""
    rest = size * rng.uniform(0, 0.2, (2, 2, *shape)) if states else np.zeros((2, *shape))
    if states:
        rest[:, 1] += rest[:, 0]  # a poisoned sample has the larger rest; parameters have none
    scale = rng.normal(size=(*shape, symbols.count)) / 4
    scale[..., symbols.flips[:, 0]] *= size
    return Form(rng.normal(size=shape), scale, -rest[0], rest[1])


class Chosen:
    """One choice of the adversary, of flips and of noise, and the values of forms at it."""

    def __init__(self, rng: np.random.Generator, symbols: Symbols) -> None:
        self.rng, self.poisoned = rng, np.zeros(SAMPLES, bool)
        self.poisoned[rng.choice(SAMPLES - 1, rng.integers(BUDGET + 1), replace=False)] = True
        share = np.where(
            rng.random((SAMPLES, WIDTH)) < 0.5,
            rng.integers(0, 2, (SAMPLES, WIDTH)),
            rng.random((SAMPLES, WIDTH)),
        )
        moves = symbols.low + share * (symbols.high - symbols.low)
        moves[~self.poisoned] = 0.0
        phi = (symbols.shares @ self.poisoned >= 1.0) | (symbols.cover > 1e300)
        self.phi = phi & (rng.random(FLIPS) < 0.8)
        self.values = np.zeros(symbols.count)
        self.values[symbols.moves] = moves
        self.values[symbols.flips[:, 0]] = self.phi
        rho = symbols.most * rng.choice([0.0, 0.5, 1.0], FLIPS)
        self.values[symbols.flips[:, 1]] = self.phi * rho
        reach = symbols.base + symbols.owned @ self.poisoned + self.charges(symbols)
        self.values[symbols.noise] = reach * rng.choice([-1.0, 1.0, 0.3], NOISE)

    def charges(self, symbols: Symbols) -> np.ndarray:
        return np.where(symbols.flip < 0, 0.0, symbols.charge * self.phi[symbols.flip])

    def flipped(self, symbols: Symbols, value: np.ndarray, at: np.ndarray, flipped: Any) -> bool:
        """Choose the flips of an activation at its argument; whether the rows of the symbols allow it."""
        seen = np.zeros(value.shape, bool)
        seen[flipped.place] = True
        crossed = (value > 0) != (at == 1.0)
        phi = crossed[flipped.place]
        self.phi = np.concatenate([self.phi, phi])
        rho = phi * abs(value[flipped.place])
        self.values = np.concatenate([self.values, np.stack([phi, rho], 1).ravel()])
        own = slice(flipped.index[0], None) if len(flipped.index) else slice(0, 0)
        paid = (symbols.cover[own] > 1e300) | (symbols.shares[own] @ self.poisoned >= phi)
        return bool((seen | ~crossed).all() and (rho <= symbols.most[own]).all() and paid.all())

    def keeps_rows(self, symbols: Symbols) -> bool:
        """Whether both rows of each flip are at least 0."""
        known = self.values[: symbols.rows.shape[-1]]
        values = symbols.rows @ known + symbols.above + symbols.pays @ self.poisoned
        return bool((values >= -1e-12).all())

    def charged(self, symbols: Symbols, delta: np.ndarray, centre: np.ndarray, by: Any) -> bool:
        """The same for the noise of a product with phases."""
        count = len(by.index)
        if not count:
            return True
        noise = self.phi[-count:] * by.turned * (delta - centre)[by.place]
        self.values = np.concatenate([self.values, noise])
        reach = (symbols.owned @ self.poisoned + self.charges(symbols))[-count:]
        return bool((abs(noise) <= reach).all())

    def centre(self, form: Form) -> np.ndarray:
        return form.c + form.s @ self.values[: form.s.shape[-1]]

    def rests(self, form: Form) -> tuple[np.ndarray, np.ndarray]:
        low, high = form.low, form.high
        if form.low.ndim > form.c.ndim:
            at = self.poisoned.astype(int), np.arange(SAMPLES)
            low, high = form.low[at], form.high[at]
        more = form.owned @ self.poisoned if form.owned.ndim > 1 else 0.0
        return low - more, high + more

    def draw(self, form: Form) -> np.ndarray:
        low, high = self.rests(form)
        return self.centre(form) + low + self.rng.integers(0, 2, low.shape) * (high - low)

    def holds(self, form: Form, value: np.ndarray) -> bool:
        low, high = self.rests(form)
        gap = value - self.centre(form)
        return bool(((low <= gap) & (gap <= high)).all())

    def lies(self, box: Box, value: np.ndarray) -> bool:
        """Whether numbers of samples lie in their box by state."""
        at = self.poisoned.astype(int), np.arange(SAMPLES)
        return bool(((box.lo[at] <= value) & (value <= box.hi[at])).all())


@pytest.mark.parametrize("size", [0.02, 0.5, 2.0])
def test_rules_hold_at_sampled_points(size: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(12):
        symbols = symbols_of(rng, size)
        own = np.where(np.arange(SAMPLES) < SAMPLES - 1, np.arange(SAMPLES), -1)
        rows, bias = (drawn(rng, symbols, shape, size, False) for shape in ((3, 4), (3,)))
        x, delta = (drawn(rng, symbols, (SAMPLES, n), size, True) for n in (4, 3))
        for form in (x, delta):  # those of a sample that stays clean
            form.low[1, -1], form.high[1, -1] = form.low[0, -1], form.high[0, -1]
        y = affine.points(np.eye(3)[rng.integers(0, 3, SAMPLES)])
        ones = affine.points(np.ones((SAMPLES, 1)))
        step = Pass(run_of("cross_entropy", batches=[range(SAMPLES)]), symbols, own, {})
        z = step.dense(rows, x, bias)
        total, alone, p = step.summed(delta, x), step.summed(delta, ones), step.loss(z, y)
        near = Form(size * z.c, delta.s, delta.low, delta.high)  # of which many may flip

        def any_rows(at: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return rng.normal(size=(2, len(at), FLIPS)) * rng.integers(0, 2, FLIPS)

        h, at, flips = step.activated(layers.Layer("relu"), near, any_rows)
        multipliers = rng.normal(size=(2, SAMPLES, 3, len(step.symbols.flips))) / 4
        by_rows = forms.own_ranges(h, step.symbols, own, multipliers)
        smooth = Pass(step.problem, symbols, own, {})
        bent, _, slope = smooth.curved(layers.Layer("tanh"), near)
        low, _, low_slope = smooth.curved(layers.Layer("sigmoid"), near)
        product = smooth.times(delta, slope)
        with_flips = step.symbols
        back = step.pulled(delta, at, flips)
        other = Pass(step.problem, symbols, own, {})
        leaky, slopes, turns = other.activated(
            layers.Layer("leaky_relu", slope=0.2), near, any_rows
        )
        one = Form(z.c[:, :1], z.s[:, :1], z.low[..., :1], z.high[..., :1])
        target = affine.points(np.ones((SAMPLES, 1)))
        bce = Pass(run_of("bce", batches=[range(SAMPLES)]), symbols, own, {}).loss(one, target)
        mse = Pass(run_of("mse", batches=[range(SAMPLES)]), symbols, own, {}).loss(z, y)
        box, own_box = (
            forms.own_ranges(rows, symbols, np.array([-1]))[0],
            forms.own_ranges(x, symbols, own),
        )
        given = forms.own_ranges(rows, symbols, own)
        for form, whole in ((h, step), (back, step), (leaky, other)):  # what rules keep
            kept, true = (forms.magnitude(f, whole.symbols) for f in (form, replace(form)))
            assert (kept * (1 + 1e-12) >= true).all()
        for _ in range(40):
            chosen = Chosen(rng, symbols)
            w, b, u, d = (chosen.draw(form) for form in (rows, bias, x, delta))
            assert ((box.lo <= w) & (w <= box.hi)).all()
            assert chosen.lies(own_box, u)
            state = chosen.poisoned.astype(int), np.arange(SAMPLES)
            assert ((given.lo[state] <= w) & (w <= given.hi[state])).all()
            assert chosen.holds(z, u @ w.T + b)
            value = chosen.draw(z)
            assert chosen.holds(total, d.T @ u)
            assert chosen.holds(alone, d.sum(0)[:, None])
            odds = np.exp(value - value.max(1, keepdims=True))
            assert chosen.holds(p, odds / odds.sum(1, keepdims=True) - y.c)
            assert chosen.holds(bce, 1 / (1 + np.exp(-value[:, :1])) - 1.0)
            assert chosen.holds(mse, 2 / 3 * (value - y.c))
            before, value = (chosen.phi, chosen.values), chosen.draw(near)
            t, low_t = np.tanh(value), 1 / (1 + np.exp(-value))
            assert chosen.holds(bent, t)
            assert chosen.lies(smooth.box(bent), t)
            assert chosen.holds(slope, 1 - t**2)
            assert chosen.holds(product, d * (1 - t**2))
            assert chosen.holds(low, low_t)
            assert chosen.holds(low_slope, low_t * (1 - low_t))
            assert chosen.flipped(other.symbols, value, slopes, turns)
            leaking = np.where(value > 0, value, 0.2 * value)
            assert chosen.holds(leaky, leaking)
            assert chosen.lies(other.box(leaky), leaking)
            chosen.phi, chosen.values = before
            assert chosen.flipped(with_flips, value, at, flips)
            assert chosen.keeps_rows(with_flips)
            assert chosen.lies(by_rows, np.maximum(value, 0.0))
            assert chosen.holds(h, np.maximum(value, 0.0))
            assert chosen.lies(step.box(h), np.maximum(value, 0.0))
            assert chosen.charged(step.symbols, d, delta.c, flips)
            assert chosen.holds(back, d * (value > 0))
            assert chosen.lies(step.box(back), d * (value > 0))


@pytest.mark.parametrize(
    "rule",
    ["dense", "summed", "given", "with_flips", "quiet", "with_noise", "box", "curved", "times"],
)
def test_rules_that_are_too_tight_show(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner: Any = Pass if hasattr(Pass, rule) else Symbols
    name = "with_flips" if rule == "quiet" else rule
    original = getattr(owner, name)

    def tight(self: Any, *given: Any, **named: Any) -> Any:
        if rule == "box":
            box = original(self, *given)
            half, middle = 0.495 * (box.hi - box.lo), 0.5 * (box.hi + box.lo)
            return Box(middle - half, middle + half)
        if rule == "given":
            return tuple(0.7 * part for part in original(self, *given))
        if rule == "quiet":  # y reaches further down than the first row says
            return original(self, *given[:2], 0.5 * given[2], **named)
        if rule.startswith("with"):  # flips and noise that rules make
            is_new = self.count >= SAMPLES * WIDTH + 2 * FLIPS + NOISE
            shrinks = [is_new and not isinstance(p, Form) and p.dtype.kind == "f" for p in given]
            parts = zip(given, shrinks, strict=True)
            halved = (0.5 * part if small else part for part, small in parts)
            less = {key: 0.5 * part if is_new else part for key, part in named.items()}
            return original(self, *halved, **less)
        form = original(self, *given)
        if rule == "curved":
            return *form[:2], narrowed(form[2])
        return narrowed(form)

    def narrowed(form: Form) -> Form:
        middle, half = (form.high + form.low) / 2, (form.high - form.low) * 0.1
        return Form(form.c, form.s, middle - half, middle + half, 0.1 * form.owned)

    monkeypatch.setattr(owner, name, tight)
    with pytest.raises(AssertionError):
        test_rules_hold_at_sampled_points(0.5)


def line(budget: int, steps: int) -> tuple[Any, ...]:
    """A linear model whose labels move: its forms are exact."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2)), rng.normal(size=(4, 1))
    rule = layers.Rule(0.1, 0.5)
    own = run_of("mse", layers.Layer("dense", "w", "b"), batches=[range(4)] * steps, rules=[rule])
    return own, {"w": np.array([[0.5, -0.5]]), "b": np.zeros(1)}, *data_of(x, y, budget, 0.0, 0.1)


@pytest.mark.parametrize(("steps", "at_once"), [(6, 0), (1, 1), (1, 3)])
def test_lines_are_bounded_exactly(steps: int, at_once: int) -> None:
    """Some poisoned labels reach the ends of the box; by parts of the batch, those of one step."""
    own, initial, samples, poisoned = line(2, steps)
    found = forms_of(own, initial, samples, poisoned, at_once > 0, at_once=at_once)
    box = found.boxes()["w"]
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


def test_parts_that_are_too_tight_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milp_agt.checker.steps.largest", lambda *a: 0.99 * largest(*a))
    with pytest.raises(AssertionError):
        test_lines_are_bounded_exactly(1, 1)


def test_questions_are_tighter_by_forms() -> None:
    """Outputs of lines at test points, whose parameters move together."""
    own, initial, samples, poisoned = line(2, 6)
    final = forms_of(own, initial, samples, poisoned, False)
    x = np.random.default_rng(1).normal(size=(5, 2))
    by_forms = final.rows(Box.point(x), np.ones((5, 1, 1)))
    state = final.boxes()
    by_boxes = layers.forward(own, state, Box.point(x[None]))[-1]
    assert ((by_forms.hi - by_forms.lo) < (by_boxes.hi - by_boxes.lo)).all()
    for _ in range(50):
        y = samples.y.lo.copy()
        y[0, :2] += np.random.default_rng(2).uniform(-0.1, 0.1, (2, 1))
        ends = training.train(own, initial, layers.Samples(samples.x, Box.point(y)))
        value = layers.forward(own, ends, Box.point(x[None]))[-1]
        assert (by_forms.lo <= value.hi).all()
        assert (value.lo <= by_forms.hi).all()


def test_too_many_coefficients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "NUMBERS", 10)
    with pytest.raises(Unbounded, match="coefficients"):
        forms_of(*line(1, 2), False)
