"""Checks of one rule at a time, shared by the contract tests and by their mutants.

Every ``check_*`` function raises AssertionError where a rule breaks its contract, so that a mutant
that is one per cent too tight can be shown to fail the very same check.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import highspy
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import strategies as st
from instances import (
    INSTANCES,
    SAMPLES,
    Instance,
    Long,
    in_other_orders,
)
from torch import Tensor, nn

from milp_agt.core.encoder import Encoder, Selection, as_arrays
from milp_agt.core.expression import Expression, widened
from milp_agt.core.graph import Signature
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.operation import Operation
from milp_agt.core.program import Program
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.rounding import TINY, gamma
from milp_agt.engines import interval as interval_engine
from milp_agt.engines import linear as linear_engine
from milp_agt.engines import program as program_engine
from milp_agt.engines.adversary import open_debt
from milp_agt.engines.joint import Joint, Masks, PoisonedSum
from milp_agt.engines.program import EncodedWindow
from milp_agt.engines.program import window as window_room
from milp_agt.engines.relaxed import RelaxedStep, relax_step
from milp_agt.engines.step import Schedule, State, Step, initial_state, step_at_points, velocity_of
from milp_agt.engines.walker import Forms
from milp_agt.formulations.base import operations
from milp_agt.formulations.blur import Blur
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.clip_factor import ClipFactor
from milp_agt.formulations.exponential import CAP, Exponential
from milp_agt.formulations.leaves import _Leaf
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.reciprocal import Reciprocal
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.sign import Sign
from milp_agt.formulations.step import Step as StepFunction
from milp_agt.formulations.tanh import Tanh
from milp_agt.formulations.univariate import Univariate
from milp_agt.inputs import labels_of
from milp_agt.moves import Box, MoveSet, Vertices
from milp_agt.poison import Poison
from milp_agt.threats import ThreatModel
from milp_agt.tracing import StepGraph, trace
from milp_agt.training import Training, UpdateRule

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


def non_leaves() -> dict[str, type[Operation]]:
    return {k: op for k, op in operations().items() if not issubclass(op, _Leaf)}


def all_instances() -> list[Instance]:
    return [i for group in INSTANCES.values() for i in group]


def univariate_instances() -> list[Instance]:
    return [i for i in all_instances() if isinstance(i.op, Univariate)]


# ---------------------------------------------------------------------------------------- boxes

MODERATE = ("point", "positive", "negative", "zero_low", "zero_high", "straddle")
KINDS = (*MODERATE, "zero", "tiny", "tiny_zero", "adjacent", "huge", "huge_one_sided")
RELATIONS = ("single", "nested", "apart", "equal")


def _ends(kind: str, rng: np.random.Generator) -> tuple[float, float]:
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
            _ends(kinds[int(rng.integers(len(kinds)))], rng) for _ in range(int(np.prod(shape)))
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
    instance: Instance,
    kinds: Sequence[str],
    relations: Sequence[str],
    rng: np.random.Generator,
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


# ------------------------------------------------------------------------------- exact functions


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
        return np.where(x > clip * clip, clip / np.sqrt(np.maximum(x, clip * clip)), 1)
    if isinstance(op, Quadratic):
        return Long(op.a) * x * x + Long(op.b) * x + Long(op.c)
    raise AssertionError(f"no reference formula for {op}: add it here")


def evaluations(op: Operation, points: Sequence[Tensor]) -> Iterator[Tensor]:
    """The value, again with every sum taken in another order, and (univariate) in 80 bits."""
    yield op.value(*points)
    yield from in_other_orders(op, points)
    if isinstance(op, Univariate):
        # Rounded to float64 after the fact: a correctly rounded run is a run as well.
        yield torch.from_numpy(exact_univariate(op, points[0].numpy()).astype(np.float64))


def _say(instance: Instance, what: str, detail: object) -> str:
    return f"{instance}: {what}: {detail}"


# ------------------------------------------------------------------------------- contract checks


def check_interval(
    instance: Instance, boxes: Sequence[Interval], rng: np.random.Generator, count: int = 96
) -> None:
    """Sampled values lie inside, without tolerance, for every pattern of states."""
    out = instance.op.interval(*boxes)
    assert bool((out.lower <= out.upper).all()), _say(instance, "lower > upper", out)
    shape = (SAMPLES, *instance.out.shape) if instance.out.batched else instance.out.shape
    assert out.lower.shape == (states_of(boxes) if instance.out.batched else 1, *shape)
    for states in state_patterns(boxes, rng):
        points = sample_points(boxes, instance.inputs, states, count, rng)
        low = at_states(out.lower, states, instance.out.batched)
        high = at_states(out.upper, states, instance.out.batched)
        for value in evaluations(instance.op, points):
            gap = torch.maximum(low - value, value - high)
            assert bool(((low <= value) & (value <= high)).all()), _say(
                instance, "value outside its box by", float(gap.max())
            )


def state_patterns(boxes: Sequence[Interval], rng: np.random.Generator) -> list[Array]:
    states = states_of(boxes)
    if states == 1:
        return [np.zeros(SAMPLES, dtype=np.int64)]
    patterns = [np.full(SAMPLES, s) for s in range(states)]
    return [*patterns, rng.integers(0, states, size=SAMPLES)]


def random_coefficients(
    instance: Instance, rows: int, uniform: bool, rng: np.random.Generator
) -> Tensor:
    shape = instance.out.shape
    if instance.out.batched:
        shape = (1 if uniform else SAMPLES, *shape)
    c = rng.normal(size=(rows, *shape))
    c[rng.random(c.shape) < 0.2] = 0.0
    c *= 10.0 ** rng.integers(-3, 3, size=(rows, *[1] * len(shape)))
    flat = c.reshape(rows, -1)
    flat[0] = 0.0
    flat[0, int(rng.integers(flat.shape[1]))] = 1.0
    flat[1] = 0.0
    flat[1, int(rng.integers(flat.shape[1]))] = -1.0
    return torch.from_numpy(c)


def _dot(c: Array, u: Array) -> Array:
    """Rows times points: c (rows, n or 1, ...), u (points, n, ...) -> (rows, points)."""
    product = c[:, None].astype(Long) * u[None].astype(Long)
    return product.reshape(*product.shape[:2], -1).sum(-1)


def check_relax(
    instance: Instance,
    boxes: Sequence[Interval],
    rng: np.random.Generator,
    uniform: bool = False,
    rows: int = 6,
    count: int = 48,
) -> None:
    """``c.v >= sum pull(c).u + max(c,0).lower[s] + min(c,0).upper[s]`` at sampled points.

    Only ``4 gamma(operations) |c|.magnitude`` is forgiven, which is what the walk charges for its own
    rounding. ``magnitude`` must bound the value, the offsets and every term of the pull.
    """
    op, out = instance.op, instance.out
    planes = op.relax(*boxes)
    c = random_coefficients(instance, rows, uniform, rng)
    pulled = planes.pull(c)
    magnitude = planes.magnitude.numpy()
    largest = max(s.size for s in (*instance.inputs, out)) * SAMPLES
    forgiven = 4.0 * gamma(2.0 * largest + 64.0)
    size_of_form = _dot(np.abs(c.numpy()), magnitude[None])
    positive, negative = np.maximum(c.numpy(), 0.0), np.minimum(c.numpy(), 0.0)
    for term, signature in zip(pulled, instance.inputs, strict=True):
        lead = (SAMPLES, *signature.shape) if signature.batched else signature.shape
        np.broadcast_shapes(tuple(term.shape[1:]), lead)
    if planes.lower is not None and planes.upper is not None:
        if instance.domain != "exponent":
            assert bool(torch.isfinite(planes.lower).all() and torch.isfinite(planes.upper).all())
        for offset in (planes.lower, planes.upper):
            over = offset.abs() > planes.magnitude * (1 + TOL.offset) + 10 * TINY
            assert not bool(over.any()), _say(
                instance, "offset above magnitude", float(offset.abs().max())
            )
    for states in state_patterns(boxes, rng):
        points = sample_points(boxes, instance.inputs, states, count, rng)
        value = op.value(*points).numpy()
        assert (np.abs(value) <= magnitude * (1 + 1e-15)).all(), _say(
            instance, "value above magnitude", np.max(np.abs(value) - magnitude)
        )
        with np.errstate(all="ignore"):
            left = _dot(c.numpy(), value)
            right = np.zeros_like(left)
            terms = np.zeros_like(left)
            for term, u in zip(pulled, points, strict=True):
                right = right + _dot(term.numpy(), u.numpy())
                terms = terms + _dot(np.abs(term.numpy()), np.abs(u.numpy()))
            if planes.lower is not None and planes.upper is not None:
                lower = at_states(planes.lower, states, out.batched).numpy()
                upper = at_states(planes.upper, states, out.batched).numpy()
                right = right + _dot(positive, lower[None]) + _dot(negative, upper[None])
            slack = forgiven * size_of_form + TOL.extended * np.abs(right) + 100 * TINY
            # The walk reads a bound that is no number as -inf.
            broken = left < right - np.where(np.isnan(slack), np.inf, slack)
            over = terms > size_of_form * (1 + 1e-12) + 100 * TINY
        assert not broken.any(), _say(
            instance, "plane above the function by", np.nanmax(right - left)
        )
        assert not over.any(), _say(
            instance, "terms above magnitude", np.nanmax(terms - size_of_form)
        )


def widening(instance: Instance, boxes: Sequence[Interval]) -> Tensor:
    """The documented widening of one end of the interval, per element of the hull."""
    op = instance.op
    if isinstance(op, Univariate):
        exact = op.residual(0.0, boxes[0])
        return op.rounding(boxes[0].magnitude, exact.magnitude).amax(0)
    terms = max(s.size for s in instance.inputs)
    size = op.relax(*boxes).magnitude
    error = op.error if isinstance(op, Blur) else 0.0
    return size * gamma(4 * terms + 16) + TINY + error


def check_point_is_exact(instance: Instance, boxes: Sequence[Interval]) -> None:
    """At a box of zero width the interval is the value, up to the documented widening."""
    points = [b.lower[CLEAN] for b in boxes]
    box = tuple(Interval.point(p.unsqueeze(0)) for p in points)
    out = instance.op.interval(*box)
    value = instance.op.value(*points)
    assert out.contains(value.unsqueeze(0)), _say(
        instance, "value outside a box of zero width", value
    )
    error = 4.0 * widening(instance, box)
    for end in (out.lower[0], out.upper[0]):
        assert bool(((end - value).abs() <= error).all()), _say(
            instance, "too wide at a point", end - value
        )


def check_isotonic(instance: Instance, boxes: Sequence[Interval], rng: np.random.Generator) -> None:
    """Smaller boxes give smaller intervals, up to the documented widening."""
    small = []
    for box in boxes:
        first, second = (torch.from_numpy(rng.random(box.lower.shape)) for _ in range(2))
        low = box.lower + box.width * torch.minimum(first, second)
        high = box.lower + box.width * torch.maximum(first, second)
        low = torch.minimum(torch.maximum(low, box.lower), box.upper)
        small.append(Interval(low, torch.minimum(torch.maximum(high, low), box.upper)))
    outer, inner = instance.op.interval(*boxes), instance.op.interval(*small)
    error = 4.0 * widening(instance, boxes)
    gap = torch.maximum(outer.lower - inner.lower, inner.upper - outer.upper)
    assert bool((gap <= error).all()), _say(instance, "sub-box sticks out by", float(gap.max()))


def slopes_to_try(op: Univariate, low: Array, high: Array) -> list[Array]:
    """Derivatives at both ends and at the centre, the chord, zero, ordinary and huge slopes."""
    one = np.ones_like(low)
    slopes = [0.0 * one, one, -one, 0.25 * one, 1e-12 * one, 1e6 * one, -1e6 * one]
    derivative: Callable[[Tensor], Tensor] | None = getattr(op, "derivative", None)
    if derivative is not None:
        slopes += [derivative(torch.from_numpy(x)).numpy() for x in (low, high, 0.5 * (low + high))]
    with np.errstate(all="ignore"):
        chord = (exact_univariate(op, high) - exact_univariate(op, low)) / (high - low)
    slopes.append(np.where(np.isfinite(chord), chord, 0.0).astype(np.float64))
    return [np.where(np.isfinite(m), m, 0.0) for m in slopes]


def check_residual(instance: Instance, low: Array, high: Array, grid: int = 1501) -> None:
    """``residual`` is the exact range of ``f(x) - m x``, from both sides, for any slope m.

    Against a table in 80 bits with both ends, the kinks and their neighbours. Between grid points
    the function leaves the table by at most an eighth of its largest second difference, where it is
    smooth; pieces of relu and step have their extremes at points of the table.
    """
    op = instance.op
    assert isinstance(op, Univariate)
    box = Interval(torch.from_numpy(low)[None], torch.from_numpy(high)[None])
    even = low + (high - low) * np.linspace(0.0, 1.0, grid)[:, None]
    even = np.clip(even, low, high)
    own: tuple[float, ...] = getattr(op, "kinks", ())
    kinks = [np.clip(k, low, high) for k in (0.0, 5e-324, -5e-324, CAP, *own)]
    table = np.concatenate([even, np.stack([*kinks, low, high])])
    for slope in slopes_to_try(op, low, high):
        found = op.residual(torch.from_numpy(slope), box)
        with np.errstate(all="ignore"):
            values = exact_univariate(op, table) - slope.astype(Long) * table.astype(Long)
            regular = exact_univariate(op, even) - slope.astype(Long) * even.astype(Long)
            second = np.abs(np.diff(regular, n=2, axis=0)).max(0)
        smooth = not isinstance(op, Relu | StepFunction | Clip | Sign)
        size = box.magnitude[0].numpy()
        value = np.abs(exact_univariate(op, table)).max(0).astype(np.float64)
        rounding = op.rounding(torch.from_numpy(size), torch.from_numpy(value)).numpy()
        rounding = rounding + gamma(8) * (value + np.abs(slope) * size) + 1e-300
        grid_error = 0.15 * second * smooth + rounding
        for end, extreme, sign in (
            (found.lower[0].numpy(), values.min(0), 1.0),
            (found.upper[0].numpy(), values.max(0), -1.0),
        ):
            gap = sign * (end - extreme)  # > 0: cuts off values; < 0: looser than the table
            assert (gap <= rounding).all(), _say(
                instance, "residual cuts values off", (gap.max(), slope, low, high)
            )
            assert (-gap <= grid_error).all(), _say(
                instance, "residual is looser than a table", ((-gap).max(), slope, low, high)
            )


# ----------------------------------------------------------------------------- poisoned sum, debt


def subsets(samples: int, budget: int) -> Iterator[tuple[int, ...]]:
    for size in range(min(budget, samples) + 1):
        yield from itertools.combinations(range(samples), size)


def check_poisoned_sum(
    terms: Interval, budget: int, masks: Masks, pieces: int, rng: np.random.Generator
) -> None:
    """Every sum with an admissible set of poisoned samples lies inside; both ends are reached."""
    total = PoisonedSum(budget, terms.lower.shape[1])
    n = terms.lower.shape[1]
    for part in np.array_split(np.arange(n), pieces):
        index = torch.from_numpy(part)
        cut = Masks(
            None if masks.inside is None else masks.inside[index],
            None if masks.outside is None else masks.outside[index],
        )
        total.add(Interval(terms.lower[:, index], terms.upper[:, index]), cut)
    inside = 0 if masks.inside is None else int(masks.inside.sum())
    box, size = total.result(inside)
    must = set() if masks.inside is None else set(torch.nonzero(masks.inside).flatten().tolist())
    never = set() if masks.outside is None else set(torch.nonzero(masks.outside).flatten().tolist())
    lowest, highest = np.inf, -np.inf
    for chosen in subsets(n, budget):
        if not must <= set(chosen) or never & set(chosen):
            continue
        states = np.zeros(n, dtype=np.int64)
        states[list(chosen)] = 1
        low = at_states(terms.lower, states, True)
        high = at_states(terms.upper, states, True)
        inner = low + (high - low) * torch.from_numpy(rng.random(low.shape))
        for term in (low, high, torch.minimum(torch.maximum(inner, low), high)):
            for ordered in (term, term.flip(0)):
                value = ordered.sum(0)
                assert bool(((box.lower[0] <= value) & (value <= box.upper[0])).all()), (
                    f"poisoned sum {value} outside {box}"
                )
        exact_low = low.numpy().astype(Long).sum(0)
        exact_high = high.numpy().astype(Long).sum(0)
        lowest, highest = np.minimum(lowest, exact_low), np.maximum(highest, exact_high)
    error = gamma(8 * n + 64) * size.numpy() + 4 * TINY
    assert (box.lower[0].numpy() >= lowest - error).all(), "lower end of the poisoned sum is loose"
    assert (box.upper[0].numpy() <= highest + error).all(), "upper end of the poisoned sum is loose"


@dataclass(frozen=True)
class DebtCase:
    """Coefficients of some forms on the moves of a few steps, and charges."""

    poison: Poison
    batches: tuple[tuple[int, ...], ...]
    features: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    charges: tuple[Tensor, ...]

    @property
    def rows(self) -> int:
        return len(self.features[0])


def debt_case(poison: Poison, batches: Sequence[Sequence[int]], rows: int, seed: int) -> DebtCase:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape))

    sizes = [len(b) for b in batches]
    return DebtCase(
        poison,
        tuple(tuple(b) for b in batches),
        tuple(draw(rows, n, *poison.features.shape[1:]) for n in sizes),
        tuple(draw(rows, n, poison.labels.shape[1]) for n in sizes),
        tuple(0.3 * draw(rows, n, poison.states - 1) for n in sizes),
    )


def _selections(case: DebtCase) -> Iterator[list[tuple[int, ...]]]:
    """Admissible sets of poisoned samples, one for each step."""
    poison, count = case.poison, len(case.poison.open)
    is_open = [i for i in range(count) if bool(poison.open[i])]
    if not poison.per_batch:
        for chosen in itertools.combinations(is_open, min(poison.budget, len(is_open))):
            yield [tuple(i for i in chosen if i in batch) for batch in case.batches]
        return
    if poison.static:
        for mask in itertools.product((False, True), repeat=len(is_open)):
            chosen = tuple(i for i, m in zip(is_open, mask, strict=True) if m)
            picked = [tuple(i for i in chosen if i in batch) for batch in case.batches]
            if all(len(p) <= poison.budget for p in picked):
                yield picked
        return
    each = []
    for batch in case.batches:
        allowed = [i for i in batch if i in is_open]
        each.append(list(itertools.combinations(allowed, min(poison.budget, len(allowed)))))
    yield from (list(p) for p in itertools.product(*each))


def _drop(case: DebtCase, row: int, sample: int, steps: Sequence[int]) -> Long:
    """The most that one poisoned sample lowers one form over steps that share its move."""
    poison = case.poison
    on_x = np.zeros(poison.features.shape[1:], dtype=Long)
    on_y = np.zeros(poison.labels.shape[1], dtype=Long)
    charge = Long(0)
    for t in steps:
        i = case.batches[t].index(sample)
        on_x = on_x + case.features[t][row, i].numpy()
        on_y = on_y + case.labels[t][row, i].numpy()
        charge = charge + Long(float(case.charges[t][row, i, 0]))
    gain = charge
    for moves, on in ((poison.feature_moves, on_x), (poison.label_moves, on_y)):
        if isinstance(moves, Box):
            gain = gain + (np.abs(on) * moves.high[sample].numpy()).sum()
        elif isinstance(moves, Vertices):
            gain = gain + max(-(on * v).sum() for v in moves.points[sample].numpy())
    return Long(gain)


def check_debt(case: DebtCase, tight: bool) -> None:
    """``worst`` is at least what any admissible adversary takes; equal to the best where ``tight``."""
    poison = case.poison
    debt = open_debt(poison, case.rows, UNRESTRICTED)
    for t, batch in enumerate(case.batches):
        samples = torch.tensor(batch)
        step = Step(t, samples, poison.take(samples), UpdateRule(0.1, 0.0, 0.0, False), False)
        on_x = case.features[t] if poison.feature_moves is not None else None
        has_labels = poison.label_moves is not None
        debt.add(step, on_x, case.labels[t] if has_labels else None, case.charges[t])
    worst = debt.worst().numpy()
    best = np.zeros(case.rows, dtype=Long)
    for picked in _selections(case):
        for row in range(case.rows):
            taken = Long(0)
            if poison.static:
                for sample in set().union(*picked):
                    steps = [t for t, p in enumerate(picked) if sample in p]
                    taken += max(Long(0), _drop(case, row, sample, steps))
            else:
                for t, chosen in enumerate(picked):
                    for sample in chosen:
                        taken += max(Long(0), _drop(case, row, sample, [t]))
            best[row] = max(best[row], taken)
    slack = 1e-13 * (1.0 + np.abs(best))
    assert (worst >= best - slack).all(), f"debt below an attack: {worst} < {best}"
    if tight:
        assert (worst <= best + slack).all(), f"debt above the best attack: {worst} > {best}"


def own_debt_case(
    poison: Poison, batches: Sequence[Sequence[int]], rows: int, seed: int
) -> DebtCase:
    """The same, where the forms of the first step see one sample each: row r the sample r % n."""
    n = len(batches[0])
    case = debt_case(poison, batches, rows, seed)
    mask = torch.eye(n, dtype=torch.float64).repeat(-(-rows // n), 1)[:rows]
    return replace(
        case,
        features=(case.features[0] * mask[..., None], *case.features[1:]),
        labels=(case.labels[0] * mask[..., None], *case.labels[1:]),
        charges=(case.charges[0] * mask[..., None], *case.charges[1:]),
    )


def best_given(case: DebtCase, restriction: Restriction, steps: int, poisoned: bool) -> Any:
    """What the best admissible selection takes over the first steps, (rows,); -inf: there is none.

    The selection holds, or avoids, the sample that each row sees in the first step.
    """
    poison, batches = case.poison, case.batches[:steps]
    count, rows = len(poison.open), case.rows
    own = [batches[0][row % len(batches[0])] for row in range(rows)]
    gains = np.zeros((steps, rows, count), dtype=Long)
    for row, sample in itertools.product(range(rows), range(count)):
        if not poison.open[sample]:
            continue
        met = [t for t in range(steps) if sample in batches[t]]
        for part in [met] if poison.static else [[t] for t in met]:
            if part:
                gains[part[0], row, sample] = max(Long(0), _drop(case, row, sample, part))

    def best(parts: Sequence[int], groups: Sequence[Sequence[int]], conditional: bool) -> Any:
        """The best of the selections with the budget in each group, over some of the steps."""
        found = np.full(rows, -np.inf, dtype=Long)
        for chosen in subsets(count, count):
            picked = set(chosen)
            if picked & restriction.outside or not all(poison.open[i] for i in picked):
                continue
            if any(len(picked & set(group)) > poison.budget for group in groups):
                continue
            present = set().union(*groups)
            if not restriction.inside & present <= picked:
                continue
            taken = gains[list(parts)][:, :, list(chosen)].sum((0, 2))
            fits = np.array(
                [not conditional or (own[r] in picked) == poisoned for r in range(rows)]
            )
            found = np.where(fits, np.maximum(found, taken), found)
        return found

    if not poison.per_batch:
        return best(range(steps), [range(count)], True)
    if poison.static:
        return best(range(steps), batches, True)
    return sum(best([t], [batches[t]], t == 0) for t in range(steps))


def check_debt_given(case: DebtCase, restriction: Restriction, tight: bool) -> int:
    """``worst_given`` holds for each stop of a walk; equal to the best selection where ``tight``.

    Returns how many comparisons there were.
    """
    poison, seen = case.poison, 0
    debt = open_debt(poison, case.rows, restriction)
    own = torch.tensor([case.batches[0][r % len(case.batches[0])] for r in range(case.rows)])
    has_labels = poison.label_moves is not None
    for t, batch in enumerate(case.batches):
        samples = torch.tensor(batch)
        step = Step(t, samples, poison.take(samples), UpdateRule(0.1, 0.0, 0.0, False), False)
        on_x = case.features[t] if poison.feature_moves is not None else None
        on_y = case.labels[t] if has_labels else None
        (debt.add if t else debt.add_own)(step, on_x, on_y, case.charges[t])
        for poisoned in (False, True):
            owed = debt.worst_given(own, poisoned).numpy()
            best = best_given(case, restriction, t + 1, poisoned)
            some = np.isfinite(best)
            slack = 1e-13 * (1.0 + np.abs(best[some]))
            what = f"step {t}, poisoned {poisoned}: {owed[some]}, best {best[some]}"
            assert (owed[some] >= best[some] - slack).all(), f"debt below an attack: {what}"
            if tight:
                assert (owed[some] <= best[some] + slack).all(), f"debt above the best: {what}"
            seen += int(some.sum())
    return seen


# ------------------------------------------------------------------------------------- encodings


class Watched:
    """A program in HiGHS with rows for some expressions, whose sides can be moved at will."""

    def __init__(self, program: Program, expressions: Sequence[Expression]) -> None:
        columns, rows = program.lower.size, program.row_lower.size
        # A value lies between the two ends of its spread: [0] is watched from above, [1] from below.
        ends = [[e.below, e.above] if e.spread is not None else [e] for e in expressions]
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
            "presolve": "on" if program.integer.any() else "off",
        }.items():
            self.model.setOptionValue(key, value)
        self.model.passModel(lp)

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
        return self._run() is not None

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
        found = self._run()
        assert found is not None, "an encoding is infeasible"
        return found + float(constant @ flat)

    def _run(self) -> float | None:
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
    watched: Watched = field(init=False)

    def __post_init__(self) -> None:
        some = [] if self.selection is None else [self.selection]
        self.watched = Watched(self.program, [self.out, *self.inputs, *some])


def encode_operation(
    instance: Instance, boxes: Sequence[Interval], exact: bool, encoder: Encoder | None = None
) -> Encoded:
    encoder = Encoder(exact) if encoder is None else encoder
    if states_of(boxes) > 1:
        columns = encoder.columns(np.zeros(SAMPLES), np.ones(SAMPLES), integer=exact)
        encoder.selection = Selection.of(columns)
    inputs = []
    for box in boxes:
        hull = box.hull()
        column = encoder.columns(*as_arrays(hull, tuple(hull.lower.shape)))
        encoder.conditional(column, box)
        inputs.append(column)
    if hasattr(encoder, "armed"):
        encoder.armed = True
    out = instance.op.encode(encoder, tuple(inputs), tuple(boxes))
    if out.spread is not None:  # an error without a column: give the result one
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
        values = instance.op.value(*points)
        for k in range(count):
            fixed: list[Array | None] = [values[k].numpy(), *(p[k].numpy() for p in points)]
            if encoded.selection is not None:
                fixed.append(states.astype(np.float64))
            assert encoded.watched.is_feasible(fixed), _say(
                instance, "a true point is cut off", list(fixed)
            )
    return encoded


def linear_minimum(instance: Instance, boxes: Sequence[Interval], c: Tensor) -> float:
    """The least value of the linear bound of ``c.v`` over the boxes and all patterns of states."""
    planes = instance.op.relax(*boxes)
    pulled = planes.pull(c.unsqueeze(0))
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
        samples.append(_dot(c.numpy(), instance.op.value(*points).numpy()))
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
        assert of_milp <= float(best[row]) + TOL.support * scale, _say(
            instance, "milp above a sampled value", (of_milp, best[row])
        )
        assert of_lp <= of_milp + TOL.support * scale, _say(
            instance, "lp above milp", (of_lp, of_milp)
        )
        assert of_linear <= of_lp + TOL.support * scale, _say(
            instance, "lp below the linear bound", (of_linear, of_lp)
        )


# ---------------------------------------------------------------------------------- whole steps


@dataclass(frozen=True)
class StepCase:
    """One training step over a box of parameters, ready for every engine."""

    step_graph: StepGraph
    schedule: Schedule
    poison: Poison
    state: State
    step: Step
    relaxed: RelaxedStep

    def attacks(self, count: int, seed: int, corners: bool) -> tuple[Tensor, Tensor]:
        """Admissible data of the batch; the first attack is none."""
        generator = torch.Generator().manual_seed(seed)
        selection = self.step.poison.sample_selection(generator, count)
        selection[0] = False
        return self.step.poison.sample_moves(generator, selection, corners)

    def states(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Points of the box of states, corners among them."""
        points = {}
        for name, box in self.state.items():
            low, high = box.lower[0], box.upper[0]
            draw = rng.random((count, *low.shape))
            draw[: count // 2] = draw[: count // 2].round()
            point = low + (high - low) * torch.from_numpy(draw)
            points[name] = torch.minimum(torch.maximum(point, low), high)
        return points

    def after(
        self, states: dict[str, Tensor], features: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        return step_at_points(
            self.step_graph, self.schedule, states, features, labels, self.step.update
        )


def step_case(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    training: Training,
    threat: ThreatModel,
    width: float = 0.02,
) -> StepCase:
    """The first step of a run from a box of parameters (and velocities) of the given half-width."""
    features, raw = data
    step_graph = trace(model, training.loss, tuple(features.shape[1:]), training.clipping)
    schedule = Schedule.of(step_graph)
    labels = labels_of(raw, len(features), step_graph.loss, step_graph.outputs)
    poison = threat.bind(features, labels, step_graph.loss)
    box = {
        n: Interval((v - width).unsqueeze(0), (v + width).unsqueeze(0))
        for n, v in step_graph.initial.items()
    }
    momentum = training.momentum > 0
    state = initial_state(step_graph, box, momentum)
    if momentum:
        for name in step_graph.parameters:
            still = state[velocity_of(name)]
            state[velocity_of(name)] = Interval(still.lower - width, still.upper + width)
    batch = torch.from_numpy(training.batch_order(len(features))[0])
    step = Step(0, batch, poison.take(batch), training.update_rules(1)[0], momentum)
    joint = Joint(poison)
    ranges = interval_engine.propagate(schedule, state, step, joint, keep=schedule.batched)
    return StepCase(
        step_graph, schedule, poison, state, step, relax_step(schedule, state, step, ranges, joint)
    )


def check_step_interval(case: StepCase, rng: np.random.Generator, count: int = 64) -> None:
    """Poisoned steps from the box of states end inside the interval update, without tolerance."""
    box = interval_engine.update(case.step_graph, case.state, case.relaxed.ranges, case.step)
    _check_inside(case, box, rng, count, "interval")


def check_step_linear(case: StepCase, rng: np.random.Generator, count: int = 64) -> None:
    """The same for linear bounds with window 1."""
    box = linear_engine.bound_state(case.schedule, [case.relaxed], Joint(case.poison), chunk=64)
    _check_inside(case, box, rng, count, "linear")


def _check_inside(
    case: StepCase, box: State, rng: np.random.Generator, count: int, what: str
) -> None:
    for corners in (True, False):
        states = case.states(count, rng)
        after = case.after(states, *case.attacks(count, int(rng.integers(2**30)), corners))
        for name, value in after.items():
            gap = torch.maximum(box[name].lower - value, value - box[name].upper)
            assert bool((gap <= 0).all()), f"{what}: '{name}' outside by {float(gap.max()):.3e}"


def check_update(case: StepCase, rng: np.random.Generator, count: int = 64) -> None:
    """The update alone: states and summed gradients at ends of their boxes, in interval arithmetic."""
    ranges = case.relaxed.ranges
    box = interval_engine.update(case.step_graph, case.state, ranges, case.step)
    states = case.states(count, rng)
    for name in case.step_graph.parameters:
        gradient = ranges.boxes[case.step_graph.gradients[name]]
        pick = torch.from_numpy(rng.integers(0, 2, size=(count, *gradient.lower.shape[1:])))
        total = torch.where(pick == 0, gradient.lower[0], gradient.upper[0])
        rule = case.step.update
        direction = total / case.step.size + rule.weight_decay * states[name]
        if case.step.has_velocity:
            velocity = rule.momentum * states[velocity_of(name)] + direction
            assert box[velocity_of(name)].contains(velocity), (
                f"update: velocity of '{name}' outside"
            )
            direction = direction + rule.momentum * velocity if rule.nesterov else velocity
        value = states[name] - rule.rate * direction
        assert box[name].contains(value), f"update: '{name}' outside"


def check_walk_of_update(
    case: StepCase, rng: np.random.Generator, rows: int = 6, count: int = 32
) -> None:
    """The linear walk through one step, plane against runs: forms lie below every sampled run."""
    c = {
        n: torch.from_numpy(rng.normal(size=(rows, *b.lower.shape[1:])))
        for n, b in case.state.items()
    }
    debt = open_debt(case.poison, rows, _unrestricted())
    forms = linear_engine.walk(case.schedule, case.relaxed, Forms.start(c), debt)
    states = case.states(count, rng)
    features, labels = case.attacks(count, int(rng.integers(2**30)), True)
    after = case.after(states, features, labels)
    left = sum(_dot(c[n].numpy(), after[n].numpy()) for n in case.state)
    right = forms.constant.numpy() + sum(
        _dot(forms.coefficients[n].numpy(), states[n].numpy()) for n in case.state
    )
    owed = debt.worst().numpy()[:, None]
    error = 4.0 * gamma(forms.operations + 256) * (forms.magnitude.numpy()[:, None] + owed) + TINY
    assert (left >= right - owed - error).all(), (
        f"walk above a run by {np.max(right - owed - left)}"
    )


def _unrestricted() -> Any:
    from milp_agt.core.restriction import UNRESTRICTED

    return UNRESTRICTED


def small_data(samples: int, features: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(samples, features)))
    if classes == 0:
        return x, torch.from_numpy(rng.normal(size=samples))
    return x, torch.from_numpy(rng.integers(0, classes, size=samples))


def mlp(*sizes: int, seed: int = 0, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(a, b).double())
        if k < len(sizes) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)


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
        bent = ~op.is_linear_on(box.hull()).numpy().reshape(-1)
        parts += [value[bent], *((z[bent] > k).astype(np.float64) for k in op.kinks)]
    elif isinstance(op, Sign):
        bent = ~op.is_linear_on(box.hull()).numpy().reshape(-1)
        parts += [(z[bent] > 0).astype(np.float64), (z[bent] < 0).astype(np.float64)]
    else:
        parts.append(value)
    return np.concatenate(parts)


