"""Whole runs drawn at random, attacked and attacked again, and what such runs have found."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside, assert_torch_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.core.encoder import Encoder
from milp_agt.core.influence import Influence
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.engines.cases import count_cases
from milp_agt.engines.charged import can_be_charged
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.quadratic import Quadratic
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.step import Step
from milp_agt.formulations.tanh import Tanh
from milp_agt.formulations.univariate import Univariate
from milp_agt.solvers import Capability, available_solvers, get_solver

EXACT = [n for n in available_solvers() if Capability.FUNCTIONS in get_solver(n).capabilities]
ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Identity, lambda: nn.LeakyReLU(0.2))
OUTPUTS = {"mse": (1, 2), "bce": (1,), "hinge": (1,), "cross_entropy": (2, 3)}


def _model(draw: Any, width: int, outputs: int) -> nn.Sequential:
    sizes = [width, *draw(st.lists(st.integers(1, 4), max_size=2)), outputs]
    layers: list[nn.Module] = []
    for first, second in itertools.pairwise(sizes):
        bias = draw(st.booleans())
        layers += [nn.Linear(first, second, bias=bias), draw(st.sampled_from(ACTIVATIONS))()]
    model = nn.Sequential(*layers[:-1]).double()
    if draw(st.integers(0, 4)) == 0:  # ties and kinks at zero
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.sign().round() * (torch.rand(parameter.shape) > 0.3))
    return model


def _data(draw: Any, loss: str, samples: int, width: int, outputs: int) -> tuple[Tensor, Tensor]:
    """On a grid or not, with rows of zeros and with samples that are there twice."""
    x = torch.randn(samples, width, dtype=torch.float64)
    x = x.round() if draw(st.booleans()) else x
    x = x * 10.0 ** draw(st.sampled_from((0, 0, 0, -6, 3)))
    x[0] = x[-1] if draw(st.booleans()) else 0.0
    if loss == "mse":
        return x, torch.randn(samples, outputs, dtype=torch.float64)
    return x, torch.randint(max(2, outputs), (samples,))


def _training(draw: Any, loss: str, samples: int, scale: float, clipped: bool) -> agt.Training:
    rate = draw(st.sampled_from((0.1, 0.5))) / max(1.0, scale**2)
    options: dict[str, Any] = {
        "batch_size": draw(st.one_of(st.none(), st.integers(1, samples))),
        "shuffle_seed": draw(st.one_of(st.none(), st.integers(0, 3))),
        "weight_decay": draw(st.sampled_from((0.0, 0.0, 0.1, 1.5 / rate))),
        "momentum": draw(st.sampled_from((0.0, 0.0, 0.5, 1.1))),
    }
    if options["momentum"]:
        options["nesterov"] = draw(st.booleans())
    if clipped:
        options |= {"clip": 0.1, "clip_mode": draw(st.sampled_from(("norm", "clamp")))}
    elif draw(st.integers(0, 6)) == 0:
        options |= {"l1": 0.01, "projection": (-1.0, 0.5)}
    return agt.Training(loss, learning_rate=rate, epochs=draw(st.integers(1, 3)), **options)


def _threat(draw: Any, loss: str, samples: int, scale: float) -> Any:
    budget = draw(st.integers(0, samples))
    who = {
        "static": draw(st.booleans()),
        "scope": draw(st.sampled_from(("dataset", "dataset", "batch"))),
    }
    radius = scale * draw(st.sampled_from((0.0, 1e-3, 0.1, 1.0)))
    how = {"norm": draw(st.sampled_from(("inf", 1, 2)))}
    target = 0.3 if loss == "mse" else None
    features = agt.FeaturePoisoning(budget, radius, **who, **how)
    labels = agt.LabelPoisoning(min(1, samples), target, **who)
    return draw(
        st.sampled_from(
            (
                features,
                agt.LabelPoisoning(budget, target, **who),
                agt.FeatureLabelPoisoning(budget, radius, label_radius=target, **who, **how),
                agt.SeparatePoisoning(features, labels),
                agt.Substitution(budget, **who),
                agt.Removal(budget, scope=who["scope"]),
            )
        )
    )


@st.composite
def problems(draw: Any) -> tuple[Problem, dict[str, Any]]:
    """A run with a threat, and a way to bound it."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    loss = draw(st.sampled_from(sorted(OUTPUTS)))
    outputs, width = draw(st.sampled_from(OUTPUTS[loss])), draw(st.integers(1, 3))
    samples = draw(st.integers(1, 7))
    x, y = _data(draw, loss, samples, width, outputs)
    scale = max(float(x.abs().max()), 1e-6)
    threat = _threat(draw, loss, samples, scale)
    clipped = isinstance(threat, agt.Substitution)
    training = _training(draw, loss, samples, scale, clipped)
    problem = Problem(_model(draw, width, outputs), x, y, training, threat)
    options = {
        "relaxation": "linear",
        "window": draw(st.sampled_from((1, None))),
        "inner_bounds": draw(st.sampled_from(("interval", "linear"))),
    }
    poison = Replay(problem).poison
    plain = not clipped and training.projection is None and training.clip is None
    ways: list[dict[str, Any]] = [{"selections": "joint"}, {"alpha_steps": 2}]
    if plain and can_be_charged(poison, problem.restriction):
        ways += [{"selections": "charged"}] * 3
    if count_cases(poison) < 40:
        ways += [{"selections": "enumerated"}]
    return problem, options | draw(st.sampled_from(ways))


