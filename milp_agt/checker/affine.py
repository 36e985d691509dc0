"""Runs as affine forms of the adversary's moves: what cancels between steps and samples does.

Every number of the run is ``c + sum_i a_i . e_i + sum_m g_m n_m + r``: centre c; ``e_i`` the move of
sample i, in its box if i is poisoned and 0 else; noise ``|n_m| <= 1``; and a rest r in an interval, which
may be another one if the sample that a number belongs to is clean than if it is poisoned (states 0 and 1).
At most k samples of a group are poisoned, so that a form lies below ``c + sum of the k largest
support(a_i) + sum_m |g_m| + max r``. A poisoned sample's own form takes its support in full and the k - 1
largest of the others; a clean one's has no move of its own.

Sums of forms are exact. A product is ``c_a b + c_b a - c_a c_b`` up to ``rad(a) rad(b)``; relu is a line
up to an interval on its range; softmax is its tangent up to half its second derivative times the square of
the largest move of a difference of two logits. After a step the rest of each new parameter becomes noise
of its own, which later steps carry on with its sign. All that rounding may do, in the run and here, goes
into the rest by the sizes of the terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from milp_agt.checker import functions
from milp_agt.checker.boxes import SPARE, TINY, Array, Box, U, Unbounded, down, largest, up
from milp_agt.checker.layers import VELOCITY, Layer, Poisoned, Problem, Rule, Samples

NUMBERS = 2**27  # coefficients of one array at most


@dataclass(frozen=True)
class Symbols:
    """The moves that forms are made of: ranges (slots, width) and the slots of each group; then noise."""

    low: Array
    high: Array
    groups: tuple[slice, ...]
    budget: int

    @property
    def moves(self) -> int:
        return self.low.size


@dataclass(frozen=True)
class Form:
    """Forms of one array of numbers.

    Attributes:
        c: centres, (*shape).
        s: coefficients of the moves of all slots, then of the noise, (*shape, symbols).
        low, high: of the rest, (*shape), or (2, n, *shape) by the state of the sample.
    """

    c: Array
    s: Array
    low: Array
    high: Array

    def __post_init__(self) -> None:
        if self.s.size > NUMBERS:
            raise Unbounded(f"{self.s.size} coefficients")
        if not all(np.isfinite(a).all() for a in (self.c, self.s, self.low, self.high)):
            raise Unbounded("a form became infinite")

    def rest(self, low: Array, high: Array) -> Form:
        """With the rest widened."""
        return replace(self, low=down(self.low + low), high=up(self.high + high))


def supports(form: Form, symbols: Symbols) -> tuple[Array, Array, Array]:
    """How far each slot can lower and raise the forms, (*shape, slots), and what noise does to them."""
    moves = form.s[..., : symbols.moves].reshape(*form.c.shape, *symbols.low.shape)
    ends = moves * symbols.low, moves * symbols.high
    noise = abs(form.s[..., symbols.moves :]).sum(-1)
    return -np.minimum(*ends).sum(-1), np.maximum(*ends).sum(-1), noise


def _worst(values: Array, symbols: Symbols, less: slice | None = None) -> Array:
    """The sum over the groups of the largest supports; of one group with a poisoned sample less."""
    total = np.zeros(values.shape[:-1])
    for group in symbols.groups:
        count = symbols.budget - (group == less)
        if count > 0:
            total = total + largest(values[..., group], count, -1).sum(-1)
    return total


def _grant(terms: int, size: Array) -> Array:
    return (terms + 8) * U * SPARE * size + TINY


def magnitude(form: Form, symbols: Symbols) -> Array:
    """The sum of the sizes of all terms of the forms: what rounding errors grow with."""
    fall, rise, noise = supports(form, symbols)
    rest = np.maximum(abs(form.low), abs(form.high))
    rest = rest.max(0) if rest.ndim > form.c.ndim else rest
    found: Array = (abs(form.c) + np.maximum(fall, rise).sum(-1) + noise + rest) * SPARE
    return found


def ranges(form: Form, symbols: Symbols) -> Box:
    """Bounds of forms that belong to no sample, (*shape)."""
    fall, rise, noise = supports(form, symbols)
    error = _grant(form.s.shape[-1], magnitude(form, symbols))
    low = form.c - _worst(fall, symbols) - noise + form.low - error
    return Box(low, form.c + _worst(rise, symbols) + noise + form.high + error)


def own_ranges(form: Form, symbols: Symbols, own: Array) -> Box:
    """Bounds by the state of the sample, (2, n, *shape); ``own`` are the slots of the samples, -1 for
    none.
    """
    fall, rise, noise = supports(form, symbols)
    error = _grant(form.s.shape[-1], magnitude(form, symbols))
    group = symbols.groups[-1]
    ends = []
    for values in (fall, rise):
        at = (np.flatnonzero(own >= 0), ..., own[own >= 0])
        alone = np.zeros(values.shape[:-1])
        alone[own >= 0] = values[at]
        others = values.copy()
        others[at] = 0.0
        clean, poisoned = _worst(others, symbols), alone + _worst(others, symbols, group)
        ends.append(np.stack([clean, np.maximum(clean, poisoned)]) + noise + error)
    return Box(form.c - ends[0] + form.low, form.c + ends[1] + form.high)


def _radius(form: Form, box: Box) -> Array:
    return up(np.maximum(box.hi - form.c, form.c - box.lo))


def _split(weights: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Ends of ``rest @ weights.T`` for rests in intervals."""
    positive, negative = np.maximum(weights, 0.0).T, np.minimum(weights, 0.0).T
    return low @ positive + high @ negative, high @ positive + low @ negative


