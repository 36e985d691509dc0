"""Runs as affine forms of the adversary's moves: what cancels between steps and samples does.

The forms and their bounds stand in :mod:`~milp_agt.checker.forms`. Sums of forms are exact. A product is
``c_a b + c_b a - c_a c_b`` up to ``rad(a) rad(b)``; relu is the line of its centre plus what a flip adds;
softmax is its tangent up to half its second derivative times the square of the largest move of a difference
of two logits. After a step the rest of each new parameter becomes noise of its own, which later steps carry
on with its sign. All that rounding may do, in the run and here, goes into the rest by the sizes of the terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from milp_agt.checker import forms, functions
from milp_agt.checker.boxes import SPARE, TINY, Array, Box, allowance, down, up
from milp_agt.checker.forms import Form, Symbols, magnitude, own_ranges, plus, wide
from milp_agt.checker.layers import VELOCITY, Layer, Problem, Rule, curve


def _split(weights: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Ends of ``weights r`` for rests in intervals."""
    positive, negative = np.maximum(weights, 0.0), np.minimum(weights, 0.0)
    low, high = low[..., None], high[..., None]
    ends = positive @ low + negative @ high, positive @ high + negative @ low
    return ends[0][..., 0], ends[1][..., 0]


def mixed(rows: Array, f: Form) -> Form:
    """``rows`` (n, r, width) times forms of samples, up to rounding."""
    low, high = _split(rows, f.low, f.high)
    return Form((rows @ f.c[..., None])[..., 0], rows @ f.s, low, high)


@dataclass(frozen=True)
class Flipped:
    """Flips of a layer: where they are, their numbers, what they add to the derivative, and
    whether they need their own sample to be poisoned.
    """

    place: Any
    index: Array
    turned: Array
    alone: Array


# Of each layer: the derivative of an activation at its centres, and where it flips, or its form.
Slopes = list[tuple[Array, Flipped | Form] | None]