def _attacked(problem: Problem, options: dict[str, Any]) -> None:
    """No random, extreme or gradient poisoning leaves the set of any step, and intervals are looser."""
    try:
        _, boxes = problem.certify(**options)
    except InvalidInputError as error:
        if "stay finite" not in str(error):
            raise
        return  # momentum and decay diverge without any poison
    _, looser = problem.certify(relaxation="interval")
    for box, outer in zip(boxes, looser, strict=True):
        for name in box.lower:
            assert (outer.lower[name] <= box.lower[name]).all()
            assert (box.upper[name] <= outer.upper[name]).all()
    replay, generator = Replay(problem), torch.Generator().manual_seed(0)
    attacks = [replay.random(32, generator, corners) for corners in (False, True)]
    if not replay.poison.is_clean:
        objective, rows = replay.objectives(problem.features[:2], problem.labels[:2], 6, generator)
        attacks += replay.by_gradient(objective, rows, generator, 3)
    for attack in attacks:
        assert_inside(boxes, replay.run(attack))
    assert_torch_agrees(replay, attacks[-1], boxes, [0, 1])


@given(problems())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_no_attack_leaves_any_set(drawn: tuple[Problem, dict[str, Any]]) -> None:
    _attacked(*drawn)


@pytest.mark.slow
@given(problems())
@settings(max_examples=60, deadline=None)
def test_no_attack_leaves_any_set_in_many_runs(drawn: tuple[Problem, dict[str, Any]]) -> None:
    _attacked(*drawn)


# --------------------------------------------------------------- influences, point by point

UNIVARIATE = (
    *(Relu(slope) for slope in (0.0, 0.2, 1.7, -0.5)),
    *(Step(), Sigmoid(), Tanh(), Exponential(), Quadratic(-1.0, 1.0, 0.0)),
)


