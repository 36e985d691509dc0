"""Data, rates and radii at the ends of float64: every run gets a sound set."""

from __future__ import annotations

import pytest
import torch
from attacks import Problem, network
from drawn_runs import assert_attacked

import milp_agt as agt

X = torch.tensor([[0.3, -1.2], [1.1, 0.4], [-0.7, 0.9]], dtype=torch.float64)
Y = torch.tensor([0, 1, 1])


def _problem(x: torch.Tensor, radius: float, norm: str | int = "inf", **training: float) -> Problem:
    run = agt.Training("cross_entropy", **({"learning_rate": 0.5, "epochs": 2} | training))  # type: ignore[arg-type]
    return Problem(network((2, 2, 2)), x, Y, run, agt.FeaturePoisoning(1, radius, norm=norm))


PROBLEMS = {
    "large data": _problem(1e8 * X, 1e7),
    "large data, small rate": _problem(1e8 * X, 1e7, learning_rate=1e-16),
    "small data, large rate": _problem(1e-8 * X, 1e-9, learning_rate=1e16),
    "subnormal data": _problem(1e-320 * X, 1e-321),
    "subnormal radius": _problem(X, 5e-324),
    "a radius whose square underflows": _problem(X, 1e-300, norm=2),
    "one sample three times": _problem(X[:1].expand(3, 2).clone(), 0.1),
    "no data": _problem(0.0 * X, 0.1),
    "decay that forgets": _problem(X, 0.1, weight_decay=2.0),
    "clipping to nearly nothing": _problem(X, 0.1, clip=1e-100),
}


@pytest.mark.parametrize("relaxation", ["linear", "lp"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_no_attack_leaves_the_set(name: str, relaxation: str) -> None:
    assert_attacked(PROBLEMS[name], {"relaxation": relaxation})
