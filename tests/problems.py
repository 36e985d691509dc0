"""Problems whose attacks are held against the bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks import Problem, Replay, network, outside
from torch import nn

import milp_agt as agt
from milp_agt.training.training import Training

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


def problem(
    loss: str,
    kind: str,
    training: dict[str, Any] | None = None,
    hidden=(3,),
    activation: type[nn.Module] = nn.ReLU,
    seed: int = 0,
    outputs: int | None = None,
    count: int = 6,
    **options: Any,
):
    x, y, test, labels = data(loss, count=count, seed=seed, outputs=outputs)
    out = OUTPUTS[loss] if outputs is None else outputs
    model = network((2, *hidden, out), activation, seed=seed)
    run = Training(loss=loss, **({"learning_rate": 0.3, "epochs": 3} | (training or {})))
    return Problem(model, x, y, run, threat(kind, loss, **options)), test, labels


EXPENSIVE = pytest.param("lp", marks=pytest.mark.slow)


def tiny(threat: Any, loss: str = "bce", epochs: int = 3) -> Problem:
    model = network((2, 2, 1), seed=7)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0])
    return Problem(model, x, y, Training(loss=loss, learning_rate=0.5, epochs=epochs), threat)


def caught(case: Problem, boxes: list[Any], test: Any, labels: Any, iterations: int = 6) -> bool:
    replay = Replay(case)
    generator = torch.Generator().manual_seed(0)
    for attack in replay.all(generator, test, labels, 64, iterations, largest=50):
        if any(outside(box, s) for box, s in zip(boxes, replay.run(attack), strict=True)):
            return True
    return False
