"""Recorded training runs of dense relu networks: full batches, plain gradient descent.

A file has x_train, y_train, x_test, y_test, the layers W0, b0, W1, b1 ..., loss, lr, steps, and perhaps
lr_decay and lr_min; or X, y and the layers W1, b1 and w2, b2 (binary cross entropy, rate 0.5, no test data).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import milp_agt as agt
from milp_agt.training.schedules import InverseTimeDecay

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Recorded:
    """A run: its network at the start, its data, and its options."""

    model: nn.Sequential
    train: tuple[Array, Array]
    test: tuple[Array, Array]
    loss: str
    rate: float
    steps: int
    schedule: InverseTimeDecay | None = None

    @staticmethod
    def load(path: str | Path) -> Recorded:
        file = np.load(path)
        if "X" in file:
            model = with_weights([(file["W1"], file["b1"]), (file["w2"][None], file["b2"])])
            data = file["X"], file["y"].astype(np.int64)
            return Recorded(model, data, data, "bce", 0.5, 30)
        numbers = itertools.takewhile(lambda k: f"W{k}" in file, itertools.count())
        schedule = None
        if "lr_decay" in file:
            schedule = InverseTimeDecay(float(file["lr_decay"]), float(file["lr_min"]))
        return Recorded(
            with_weights([(file[f"W{k}"], file[f"b{k}"]) for k in numbers]),
            (file["x_train"], file["y_train"]),
            (file["x_test"], file["y_test"]),
            str(file["loss"]),
            float(file["lr"]),
            int(file["steps"]),
            schedule,
        )

    def training(self, steps: int | None = None) -> agt.Training:
        """The options of the run, or of its first steps."""
        epochs = self.steps if steps is None else steps
        return agt.Training(self.loss, self.rate, epochs=epochs, schedule=self.schedule)


def dense(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with relus in between."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def with_weights(weights: list[tuple[Array, Array]]) -> nn.Sequential:
    """The network with these matrices and biases."""
    model = dense(weights[0][0].shape[1], *(len(matrix) for matrix, _ in weights))
    with torch.no_grad():
        layers = (layer for layer in model if isinstance(layer, nn.Linear))
        for layer, (matrix, bias) in zip(layers, weights, strict=True):
            layer.weight.copy_(torch.from_numpy(matrix))
            layer.bias.copy_(torch.from_numpy(np.reshape(bias, -1)))
    return model