@dataclass(frozen=True)
class Pass:
    """What the rules of one step need beside the forms."""

    problem: Problem
    symbols: Symbols
    own: Array

    def off(self, mine: int, runs: float, size: Array) -> Array:
        """The rounding of the run and of the coefficients here."""
        return up(_grant(mine, size) + self.problem.arithmetic.off(runs, size))

    def dense(self, rows: Form, x: Form, bias: Form | None) -> Form:
        """``sum_k rows_jk x_ik + bias_j`` (n, j): both factors are forms."""
        symbols, width = self.symbols, rows.c.shape[1]
        c = x.c @ rows.c.T
        s = np.tensordot(x.c, rows.s, (1, 1)) + np.tensordot(x.s, rows.c, (1, 1)).transpose(0, 2, 1)
        low, high = _split(rows.c, x.low, x.high)
        second = (
            _radius(x, own_ranges(x, symbols, self.own)) @ _radius(rows, ranges(rows, symbols)).T
        )
        size = magnitude(x, symbols) @ magnitude(rows, symbols).T
        if bias is not None:
            c, s = c + bias.c, s + bias.s
            size = size + magnitude(bias, symbols)
        error = second * SPARE + self.off(2 * width + 8, width + 1, size)
        return Form(c, s, low - error, high + error)

    def activated(self, layer: Layer, z: Form) -> tuple[Form, Array, Box]:
        """relu or leaky relu, its derivative at the centre, and what that may be off by, (2, n, h)."""
        slope = layer.slope if layer.kind == "leaky_relu" else 0.0
        box = own_ranges(z, self.symbols, self.own)
        low, high = box.lo, box.hi
        both = (low[0] < 0) & (high[0] > 0)
        width = np.where(both, high[0] - low[0], 1.0)
        at = np.where(z.c > 0, 1.0, slope)
        line = np.where(both, slope + (1.0 - slope) * high[0] / width, at)
        values = [np.where(v > 0, v, slope * v) - line * v for v in (low, high)]
        kink = (low < 0) & (high > 0)
        bottom, top = np.minimum(*values), np.maximum(*values)
        bottom = np.where(kink, np.minimum(bottom, 0.0), bottom)
        top = np.where(kink, np.maximum(top, 0.0), top)
        error = self.off(8, 2 if slope else 0, magnitude(z, self.symbols) + box.size.max(0))
        middle = 0.5 * (bottom[0] + top[0])  # of clean samples
        h = Form(
            line * z.c + middle,
            line[..., None] * z.s,
            line * z.low + bottom - middle - error,
            line * z.high + top - middle + error,
        )
        slopes = Box(np.where(low > 0, 1.0, slope) - at, np.where(high > 0, 1.0, slope) - at)
        return h, at, slopes

    def pulled(self, delta: Form, at: Array, slopes: Box) -> Form:
        """``delta f'``: the derivative is ``at`` up to an interval."""
        box = own_ranges(delta, self.symbols, self.own)
        moved = box * slopes
        error = self.off(4, 2, magnitude(delta, self.symbols) + box.size.max(0))
        low = at * delta.low + moved.lo - error
        return Form(at * delta.c, at[..., None] * delta.s, low, at * delta.high + moved.hi + error)

    def loss(self, f: Form, y: Form) -> Form:
        """The derivative of the loss: ``p(f) - y``, or ``2 (f - y) / outputs``."""
        count, loss = f.c.shape[-1], self.problem.loss
        size = magnitude(f, self.symbols) + magnitude(y, self.symbols)
        if loss == "mse":
            share = 2.0 / count
            error = self.off(8, 8, size * 2.0)
            low, high = share * (f.low - y.high) - error, share * (f.high - y.low) + error
            return Form(share * (f.c - y.c), share * (f.s - y.s), low, high)
        two = np.stack([np.zeros_like(f.c[:, 0]), f.c[:, 0]], -1) if count == 1 else f.c
        centre = functions.softmax(Box.point(two))
        p = 0.5 * (centre.lo + centre.hi)
        box, gap = self._logits(f)
        # Along a line p_j'' = p_j ((v_j - E v)^2 - Var v), where v_k are the moves of the logits, with
        # probability p_k. With D = max |v_j - v_k|: |v_j - E v| <= (1 - p_j) D and
        # Var v <= min(1/4, 1 - p_j) D^2.
        most = np.minimum(box.hi, 1.0)
        half = 0.5 * SPARE * gap**2
        rise = np.minimum(most * (1.0 - box.lo) ** 2, 4.0 / 27.0) * half
        fall = most * np.minimum(1.0 - box.lo, 0.25) * half
        if count == 1:
            p, rise, fall = p[:, 1:], rise[..., 1:], fall[..., 1:]
            jacobian = (p * (1.0 - p))[..., None]
        else:
            jacobian = p[:, :, None] * (np.eye(count) - p[:, None])
        s = jacobian @ f.s - y.s
        positive, negative = np.maximum(jacobian, 0.0), np.minimum(jacobian, 0.0)
        low = (positive @ f.low[..., None] + negative @ f.high[..., None])[..., 0] - y.high - fall
        high = (positive @ f.high[..., None] + negative @ f.low[..., None])[..., 0] - y.low + rise
        # What p at the centre and its Jacobian may be off by; then the run's own softmax.
        spread = 2.0 * magnitude(f, self.symbols).max(-1, keepdims=True)
        unsure = up(centre.hi - centre.lo).max()
        share = 64.0 + 40.0 * count + 10.0 * spread
        error = 2.0 * SPARE * count * unsure * (1.0 + spread)
        error = error + self.off(4 * count + 8, 8, size + spread + 1.0)
        error = error + self.problem.arithmetic.off(1, share * np.ones_like(p))
        return Form(p - y.c, s, low - error, high + error)

    def _logits(self, f: Form) -> tuple[Box, Array]:
        """Ranges of the probabilities, (2, n, classes), and the largest move of a difference, (2, n, 1)."""
        if f.c.shape[-1] == 1:
            box = own_ranges(f, self.symbols, self.own)
            gap = _radius(f, box)
            second = functions.sigmoid(box)
            first = Box(down(1.0 - second.hi), up(1.0 - second.lo))
            low = np.concatenate([first.lo, second.lo], -1)
            return Box(low, np.concatenate([first.hi, second.hi], -1)), gap
        pairs = Form(
            f.c[:, :, None] - f.c[:, None],
            f.s[:, :, None] - f.s[:, None],
            f.low[..., :, None] - f.high[..., None, :],
            f.high[..., :, None] - f.low[..., None, :],
        )
        box = own_ranges(pairs, self.symbols, self.own)
        gap = _radius(pairs, box).max((-1, -2))[..., None]
        centre = functions.softmax(Box.point(f.c))
        grown = functions.exp(Box(-gap, gap))
        # p_j = 1 / sum_k exp(f_k - f_j), every difference at most gap away from its centre.
        return Box(down(centre.lo * grown.lo), up(np.minimum(centre.hi * grown.hi, 1.0))), gap

    def summed(self, delta: Form, x: Form | None, open_: Array) -> Form:
        """``sum_i delta_ij x_ik`` over the batch, (j, k); without x, ``sum_i delta_ij``."""
        symbols, n = self.symbols, len(delta.c)
        if x is None:
            c, s = delta.c.sum(0), delta.s.sum(0)
            low, high, size = delta.low, delta.high, magnitude(delta, symbols)
        else:
            c = delta.c.T @ x.c
            s = np.tensordot(delta.c, x.s, (0, 0)) + np.tensordot(delta.s, x.c, (0, 0)).transpose(
                0, 2, 1
            )
            second = SPARE * (
                _radius(delta, own_ranges(delta, symbols, self.own))[..., None]
                * _radius(x, own_ranges(x, symbols, self.own))[..., None, :]
            )
            first = [delta.low[..., None] * x.c[:, None], delta.high[..., None] * x.c[:, None]]
            other = [
                delta.c[..., None] * x.low[..., None, :],
                delta.c[..., None] * x.high[..., None, :],
            ]
            low = np.minimum(*first) + np.minimum(*other) - second
            high = np.maximum(*first) + np.maximum(*other) + second
            size = magnitude(delta, symbols)[..., None] * magnitude(x, symbols)[:, None]
        # The rests of clean samples, and the k largest of what poisoned ones add (see training.py).
        poisoned = open_.reshape(-1, *[1] * (low.ndim - 2))
        fall = np.where(poisoned, np.maximum(low[0] - low[1], 0.0), 0.0)
        rise = np.where(poisoned, np.maximum(high[1] - high[0], 0.0), 0.0)
        budget = min(symbols.budget, n)
        least = low[0].sum(0) - (largest(fall, budget).sum(0) if budget else 0.0)
        most = high[0].sum(0) + (largest(rise, budget).sum(0) if budget else 0.0)
        error = self.off(2 * n + 8, n + 2, size.sum(0))
        return Form(c, s, least - error, most + error)

    def forward(
        self, state: Mapping[str, Form], x: Form
    ) -> tuple[list[Form], list[tuple[Array, Box] | None]]:
        """The input of each layer and the output; and the derivatives of the activations."""
        values, slopes = [x], list[tuple[Array, Box] | None]()
        for layer in self.problem.layers:
            if layer.kind == "dense":
                bias = state[layer.bias] if layer.bias else None
                values.append(self.dense(state[layer.weight], values[-1], bias))
                slopes.append(None)
            else:
                h, at, moved = self.activated(layer, values[-1])
                values.append(h)
                slopes.append((at, moved))
        return values, slopes

    def gradients(
        self, state: Mapping[str, Form], x: Form, y: Form, open_: Array
    ) -> dict[str, Form]:
        """The sums over the batch of the gradients of all parameters."""
        values, slopes = self.forward(state, x)
        delta = self.loss(values[-1], y)
        found: dict[str, Form] = {}
        for place in range(len(slopes) - 1, -1, -1):
            layer, own = self.problem.layers[place], slopes[place]
            if own is not None:
                delta = self.pulled(delta, *own)
                continue
            found[layer.weight] = self.summed(delta, values[place], open_)
            if layer.bias:
                found[layer.bias] = self.summed(delta, None, open_)
            if place > 0:
                rows = state[layer.weight]
                turned = Form(rows.c.T, rows.s.transpose(1, 0, 2), rows.low.T, rows.high.T)
                delta = self.dense(turned, delta, None)
        return found

    def updated(
        self, rule: Rule, name: str, state: Mapping[str, Form], sums: Form, batch: int
    ) -> dict[str, Form]:
        """The optimiser step (see training.updated), without penalty and projection."""
        theta, velocity = state[name], state.get(VELOCITY + name)
        rate, momentum = Fraction(rule.rate), Fraction(rule.momentum)
        decay = Fraction(0) if name in rule.undecayed else Fraction(rule.decay)
        kept = 1 - Fraction(rule.dampening)
        sizes = {f: magnitude(form, self.symbols) for f, form in (("t", theta), ("g", sums))}
        gradient = float(decay) * sizes["t"] + sizes["g"] / batch
        pushed = float(abs(kept)) * gradient
        if velocity is not None:
            pushed = pushed + float(momentum) * magnitude(velocity, self.symbols)
        moved = float(rate) * (pushed * float(1 + momentum) + gradient)

        def combined(factors: tuple[Fraction, Fraction, Fraction], runs: Array) -> Form:
            pairs = [(theta, factors[0]), (sums, factors[2] / batch)]
            pairs += [] if velocity is None else [(velocity, factors[1])]
            scales = [(form, _near(factor)) for form, factor in pairs]
            error = up(runs + _grant(16, sizes["t"] + moved + pushed))
            low = sum(np.minimum(f * form.low, f * form.high) for form, f in scales)
            high = sum(np.maximum(f * form.low, f * form.high) for form, f in scales)
            c, s = sum(f * form.c for form, f in scales), sum(f * form.s for form, f in scales)
            return Form(
                np.asarray(c), np.asarray(s), np.asarray(low) - error, np.asarray(high) + error
            )

        off = self.problem.arithmetic.off
        final = off(2, sizes["t"]) + off(16, moved)
        if velocity is None:
            return {name: combined((1 - rate * decay, Fraction(0), -rate), final)}
        if rule.nesterov:
            ends = 1 - rate * decay * (1 + momentum), -rate * momentum**2, -rate * (1 + momentum)
        else:
            ends = 1 - rate * kept * decay, -rate * momentum, -rate * kept
        pace = combined((kept * decay, momentum, kept), off(16, pushed))
        return {name: combined(ends, final), VELOCITY + name: pace}


