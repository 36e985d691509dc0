"""Boxes, states and points to try the rules of operations on, and how near a bound may come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from instances import INSTANCES, SAMPLES, Instance, Long, in_other_orders
from torch import Tensor

from milp_agt.core.graph import Operation, Signature
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.clip_factor import ClipFactor
from milp_agt.formulations.elu import Elu, EluSlope
from milp_agt.formulations.exponential import CAP, Exponential
from milp_agt.formulations.gelu import Gelu, GeluSlope
from milp_agt.formulations.gelu_tanh import GeluTanh, GeluTanhSlope
from milp_agt.formulations.heaviside import Heaviside as StepFunction
from milp_agt.formulations.leaves import _Leaf
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.reciprocal import Reciprocal
from milp_agt.formulations.registry import operations
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.sign import Sign
from milp_agt.formulations.silu import Silu, SiluSlope
from milp_agt.formulations.softplus import Softplus, SoftplusSlope
from milp_agt.formulations.tanh import Tanh
from milp_agt.formulations.univariate import Univariate
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Box, MoveSet, Vertices

torch.set_num_threads(1)


Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Tolerances:
    """Every tolerance of these tests, with its reason. Interval containment has none."""

    # float64 training of a few steps: a few hundred roundings of numbers of size 1.
    torch: float = 1e-12
    # HiGHS accepts rows violated by its feasibility tolerance, set here to this value.
    feasible: float = 1e-9
    # Watched expressions are equations between sampled floats: their own rounding and feasible.
    watch: float = 4e-9
    # Optimal values of a program: `feasible` times multipliers of a few dozen rows.
    support: float = 1e-6
    # The checks of linear bounds are evaluated in 80 bits; this covers their own rounding.
    extended: float = 1e-17
    # An offset is made of terms within the magnitude, plus the grant for elementary functions, which
    # grows with the argument (4 u |x|, up to |x| = 1e7 here).
    offset: float = 1e-8
    # How far a mutant is too tight. Far above all others.
    mutant: float = 0.01


TOL = Tolerances()


def poisoned(poison: Poison, generator: torch.Generator, attacks: int) -> Tensor:
    """Masks of poisoned samples, (attacks, N, quotas): up to the budget, drawn uniformly."""
    masks = []
    for quota in poison.quotas:
        scores = torch.rand(attacks, len(quota.open), generator=generator, dtype=torch.float64)
        scores = torch.where(quota.open, scores, -1.0)
        ranks = scores.argsort(dim=1, descending=True).argsort(dim=1)
        masks.append((ranks < quota.budget) & quota.open)
    return torch.stack(masks, -1)


def non_leaves() -> dict[str, type[Operation]]:
    return {k: op for k, op in operations().items() if not issubclass(op, _Leaf)}


def all_instances() -> list[Instance]:
    return [i for group in INSTANCES.values() for i in group]


def univariate_instances() -> list[Instance]:
    return [i for i in all_instances() if isinstance(i.op, Univariate)]


MODERATE = ("point", "positive", "negative", "zero_low", "zero_high", "straddle")


KINDS = (*MODERATE, "zero", "tiny", "tiny_zero", "adjacent", "huge", "huge_one_sided")


RELATIONS = ("single", "nested", "apart", "equal")


def ends_of_kind(kind: str, rng: np.random.Generator) -> tuple[float, float]:
    a, b = sorted(10.0 ** rng.uniform(-2, 1, size=2))
    x = float(rng.normal())
    table: dict[str, tuple[float, float]] = {
        "point": (x, x),
        "positive": (a, b),
        "negative": (-b, -a),
        "zero_low": (0.0, b),
        "zero_high": (-b, 0.0),
        "straddle": (-a, b),
        "zero": (0.0, 0.0),
        "tiny": (x, x + 1e-12),
        "tiny_zero": (-1e-12, 1e-12 * float(rng.integers(0, 2))),
        "adjacent": (x, float(np.nextafter(x, np.inf))),
        "huge": (-1e6 * a, 1e6 * b),
        "huge_one_sided": (1e6 * a, 1e6 * b),
    }
    return table[kind]


def _in_domain(low: Array, high: Array, domain: str) -> tuple[Array, Array]:
    if domain == "real":
        return low, high
    if domain == "exponent":
        return low, high
    smallest = 1e-3
    first, second = np.abs(low) + smallest, np.abs(high) + smallest
    if domain == "unit":
        first, second = first / (first + 1.0), second / (second + 1.0)
    return np.minimum(first, second), np.maximum(first, second)


def make_box(
    signature: Signature,
    kinds: Sequence[str],
    relation: str,
    rng: np.random.Generator,
    domain: str = "real",
) -> Interval:
    """A box of random kinds; two poisoning states in the given relation for per-sample nodes."""
    shape = (SAMPLES, *signature.shape) if signature.batched else signature.shape

    def draw() -> tuple[Array, Array]:
        pairs = [
            ends_of_kind(kinds[int(rng.integers(len(kinds)))], rng)
            for _ in range(int(np.prod(shape)))
        ]
        flat = np.array(pairs).reshape(*shape, 2)
        return _in_domain(flat[..., 0], flat[..., 1], domain)

    low, high = draw()
    states = [(low, high)]
    if signature.batched and relation != "single":
        other = draw()
        if relation == "nested":
            other = np.minimum(low, other[0]), np.maximum(high, other[1])
        elif relation == "equal":
            other = low, high
        states.append(other)
    return Interval(
        torch.from_numpy(np.stack([s[0] for s in states])),
        torch.from_numpy(np.stack([s[1] for s in states])),
    )


def make_boxes(
    instance: Instance, kinds: Sequence[str], relations: Sequence[str], rng: np.random.Generator
) -> tuple[Interval, ...]:
    return tuple(
        make_box(s, kinds, relations[j % len(relations)], rng, instance.domain)
        for j, s in enumerate(instance.inputs)
    )


@dataclass(frozen=True)
class Draw:
    """What hypothesis chooses: the palette of kinds, the relation of the states, and a seed."""

    kinds: tuple[str, ...]
    relations: tuple[str, ...]
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def draws(kinds: Sequence[str] = KINDS) -> st.SearchStrategy[Draw]:
    return st.builds(
        Draw,
        st.lists(st.sampled_from(kinds), min_size=1, max_size=3).map(tuple),
        st.lists(st.sampled_from(RELATIONS), min_size=1, max_size=2).map(tuple),
        st.integers(0, 2**20),
    )


def states_of(boxes: Sequence[Interval]) -> int:
    return max(b.lower.shape[0] for b in boxes)


def at_states(tensor: Tensor, states: Array, batched: bool) -> Tensor:
    """Pick the state of each sample: (states, n, *shape) -> (n, *shape)."""
    if not batched:
        return tensor[CLEAN]
    chosen = torch.from_numpy(np.minimum(states, tensor.shape[0] - 1))
    return tensor[chosen, torch.arange(tensor.shape[1])]


def sample_points(
    boxes: Sequence[Interval],
    signatures: Sequence[Signature],
    states: Array,
    count: int,
    rng: np.random.Generator,
) -> list[Tensor]:
    """Points of the boxes at given states: corners, kinks, their neighbours and the inside."""
    points = []
    for box, signature in zip(boxes, signatures, strict=True):
        low = at_states(box.lower, states, signature.batched).numpy()
        high = at_states(box.upper, states, signature.batched).numpy()
        size = (count, *low.shape)
        low, high = np.broadcast_to(low, size), np.broadcast_to(high, size)
        inside = np.clip(low + (high - low) * rng.random(size), low, high)
        choices = [
            low,
            high,
            inside,
            np.clip(0.0, low, high),
            np.clip(np.nextafter(0.0, 1.0), low, high),
            np.clip(1e-9, low, high),
        ]
        mode = rng.choice(len(choices), p=[0.35, 0.35, 0.15, 0.05, 0.05, 0.05], size=size)
        mode[: count // 4] = rng.integers(0, 2, size=mode[: count // 4].shape)
        points.append(torch.from_numpy(np.choose(mode, choices)))
    return points


_PI = 2 * np.arcsin(Long(1))


def _logistic(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _normal_density(x: Array) -> Array:
    near = np.clip(x, Long(-120), Long(120))
    return np.exp(-near * near / 2) / np.sqrt(2 * _PI)


def _normal_distribution(x: Array) -> Array:
    """Phi in 80 bits: a series of positive terms near 0, Laplace's continued fraction beyond."""
    near = np.clip(x, Long(-4), Long(4))
    term, total = near.copy(), near.copy()
    for k in range(1, 90):
        term = term * near * near / (2 * k + 1)
        total = total + term
    far = np.clip(np.abs(x), Long(3), Long(120))
    fraction = far
    for k in range(200, 0, -1):
        fraction = far + k / fraction
    tail = _normal_density(far) / fraction
    outside = np.where(x > 0, 1 - tail, tail)
    return np.where(np.abs(x) < 3.5, Long(0.5) + total * _normal_density(near), outside)


