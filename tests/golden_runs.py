"""The runs of ``golden.py``: all threats, levels and selections, in pairs, on data of a few samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from attacks import Problem, network
from problems import OUTPUTS, data
from torch import nn

import milp_agt as agt

# Relative tolerances where machines round differently. Programs may then end at another vertex of the
# same value, or on another side of their own tolerances. Ascent moves as far along a gradient that is
# zero but for rounding as along any other, and of two sets of charges with hulls that are equal but for
# rounding either may be kept: last bits choose, and later steps see which.
OF_FORMS, OF_PROGRAMS, OF_CHOICES = 1e-9, 1e-6, 1e-3


@dataclass(frozen=True)
class Run:
    """One certification; what is not said here is that of ``problem``."""

    threat: Any
    options: Mapping[str, Any]
    loss: str = "bce"
    training: Mapping[str, Any] = field(default_factory=dict)
    hidden: tuple[int, ...] = (3,)
    activation: Callable[[], nn.Module] = nn.ReLU
    samples: int = 6
    features: int = 2
    body: Callable[[], list[nn.Module]] | None = None
    initial: float | None = None
    asks: tuple[str, ...] = ()
    carried: bool = False  # whether a zonotope may be carried beside linear forms

    @property
    def zonotope(self) -> bool:
        return self.carried or self.options.get("relaxation") == "zonotope"

    @property
    def tolerance(self) -> float:
        """On a machine that rounds differently."""
        if self.zonotope:
            return OF_CHOICES
        programs = self.options.get("relaxation") in ("lp", "milp", "qcqp", "miqp")
        return OF_PROGRAMS if programs else OF_FORMS

    def problem(self) -> tuple[Problem, torch.Tensor, torch.Tensor]:
        """A multilayer perceptron (behind ``body``, if there is one), and test points."""
        width = self.features**2 if self.body else self.features
        x, y, test, labels = map(on_grid, data(self.loss, self.samples, width))
        for columns in getattr(self.threat, "categorical", ()):
            x[:, list(columns)] = torch.eye(len(columns)).double()[x[:, list(columns)].argmax(1)]
        for column in getattr(self.threat, "integer", ()):
            x[:, column] = x[:, column].round()
        if self.body is None:
            model = network((width, *self.hidden, OUTPUTS[self.loss]), self.activation)
        else:
            x, test = (t.reshape(-1, 1, self.features, self.features) for t in (x, test))
            model = behind(self.body, x, OUTPUTS[self.loss])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(on_grid(parameter))
        training = agt.Training(
            **({"loss": self.loss, "learning_rate": 0.3, "epochs": 3} | dict(self.training))
        )
        initial = None
        if self.initial is not None:
            state = {n: v.detach().numpy() for n, v in model.state_dict().items()}
            initial = {n: (v - self.initial, v + self.initial) for n, v in state.items()}
        return Problem(model, x, y, training, self.threat, initial), test[:6], labels[:6]


def on_grid(values: torch.Tensor) -> torch.Tensor:
    """Multiples of 2^-10: random numbers, drawn in float32 for parameters, depend on the machine."""
    return (values * 1024.0).round() / 1024.0 if values.is_floating_point() else values


def behind(body: Callable[[], list[nn.Module]], x: torch.Tensor, outputs: int) -> nn.Sequential:
    """These layers, and a dense one on all that they give."""
    torch.manual_seed(0)
    layers = nn.Sequential(*body(), nn.Flatten()).double()
    with torch.no_grad():
        width = layers(x[:1]).shape[1]
    return nn.Sequential(*layers, nn.Linear(width, outputs).double())


def frozen_convolution() -> list[nn.Module]:
    return [nn.Conv2d(1, 2, 2).requires_grad_(False), nn.ReLU(), nn.MaxPool2d(2, 1)]


def convolution() -> list[nn.Module]:
    return [nn.Conv2d(1, 2, 2), nn.ReLU(), nn.AvgPool2d(2, 1)]


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


SINGLE = {"selections": "joint", "inner_bounds": "interval"}
LINEAR: dict[str, Any] = {"relaxation": "linear", "window": None} | SINGLE
ONE_STEP: dict[str, Any] = {"relaxation": "linear", "window": 1} | SINGLE
# Without a limit of time, and trees that end by themselves: what a tree has when it is stopped would
# depend on the machine.
PROGRAM: dict[str, Any] = {
    **SINGLE,
    "window": 1,
    "solver": "highs",
    "solve_limits": agt.Limits(time=None, gap=1e-9),
}
MINI: dict[str, Any] = {"epochs": 2, "batch_size": 3, "shuffle_seed": 0}
TINY: dict[str, Any] = {"hidden": (2,), "samples": 3}

# Pairs of threats, levels, selections and trainings, not all products.
RUNS: dict[str, Run] = {
    "interval, features": Run(agt.FeaturePoisoning(2, 0.1), {"relaxation": "interval"},
        "cross_entropy", MINI | {"momentum": 0.5, "schedule": agt.StepDecay(2, 0.5)},
        asks=("accuracy", "loss")),
    "interval, initial box, l1 and projection": Run(
        agt.FeatureLabelPoisoning(1, 0.1, label_radius=0.3, scope="batch"),
        {"relaxation": "interval"},
        "mse",
        MINI | {"l1": 0.01, "projection": (-0.6, 0.5)},
        activation=nn.Tanh,
        initial=0.01,
        asks=("functional",),
    ),
    "many samples": Run(agt.LabelPoisoning(5), LINEAR | {"inner_bounds": None},
        training={"epochs": 2}, hidden=(8,), samples=3000, asks=("accuracy",)),
    "little memory": Run(agt.FeatureLabelPoisoning(2, 0.1, norm=2, static=False),
        LINEAR | {"inner_bounds": "linear", "memory": 1024}, "cross_entropy", asks=("loss",)),
    "defaults": Run(agt.FeaturePoisoning(1, 0.05), {"selections": None}, "cross_entropy",
        asks=("accuracy",)),
    "window 1, adaptive features in norm 2": Run(
        agt.FeaturePoisoning(1, 0.1, norm=2, static=False, scope="batch"),
        ONE_STEP,
        training=MINI | {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
        activation=nn.Tanh,
        asks=("loss",),
    ),
    "whole run, features in norm 1 inside a domain": Run(
        agt.FeaturePoisoning(
            2, np.array([0.1, 0.2]), norm=1, domain=(-3.0, 3.0), samples=[0, 2, 3]
        ),
        LINEAR | {"inner_bounds": "linear"},
        "mse",
        {"schedule": agt.CosineDecay(floor=0.05)},
        activation=nn.Sigmoid,
        asks=("functional", "loss"),
    ),
    "window 2, features in norm 0 with gaps and categories": Run(
        agt.FeaturePoisoning(
            1, 0.2, norm=0, coordinates=1, integer=[1], categorical=[(2, 3)], missing={0: 0.5}
        ),
        LINEAR | {"window": 2},
        "hinge",
        {"l1": 0.01, "weight_decay": 0.1, "epochs": 4},
        activation=leaky,
        features=4,
    ),
    "enumerated, moved targets": Run(agt.LabelPoisoning(2, 0.3, norm=2, samples=[0, 1, 4, 5]),
        LINEAR | {"selections": "enumerated"}, "mse",
        MINI | {"schedule": agt.InverseTimeDecay(0.5, unit="epoch")}, activation=nn.Tanh,
        asks=("loss",)),
    "enumerated, separate budgets": Run(
        agt.SeparatePoisoning(
            agt.FeaturePoisoning(1, 0.1, samples=[0, 2, 3]),
            agt.LabelPoisoning(1, samples=[1, 2], target=[0, 2]),
        ),
        LINEAR | {"selections": "enumerated", "inner_bounds": "linear"},
        "cross_entropy",
        asks=("functional",),
    ),
    "substitution, clipped by norm": Run(agt.Substitution(1, static=False, scope="batch"), LINEAR,
        training=MINI | {"clip": 0.3, "momentum": 0.5}, asks=("accuracy",)),
    "insertion, clamped": Run(agt.Insertion(1), ONE_STEP | {"inner_bounds": "linear"},
        training={"clip": 0.3, "clip_mode": "clamp", "weight_decay": 0.1}, activation=nn.Sigmoid,
        asks=("loss",)),
    "listed, removal with batches that may be emptied": Run(agt.Removal(2),
        LINEAR | {"selections": "enumerated"}, "mse",
        {"epochs": 2, "batch_size": 2, "momentum": 0.5}, samples=4, activation=leaky,
        asks=("functional",)),
    "frozen convolution": Run(agt.FeatureLabelPoisoning(1, 0.05),
        LINEAR | {"inner_bounds": "linear", "selections": "enumerated"}, "cross_entropy",
        features=3, body=frozen_convolution, asks=("accuracy",)),
    "convolution and pooling": Run(agt.FeaturePoisoning(1, 0.02), LINEAR, samples=4, features=3,
        body=convolution),
    "lp, window 2, features under rows": Run(
        agt.FeaturePoisoning(1, 0.1, rows=([[1.0, 1.0]], [0.05])),
        PROGRAM | {"relaxation": "lp", "program_window": 2},
        hidden=(2,),
        samples=4,
        asks=("accuracy", "functional"),
    ),
    "lp, separate budgets, adaptive": Run(
        agt.SeparatePoisoning(
            agt.FeaturePoisoning(1, 0.05, static=False, scope="batch"),
            agt.LabelPoisoning(1, static=False, scope="batch"),
        ),
        PROGRAM | {"relaxation": "lp"},
        "cross_entropy",
        {"epochs": 1, "batch_size": 2, "momentum": 0.5, "clip": 0.3},
        hidden=(2,),
        samples=4,
    ),
    "lp, enumerated, removal": Run(agt.Removal(1, scope="dataset"),
        PROGRAM | {"relaxation": "lp", "selections": "enumerated"},
        training={"epochs": 2, "weight_decay": 0.1}, asks=("loss",), **TINY),
    "milp, substitution": Run(agt.Substitution(1), PROGRAM | {"relaxation": "milp"}, "hinge",
        {"epochs": 2, "clip": 0.3, "clip_mode": "clamp"}, **TINY),
    "qcqp, targets": Run(agt.LabelPoisoning(1, 0.3), PROGRAM | {"relaxation": "qcqp"}, "mse",
        {"epochs": 2}, **TINY),
    "miqp, features": Run(agt.FeaturePoisoning(1, 0.3), PROGRAM | {"relaxation": "miqp"}, "mse",
        {"epochs": 2}, hidden=(1,), activation=leaky, samples=3, asks=("functional",)),
    "zonotope, features and momentum": Run(agt.FeaturePoisoning(2, 0.1, norm=2),
        {"relaxation": "zonotope"}, "cross_entropy",
        MINI | {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1, "epochs": 3},
        asks=("accuracy", "loss")),
    "zonotope, labels": Run(agt.LabelPoisoning(1), {"relaxation": "zonotope"}, activation=leaky,
        asks=("accuracy",)),
    "zonotope, both, clipping, penalty and projection": Run(
        agt.FeatureLabelPoisoning(1, 0.1, label_radius=0.3),
        {"relaxation": "zonotope"},
        "mse",
        {"clip": 0.5, "l1": 0.01, "projection": (-0.6, 0.5)},
        activation=nn.Tanh,
        initial=0.01,
        asks=("functional",),
    ),
    "zonotope beside linear forms": Run(agt.FeaturePoisoning(1, 0.2), {"relaxation": "linear"},
        "hinge", MINI, carried=True, asks=("accuracy",)),
}  # fmt: skip