def _influences(generator: torch.Generator, columns: int, budget: int, count: int) -> Influence:
    """Bases and influences of sizes from 1e-15 to 1e4, many of which begin or end at a kink."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def sizes(low: float, high: float, *shape: int) -> Tensor:
        return 10.0 ** (low + (high - low) * uniform(*shape)) * (uniform(*shape) < 0.7)

    scale = 10.0 ** (11.0 * uniform(count) - 7.0)
    centre = scale * torch.randn(count, generator=generator, dtype=torch.float64)
    low, high = centre - scale * sizes(-9, 0, count), centre + scale * sizes(-9, 0, count)
    at_kink = uniform(count)
    low = torch.where(at_kink < 0.1, 0.0, low)
    high = torch.where((at_kink > 0.9) | (at_kink < 0.05), 0.0, high)
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    down, up = (scale * sizes(-8, 1, columns, count) for _ in range(2))
    down[0] = torch.where((low > 0) & (uniform(count) < 0.2), low, down[0])
    own = torch.randint(-1, columns, (count,), generator=generator)
    return Influence(Interval(low[None], high[None]), down, up, budget, own)


@pytest.mark.parametrize("op", UNIVARIATE, ids=lambda op: repr(op))
def test_influences_hold_for_every_choice_of_samples(op: Univariate) -> None:
    generator, columns = torch.Generator().manual_seed(5), 3
    for budget in (1, 2, 4):
        argument = _influences(generator, columns, budget, 2000)
        image, planes = op.influence(argument), op.relax_influence(argument)
        for size in range(min(budget, columns) + 1):
            for chosen in map(list, itertools.combinations(range(columns), size)):
                share = torch.rand(2, 2000, generator=generator, dtype=torch.float64)
                share[0, ::3], share[1, ::2] = share[0, ::3].round(), 1.0
                low, high = argument.base.lower[0], argument.base.upper[0]
                x = torch.minimum(low + share[0] * (high - low), high)
                rises = torch.rand(2000, generator=generator) < 0.5
                moved = torch.where(rises, argument.up, -argument.down)[chosen].sum(0)
                x = x + share[1] * moved
                value = op.value(x)
                assert (image.base.lower[0] - image.down[chosen].sum(0) <= value).all()
                assert (value <= image.base.upper[0] + image.up[chosen].sum(0)).all()
                above, below = planes.upper, planes.lower
                assert above is not None
                assert below is not None
                most = above[0] + (above[1:] - above[0])[chosen].sum(0)
                least = below[0] - (below[0] - below[1:])[chosen].sum(0)
                # Evaluated here, planes are rounded as well.
                size_of = value.abs() + planes.magnitude + most.abs() + least.abs()
                one = torch.ones_like(x)
                steepest, flattest = planes.pull(one[None])[0][0], -planes.pull(-one[None])[0][0]
                assert (steepest * x + least <= value + 2.0**-50 * size_of).all()
                assert (value <= flattest * x + most + 2.0**-50 * size_of).all()


def test_slopes_of_a_leaky_relu_are_those_of_float64() -> None:
    """0.2 was rounded to float32 for short moves: charges were too small by 1e-8 of the move."""
    move = torch.full((1, 1), 1e-9, dtype=torch.float64)
    left, right = Relu(0.2).secants(Interval.point(torch.zeros_like(move)), move, move)
    assert (float(left.lower), float(right.upper)) == (0.2, 1.0)


# ----------------------------------------------------------------------------------- programs


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("op", "low", "high"),
    [(Sigmoid(), -1000.0, 50.0), (Tanh(), 0.0, 1000.0), (Exponential(), -1000.0, -900.0)],
    ids=lambda value: getattr(value, "key", None),
)
def test_no_argument_of_a_function_is_cut_off(
    op: Univariate, low: float, high: float, name: str
) -> None:
    """A sigmoid on [-1000, 50] was bounded for z >= -59.6 only, where SCIP's infinity begins."""
    encoder = Encoder(True, exact_products=True)
    ends = (np.array([low]), np.array([high]))
    z = encoder.columns(*ends)
    box = Interval(*(torch.from_numpy(end).unsqueeze(0) for end in ends))
    op.encode(encoder, (z,), (box,))
    program = encoder.finish()
    session = get_solver(name).open(program)
    for sign, end in ((1.0, low), (-1.0, high)):
        objective = np.zeros(program.lower.size)
        objective[0] = sign
        bound = session.minimise(objective, Limits(time=20.0)).dual_bound
        assert bound is not None
        assert bound <= sign * end
    session.close()
