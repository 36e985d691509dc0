"""Whole runs drawn at random: nets, data with ties and kinks, trainings, threats and ways to bound them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from attacks import (
    Certified,
    Problem,
    Replay,
    assert_inside,
    assert_properties,
    assert_torch_agrees,
)
from boxes import assert_within
from hypothesis import strategies as st
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.bounds.adversary.enumerated import count_cases
from milp_agt.errors import InvalidInputError

ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Identity, lambda: nn.LeakyReLU(0.2))
OUTPUTS = {"mse": (1, 2), "bce": (1,), "hinge": (1,), "cross_entropy": (2, 3)}


def _model(draw: Any, width: int, outputs: int, hidden: int) -> nn.Sequential:
    sizes = [width, *draw(st.lists(st.integers(1, hidden), max_size=2)), outputs]
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


def drawn_problem(draw: Any, most: int, hidden: int) -> Problem:
    """A run of at most so many samples, with a threat."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    loss = draw(st.sampled_from(sorted(OUTPUTS)))
    outputs, width = draw(st.sampled_from(OUTPUTS[loss])), draw(st.integers(1, 3))
    samples = draw(st.integers(1, most))
    x, y = _data(draw, loss, samples, width, outputs)
    scale = max(float(x.abs().max()), 1e-6)
    threat = _threat(draw, loss, samples, scale)
    training = _training(draw, loss, samples, scale, isinstance(threat, agt.Substitution))
    return Problem(_model(draw, width, outputs, hidden), x, y, training, threat)


@st.composite
def problems(draw: Any) -> tuple[Problem, dict[str, Any]]:
    """A run with a threat, and a way to bound it by linear forms."""
    problem = drawn_problem(draw, most=7, hidden=4)
    options = {
        "relaxation": "linear",
        "window": draw(st.sampled_from((1, 2, None))),
        "inner_bounds": draw(st.sampled_from(("interval", "linear"))),
        "carried": draw(st.sampled_from(("none", "none", "zonotope"))),
    }
    poison = Replay(problem).poison
    ways: list[dict[str, Any]] = [{"selections": "joint"}]
    if count_cases(poison) < 40:
        ways += [{"selections": "enumerated"}]
    return problem, options | draw(st.sampled_from(ways))


@st.composite
def programs(draw: Any) -> tuple[Problem, dict[str, Any]]:
    """A tiny run with a threat, and any program for it, by trees of our own."""
    problem = drawn_problem(draw, most=3, hidden=2)
    options = {
        "relaxation": draw(st.sampled_from(("lp", "milp", "milp", "qcqp", "miqp"))),
        "window": draw(st.sampled_from((1, 2, None))),
        "program_window": draw(st.sampled_from((1, 1, 2))),
        "selections": draw(st.sampled_from(("joint", None))),
        "inner_bounds": draw(st.sampled_from(("interval", "linear"))),
        "solve_limits": agt.Limits(nodes=draw(st.sampled_from((1, 5, 30)))),
    }
    return problem, options


def assert_attacked(problem: Problem, options: dict[str, Any]) -> None:
    """No random, extreme or gradient poisoning leaves the set of any step or any property, and intervals
    are looser."""
    try:
        result, boxes = problem.certify(**options)
    except InvalidInputError as error:
        if "stay finite" not in str(error):
            raise
        return  # momentum and decay diverge without any poison
    _, looser = problem.certify(relaxation="interval")
    for box, outer in zip(boxes, looser, strict=True):
        assert_within(box, outer)
    replay, generator = Replay(problem), torch.Generator().manual_seed(0)
    attacks = [replay.random(32, generator, corners) for corners in (False, True)]
    if not replay.poison.is_clean:
        objective, rows = replay.objectives(problem.features[:2], problem.labels[:2], 6, generator)
        attacks += replay.by_gradient(objective, rows, generator, 3)
    asked = Certified.of(result, problem.features, problem.labels)
    for attack in attacks:
        states = replay.run(attack)
        assert_inside(boxes, states)
        assert_properties(replay, asked, states[-1])
    assert_torch_agrees(replay, attacks[-1], boxes, [0, 1])
