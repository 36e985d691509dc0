"""What an operation may be off in float32: against kernels, worst orders and documented counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from checks_encoding import check_encoding
from checks_rules import check_interval, check_relax
from draws import all_instances
from instances import INSTANCES, Instance
from mutants import is_caught, moderate
from pairs import every_pair
from torch import Tensor, nn

from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.step import Step
from milp_agt.core.encoder import Encoder
from milp_agt.core.graph import Operation
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import ELEMENTARY, FLOAT32, FLOAT64, Precision
from milp_agt.errors import UnsupportedOperationError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.clip_factor import ClipFactor
from milp_agt.formulations.linear import Affine, Combine
from milp_agt.formulations.optimiser_step import OptimiserStep
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.univariate import Smooth
from milp_agt.threats.poison import Poison
from milp_agt.training.precision import in_precision
from milp_agt.training.tracing import LOSS_GRADIENT, trace
from milp_agt.training.training import Clipping, UpdateRule

U = FLOAT32.unit
ROUNDED = [i for i in all_instances() if i.op.rounds_in_run]
# A product with a power of two is exact.
REALLY = [i for i in ROUNDED if i.label != "relu-0.5"]


def points(shape: Sequence[int], rng: np.random.Generator, positive: bool = False) -> Tensor:
    """Float32 numbers of mixed sizes, as float64."""
    drawn = rng.normal(size=shape) * 10.0 ** rng.integers(-2, 3, size=shape)
    drawn = np.abs(drawn) + 0.01 if positive else drawn
    return torch.from_numpy(drawn.astype(np.float32).astype(np.float64))


def in_single(op: Operation) -> Operation:
    """The operation with float32 constants."""

    def single(value: object) -> object:
        if isinstance(value, Tensor):
            return value.float()
        return tuple(map(single, value)) if isinstance(value, tuple) else value

    made = {f.name: single(getattr(op, f.name)) for f in fields(op) if f.init}  # type: ignore[arg-type]
    return replace(op, **made)  # type: ignore[type-var]


def check_kernel(instance: Instance, precision: Precision, seed: int) -> None:
    """Torch's float32 kernels on float32 numbers stay within the error of the operation."""
    rng = np.random.default_rng(seed)
    positive = instance.domain != "real"
    inputs = [
        points((5, *s.shape) if s.batched else s.shape, rng, positive) for s in instance.inputs
    ]
    if isinstance(instance.op, Smooth) and instance.domain == "exponent":
        inputs = [x.clamp(max=20.0) for x in inputs]
    exact = instance.op.value(*inputs)
    found = in_single(instance.op).value(*(x.float() for x in inputs))
    assert found.dtype == torch.float32
    boxes = [Interval.point(x.unsqueeze(0)) for x in inputs]
    error = instance.op.run_error(precision, *boxes)[0]
    assert bool(((found.double() - exact).abs() <= error).all()), (
        f"{instance}: off by {float((found.double() - exact).abs().max()):.3e}"
    )


@pytest.mark.parametrize("instance", ROUNDED, ids=str)
def test_float32_kernels_stay_within_the_error_of_an_operation(instance: Instance) -> None:
    for seed in range(20):
        check_kernel(instance, FLOAT32, seed)


@pytest.mark.parametrize("instance", REALLY, ids=str)
def test_an_error_of_zero_is_found_out(instance: Instance) -> None:
    """Float64 in place of float32: each operation for itself."""
    assert is_caught(lambda seed: check_kernel(instance, FLOAT64, seed), range(60))