def exact_univariate(op: Univariate, x: Array) -> Array:
    """``f(x)`` in 80 bits, from the formula in the docstring of the operation."""
    x = x.astype(Long)
    if isinstance(op, Relu):
        return np.where(x > 0, x, Long(op.negative_slope) * x)
    if isinstance(op, StepFunction):
        return (x > 0).astype(Long)
    if isinstance(op, Sigmoid):
        return np.where(
            x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))
        )
    if isinstance(op, Tanh):
        return np.tanh(x)
    if isinstance(op, Exponential):
        return np.exp(np.minimum(x, Long(CAP)))
    if isinstance(op, Reciprocal):
        return 1 / x
    if isinstance(op, Sign):
        return np.sign(x)
    if isinstance(op, Clip):
        return np.clip(x, Long(op.low), Long(op.high))
    if isinstance(op, ClipFactor):
        clip = Long(op.clip)
        kink = (clip - Long(op.shift)) ** 2
        return np.where(x > kink, clip / (np.sqrt(np.maximum(x, kink)) + Long(op.shift)), 1)
    if isinstance(op, Quadratic):
        return Long(op.a) * x * x + Long(op.b) * x + Long(op.c)
    if isinstance(op, Elu | EluSlope):
        below = np.minimum(x, Long(0))
        if isinstance(op, EluSlope):
            return np.exp(below)
        return np.where(x > 0, x, Long(op.alpha) * np.expm1(below))
    if isinstance(op, Softplus | SoftplusSlope):
        y = Long(op.beta) * x
        if isinstance(op, SoftplusSlope):
            return np.where(y > op.threshold, Long(1), _logistic(y))
        smooth = np.maximum(y, Long(0)) + np.log1p(np.exp(-np.abs(y)))
        return np.where(y > op.threshold, x, smooth / Long(op.beta))
    if isinstance(op, Silu | SiluSlope):
        share = _logistic(x)
        return x * share if isinstance(op, Silu) else share * (1 + x * _logistic(-x))
    if isinstance(op, Gelu | GeluSlope):
        share = _normal_distribution(x)
        return x * share if isinstance(op, Gelu) else share + x * _normal_density(x)
    if isinstance(op, GeluTanh | GeluTanhSlope):
        constant, root = Long("0.044715"), np.sqrt(2 / _PI)
        z = np.clip(x, Long(-1e3), Long(1e3))
        share = _logistic(2 * root * (z + constant * z**3))
        if isinstance(op, GeluTanh):
            return x * share
        rate = root * (1 + 3 * constant * z**2)
        return share + 2 * z * rate * share * _logistic(-2 * root * (z + constant * z**3))
    raise AssertionError(f"no reference formula for {op}: add it here")


