"""Rounding: the float64 run, in any order of summation, and the exact run lie inside; no NaN gets out."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside, network
from pairs import every_pair
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.core.interval import Interval
from milp_agt.core.reachable import ReachableSet
from milp_agt.core.rounding import FLOAT32, FLOAT64, Precision
from milp_agt.errors import InvalidInputError, MilpAgtError, SoundnessError
from milp_agt.training.precision import in_precision
from milp_agt.training.tracing import FEATURES, trace
from milp_agt.training.training import Training

NOBODY = agt.FeaturePoisoning(0, 0.0)


def badly_scaled(
    kind: str, count: int = 24, width: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, width))
    y = generator.normal(size=count)
    if kind == "scaled":
        x = x * 10.0 ** generator.integers(-6, 3, size=(1, width))
    elif kind == "cancelling":
        x[1::2] = -x[::2] * (1 + 1e-14 * generator.normal(size=(count // 2, width)))
        y[1::2] = y[::2]
    elif kind == "mixed":
        x = x * 10.0 ** generator.integers(-8, 2, size=(count, width))
    elif kind == "one giant":
        x[0], y[0] = 1e2 * x[0], 1e6
    elif kind == "tiny":
        x, y = 1e-150 * x, 1e-150 * y
    return torch.from_numpy(x), torch.from_numpy(y)


KINDS = ["plain", "scaled", "cancelling", "mixed", "one giant", "tiny"]


def exact_regression(
    weight: list[float], bias: float, x: Tensor, y: Tensor, replay: Replay
) -> list[tuple[list[Fraction], Fraction]]:
    """Linear regression by SGD in rational arithmetic: (weight, bias) after every step."""
    rows = [[Fraction(v) for v in row] for row in x.tolist()]
    targets = [Fraction(v) for v in y.tolist()]
    theta = [Fraction(v) for v in weight] + [Fraction(bias)]
    velocity = [Fraction(0)] * len(theta)
    states = []
    for batch, update in zip(replay.batches, replay.updates, strict=True):
        rate, momentum = Fraction(update.rate), Fraction(update.momentum)
        decay = Fraction(update.weight_decay)
        total = [Fraction(0)] * len(theta)
        for i in batch.tolist():
            row = [*rows[i], Fraction(1)]
            residual = sum((a * b for a, b in zip(theta, row, strict=True)), -targets[i])
            total = [t + 2 * residual * r for t, r in zip(total, row, strict=True)]
        mean = [t / len(batch) + decay * v for t, v in zip(total, theta, strict=True)]
        velocity = [momentum * v + m for v, m in zip(velocity, mean, strict=True)]
        moved = velocity
        if update.nesterov:
            moved = [m + momentum * v for m, v in zip(mean, velocity, strict=True)]
        theta = [t - rate * m for t, m in zip(theta, moved, strict=True)]
        states.append((theta[:-1], theta[-1]))
    return states


def holds_exactly(box: ReachableSet, weight: list[Fraction], bias: Fraction) -> bool:
    ends = zip(box.lower["0.weight"][0], weight, box.upper["0.weight"][0], strict=True)
    inside = all(Fraction(float(a)) <= w <= Fraction(float(b)) for a, w, b in ends)
    low, high = (Fraction(float(e["0.bias"][0])) for e in (box.lower, box.upper))
    return inside and low <= bias <= high


RUNS: dict[str, dict[str, Any]] = {
    "full batch": {"epochs": 4},
    "mini-batches": {"epochs": 1, "batch_size": 7},
    "nesterov": {"epochs": 3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "decay at 1 / rate": {"epochs": 3, "weight_decay": 100.0},
}


@every_pair(kind=KINDS, options=RUNS, relaxation=["interval", "linear"])
def test_exact_and_permuted_regression(kind, options, relaxation) -> None:
    x, y = badly_scaled(kind)
    model = network((3, 1), seed=1)
    rate = 1e-6 if kind == "scaled" else 0.01
    if options.get("weight_decay") == 100.0:
        options = options | {"weight_decay": 1 / rate}
    case = Problem(model, x, y, Training("mse", rate, **options), NOBODY)
    _, boxes = case.certify(relaxation=relaxation)
    replay = Replay(case)
    weight, bias = model[0].weight[0].tolist(), model[0].bias[0].item()
    for box, state in zip(boxes, exact_regression(weight, bias, x, y, replay), strict=True):
        assert holds_exactly(box, *state)
    generator = np.random.default_rng(0)
    for _ in range(6):
        own = copy.deepcopy(model)
        optimiser = torch.optim.SGD(
            own.parameters(),
            lr=rate,
            momentum=options.get("momentum", 0.0),
            nesterov=options.get("nesterov", False),
            weight_decay=options.get("weight_decay", 0.0),
        )
        for t, batch in enumerate(replay.batches):
            order = torch.from_numpy(generator.permutation(batch.numpy()))
            optimiser.zero_grad()
            ((own(x[order])[:, 0] - y[order]) ** 2).mean().backward()
            optimiser.step()
            assert boxes[t].contains(own.state_dict())


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_correctly_rounded_sums_lie_inside(relaxation) -> None:
    """math.fsum rounds once: another legitimate order of summation, over a long batch."""
    x, y = badly_scaled("mixed", count=400, width=2, seed=3)
    model = network((2, 1), seed=2)
    case = Problem(model, x, y, Training("mse", 0.01, epochs=3), NOBODY)
    _, boxes = case.certify(relaxation=relaxation)
    w, b = model[0].weight[0].tolist(), model[0].bias[0].item()
    for box in boxes:
        residual = [
            math.fsum([w[0] * r[0], w[1] * r[1], b, -t])
            for r, t in zip(x.tolist(), y.tolist(), strict=True)
        ]
        backward = [
            math.fsum(2 * e * r[j] for e, r in zip(residual, x.tolist(), strict=True)) / 400
            for j in range(2)
        ]
        w = [v - 0.01 * g for v, g in zip(w, backward, strict=True)]
        b = b - 0.01 * math.fsum(2 * e for e in residual) / 400
        state = {
            "0.weight": torch.tensor([w], dtype=torch.float64),
            "0.bias": torch.tensor([b], dtype=torch.float64),
        }
        assert box.contains(state)


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("kind", ["plain", "scaled", "cancelling", "mixed"])
def test_exact_logistic_regression(kind, relaxation) -> None:
    """sigmoid in 60 digits: the exact run lies inside as the float run does."""
    x, targets = badly_scaled(kind, count=12)
    y = (targets > 0).to(torch.int64)
    model = network((3, 1), seed=4)
    rate = 1e-3 if kind == "scaled" else 0.5
    case = Problem(model, x, y, Training("bce", rate, epochs=3), NOBODY)
    _, boxes = case.certify(relaxation=relaxation)
    replay = Replay(case)
    assert_inside(boxes, replay.run(replay.random(2, torch.Generator(), corners=True)))
    with mpmath.workdps(60):
        theta = [mpmath.mpf(v) for v in [*model[0].weight[0].tolist(), model[0].bias[0].item()]]
        rows = [[*(mpmath.mpf(v) for v in row), mpmath.mpf(1)] for row in x.tolist()]
        for box in boxes:
            total = [mpmath.mpf(0)] * 4
            for row, label in zip(rows, y.tolist(), strict=True):
                logit = mpmath.fdot(theta, row)
                error = 1 / (1 + mpmath.exp(-logit)) - label
                total = [t + error * r for t, r in zip(total, row, strict=True)]
            theta = [v - mpmath.mpf(rate) * t / 12 for v, t in zip(theta, total, strict=True)]
            low = [*box.lower["0.weight"][0], box.lower["0.bias"][0]]
            high = [*box.upper["0.weight"][0], box.upper["0.bias"][0]]
            for a, value, b in zip(low, theta, high, strict=True):
                assert mpmath.mpf(float(a)) <= value <= mpmath.mpf(float(b))


@every_pair(
    rates=[(0.1, 10.0), (0.3, 1 / 0.3), (0.7, 0.9999999 / 0.7)],
    scale=[1.0, 1e3, 1e6],
    momentum=[0.0, 0.9],
    relaxation=["interval", "linear", "lp"],
)
def test_weight_decay_that_cancels_the_weights(rates, scale, momentum, relaxation) -> None:
    rate, decay = rates
    for seed in range(3):
        model = network((3, 1), seed=seed, scale=scale)
        generator = torch.Generator().manual_seed(seed)
        x = 1e-3 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
        y = torch.randn(6, generator=generator, dtype=torch.float64)
        run = Training(
            "mse", rate, epochs=2, weight_decay=decay, momentum=momentum, nesterov=momentum > 0
        )
        case = Problem(model, x, y, run, NOBODY)
        _, boxes = case.certify(relaxation=relaxation)
        optimiser = torch.optim.SGD(
            model.parameters(),
            lr=rate,
            weight_decay=decay,
            momentum=momentum,
            nesterov=momentum > 0,
        )
        for box in boxes:
            optimiser.zero_grad()
            ((model(x)[:, 0] - y) ** 2).mean().backward()
            optimiser.step()
            assert box.contains(model.state_dict())


@pytest.mark.parametrize("relaxation", ["interval", "linear", "lp"])
def test_weight_decay_that_cancels_the_weights_under_label_poisoning(relaxation) -> None:
    """A poisoned label moves the weight by less than the rounding of what cancels."""
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
        with torch.no_grad():
            model[0].weight.copy_(torch.rand(1, 1, dtype=torch.float64) * 1e3)
        x = torch.rand(1, 1, dtype=torch.float64) * 1e-3
        y = torch.rand(1, 1, dtype=torch.float64)
        run = Training("mse", 0.1, weight_decay=10.0)
        result = agt.certify(
            model, (x, y), run, agt.LabelPoisoning(1, radius=1.0), relaxation=relaxation
        )
        for move in (-1.0, 1.0):
            own = copy.deepcopy(model)
            optimiser = torch.optim.SGD(own.parameters(), lr=0.1, weight_decay=10.0)
            ((own(x) - (y + move)) ** 2).mean().backward()
            optimiser.step()
            assert result.reachable.contains(own.state_dict())


def diverging(loss: str, rate: float, relaxation: str, epochs: int = 6) -> Any:
    generator = np.random.default_rng(0)
    x = 10.0 * generator.normal(size=(4, 2))
    y = np.array([0, 1, 0, 1]) if loss != "mse" else x
    model = network((2, 2, 2 if loss in ("mse", "cross_entropy") else 1))
    case = Problem(
        model,
        torch.from_numpy(x),
        torch.from_numpy(y),
        Training(loss, rate, epochs=epochs, momentum=0.5),
        agt.FeaturePoisoning(1, 0.1),
    )
    return case, case.certify(relaxation=relaxation)


@pytest.mark.filterwarnings("error")
@every_pair(
    loss=["mse", "bce", "cross_entropy", "hinge"],
    rate=[1e3, 1e12, 1e30],
    relaxation=["interval", "linear", "lp"],
)
def test_a_diverging_run_certifies_nothing(loss, rate, relaxation) -> None:
    try:
        case, (result, boxes) = diverging(loss, rate, relaxation)
    except MilpAgtError as error:
        if not isinstance(error, SoundnessError) and "finite" not in str(error):
            raise
        return
    for box in boxes:
        for end in (box.lower, box.upper):
            assert not any(np.isnan(v).any() for v in end.values())
    replay = Replay(case)
    attacks = replay.random(32, torch.Generator().manual_seed(0), corners=True)
    states = replay.run(attacks)
    finite = torch.ones(32, dtype=torch.bool)
    for state in states:
        for value in state.values():
            finite &= torch.isfinite(value).flatten(1).all(1)
    assert_inside(boxes, [{n: v[finite] for n, v in s.items()} for s in states])
    try:
        assert not math.isnan(result.loss(case.features, case.labels).upper)
    except InvalidInputError as error:
        if "finite" not in str(error):  # only where the nominal outputs themselves overflow
            raise
    if loss != "mse" and result.reachable.max_width == math.inf:
        assert result.accuracy(case.features, case.labels).lower == 0.0
        assert result.stable(case.features).lower == 0.0


@pytest.mark.parametrize("loss", ["bce", "hinge", "cross_entropy"])
@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_a_tie_never_counts_as_certified(loss, relaxation) -> None:
    """Without biases the output at the origin is exactly zero, whatever training does."""
    model = network((2, 3, 2 if loss == "cross_entropy" else 1), bias=False)
    x = torch.tensor([[1.0, 0.5], [-1.0, 0.25], [0.5, -1.0]], dtype=torch.float64)
    y = torch.tensor([1, 0, 1])
    case = Problem(model, x, y, Training(loss, 0.1, epochs=2), agt.FeaturePoisoning(1, 0.0))
    result, _ = case.certify(relaxation=relaxation)
    origin = torch.zeros(2, 2, dtype=torch.float64)
    for labels in ([0, 0], [1, 1]):
        bounds = result.accuracy(origin, np.array(labels))
        assert bounds.lower == 0.0
        assert bounds.nominal == 0.0
        low, high = result.margins(origin, np.array(labels))
        assert (low <= 0.0).all()
        assert (high >= 0.0).all()
    assert result.stable(origin).lower == 0.0


@pytest.mark.parametrize("value", [math.nan, 2.0, -1.0])
def test_bounds_refuse_what_they_do_not_hold(value) -> None:
    with pytest.raises(SoundnessError):
        agt.Bounds(0.0, value, 1.0)
    with pytest.raises(SoundnessError):
        agt.Bounds(math.nan, 0.5, 1.0)


@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e9])
def test_the_nominal_loss_of_large_logits_lies_within_its_bounds(loss, scale) -> None:
    """log sum exp(f) - f_y cancels for large logits; the bounds and the nominal value do not."""
    outputs = 1 if loss == "bce" else 2
    model = nn.Sequential(nn.Linear(3, outputs)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.rand(parameter.shape, generator=generator).double())
    x = torch.rand(6, 3, generator=generator).double()
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    result = agt.certify(model, (x, y), agt.Training(loss, 0.1, epochs=2), agt.LabelPoisoning(0))
    bounds = result.loss(x, y)
    assert bounds.lower <= bounds.nominal <= bounds.upper
    assert bounds.upper - bounds.lower <= 1e-9 * (1.0 + bounds.upper)


# -----------------------------------------------------------------------------
# Sums in any order: a bias may stand in front of the products that it is added to.


TYPES = {FLOAT32.name: torch.float32, FLOAT64.name: torch.float64}
TERMS = 400


# Convolutions have no runs in float32.
@pytest.mark.parametrize(
    ("kind", "precision"), [("dense", FLOAT32), ("dense", FLOAT64), ("convolution", FLOAT64)]
)
def test_every_product_may_be_lost_beside_the_bias(kind: str, precision: Precision) -> None:
    """1 stays 1 where each of the products is half a unit in its last place."""
    layer: nn.Linear | nn.Conv2d
    if kind == "dense":
        layer, shape = nn.Linear(TERMS, 1), (TERMS,)
        model = nn.Sequential(layer)
    else:
        layer, shape = nn.Conv2d(1, 1, 20), (1, 20, 20)
        model = nn.Sequential(layer, nn.Flatten())
    with torch.no_grad():
        layer.weight.fill_(precision.unit)
        layer.bias.fill_(1.0)
    graph = in_precision(trace(model, "mse", shape, None, precision), precision, 1)
    boxes = {name: Interval.point(value.unsqueeze(0)) for name, value in graph.initial.items()}
    boxes[FEATURES] = Interval.point(torch.ones(1, 1, *shape, dtype=torch.float64))
    for node in graph.graph.needed_for([graph.output]):
        if node.name not in boxes:
            boxes[node.name] = node.op.interval(*(boxes[name] for name in node.inputs))
    run, share = torch.ones((), dtype=TYPES[precision.name]), precision.unit
    for _ in range(TERMS):
        run = run + share
    assert float(run) == 1.0
    found = boxes[graph.output]
    assert float(found.lower) <= 1.0 <= float(found.upper)
