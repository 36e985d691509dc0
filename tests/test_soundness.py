"""Whole runs under attack: nothing that an admissible poisoning reaches lies outside a bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks import Problem, assert_sound, network
from torch import nn

import milp_agt as agt
from milp_agt.training import Training

OUTPUTS = {"mse": 2, "bce": 1, "hinge": 1, "cross_entropy": 3}


def data(loss: str, count: int = 6, width: int = 2, seed: int = 0, outputs: int | None = None):
    """Training and test data, with labels for the loss."""
    outputs = OUTPUTS[loss] if outputs is None else outputs
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * count, width, generator=generator, dtype=torch.float64)
    if loss == "mse":
        y = torch.randn(2 * count, outputs, generator=generator, dtype=torch.float64)
    else:
        y = torch.randint(max(outputs, 2), (2 * count,), generator=generator)
    return x[:count], y[:count], x[count:], y[count:]


def threat(kind: str, loss: str, budget: int = 2, radius: Any = 0.1, **options: Any) -> Any:
    moved = 0.3 if loss == "mse" else None
    if kind == "features":
        return agt.FeaturePoisoning(budget, radius, **options)
    if kind == "labels":
        return agt.LabelPoisoning(budget, moved, **options)
    return agt.FeatureLabelPoisoning(budget, radius, label_radius=moved, **options)


def problem(loss: str, kind: str, training: dict[str, Any] | None = None, hidden=(3,),
            activation: type[nn.Module] = nn.ReLU, seed: int = 0, outputs: int | None = None,
            count: int = 6, **options: Any):
    x, y, test, labels = data(loss, count=count, seed=seed, outputs=outputs)
    out = OUTPUTS[loss] if outputs is None else outputs
    model = network((2, *hidden, out), activation, seed=seed)
    run = Training(loss=loss, **({"learning_rate": 0.3, "epochs": 3} | (training or {})))
    return Problem(model, x, y, run, threat(kind, loss, **options)), test, labels


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("scope", ["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
@pytest.mark.parametrize("kind", ["features", "labels", "both"])
@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy", "hinge"])
def test_every_threat_and_loss(loss, kind, static, scope, relaxation) -> None:
    run = {"batch_size": 4, "epochs": 2, "shuffle_seed": 1}
    case, test, labels = problem(loss, kind, run, static=static, scope=scope)
    assert_sound(case, test, labels, relaxation=relaxation)
