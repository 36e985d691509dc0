"""Rules of single operations: kinks, slopes, corners; derivatives of smooth functions and their turns."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from draws import MODERATE, exact_univariate, make_boxes
from instances import INSTANCES, NEGATIVE_SLOPES, Long, per_sample

from milp_agt.core.graph import Graph, evaluate
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.errors import EncodingError, SoundnessError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.curved import Curved
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.hardtanh import Hardtanh
from milp_agt.formulations.heaviside import STEEPEST, Heaviside
from milp_agt.formulations.leaves import Features, Labels
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.reciprocal import Reciprocal
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.tanh import Tanh
from milp_agt.formulations.univariate import Univariate

CURVED = [i.op for group in INSTANCES.values() for i in group if isinstance(i.op, Curved)]
ACTIVATIONS = [
    *(op for op in CURVED if not op.key.endswith("_slope")),
    *(Hardtanh(-1.0, 1.0), Hardtanh(0.0, 6.0), Hardtanh(-0.5, 2.0, True)),
    *(Relu(k) for k in NEGATIVE_SLOPES),
]
GRID = torch.cat([torch.linspace(-9.0, 9.0, 3601).double(), torch.logspace(-12, 2, 60).double()])


@pytest.mark.parametrize("op", CURVED, ids=repr)
def test_the_derivative_is_that_of_the_function(op: Curved) -> None:
    """Against central differences in 80 bits; the error bound covers what is left, up to theirs."""
    x = GRID[~torch.isin(GRID, torch.tensor(op.turns, dtype=torch.float64))]
    jumps = getattr(op, "threshold", 1e9) / getattr(op, "beta", 1.0)
    x = x[(x.abs() > 1e-3) & ((x - jumps).abs() > 1e-2) & (x < jumps)]
    step = Long(1e-5)
    points = x.numpy().astype(Long)
    slope = exact_univariate(op, points + step) - exact_univariate(op, points - step)
    apart = np.abs(op.derivative(x).numpy() - (slope / (2 * step)).astype(np.float64))
    third = 40.0 * getattr(op, "beta", 1.0) ** 3 * float(step) ** 2
    assert (apart <= op.derivative_error(x).numpy() + third).all()


@pytest.mark.parametrize("op", CURVED, ids=repr)
def test_the_derivative_is_monotone_between_its_turns(op: Curved) -> None:
    ends = [-12.0, *op.turns, 12.0]
    for low, high in itertools.pairwise(ends):
        x = torch.linspace(float(np.nextafter(low, np.inf)), high, 4001, dtype=torch.float64)
        change = op.derivative(x).diff()
        error = 2.0 * op.derivative_error(x)[1:]
        assert bool((change >= -error).all()) or bool((change <= error).all())


@pytest.mark.parametrize("op", ACTIVATIONS, ids=repr)
def test_gradients_are_those_of_torch(op: Univariate) -> None:
    """On the kinks, too: hardtanh and relu6 have slope 0 there, clamp has slope 1."""
    kinks = torch.tensor([0.0, -1.0, 1.0, 6.0, -0.5, 2.0, -40.0, 40.0], dtype=torch.float64)
    x = torch.cat([kinks, GRID[::7]])
    graph = Graph()
    source, one = graph.add(Features(tuple(x.shape))), graph.add(Labels(tuple(x.shape)))
    (pulled,) = op.vjp(graph, graph.add(op, source), one, (True,))
    assert pulled is not None
    found = evaluate(graph, {source.name: x[None], one.name: torch.ones_like(x)[None]})
    tracked = x.clone().requires_grad_()
    if isinstance(op, Hardtanh) and not op.edges_count:
        value = torch.nn.functional.hardtanh(tracked, op.low, op.high)
    else:
        value = op.value(tracked)
    value.sum().backward()
    assert torch.allclose(found[pulled.name][0], tracked.grad, rtol=1e-13, atol=1e-14)


def test_turning_points_are_roots_to_the_last_digit() -> None:
    """Second derivatives by mpmath, in 40 digits: of the activation, and of its slope."""
    functions = {
        "silu": lambda x: x / (1 + mpmath.exp(-x)),
        "gelu": lambda x: x * mpmath.ncdf(x),
        "gelu_tanh": lambda x: (
            x
            / 2
            * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))
        ),
    }
    with mpmath.workdps(40):
        for key, function in functions.items():
            for name, order in ((key, 2), (f"{key}_slope", 3)):
                for turn in INSTANCES[name][0].op.turns:
                    signs = [
                        mpmath.sign(mpmath.diff(function, mpmath.mpf(turn) + side * 4e-16, order))
                        for side in (-1, 1)
                    ]
                    assert signs[0] * signs[1] < 0, (name, turn)


@pytest.mark.parametrize("op", CURVED, ids=repr)
def test_ranges_without_end_are_known_or_unbounded(op: Curved) -> None:
    low = torch.tensor([[-torch.inf, -1.0, -torch.inf]], dtype=torch.float64)
    high = torch.tensor([[torch.inf, torch.inf, 1.0]], dtype=torch.float64)
    box = op.interval(Interval(low, high))
    x = torch.cat([GRID, torch.tensor([-1e9, 1e9], dtype=torch.float64)])
    value = op.value(x)
    assert not bool(torch.isnan(box.lower).any() or torch.isnan(box.upper).any())
    for column in range(3):
        inside = (low[0, column] <= x) & (x <= high[0, column])
        assert bool((box.lower[0, column] <= value[inside]).all())
        assert bool((value[inside] <= box.upper[0, column]).all())


def test_signatures_of_curved_operations() -> None:
    for op in CURVED:
        assert op.infer(per_sample(2)) == per_sample(2)


# -----------------------------------------------------------------------------
# Rules of single operations against their formulas: kinks, slopes, corners, the arithmetic of boxes.


def _box(*pairs: tuple[float, float]) -> Interval:
    low, high = (torch.tensor([[p[k] for p in pairs]], dtype=torch.float64) for k in (0, 1))
    return Interval(low, high)


def test_step_at_its_kink() -> None:
    """Stable on iff l > 0, stable off iff u <= 0; l = 0 < u is ambiguous."""
    tiny = 5e-324
    found = Heaviside().interval(
        _box((0.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (tiny, 1.0), (-1.0, tiny), (0.0, tiny))
    )
    assert found.lower.tolist() == [[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]
    assert found.upper.tolist() == [[0.0, 1.0, 0.0, 1.0, 1.0, 1.0]]
    points = torch.tensor([0.0, -0.0, tiny, -tiny], dtype=torch.float64)
    assert Heaviside().value(points).tolist() == [0, 0, 1, 0]


def test_step_planes_are_the_lines_through_the_kink() -> None:
    """``a >= z / (2u)`` and ``a <= 1 - z / (2l)`` where ambiguous, slope zero where stable."""
    low, high = (
        torch.tensor([-2.0, 0.0, 0.5, -3.0]).double(),
        torch.tensor([4.0, 1.0, 1.0, 0.0]).double(),
    )
    below, above = Heaviside().slopes(Interval(low, high))
    assert below.tolist() == [0.125, 0.5, 0.0, 0.0]
    assert above.tolist() == [0.25, 0.0, 0.0, 0.0]
    planes = Heaviside().relax(Interval(low[None], high[None]))
    assert planes.lower[0].tolist() == pytest.approx([0.0, 0.0, 1.0, 0.0], abs=1e-14)
    assert planes.upper[0].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0], abs=1e-14)


def test_step_slopes_stay_below_their_limit() -> None:
    edge = torch.tensor([1e-300, 1e-9, 1e-6, 1e-5]).double()
    for slopes in Heaviside().slopes(Interval(-edge, edge)):
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


def test_derivatives_are_the_formulas() -> None:
    x = torch.linspace(-3.0, 3.0, 41, dtype=torch.float64)
    for op, point in (
        (Sigmoid(), x),
        (Tanh(), x),
        (Exponential(), x),
        (Reciprocal(), x.abs() + 1),
        (Quadratic(2.0, 1.0, 3.0), x),
    ):
        tracked = point.clone().requires_grad_()
        op.value(tracked).sum().backward()
        assert torch.allclose(tracked.grad, op.derivative(point), rtol=1e-12, atol=1e-14)


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