@dataclass
class Pass:
    """One step: its rules, and the symbols, of which flips and noise become more on the way.

    ``known`` are ranges, with the forms, so that no other one has their id.
    """

    problem: Problem
    symbols: Symbols
    own: Array  # slots of the samples, -1 for those that nobody poisons
    given: Mapping[str, Array]  # multipliers for the parameters, (2, *shape, flips)
    index: int = 0  # of the step
    forced: Mapping[int, float] = field(default_factory=dict)  # phases by number: 1 on, -1 off
    batch: int = 0  # samples of the whole batch, where this is a part of one
    met: int = 0  # kinks so far
    known: dict[int, tuple[Form, Box]] = field(default_factory=dict)

    def knows(self, form: Form, box: Box) -> None:
        """Keep the range of a form; symbols that come later move none that was there before."""
        self.known[id(form)] = form, box

    def box(self, form: Form) -> Box:
        """Ranges by the state of each sample."""
        if id(form) not in self.known:
            self.knows(form, own_ranges(form, self.symbols, self.own))
        return self.known[id(form)][1]

    def far(self, form: Form) -> Array:
        """How far the forms lie from their centres."""
        box = self.box(form)
        return up(np.maximum(box.hi - form.c, form.c - box.lo))

    def size(self, form: Form) -> Array:
        return magnitude(form, self.symbols)

    def off(self, mine: int, runs: float, size: Array) -> Array:
        """The rounding of the run and of the coefficients here, which lose ``TINY`` of every symbol if
        they underflow.
        """
        lost = TINY * self.symbols.sizes.sum()
        return up(allowance(mine + 4, size) + lost + self.problem.arithmetic.off(runs, size))

    def dense(self, weight: Form, x: Form, bias: Form | None, turned: bool = False) -> Form:
        """``sum_k rows_jk x_ik + bias_j`` (n, j): both factors are forms. The rows are those of the weight,
        or its columns where it is ``turned``.
        """
        width, rows, apart, sizes = x.c.shape[1], weight, self.far(weight), self.size(weight)
        if turned:
            rows = Form(weight.c.T, weight.s.transpose(1, 0, 2), weight.low.T, weight.high.T)
            apart, sizes = apart.swapaxes(-1, -2), sizes.T
        c = x.c @ rows.c.T
        parts = [np.tensordot(x.c, rows.s, (1, 1)), rows.c @ x.s]
        low, high = _split(rows.c, x.low, x.high)
        second = (self.far(x)[:, :, None] * apart).sum(-1)
        size = self.size(x) @ sizes.T
        if bias is not None:
            c, parts = c + bias.c, [*parts, bias.s]
            size = size + magnitude(bias, self.symbols)
        error = second * SPARE + self.off(2 * width + 8, width + 1, size)
        return Form(c, plus(*parts), low - error, high + error)

    def carried(
        self, state: Mapping[str, Form], values: list[Form], slopes: Slopes, at: Array, rows: Array
    ) -> Array:
        """Multipliers for ``rows`` (r, width) times the last values of the samples ``at``, (2, r, flips):
        those of the parameters, by the derivatives at the centres. Whatever they are, bounds with them hold.
        """
        found = np.zeros((2, len(at), len(self.symbols.flips) if self.given else 0))
        for place in range(len(slopes) - 1, -1, -1):
            layer, slope = self.problem.layers[place], slopes[place]
            if slope is not None:
                rows = rows * slope[0][at]
                continue
            moves = rows[:, :, None] * values[place].c[at][:, None]
            for name, each in ((layer.weight, moves), (layer.bias, rows)):
                if name and self.given:
                    j, own = each.reshape(len(at), -1), self.given[name]
                    own = own.reshape(2, j.shape[1], own.shape[-1])
                    both = np.maximum(j, 0.0) @ own + np.maximum(-j, 0.0) @ own[::-1]
                    found = found + wide(both, found.shape[-1])
            rows = rows @ state[layer.weight].c
        return found

    def activated(
        self, layer: Layer, z: Form, carried: Callable[[Array, Array], Array]
    ) -> tuple[Form, Array, Flipped]:
        """relu or leaky relu, and its derivative: ``at`` at the centre, and what flips make of it.

        Let y be how far z lies beyond the kink, seen from its centre: z if that is off, -z if it is on. Off,
        the value is ``slope z + (1 - slope) max(0, y)``; on, ``z + (1 - slope) max(0, y)``. Where y may
        be 0 or more, a flip says so: phi is 1 where the derivative is not that of the centre, which needs
        y >= 0, and rho is max(0, y), which is 0 where phi is 0. A phase that a leaf of a tree forces takes
        the place of that of the centre: y <= 0 there, so that its flip, which does not happen, costs nothing,
        and its second row is the half-space that the leaf lies in.
        """
        slope, (n, width) = layer.slope, z.c.shape
        numbers = np.arange(self.met, self.met + n * width).reshape(n, width)
        self.met += n * width
        phase: Array = np.zeros((n, width))
        for number, side in self.forced.items():
            phase[numbers == number] = side
        on = np.where(phase == 0, z.c, phase) > 0
        sign = np.where(on, -1.0, 1.0)
        given = carried(np.repeat(np.arange(n), width), np.tile(np.eye(width), (n, 1)))
        given = given.reshape(2, n, width, given.shape[-1])
        box = own_ranges(z, self.symbols, self.own, given)
        box = box.met(Box(np.where(phase > 0, 0.0, box.lo), np.where(phase < 0, 0.0, box.hi)))
        self.knows(z, box)
        at, size = np.where(on, 1.0, slope), self.size(z)
        beyond, edge = np.where(on, -box.lo, box.hi), self.problem.arithmetic.edge(box)
        place: Any = np.nonzero((beyond >= -edge).any(0) | (phase != 0))
        y, own, first = z[place].scaled(sign[place]), self.own[place[0]], len(self.symbols.flips)
        given = np.where(sign[place][:, None] < 0, given[::-1][:, *place], given[:, *place])
        beyond, edge = beyond[:, *place], edge[:, *place]
        least = np.maximum(np.where(on, box.hi, -box.lo)[:, *place], 0.0)
        most, alone = np.maximum(beyond.max(0), TINY), (beyond[0] < -edge[0]) & (own >= 0)
        shares, cover = self._shares(y, own, alone, given)
        shares[phase[place] != 0] = cover[phase[place] != 0] = 0.0
        quiet = np.where(alone, least[0], least.max(0))
        more = np.maximum([y.high[1] - y.high[0], y.low[0] - y.low[1]], 0.0)
        more[0] += least.max(0) - quiet
        pays = np.zeros_like(more, shape=(len(own), 2, len(self.symbols.low)))
        pays[np.arange(len(own)), :, own] = np.where(own < 0, 0.0, up(more)).T
        y = replace(y, low=y.low[0], high=y.high[0])
        names = np.stack([np.full(len(own), self.index), numbers[place]], 1)
        own_parts = {"names": names, "most": most, "shares": shares, "cover": cover, "pays": pays}
        self.symbols = self.symbols.with_flips(y, least.max(0), quiet, **own_parts)
        error = self.off(8, 2 if slope else 0, size + box.size.max(0))
        h = z.scaled(at, self.symbols.count).widened(error)
        h.s[*place, self.symbols.flips[first:, 1]] = 1.0 - slope
        low, high = (np.maximum(end, slope * end) for end in (box.lo, box.hi))
        self.knows(h, Box(low, high).widened(error))
        size = at * size + error
        size[place] += (1.0 - slope) * most
        h.known["size"] = size * SPARE
        turned = (1.0 - slope) * sign[place]
        return h, at, Flipped(place, np.arange(first, first + len(most)), turned, alone)

    def times(self, a: Form, b: Form) -> Form:
        """A cotangent times a derivative, elementwise."""
        second, size = SPARE * self.far(a) * self.far(b), self.size(a) * (2.0 + 4.0 * self.size(b))
        both = replace(a.scaled(b.c) + b.scaled(a.c), c=a.c * b.c)
        return both.widened(second + self.off(16, 5, size))

    def curved(self, layer: Layer, z: Form) -> tuple[Form, Array, Form]:
        """sigmoid or tanh, its derivative at the centres, and its derivative: both as tangents, up to half
        of the next derivative times the square of the move, anywhere between the centre and the argument: a
        phase that a leaf forces may have the centre outside of the range. The run takes its derivative from
        its value, which is off by 16 units.
        """
        own, far = self.box(z), self.far(z)
        around = curve(layer, Box(np.minimum(own.lo, z.c), np.maximum(own.hi, z.c)))
        centre = curve(layer, Box.point(z.c))
        half, found = 0.5 * SPARE * far * far, list[Form]()
        for at, slope, bend, box in zip(centre, centre[1:], around[2:], around, strict=False):
            c, s = (0.5 * (each.lo + each.hi) for each in (at, slope))
            unsure = up(at.hi - at.lo) + up(slope.hi - slope.lo) * far
            form = z.scaled(s)
            low = form.low + np.minimum(bend.lo, 0.0) * half - unsure
            high = form.high + np.maximum(bend.hi, 0.0) * half + unsure
            size = box.size.max(0) + abs(s) * self.size(z) + len(found)
            error = self.off(16, 40 if found else 16, size)
            form = replace(form, c=c, low=low, high=high).widened(error)
            self.knows(form, box.widened(error))
            found.append(form)
        return found[0], found[1].c, found[1]

    def _shares(self, y: Form, own: Array, alone: Array, given: Array) -> tuple[Array, Array]:
        """Shares of flips and what they cover.

        From ``y <= -m + b + sum of d_i over the poisoned slots`` with ``b < m``, and from ``y >= 0``, follows
        ``1 <= sum of d_i / (m - b)``. As phi is 0 or 1, slots that are in no set whose shares add up to 1
        need none. Where a flip needs its own sample to be poisoned, that is the share.
        """
        symbols, each = self.symbols, np.arange(len(own))
        more = np.maximum(y.high[1] - y.high[0], 0.0)
        best, cover = np.zeros((len(own), len(symbols.low))), np.full(len(own), np.inf)
        for rest, dev in forms.reach(y, symbols, given):
            more_if, room = dev[1], down(-y.c - up(up(rest[1] + y.high[0])))
            more_if[each, own] += np.where(own < 0, 0.0, more)
            share = up(up(more_if) / np.where(room > 0, room, 1.0)[:, None]) * SPARE
            share = np.minimum(share, 1.0)
            share = np.where(symbols.given(share)[1] < 1.0 - 1e-9, 0.0, share)
            covers = np.where(room > 0, symbols.worst(share), np.inf)
            best = np.where((covers < cover)[:, None], share, best)
            cover = np.minimum(covers, cover)
        best[alone] = np.arange(len(symbols.low)) == own[alone, None]
        return best, np.where(alone, 1.0, cover)

    def pulled(self, delta: Form, at: Array, flipped: Flipped | Form) -> Form:
        """``delta f'``, where f' is a form, or ``at + turned phi``: of ``phi (delta - c)`` nothing is known
        but that it is 0 if the flip does not happen: noise that is charged to it, by the state of the sample.
        """
        if isinstance(flipped, Form):
            return self.times(delta, flipped)
        symbols, place = self.symbols, flipped.place
        states, before = (slice(None), *place), symbols.count
        radius = self.far(delta)[states]
        radius = up(radius * abs(flipped.turned))
        clean = np.where(flipped.alone, radius[1], radius[0])
        each, own = np.arange(len(flipped.index)), self.own[place[0]]
        owned = np.zeros_like(radius, shape=(len(each), len(symbols.low)))
        owned[each, own] = np.where(own < 0, 0.0, np.maximum(up(radius[1] - clean), 0.0))
        self.symbols = symbols.with_noise(np.zeros(len(each)), owned, flipped.index, clean)
        error = self.off(4, 2, 2.0 * self.size(delta))
        found = delta.scaled(at, self.symbols.count).widened(error)
        found.s[*place, symbols.flips[flipped.index, 0]] += flipped.turned * delta.c[place]
        found.s[*place, before + each] = 1.0
        other = np.stack([at, at])
        other[states] += np.stack([np.where(flipped.alone, 0.0, flipped.turned), flipped.turned])
        ends = [e * f for e in vars(self.box(delta)).values() for f in (at[None], other)]
        self.knows(found, Box(np.min(ends, 0), np.max(ends, 0)).widened(error))
        size = at * self.size(delta) + error
        size[place] += abs(flipped.turned * delta.c[place]) + clean + owned.sum(1)
        found.known["size"] = size * SPARE
        return found

    def loss(self, f: Form, y: Form) -> Form:
        """The derivative of the loss: ``p(f) - y``, ``2 (f - y) / outputs``, or that of hinge, which is
        ``(1 - y) [1 + f > 0] - y [1 - f > 0]``.

        Of softmax ``p_j = 1 / sum_k exp(f_k - f_j)``, with every difference at most a gap D away from its
        centre. Along a line ``p_j'' = p_j ((v_j - E v)^2 - Var v)``, where v_k are the moves of the logits,
        with probability p_k: ``|v_j - E v| <= (1 - p_j) D`` and ``Var v <= min(1/4, 1 - p_j) D^2``. The last
        error is what p at the centre and its Jacobian may be off by; then the run's own softmax.
        """
        count = f.c.shape[-1]
        size = magnitude(f, self.symbols) + magnitude(y, self.symbols)
        if self.problem.loss == "mse":
            return (f - y).scaled(np.full(count, 2.0 / count)).widened(self.off(8, 8, size * 2.0))
        if self.problem.loss == "hinge":
            one = points(np.ones_like(f.c))
            below, above = self.kinked(one + f, one - y), self.kinked(one - f, y)
            return (below - above).widened(self.off(16, 6, size + 1.0))
        size = size.max(-1, keepdims=True)
        if count == 1:  # one logit as two, of which the first is 0
            f = f[:, [0, 0]].scaled(np.array([0.0, 1.0]))
        centre = functions.softmax(Box.point(f.c))
        p = 0.5 * (centre.lo + centre.hi)
        first, second = np.triu_indices(f.c.shape[-1], 1)
        gap = self.far(f[:, first] - f[:, second]).max(-1, keepdims=True)
        grown = functions.exp(Box(-gap, gap))
        least, most = down(centre.lo * grown.lo), up(np.minimum(centre.hi * grown.hi, 1.0))
        half = 0.5 * SPARE * gap * gap
        rise = np.minimum(most * (1.0 - least) * (1.0 - least), 4.0 / 27.0) * half
        fall = most * np.minimum(1.0 - least, 0.25) * half
        jacobian = p[:, :, None] * (np.eye(f.c.shape[-1]) - p[:, None])
        spread = 2.0 * magnitude(f, self.symbols).max(-1, keepdims=True)
        unsure = up(centre.hi - centre.lo).max()
        share = 64.0 + 40.0 * count + 10.0 * spread
        error = 2.0 * SPARE * count * unsure * (1.0 + spread)
        error = error + self.off(4 * count + 8, 8, size + spread + 1.0)
        error = error + self.problem.arithmetic.off(1, share * np.ones_like(p))
        found = mixed(jacobian, f)
        found = replace(found, c=p, low=found.low - fall, high=found.high + rise)
        return found.widened(error)[:, -count:] - y

    def kinked(self, z: Form, share: Form) -> Form:
        """``share [z > 0]``."""
        z = z.widened(self.off(8, 0, magnitude(z, self.symbols)))
        _, at, flipped = self.activated(Layer("relu"), z, partial(self.carried, {}, [], []))
        return self.pulled(share, at, flipped)

    def summed(self, delta: Form, x: Form) -> Form:
        """``sum_i delta_ij x_ik`` over the batch, (j, k). The rests of clean samples, and for each slot what
        it adds to them if it is poisoned.
        """
        symbols, n = self.symbols, len(delta.c)
        c = delta.c.T @ x.c
        s = plus(
            np.tensordot(delta.c, x.s, (0, 0)),
            np.tensordot(delta.s, x.c, (0, 0)).transpose(0, 2, 1),
        )
        second = SPARE * (self.far(delta)[..., None] * self.far(x)[..., None, :])
        first = [end[..., None] * x.c[:, None] for end in (delta.low, delta.high)]
        other = [delta.c[..., None] * end[..., None, :] for end in (x.low, x.high)]
        low = np.minimum(*first) + np.minimum(*other) - second
        high = np.maximum(*first) + np.maximum(*other) + second
        size = self.size(delta)[..., None] * self.size(x)[:, None]
        known = self.own >= 0
        more = np.maximum(np.maximum(low[0] - low[1], high[1] - high[0]), 0.0)[known]
        owned = np.zeros_like(more, shape=(*c.shape, len(symbols.low)))
        owned[..., self.own[known]] = np.moveaxis(up(more), 0, -1)
        error = self.off(2 * n + 8, max(n, self.batch) + 2, 4.0 * size.sum(0))
        return Form(c, s, low[0].sum(0) - error, high[0].sum(0) + error, owned)

    def forward(self, state: Mapping[str, Form], x: Form) -> tuple[list[Form], Slopes]:
        """The input of each layer and the output; and the derivatives of the activations."""
        values, slopes = [x], Slopes()
        for name, given in self.given.items():
            self.knows(state[name], own_ranges(state[name], self.symbols, self.own, given))
        for layer in self.problem.layers:
            if layer.kind == "dense":
                bias = state[layer.bias] if layer.bias else None
                values.append(self.dense(state[layer.weight], values[-1], bias))
                slopes.append(None)
            else:
                carried = partial(self.carried, state, values, slopes)
                bends = layer.kind in ("sigmoid", "tanh")
                act = self.curved if bends else partial(self.activated, carried=carried)
                h, at, by = act(layer, values[-1])
                values.append(h)
                slopes.append((at, by))
        return values, slopes

    def gradients(self, state: Mapping[str, Form], x: Form, y: Form) -> dict[str, Form]:
        """The sums over the batch of the gradients of all parameters."""
        values, slopes = self.forward(state, x)
        delta = self.loss(values[-1], y)
        found: dict[str, Form] = {}
        for place in range(len(slopes) - 1, -1, -1):
            layer, own = self.problem.layers[place], slopes[place]
            if own is not None:
                delta = self.pulled(delta, *own)
                continue
            found[layer.weight] = self.summed(delta, values[place])
            if layer.bias:
                one = self.summed(delta, points(np.ones((len(delta.c), 1))))
                every = one.c, one.s, one.low, one.high, one.owned
                found[layer.bias] = Form(*(part[:, 0] for part in every))
            if place > 0:
                delta = self.dense(state[layer.weight], delta, None, turned=True)
        return found

    def updated(
        self, rule: Rule, name: str, state: Mapping[str, Form], sums: Form, batch: int
    ) -> dict[str, Form]:
        """The optimiser step (see :class:`~.layers.Rule`), without penalty and projection."""
        parts = [state[name], state.get(VELOCITY + name, state[name]), sums]
        sizes = [magnitude(form, self.symbols) for form in parts]
        mean = up(sizes[2] / batch)
        errors = rule.off(self.problem.arithmetic, name, sizes[0], sizes[1], mean)
        for kind, (theta, velocity, gradient) in rule.factors(name).items():
            pairs = zip((theta, velocity, gradient / batch), sizes, strict=True)
            size = sum(forms.near(abs(factor), each) * each for factor, each in pairs)
            errors[kind] = up(errors[kind] + self.off(16, 0, np.asarray(size)))
        return rule.applied(name, state, sums, batch, errors)


def points(values: Array, symbols: int = 0) -> Form:
    """Numbers that are known, of samples."""
    zero = np.zeros((2, *values.shape))
    return Form(values, np.zeros((*values.shape, symbols)), zero, zero)


def ranged(box: Box) -> Form:
    """Numbers of samples of which nothing is known but their range."""
    c = 0.5 * box.lo + 0.5 * box.hi
    low, high = down(box.lo - c), up(box.hi - c)
    return replace(points(c), low=np.stack([low, low]), high=np.stack([high, high]))
