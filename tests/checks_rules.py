"""Checks of the rules of one operation: interval, planes, residual, charges of a poisoned sum.

Every ``check_*`` function raises AssertionError where a rule breaks its contract, so that a mutant
that is one per cent too tight can be shown to fail the very same check.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from draws import (
    TOL,
    Array,
    at_states,
    evaluations,
    exact_univariate,
    poisoned,
    sample_points,
    say,
    states_of,
    values_at,
)
from instances import SAMPLES, Instance, Long
from torch import Tensor

from milp_agt.bounds.adversary.sums import Masks, PoisonedSum
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.curved import Curved
from milp_agt.formulations.exponential import CAP
from milp_agt.formulations.heaviside import Heaviside as StepFunction
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.rounding_error import RoundingError
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.sign import Sign
from milp_agt.formulations.softplus import Softplus, SoftplusSlope
from milp_agt.formulations.univariate import Univariate
from milp_agt.threats.poison import Poison


def check_interval(
    instance: Instance, boxes: Sequence[Interval], rng: np.random.Generator, count: int = 96
) -> None:
    """Sampled values lie inside, without tolerance, for every pattern of states."""
    out = instance.op.interval(*boxes)
    assert bool((out.lower <= out.upper).all()), say(instance, "lower > upper", out)
    shape = (SAMPLES, *instance.out.shape) if instance.out.batched else instance.out.shape
    assert out.lower.shape == (states_of(boxes) if instance.out.batched else 1, *shape)
    for states in state_patterns(boxes, rng):
        points = sample_points(boxes, instance.inputs, states, count, rng)
        low = at_states(out.lower, states, instance.out.batched)
        high = at_states(out.upper, states, instance.out.batched)
        for value in (*evaluations(instance.op, points), values_at(instance.op, points, rng)):
            gap = torch.maximum(low - value, value - high)
            assert bool(((low <= value) & (value <= high)).all()), say(
                instance, "value outside its box by", float(gap.max())
            )


def state_patterns(boxes: Sequence[Interval], rng: np.random.Generator) -> list[Array]:
    states = states_of(boxes)
    if states == 1:
        return [np.zeros(SAMPLES, dtype=np.int64)]
    patterns = [np.full(SAMPLES, s) for s in range(states)]
    return [*patterns, rng.integers(0, states, size=SAMPLES)]


def no_nones(
    pulled: Sequence[Tensor | None], coefficients: Tensor, instance: Instance
) -> tuple[Tensor, ...]:
    """What planes pull, with zeros on inputs that get none."""
    rows = len(coefficients)
    return tuple(
        coefficients.new_zeros(rows, *([1] * signature.batched), *signature.shape)
        if term is None
        else term
        for term, signature in zip(pulled, instance.inputs, strict=True)
    )


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


def dot(c: Array, u: Array) -> Array:
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
    pulled = no_nones(planes.backward(c), c, instance)
    magnitude = planes.magnitude.numpy()
    largest = max(s.size for s in (*instance.inputs, out)) * SAMPLES
    forgiven = 4.0 * gamma(2.0 * largest + 64.0)
    size_of_form = dot(np.abs(c.numpy()), magnitude[None])
    positive, negative = np.maximum(c.numpy(), 0.0), np.minimum(c.numpy(), 0.0)
    for term, signature in zip(pulled, instance.inputs, strict=True):
        lead = (SAMPLES, *signature.shape) if signature.batched else signature.shape
        np.broadcast_shapes(tuple(term.shape[1:]), lead)
    if planes.lower is not None and planes.upper is not None:
        if instance.domain != "exponent":
            assert bool(torch.isfinite(planes.lower).all() and torch.isfinite(planes.upper).all())
        for offset in (planes.lower, planes.upper):
            over = offset.abs() > planes.magnitude * (1 + TOL.offset) + 10 * TINY
            assert not bool(over.any()), say(
                instance, "offset above magnitude", float(offset.abs().max())
            )
    for states in state_patterns(boxes, rng):
        points = sample_points(boxes, instance.inputs, states, count, rng)
        value = values_at(op, points, rng).numpy()
        assert (np.abs(value) <= magnitude * (1 + 1e-15)).all(), say(
            instance, "value above magnitude", np.max(np.abs(value) - magnitude)
        )
        with np.errstate(all="ignore"):
            left = dot(c.numpy(), value)
            right = np.zeros_like(left)
            terms = np.zeros_like(left)
            for term, u in zip(pulled, points, strict=True):
                right = right + dot(term.numpy(), u.numpy())
                terms = terms + dot(np.abs(term.numpy()), np.abs(u.numpy()))
            if planes.lower is not None and planes.upper is not None:
                lower = at_states(planes.lower, states, out.batched).numpy()
                upper = at_states(planes.upper, states, out.batched).numpy()
                right = right + dot(positive, lower[None]) + dot(negative, upper[None])
            slack = forgiven * size_of_form + TOL.extended * np.abs(right) + 100 * TINY
            # The walk reads a bound that is no number as -inf.
            broken = left < right - np.where(np.isnan(slack), np.inf, slack)
            over = terms > size_of_form * (1 + 1e-12) + 100 * TINY
        assert not broken.any(), say(
            instance, "plane above the function by", np.nanmax(right - left)
        )
        assert not over.any(), say(
            instance, "terms above magnitude", np.nanmax(terms - size_of_form)
        )


def widening(instance: Instance, boxes: Sequence[Interval]) -> Tensor:
    """The documented widening of one end of the interval, per element of the hull."""
    op = instance.op
    if isinstance(op, Univariate):
        exact = op.residual(0.0, boxes[0])
        jump = 0.0
        if isinstance(op, Softplus | SoftplusSlope):
            jump = op.jump * (op.beta * boxes[0].upper > 0.99 * op.threshold).amax(0)
        return op.rounding(boxes[0].magnitude, exact.magnitude).amax(0) + jump
    terms = max(s.size for s in instance.inputs)
    size = op.relax(*boxes).magnitude
    error: Tensor | float = op.error if isinstance(op, RoundingError) else 0.0
    if isinstance(op, RunRounding):
        error = op.error(*boxes).amax(0)
    return size * gamma(4 * terms + 16) + TINY + error


def check_point_is_exact(instance: Instance, boxes: Sequence[Interval]) -> None:
    """At a box of zero width the interval is the value, up to the documented widening."""
    points = [b.lower[CLEAN] for b in boxes]
    box = tuple(Interval.point(p.unsqueeze(0)) for p in points)
    out = instance.op.interval(*box)
    value = instance.op.value(*points)
    assert out.contains(value.unsqueeze(0)), say(
        instance, "value outside a box of zero width", value
    )
    error = 4.0 * widening(instance, box)
    for end in (out.lower[0], out.upper[0]):
        assert bool(((end - value).abs() <= error).all()), say(
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
    assert bool((gap <= error).all()), say(instance, "sub-box sticks out by", float(gap.max()))


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
    # Where the functions of these tests bend, however wide the box.
    bends = np.clip(np.linspace(-8.0, 8.0, 641)[:, None], low, high)
    table = np.concatenate([even, bends, np.stack([*kinks, low, high])])
    with np.errstate(all="ignore"):
        exact = exact_univariate(op, table)
    for slope in slopes_to_try(op, low, high):
        found = op.residual(torch.from_numpy(slope), box)
        with np.errstate(all="ignore"):
            values = exact - slope.astype(Long) * table.astype(Long)
            second = np.abs(np.diff(values[:grid], n=2, axis=0)).max(0)
        smooth = not isinstance(op, Relu | StepFunction | Clip | Sign)
        size = box.magnitude[0].numpy()
        value = np.abs(exact).max(0).astype(np.float64)
        rounding = op.rounding(torch.from_numpy(size), torch.from_numpy(value)).numpy()
        rounding = rounding + gamma(8) * (value + np.abs(slope) * size) + 1e-300
        grid_error = 0.15 * second * smooth + rounding
        if isinstance(op, Curved):
            # Granted on top: what the error of the computed derivative can hide on the whole box.
            error = (
                op.derivative_error(torch.from_numpy(np.stack([low, high, *bends]))).numpy().max(0)
            )
            grid_error = grid_error + (4.0 * error + gamma(4) * np.abs(slope)) * (high - low)
        if isinstance(op, Softplus | SoftplusSlope):
            grid_error = grid_error + 2.0 * op.jump * (op.beta * high > 0.99 * op.threshold)
        for end, extreme, sign in (
            (found.lower[0].numpy(), values.min(0), 1.0),
            (found.upper[0].numpy(), values.max(0), -1.0),
        ):
            gap = sign * (end - extreme)  # > 0: cuts off values; < 0: looser than the table
            assert (gap <= rounding).all(), say(
                instance, "residual cuts values off", (gap.max(), slope, low, high)
            )
            assert (-gap <= grid_error).all(), say(
                instance, "residual is looser than a table", ((-gap).max(), slope, low, high)
            )


def subsets(samples: int, budget: int) -> Iterator[tuple[int, ...]]:
    for size in range(min(budget, samples) + 1):
        yield from itertools.combinations(range(samples), size)


def check_poisoned_sum(
    terms: Interval, budget: int, masks: Masks, pieces: int, rng: np.random.Generator
) -> None:
    """Every sum with an admissible set of poisoned samples lies inside; both ends are reached."""
    total = PoisonedSum((budget,), terms.lower.shape[1])
    n = terms.lower.shape[1]
    for part in np.array_split(np.arange(n), pieces):
        index = torch.from_numpy(part)
        cut = Masks(
            None if masks.inside is None else masks.inside[index],
            None if masks.outside is None else masks.outside[index],
        )
        total.add(Interval(terms.lower[:, index], terms.upper[:, index]), cut)
    box, size = total.result()
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
    # Equal differences are told apart by n * 1e-290 wherever the largest are selected.
    error = gamma(8 * n + 64) * size.numpy() + 4 * (n + 1) * TINY
    assert (box.lower[0].numpy() >= lowest - error).all(), "lower end of the poisoned sum is loose"
    assert (box.upper[0].numpy() <= highest + error).all(), "upper end of the poisoned sum is loose"


def check_leaf_boxes(poison: Poison) -> None:
    """Boxes of features and labels hold every sampled move, corners included."""
    generator = torch.Generator().manual_seed(0)
    for corners in (True, False):
        x, y = poison.sample_moves(generator, poisoned(poison, generator, 64), corners)
        for box, value in ((poison.feature_box(), x), (poison.label_box(), y)):
            held = (box.lower[-1] <= value) & (value <= box.upper[-1])
            assert bool(held.all()), "a move outside the box of its leaf"
