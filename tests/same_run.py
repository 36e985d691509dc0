"""Runs of the graph and of plain torch, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from checks_steps import mlp, small_data
from draws import TOL
from torch import Tensor, nn
from torch.nn import functional

from milp_agt.bounds.step import NodeOrder, step_at_points, velocity_of
from milp_agt.training.inputs import labels_of
from milp_agt.training.tracing import StepGraph, trace
from milp_agt.training.training import Training

Batches = Sequence[Sequence[int]]


def torch_loss(loss: str, prediction: Tensor, labels: Tensor) -> Tensor:
    """The mean loss from raw labels, as a user writes it in torch."""
    if loss == "mse":
        return functional.mse_loss(prediction, labels.reshape(prediction.shape))
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(prediction[:, 0], labels.double())
    if loss == "hinge":
        return torch.relu(1.0 - (2.0 * labels.double() - 1.0) * prediction[:, 0]).mean()
    return functional.cross_entropy(prediction, labels)


def torch_states(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    training: Training,
    batches: Batches,
    rates: Sequence[float],
) -> list[dict[str, Tensor]]:
    """Trainable parameters after every step of torch.optim.SGD on a copy of the model."""
    import copy

    model = copy.deepcopy(model).double()
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=1.0,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )
    states = []
    for batch, rate in zip(batches, rates, strict=True):
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        torch_loss(training.loss, model(data[0][batch]), data[1][batch]).backward()
        optimiser.step()
        states.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return states


def graph_states(
    step_graph: StepGraph, data: tuple[Tensor, Tensor], training: Training
) -> list[dict[str, Tensor]]:
    schedule = NodeOrder.of(step_graph)
    labels = labels_of(data[1], len(data[0]), step_graph.loss, step_graph.outputs)
    batches = training.batch_order(len(data[0]))
    state = dict(step_graph.initial)
    if training.momentum > 0:
        state |= {velocity_of(n): torch.zeros_like(v) for n, v in step_graph.initial.items()}
    states = []
    for batch, rule in zip(batches, training.update_rules(len(batches)), strict=True):
        state = step_at_points(step_graph, schedule, state, data[0][batch], labels[batch], rule)
        states.append(state)
    return states


def assert_same_run(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    training: Training,
    batches: Batches | None = None,
    rates: Sequence[float] | None = None,
) -> None:
    step_graph = trace(model, training.loss, tuple(data[0].shape[1:]))
    ours = graph_states(step_graph, data, training)
    if batches is None:
        batches = [list(range(len(data[0])))] * training.epochs
    rates = [training.learning_rate] * len(batches) if rates is None else rates
    theirs = torch_states(model, data, training, batches, rates)
    assert len(ours) == len(theirs)
    for step, (own, expected) in enumerate(zip(ours, theirs, strict=True)):
        for name in step_graph.parameters:
            scale = 1.0 + float(expected[name].abs().max())
            gap = float((own[name] - expected[name]).abs().max())
            assert gap <= TOL.torch * scale, f"'{name}' differs by {gap:.2e} after step {step + 1}"


def dense(a: int, b: int, bias: bool = True, frozen: bool = False) -> nn.Linear:
    layer = nn.Linear(a, b, bias=bias).double()
    return layer.requires_grad_(not frozen)


def shared_module() -> nn.Module:
    twice = dense(2, 2)
    return nn.Sequential(twice, nn.Tanh(), twice, nn.ReLU(), dense(2, 1))


def shared_parameter() -> nn.Module:
    model = nn.Sequential(dense(2, 2), nn.Sigmoid(), dense(2, 2), nn.ReLU(), dense(2, 1))
    model[2].weight = model[0].weight
    return model


def shared_activation() -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(dense(2, 3), relu, dense(3, 3), relu, dense(3, 1))


def frozen_bias() -> nn.Module:
    model = mlp(2, 3, 1)
    model[0].bias.requires_grad_(False)
    return model


def frozen_weight() -> nn.Module:
    model = mlp(2, 3, 1)
    model[0].weight.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "depth-1": lambda: nn.Sequential(dense(2, 1)),
    "bare-linear": lambda: dense(2, 1),
    "depth-2": lambda: mlp(2, 3, 1),
    "depth-3": lambda: mlp(2, 3, 4, 1),
    "depth-4": lambda: mlp(2, 3, 2, 3, 1),
    "leaky": lambda: mlp(2, 3, 1, activation=lambda: nn.LeakyReLU(0.1)),
    "leaky-negative": lambda: mlp(2, 3, 1, activation=lambda: nn.LeakyReLU(-0.2)),
    "leaky-steep": lambda: mlp(2, 3, 1, activation=lambda: nn.LeakyReLU(1.5)),
    "leaky-identity": lambda: mlp(2, 3, 1, activation=lambda: nn.LeakyReLU(1.0)),
    "sigmoid": lambda: mlp(2, 3, 3, 1, activation=nn.Sigmoid),
    "tanh": lambda: mlp(2, 3, 3, 1, activation=nn.Tanh),
    "no-bias": lambda: nn.Sequential(dense(2, 3, bias=False), nn.ReLU(), dense(3, 1, bias=False)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(dense(2, 3), nn.Sequential(nn.ReLU())), nn.Sequential(dense(3, 1))
    ),
    "two-activations": lambda: nn.Sequential(dense(2, 3), nn.ReLU(), nn.Tanh(), dense(3, 1)),
    "no-activation": lambda: nn.Sequential(dense(2, 3), dense(3, 1)),
    "first-activation": lambda: nn.Sequential(nn.Tanh(), dense(2, 1)),
    "last-activation": lambda: nn.Sequential(dense(2, 1), nn.LeakyReLU(0.2)),
    "shared-module": shared_module,
    "shared-parameter": shared_parameter,
    "shared-activation": shared_activation,
    "frozen-first": lambda: nn.Sequential(dense(2, 3, frozen=True), nn.ReLU(), dense(3, 1)),
    "frozen-middle": lambda: nn.Sequential(
        dense(2, 3), nn.Tanh(), dense(3, 3, frozen=True), nn.ReLU(), dense(3, 1)
    ),
    "frozen-last": lambda: nn.Sequential(dense(2, 3), nn.ReLU(), dense(3, 1, frozen=True)),
    "frozen-no-bias": lambda: nn.Sequential(
        dense(2, 3, bias=False, frozen=True), nn.ReLU(), dense(3, 1)
    ),
    "frozen-bias": frozen_bias,
    "frozen-weight": frozen_weight,
}
LOSSES = {
    "mse-1": ("mse", 1),
    "mse-3": ("mse", 3),
    "bce": ("bce", 1),
    "hinge": ("hinge", 1),
    "cross_entropy-2": ("cross_entropy", 2),
    "cross_entropy-3": ("cross_entropy", 3),
    "cross_entropy-5": ("cross_entropy", 5),
}


def data_for(loss: str, outputs: int, samples: int = 7) -> tuple[Tensor, Tensor]:
    if loss == "mse":
        x, _ = small_data(samples, 2, 0, seed=3)
        return x, torch.from_numpy(np.random.default_rng(4).normal(size=(samples, outputs)))
    return small_data(samples, 2, max(outputs, 2), seed=3)
