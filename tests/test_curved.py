"""Smooth functions with few inflections: derivatives, their errors, and where they turn."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch
from draws import exact_univariate
from instances import INSTANCES, NEGATIVE_SLOPES, Long, per_sample

from milp_agt.core.graph import Graph, evaluate
from milp_agt.core.interval import Interval
from milp_agt.formulations.curved import Curved
from milp_agt.formulations.hardtanh import Hardtanh
from milp_agt.formulations.leaves import Features, Labels
from milp_agt.formulations.relu import Relu
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