def _near(factor: Fraction) -> float:
    """A float off by at most a share of U, which ``_grant`` covers."""
    if factor and not 2.0**-1000 < abs(factor) < 2.0**1000:
        raise Unbounded("a factor that no float is near")
    return float(factor)


def settled(new: Mapping[str, Form]) -> dict[str, Form]:
    """Every rest as noise of its own: ``(low + high) / 2`` into the centre, half the width a new symbol."""
    count = sum(form.c.size for form in new.values())
    found, place = {}, 0
    for name, form in new.items():
        middle = 0.5 * (form.low + form.high)
        c = form.c + middle
        radius = np.maximum(up(form.high - middle), up(middle - form.low))
        radius = radius + 4.0 * U * (abs(c) + abs(middle)) + TINY
        size = form.c.size
        own = np.zeros((size, count))
        own[np.arange(size), place + np.arange(size)] = up(radius).reshape(-1)
        s = np.concatenate([form.s, own.reshape(*form.c.shape, count)], -1)
        found[name] = Form(c, s, np.zeros_like(c), np.zeros_like(c))
        place += size
    return found


def covers(problem: Problem) -> bool:
    """Whether there are rules for all layers, for the loss and for the optimiser."""
    known = all(layer.kind in ("dense", "relu", "leaky_relu") for layer in problem.layers)
    rule = problem.rules[0]
    return known and problem.loss != "hinge" and not rule.l1 and rule.projection is None