def exact_violation(program: Program, point: Array) -> float:
    """Largest violation of a row or bound in exact arithmetic."""
    x = [Fraction(float(v)) for v in point]
    worst = Fraction(0)
    for j, value in enumerate(x):
        worst = max(worst, Fraction(program.lower[j]) - value, value - Fraction(program.upper[j]))
    matrix = program.matrix
    for i in range(matrix.shape[0]):
        part = slice(matrix.indptr[i], matrix.indptr[i + 1])
        terms = zip(matrix.data[part], matrix.indices[part], strict=True)
        activity = sum((Fraction(float(a)) * x[j] for a, j in terms), Fraction(0))
        if np.isfinite(program.row_lower[i]):
            worst = max(worst, Fraction(program.row_lower[i]) - activity)
        if np.isfinite(program.row_upper[i]):
            worst = max(worst, activity - Fraction(program.row_upper[i]))
    return float(worst)


def check_rows_exactly(
    instance: Instance, boxes: Sequence[Interval], rng: np.random.Generator, count: int = 6
) -> None:
    """The value that the float64 run computes satisfies every row in exact arithmetic."""
    encoded = encode_operation(instance, boxes, exact=True)
    for states in state_patterns(boxes, rng):
        (points,) = sample_points(boxes, instance.inputs, states, count, rng)
        for point in points:
            some = None if encoded.selection is None else states
            columns = true_columns(instance, point, boxes[0], some)
            found = exact_violation(encoded.program, columns)
            assert found == 0.0, _say(instance, "a row cuts the float value off by", found)


class RecordedMoves(window_room.Moves):
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
        self,
        state: dict[str, Tensor],
        after: dict[str, Tensor] | None,
        x: Tensor,
        y: Tensor,
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
        patch.setattr(window_room, "Moves", RecordedMoves)
        window = program_engine.encode_window(
            case.step_graph, case.schedule, [case.relaxed], case.poison, exact
        )
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


def check_leaf_boxes(poison: Poison) -> None:
    """Boxes of features and labels hold every sampled move, corners included."""
    generator = torch.Generator().manual_seed(0)
    for corners in (True, False):
        x, y = poison.sample_moves(generator, poison.sample_selection(generator, 64), corners)
        for box, value in ((poison.feature_box(), x), (poison.label_box(), y)):
            held = (box.lower[-1] <= value) & (value <= box.upper[-1])
            assert bool(held.all()), "a move outside the box of its leaf"


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