def evaluations(op: Operation, points: Sequence[Tensor]) -> Iterator[Tensor]:
    """The value, again with every sum taken in another order, and (univariate) in 80 bits."""
    yield op.value(*points)
    yield from in_other_orders(op, points)
    if isinstance(op, Univariate):
        # Rounded to float64 after the fact: a correctly rounded run is a run as well.
        yield torch.from_numpy(exact_univariate(op, points[0].numpy()).astype(np.float64))


def values_at(op: Operation, points: Sequence[Tensor], rng: np.random.Generator) -> Tensor:
    """Values at points (points, n, *shape); for a rounding, off by all that a run may be off."""
    value = op.value(*points)
    if not isinstance(op, RunRounding):
        return value
    error = op.error(*(Interval.point(p) for p in points))
    sign = torch.from_numpy(rng.choice([-1.0, 1.0], size=tuple(value.shape)))
    return value + (1.0 - 1e-12) * sign * error


def say(instance: Instance, what: str, detail: object) -> str:
    return f"{instance}: {what}: {detail}"


def poison_of(budget: int, static: bool, per_batch: bool, what: str, count: int = 5) -> Poison:
    """A bound threat model: features (x), label vertices (v) or label moves (r); sample 1 is closed."""
    rng = np.random.default_rng(9)
    features = torch.from_numpy(rng.normal(size=(count, 2)))
    labels = torch.eye(3).double()[torch.from_numpy(rng.integers(0, 3, count))]
    mask = torch.ones(count, dtype=torch.bool)
    mask[1] = False
    on_features: MoveSet | None = None
    on_labels: MoveSet | None = None
    if "x" in what:
        radius = torch.from_numpy(rng.random((count, 2)))
        on_features = Box(-radius, radius).only(mask)
    if "v" in what:
        on_labels = Vertices(torch.eye(3).double()[None] - labels[:, None]).only(mask)
    if "r" in what:
        largest = torch.full((count, 3), 0.3, dtype=torch.float64)
        on_labels = Box(-largest, largest).only(mask)
    return Poison(features, labels, mask, budget, static, per_batch, on_features, on_labels)
