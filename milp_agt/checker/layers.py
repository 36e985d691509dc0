"""The run: its arithmetic, its layers and its loss, forward and backward, in boxes.

Its numbers are floats of unit roundoff ``u'``. By induction over the operations, in the order
in which they stand below: if all operands of an operation lie in their boxes, the exact result lies in the
image of the boxes, and what the run computes is off by at most what :class:`Arithmetic` grants. So it lies
in the widened image.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial, reduce
from typing import Any, TypeVar

import numpy as np

from milp_agt.checker import boxes, functions
from milp_agt.checker.boxes import Array, Box, Unbounded, scale_of

AT_ONCE = 2**21  # products that are held at once
T = TypeVar("T", bound=Any)
Values = Mapping[str, Array]  # of parameters
State = Mapping[str, Box]  # each (cases, *shape); velocities under VELOCITY + name
VELOCITY = "velocity of "


@dataclass(frozen=True)
class Arithmetic:
    """Of the run: what is assumed of its rounding. All assumptions about the run enter here.

    Attributes:
        unit: every product, sum, quotient and conversion has a relative error of at most this.
        tiny: what underflow may add to a number.
        largest: numbers beyond it may have overflowed; nothing is proved of them.
        elementary: relative error of exp, tanh, sigmoid and log, in units.
        margin: 0 in a check. What writes a certificate takes numbers this close to a kink, or to a tie, for
            ones that reach it, so that its claim does not hang on how they are rounded there.
    """

    name: str
    unit: float
    tiny: float
    largest: float
    elementary: float = 16.0
    margin: float = 0.0

    def off(self, roundings: float, size: Array) -> Array:
        """What ``roundings`` of the run in a row can change, for terms of this total size.

        ``gamma(k) size``; the factor in front covers ``1 / (1 - k u')`` for ``k u' <= 2^-10``.
        """
        if roundings * self.unit > 2.0**-10:
            raise Unbounded(f"{roundings:g} roundings of a {self.name} run in one number")
        if (size > self.largest).any():
            raise Unbounded(f"numbers beyond {self.largest:g} in a {self.name} run")
        found: Array = roundings * self.unit * boxes.SPARE * size + self.tiny
        return found

    def edge(self, box: Box) -> Array:
        """How far on the other side of 0 numbers are still taken for ones that reach it."""
        return np.asarray(self.margin * (1.0 + box.size))

    def rounded(self, box: Box, roundings: float, size: Array) -> Box:
        return box.widened(self.off(roundings, size))


ARITHMETICS = {
    "float64": Arithmetic("float64", 2.0**-53, 1e-290, 1e300),
    "float32": Arithmetic("float32", 2.0**-24, 1e-28, 1e30),
}


@dataclass(frozen=True)
class Layer:
    """``dense``: ``W x + b``; ``relu``, ``leaky_relu`` (``slope`` below 0, where relu has 0), ``sigmoid``,
    ``tanh``: elementwise.
    """

    kind: str
    weight: str = ""
    bias: str = ""
    slope: float = 0.0


@dataclass(frozen=True)
class Rule:
    """One optimiser step, for the mean gradient g over the batch (torch.optim.SGD).

    ``d = g + l1 sign(theta) + decay theta``; with momentum ``v' = momentum v + (1 - dampening) d`` and
    ``theta' = theta - rate v'``, or ``theta - rate (d + momentum v')`` (Nesterov); else ``theta' = theta -
    rate d``. Then every entry is clamped to ``projection``.
    """

    rate: float
    momentum: float = 0.0
    decay: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    l1: float = 0.0
    projection: tuple[float, float] | None = None
    undecayed: frozenset[str] = frozenset()

    def factors(self, name: str) -> dict[str, tuple[Fraction, Fraction, Fraction]]:
        """The exact coefficients of theta, v and g + l1 sign in theta' (under "") and in v'."""
        rate, momentum = Fraction(self.rate), Fraction(self.momentum)
        decay = Fraction(0) if name in self.undecayed else Fraction(self.decay)
        kept = 1 - Fraction(self.dampening)
        if self.nesterov:  # d + momentum v' with dampening 0
            ahead = 1 + momentum
            ends = 1 - rate * decay * ahead, -rate * momentum**2, -rate * ahead
        else:
            ends = 1 - rate * kept * decay, -rate * momentum, -rate * kept
        return {"": ends, VELOCITY: (kept * decay, momentum, kept)}

    def off(
        self, arithmetic: Arithmetic, name: str, theta: Array, velocity: Array, gradient: Array
    ) -> dict[str, Array]:
        """What rounding does to theta' and v', from the sizes of theta, v and g.

        The run never forms these coefficients: it rounds products and sums of their parts, at most 16 in a
        row (scalars that are rounded to its precision, the mean, penalty, decay, momentum, Nesterov's sum,
        and the rate), but the old parameter only in its last subtraction. Rounding is granted by the sizes
        of the parts, however much cancels. A product or a scalar that underflows may be multiplied by a
        large rate: so both count as no smaller than ``tiny``, of which 16 units are more than is lost.
        """

        def sized(values: Array, factor: float | Fraction) -> Array:
            scale = scale_of(abs(Fraction(factor)), theta).hi + arithmetic.tiny
            return np.asarray(values * scale + arithmetic.tiny)

        decay = 0.0 if name in self.undecayed else self.decay
        gradient = gradient + sized(theta, decay) + abs(self.l1)
        kept = 1 - Fraction(self.dampening)
        pushed = sized(velocity, self.momentum) + sized(gradient, kept)
        ahead = gradient + sized(pushed, self.momentum) if self.nesterov else pushed
        moved = sized(ahead, self.rate)
        final = arithmetic.off(2, theta) + arithmetic.off(16, moved)
        return {"": final, VELOCITY: arithmetic.off(16, pushed)}

    def applied(
        self, name: str, state: Mapping[str, T], sums: T, batch: int, errors: Mapping[str, Array]
    ) -> dict[str, T]:
        """theta' and v', but for penalty and projection, from the sum of the gradients over a batch."""
        parts = state[name], state.get(VELOCITY + name), sums
        new = {}
        for kind, (theta, velocity, gradient) in self.factors(name).items():
            scales = theta, velocity, gradient / batch
            if kind + name in state:
                pairs = zip(parts, scales, strict=True)
                terms = [part.times(scale) for part, scale in pairs if part is not None]
                new[kind + name] = reduce(operator.add, terms).widened(errors[kind])
        return new


@dataclass(frozen=True)
class Problem:
    """The run without its data: layers, loss, batches with their rules, and arithmetic."""

    layers: tuple[Layer, ...]
    loss: str
    batches: tuple[Array, ...]  # each (n,), or (cases, n)
    rules: tuple[Rule, ...]
    arithmetic: Arithmetic

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(name for layer in self.layers for name in (layer.weight, layer.bias) if name)


@dataclass(frozen=True)
class Samples:
    """Boxes of the features (cases, n, d) and of the encoded labels (cases, n, o) of some samples."""

    x: Box
    y: Box

    def at(self, samples: Array) -> Samples:
        """Some of them; or of one case other samples for each of several, (cases, n)."""
        key = (slice(None), samples) if samples.ndim == 1 else (0, samples)
        return Samples(self.x[key], self.y[key])


@dataclass(frozen=True)
class Poisoned:
    """What the samples ``open`` may become, as boxes, if at most ``budget`` of them are poisoned at
    once. With a ``norm`` (1 or 2), that of ``move / radius`` of the features is at most 1 besides.
    """

    samples: Samples
    open: Array
    budget: int
    norm: int = 0
    radius: Array | None = None  # (n, d); where it is 0 they do not move


def dense(layer: Layer, state: State, x: Box, arithmetic: Arithmetic) -> Box:
    """``W x + b``, (cases, n, outputs): a sum of ``inputs + 1`` terms in any order."""
    weight = state[layer.weight]
    found = products(weight, x)
    size = x.size @ weight.T.size
    if layer.bias:
        bias = state[layer.bias][:, None]
        found, size = found + bias, size + bias.size
    return arithmetic.rounded(found, x.lo.shape[-1] + 1, size)


def products(rows: Box, x: Box) -> Box:
    """``sum_k rows_jk x_ik`` for all samples i and rows j, (cases, n, rows), from (cases, rows, k): corner by
    corner, which is exact for independent numbers, or of points and of several cases by their middles.
    """
    if (x.is_point and rows.is_point) or x.lo.shape[0] > 1 or rows.lo.shape[0] > 1:
        return boxes.matmul(x, rows.T)
    parts = parts_of(x.lo.size, rows.lo.shape[1])
    ends = (boxes.corners(rows[:, None, part], x[:, :, None]) for part in parts)
    return boxes.joined([boxes.total(*each) for each in ends], -1)


def parts_of(numbers: int, rows: int) -> Iterator[slice]:
    step = max(1, AT_ONCE // max(1, numbers))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def activation(layer: Layer, z: Box, arithmetic: Arithmetic) -> Box:
    """Values; all four functions are increasing."""
    if layer.kind == "relu":
        return Box(np.maximum(z.lo, 0.0), np.maximum(z.hi, 0.0))
    if layer.kind == "leaky_relu":
        low, high = z * scale_of(layer.slope, z.lo), z
        found = Box(np.where(z.lo > 0, high.lo, low.lo), np.where(z.hi > 0, high.hi, low.hi))
        return arithmetic.rounded(found, 2, np.where(z.lo > 0, 0.0, z.size))  # slope may underflow
    found = curve(layer, z)[0]
    return arithmetic.rounded(found, arithmetic.elementary, found.size)


def curve(layer: Layer, z: Box) -> tuple[Box, ...]:
    """sigmoid or tanh and its first three derivatives."""
    value = functions.tanh(z) if layer.kind == "tanh" else functions.sigmoid(z)
    return value, *derivatives(layer, value)


def derivatives(layer: Layer, value: Box) -> tuple[Box, ...]:
    """Of sigmoid or tanh, from its value.

    ``k^2 (1 - t^2)``, ``-2 k^3 t (1 - t^2)`` and ``-2 k^4 (1 - t^2) (1 - 3 t^2)``, where for tanh t is the
    value and k is 1, and for sigmoid, which is ``(1 + tanh(z / 2)) / 2``, t is twice the value less 1, k 1/2.
    """
    one, k, t = Box.point(np.ones(value.lo.shape)), 1.0, value
    if layer.kind == "sigmoid":
        k, t = 0.5, value + value - one
    square = t.square()
    slope = one - square
    last = slope * (one - square.times(3.0))
    return slope.times(k**2), (t * slope).times(-2.0 * k**3), last.times(-2.0 * k**4)


def pulled(layer: Layer, z: Box, value: Box, delta: Box, arithmetic: Arithmetic) -> Box:
    """The cotangent before an activation: ``delta f'(z)``, with ``f'`` as torch takes it (relu'(0) = 0). Of
    a smooth one the run takes at most four operations on numbers no larger than ``|delta| (1 + h^2)``.
    """
    if layer.kind in ("relu", "leaky_relu"):
        edge, slope = arithmetic.edge(z), layer.slope
        slopes = Box(np.where(z.lo > edge, 1.0, slope), np.where(z.hi > -edge, 1.0, slope))
        found = delta * slopes
        return arithmetic.rounded(found, 2, delta.size) if slope else found
    slopes = derivatives(layer, value)[0]
    return arithmetic.rounded(delta * slopes, 5, delta.size * (1.0 + value.size))


def loss_gradient(loss: str, f: Box, y: Box, arithmetic: Arithmetic) -> Box:
    """The derivative of the loss of each sample by its outputs, as torch computes it.

    cross_entropy: ``softmax(f) - y``. torch takes ``exp(d_j - log S) - y_j`` with ``d = f - max f`` and
    ``S = sum_k exp(d_k)``. In units u', with C classes and elementary functions off by 16: a term of S is
    off by a share ``16 + 2 |d_k|``; since ``S >= 1`` and ``|d| exp(d) < 0.4``, S by at most ``17 C``,
    ``log S`` by that and ``16 log C``, the exponent by ``17 C + 17 log C + 2 |d_j|``, and p_j by that
    share and 16 more. ``64 + 40 C + 8 spread + 4 max |f|`` is granted, with spread the largest ``|d|``;
    its last term covers ``max f + log S`` where it is added up first. bce: ``sigmoid(f) - y``; p is off by
    16, or as the exponential of ``log sigmoid`` by ``32 + 4 |f|``. mse: ``2 (f - y) / outputs``. hinge:
    ``-s`` where ``s f < 1`` for ``s = 2 y - 1``, else 0. Six more roundings cover the difference and the
    division by the batch.
    """
    count = f.lo.shape[-1]
    if loss == "mse":
        found = (f - y) * scale_of(Fraction(2, count), f.lo)
        return arithmetic.rounded(found, 8, (f.size + y.size) * 2.0)
    if loss == "hinge":
        positive, negative = _kinked(-f, arithmetic), _kinked(f, arithmetic)
        share = Box(1.0 - y.hi, 1.0 - y.lo)
        return arithmetic.rounded(share * negative - y * positive, 6, np.ones(f.lo.shape))
    if loss == "bce":
        p = functions.sigmoid(f)
        own = p.size * (32.0 + 4.0 * f.size)
    else:
        p = functions.softmax(f)
        spread = f.hi.max(-1, keepdims=True) - f.lo.min(-1, keepdims=True)
        top = f.size.max(-1, keepdims=True)
        own = p.size * (64.0 + 40.0 * count + 8.0 * spread + 4.0 * top)
    size = (1.0 if loss == "bce" else p.size) + y.size
    error = arithmetic.off(1, own) + arithmetic.off(6, size)
    return (p - y).widened(error)


def _kinked(f: Box, arithmetic: Arithmetic) -> Box:
    """``step(1 + f)`` with step(0) = 0; the sign of the sum survives rounding."""
    edge = arithmetic.edge(f)
    return Box(np.where(f.lo > edge - 1.0, 1.0, 0.0), np.where(f.hi > -1.0 - edge, 1.0, 0.0))


def forward(problem: Problem, state: State, x: Box) -> list[Box]:
    """The input of every layer, and the output at the end."""
    values = [x]
    for layer in problem.layers:
        act = partial(dense, layer, state) if layer.kind == "dense" else partial(activation, layer)
        values.append(act(values[-1], problem.arithmetic))
    return values


def terms(problem: Problem, state: State, samples: Samples) -> dict[str, tuple[Box, Box]]:
    """The gradient of every sample: the factors (delta, input) of its outer product; of a bias the input
    is 1.
    """
    arithmetic = problem.arithmetic
    values = forward(problem, state, samples.x)
    delta = loss_gradient(problem.loss, values[-1], samples.y, arithmetic)
    found, one = {}, Box.point(np.ones_like(values[0].lo[..., :1]))
    for place in range(len(problem.layers) - 1, -1, -1):
        layer, given = problem.layers[place], values[place]
        if layer.kind != "dense":
            delta = pulled(layer, given, values[place + 1], delta, arithmetic)
            continue
        found[layer.weight] = (delta, given)
        if layer.bias:
            found[layer.bias] = (delta, one)
        if place > 0:
            weight = state[layer.weight]
            size = delta.size @ weight.size
            delta = arithmetic.rounded(products(weight.T, delta), delta.lo.shape[-1] + 1, size)
    return found