def points(values: Array, symbols: int) -> Form:
    """Numbers that are known, of samples."""
    zero = np.zeros((2, *values.shape))
    return Form(values, np.zeros((*values.shape, symbols)), zero, zero)


def moving(values: Array, symbols: int, own: Array, columns: Array) -> Form:
    """Numbers (n, m) of samples plus their moves, which some columns have: the coordinates of their
    slots.
    """
    form = points(values, symbols)
    at = own[:, None] * len(columns) + np.arange(len(columns))
    form.s[np.arange(len(values))[:, None], columns, at] = 1.0
    return form


def _part(form: Form, columns: slice) -> Form:
    return Form(
        form.c[:, columns], form.s[:, columns], form.low[..., columns], form.high[..., columns]
    )


def train(
    problem: Problem, initial: Mapping[str, Array], samples: Samples, poisoned: Poisoned, anew: bool
) -> tuple[dict[str, Form], Symbols]:
    """Forms of the parameters after the run, and what they are made of.

    ``anew``: moves are chosen in every step; else once for the run, by at most ``budget`` samples.
    """
    x, y = samples.x.lo[0], samples.y.lo[0]
    box = poisoned.samples
    low = np.concatenate([box.x.lo[0] - x, box.y.lo[0] - y], 1)
    high = np.concatenate([box.x.hi[0] - x, box.y.hi[0] - y], 1)
    low, high = np.where(low < 0, down(low), 0.0), np.where(high > 0, up(high), 0.0)
    low, high = (np.where(poisoned.open[:, None], ends, 0.0) for ends in (low, high))
    columns = np.flatnonzero((low < 0).any(0) | (high > 0).any(0))  # those that move
    low, high, width = low[:, columns], high[:, columns], len(columns)
    symbols = Symbols(low, high, (slice(0, len(low)),), poisoned.budget)
    if anew:
        symbols = Symbols(low[:0], high[:0], (), poisoned.budget)
    zero = {n: np.zeros(v.shape) for n, v in initial.items()}
    state = {
        n: Form(v, np.zeros((*v.shape, symbols.moves)), zero[n], zero[n])
        for n, v in initial.items()
    }
    if any(rule.momentum for rule in problem.rules):
        state |= {VELOCITY + n: replace(f, c=zero[n]) for n, f in state.items()}
    for index, (batch, rule) in enumerate(zip(problem.batches, problem.rules, strict=True)):
        own = batch
        if anew:
            before, own = symbols.moves, np.arange(len(symbols.low), len(symbols.low) + len(batch))
            symbols = Symbols(
                np.concatenate([symbols.low, low[batch]]),
                np.concatenate([symbols.high, high[batch]]),
                (*symbols.groups, slice(own[0], own[-1] + 1)),
                symbols.budget,
            )
            room = len(batch) * width
            state = {n: replace(f, s=_with_room(f.s, before, room)) for n, f in state.items()}
        try:
            count = next(iter(state.values())).s.shape[-1]
            step = Pass(problem, symbols, own)
            both = moving(np.concatenate([x, y], 1)[batch], count, own, columns)
            data = _part(both, slice(0, x.shape[1])), _part(both, slice(x.shape[1], None))
            sums = step.gradients(state, *data, poisoned.open[batch])
            new: dict[str, Form] = {}
            for name, total in sums.items():
                new |= step.updated(rule, name, state, total, len(batch))
            state = settled({name: new[name] for name in state})
        except Unbounded as error:
            raise Unbounded(f"step {index + 1} of {len(problem.batches)}: {error}") from None
    return {name: state[name] for name in problem.parameters}, symbols