def test_exact_operations_are_exact_in_float32() -> None:
    """Comparisons and copies, leaky relu aside."""
    rng = np.random.default_rng(0)
    known = {i.op.key for i in all_instances() if i.op.rounds_in_run is False}
    assert known >= {"relu", "step", "sign", "clip", "reshape", "max_pool"}
    for instance in all_instances():
        op = instance.op
        if op.rounds_in_run is not False or isinstance(op, (SumSamples, RunRounding)):
            continue
        if op.key == "clip":
            continue  # with limits that float32 has: refused otherwise
        inputs = [points((5, *s.shape), rng) for s in instance.inputs]
        found = op.value(*(x.float() for x in inputs)).double()
        assert torch.equal(found, op.value(*inputs)), instance.label


def size_of(op: Operation, inputs: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The sizes of the terms that an operation adds up at points, and the documented count of roundings."""
    first = inputs[0].abs()
    if isinstance(op, Einsum):
        terms = math.prod(
            dict(zip("".join(op.letters[:2]), [*inputs[0].shape, *inputs[1].shape], strict=True))[x]
            for x in op.contracted
        )
        return op.value(first, inputs[1].abs()), terms + 1
    if isinstance(op, Affine):
        bias = 0.0 if op.bias is None else op.bias.abs()
        return first @ op.matrix.abs().T + bias, op.matrix.shape[1] + 2
    if isinstance(op, OptimiserStep):
        total = sum(s * x.abs() for s, x in zip(op.sizes, inputs, strict=True))
        assert isinstance(total, Tensor)
        kept = min(op.kept, op.sizes[0]) * first
        return total - kept + kept * FLOAT32.gamma(2) / FLOAT32.gamma(16), 16
    if isinstance(op, Combine):
        scales = tuple(abs(s) if isinstance(s, float) else s.abs() for s in op.scales)
        constant = None if op.constant is None else op.constant.abs()
        absolute = replace(op, scales=scales, constant=constant)
        plain = constant is None and all(isinstance(s, float) and s == 1.0 for s in op.scales)
        return absolute.value(*(x.abs() for x in inputs)), len(inputs) + (0 if plain else 17)
    if isinstance(op, SquaredNorm):
        terms = sum((x[0] if op.batched else x).numel() for x in inputs)
        return op.value(*inputs), 2 * terms + 8
    if isinstance(op, ClipFactor):
        return op.interval(Interval.point(inputs[0])).magnitude, 8
    if isinstance(op, Quadratic):
        return (abs(op.a) * first + abs(op.b)) * first + abs(op.c), 4
    if isinstance(op, Relu):
        return abs(op.negative_slope) * (-inputs[0]).clamp(min=0.0), 4
    assert isinstance(op, Smooth)
    value = op.interval(Interval.point(inputs[0])).magnitude
    return value * (ELEMENTARY + 4.0 * first), 1


def check_count(instance: Instance) -> None:
    """The error is that of the documented count of roundings in a row, on the sizes of all terms."""
    rng = np.random.default_rng(1)
    positive = instance.domain != "real"
    inputs = [
        points((5, *s.shape) if s.batched else s.shape, rng, positive) for s in instance.inputs
    ]
    if instance.domain == "exponent":
        inputs = [x.clamp(max=20.0) for x in inputs]
    boxes = [Interval.point(x.unsqueeze(0)) for x in inputs]
    found = instance.op.run_error(FLOAT32, *boxes)[0]
    size, count = size_of(instance.op, inputs)
    expected = (size * FLOAT32.gamma(count) + FLOAT32.tiny).expand(found.shape)
    assert torch.allclose(found, expected, rtol=1e-6, atol=0.0), instance.label


@pytest.mark.parametrize("instance", ROUNDED, ids=str)
def test_errors_have_their_documented_counts(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the error, in one operation, is found out."""
    check_count(instance)
    original = type(instance.op).run_error
    monkeypatch.setattr(type(instance.op), "run_error", lambda *a: 0.5 * original(*a))
    with pytest.raises(AssertionError):
        check_count(instance)


def worst_sum(first: float, rest: int) -> tuple[Tensor, float]:
    """A float32 sum from left to right whose every rounding goes up, and its error in float64 (exact)."""
    # 1 + k (u + small) rounds up to 1 + 2 u k: each addition is off by almost u.
    terms = torch.tensor([first] + [1.0001 * U * first] * rest, dtype=torch.float32)
    total = torch.zeros((), dtype=torch.float32)
    for term in terms:
        total = total + term
    return terms.double(), float((total.double() - terms.double().sum()).abs())


def test_sums_in_the_worst_order_need_what_is_granted() -> None:
    """From left to right, each addition off by almost a unit: half of the grant would not do."""
    count = 400
    terms, error = worst_sum(1.0, count - 1)
    assert error > 0.9 * (count - 1) * U
    ones = torch.ones(count).double()
    point = [Interval.point(t[None, None]) for t in (terms,)]
    for rounded in (
        Einsum("hd,nd->nh").run_error(FLOAT32, Interval.point(ones[None, None]), point[0]),
        Affine(ones[None]).run_error(FLOAT32, point[0]),
    ):
        granted = float(rounded.max())
        assert 0.5 * granted < error <= granted
    whole = SumSamples(0).within(FLOAT32, count)
    box = Interval.point(terms.sum()[None])
    granted = float((whole.widened(box, terms.abs().sum()).width / 2).max())
    assert 0.5 * granted < error <= granted


def test_sums_over_samples_widen_at_every_level() -> None:
    size = torch.tensor([3.0, 0.0]).double()
    op = SumSamples(1).within(FLOAT32, 10)
    error = size * FLOAT32.gamma(12) + FLOAT32.tiny
    box = op.widened(Interval.point(torch.zeros(1, 2).double()), size)
    assert torch.equal(box.upper[0], error)
    assert torch.equal(box.lower[0], -error)
    planes = op.planes(size)
    assert torch.equal(planes.upper[0], error)
    assert torch.equal(planes.lower[0], -error)
    range_ = Interval(torch.tensor([[[0.0, 0.0]] * 3]).double(), torch.ones(1, 3, 2).double())
    encoder = Encoder(False)
    column = encoder.columns(np.zeros((3, 2)), np.ones((3, 2)))
    for rule, extra in ((op, 3.0 * FLOAT32.gamma(12)), (SumSamples(1), 0.0)):
        total = rule.encode(encoder, (column,), (range_,))
        assert (total.error >= extra).all()
        assert (total.error <= extra + 1e-13).all()
    assert SumSamples(1).widened(box, size) is box


MUTANTS = ("interval", "relax", "encode")


@pytest.mark.parametrize("instance", INSTANCES["run_rounding"], ids=str)
@pytest.mark.parametrize("factor", [0.0, 0.5])
@pytest.mark.parametrize("rule", MUTANTS)
def test_a_level_that_rounds_less_is_found_out(
    instance: Instance, factor: float, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the run set to nothing, and to half, in one rule of the rounding node."""
    checks: dict[str, Callable[[np.random.Generator], object]] = {
        "interval": lambda rng: check_interval(instance, moderate(instance, "nested", 0), rng),
        "relax": lambda rng: check_relax(instance, moderate(instance, "nested", 0), rng),
        "encode": lambda rng: check_encoding(instance, moderate(instance, "nested", 0), False, rng),
    }
    checks[rule](np.random.default_rng(0))
    original, error = getattr(RunRounding, rule), RunRounding.error

    def less(op: RunRounding, *inputs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunRounding, "error", lambda *a: factor * error(*a))
            return original(op, *inputs)

    monkeypatch.setattr(RunRounding, rule, less)
    with pytest.raises(AssertionError):
        checks[rule](np.random.default_rng(0))


def test_what_may_have_overflowed_is_unknown() -> None:
    op = RunRounding(Quadratic(1.0, 0.0, 0.0), FLOAT32)
    boxes = [
        Interval.point(torch.tensor([[[x, y]]]).double()) for x, y in ((1.0, 1e32), (1.0, 1e16))
    ]
    found = op.interval(*boxes)
    assert torch.isfinite(found.upper[0, 0]).tolist() == [True, False]
    assert torch.isfinite(found.lower[0, 0]).tolist() == [True, False]
    total = SumSamples(0).within(FLOAT32, 2)
    box = Interval.point(torch.tensor([1e31]).double())
    assert not bool(torch.isfinite(total.widened(box, torch.tensor(1e31).double()).upper))
    assert math.isinf(FLOAT32.gamma(2.0**23))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: network((3, 4, 2)),
    "deep": lambda: network((3, 4, 3, 2), nn.Tanh),
    "leaky": lambda: nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(0.1), nn.Linear(3, 2)),
    "norm": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval(),
}


@every_pair(
    name=list(MODELS), loss=["mse", "cross_entropy"], clip={"plain": None, "clipped": Clipping(0.5)}
)
def test_every_rounded_value_is_followed_by_its_rounding(
    name: str, loss: str, clip: Clipping | None
) -> None:
    """No operation reads, and no gradient or output is, the exact value of one that the run rounds."""
    plain = trace(MODELS[name]().double(), loss, (3,), clip, FLOAT32)
    graph = in_precision(plain, FLOAT32, 7)
    inside = {n.name for n in graph.graph.needed_for([LOSS_GRADIENT])}
    inside -= {n.name for n in graph.graph.needed_for([graph.output])}
    read_as_they_are = set(graph.gradients.values()) | {graph.output}
    for node in graph.graph:
        if not isinstance(node.op, RunRounding):
            read_as_they_are |= set(node.inputs) - (inside if node.name in inside else set())
    for node in graph.graph:
        if isinstance(node.op, SumSamples):
            assert (node.op.precision, node.op.largest) == (FLOAT32, 7)
            (term,) = graph.graph.inputs(node)
            product = isinstance(term.op, Einsum) and not term.op.contracted
            assert product or not term.op.rounds_in_run
        elif node.op.rounds_in_run and node.name not in inside:
            readers = [graph.graph[r] for r in graph.graph.nx.successors(node.name)]
            summed = bool(readers) and all(isinstance(r.op, SumSamples) for r in readers)
            assert summed or node.name not in read_as_they_are, node.name
    assert f"{LOSS_GRADIENT}:float32" in graph.graph
    step = Step(0, torch.arange(2), Poison.none(torch.zeros(2, 3), torch.zeros(2, 2)), RULE, True)
    update = UpdateGraph.of(graph.gradient_nodes, step, FLOAT32)
    assert all(name.endswith("float32") for name in update.outputs.values())
    assert in_precision(plain, FLOAT64, 7) is plain


RULE = UpdateRule(0.1, 0.9, 0.01, True, 0.01, (-1.0, 1.0))


def test_convolutions_are_refused_by_name() -> None:
    body = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)).double()
    with pytest.raises(UnsupportedOperationError, match=r"unfold.*What to do: train with Linear"):
        in_precision(trace(body, "bce", (1, 3, 3)), FLOAT32, 4)


def test_products_that_underflow_before_the_rate_are_covered() -> None:
    """``theta - rate (momentum v + g)`` with a product that float32 loses: 1e-26 of theta at this rate."""
    rate, momentum, velocity = 1e20, 1e-6, 1e-40
    lost = np.float32(momentum) * np.float32(velocity)
    assert lost == 0.0
    step = OptimiserStep.of((1.0, -rate * momentum, -rate), (1.0, rate * momentum, rate), 1, 1.0)
    boxes = [Interval.point(torch.tensor([[v]]).double()) for v in (0.0, velocity, 0.0)]
    error = step.run_error(FLOAT32, *boxes)
    exact = float(step.value(*(box.lower for box in boxes)))
    assert exact == pytest.approx(-1e-26)  # where the run keeps 0
    assert float(error) >= abs(exact)