def _with_room(s: Array, place: int, room: int) -> Array:
    """Coefficients with zeros for new moves, before those of the noise."""
    return np.concatenate([s[..., :place], np.zeros((*s.shape[:-1], room)), s[..., place:]], -1)


def boxes(state: Mapping[str, Form], symbols: Symbols) -> dict[str, Box]:
    """The box of each parameter, (1, *shape)."""
    found = {name: ranges(form, symbols) for name, form in state.items()}
    return {name: Box(box.lo[None], box.hi[None]) for name, box in found.items()}


def outputs(
    problem: Problem, state: Mapping[str, Form], symbols: Symbols, x: Array
) -> tuple[Form, Box]:
    """The outputs of every reachable model at test points, as forms and as boxes (n, outputs)."""
    count = next(iter(state.values())).s.shape[-1]
    own = np.full(len(x), -1)
    values, _ = Pass(problem, symbols, own).forward(state, points(x, count))
    box = own_ranges(values[-1], symbols, own)[0]
    return values[-1], box


def margins(
    problem: Problem, state: Mapping[str, Form], symbols: Symbols, x: Array, labels: Array
) -> Box:
    """The same as :func:`questions.margins`, (1, n, others)."""
    form, box = outputs(problem, state, symbols, x)
    count = form.c.shape[1]
    if count == 1:
        sign = labels[:, None] > 0
        return Box(np.where(sign, box.lo, -box.hi)[None], np.where(sign, box.hi, -box.lo)[None])
    at = np.arange(len(x))
    others = np.array([[k for k in range(count) if k != j] for j in range(count)])[labels]
    pairs = Form(
        form.c[at, labels][:, None] - np.take_along_axis(form.c, others, 1),
        form.s[at, labels][:, None] - form.s[at[:, None], others],
        form.low[:, at, labels][..., None] - form.high[:, at[:, None], others],
        form.high[:, at, labels][..., None] - form.low[:, at[:, None], others],
    )
    error = _grant(8, magnitude(pairs, symbols))
    found = own_ranges(pairs.rest(-error, error), symbols, np.full(len(x), -1))
    return found[:1]
