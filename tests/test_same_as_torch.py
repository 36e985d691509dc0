"""Every layer, loss and option of training: the graph trains as torch does, on kinks too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checks_steps import mlp, small_data
from draws import TOL
from pairs import every_value
from same_run import LOSSES, MODELS, assert_same_run, data_for, dense, graph_states, torch_loss
from torch import nn

from milp_agt.formulations.loss import get_loss, losses
from milp_agt.training.tracing import trace
from milp_agt.training.training import Training


@every_value(name=list(MODELS), loss=["mse", "bce"])
def test_every_layer_trains_as_torch(name: str, loss: str) -> None:
    torch.manual_seed(1)
    data = small_data(7, 2, 0 if loss == "mse" else 2, seed=2)
    training = Training(
        loss=loss, learning_rate=0.2, epochs=4, momentum=0.5, nesterov=True, weight_decay=0.1
    )
    assert_same_run(MODELS[name](), data, training)


@pytest.mark.parametrize(
    "flatten", [nn.Flatten(), nn.Flatten(1, 2), nn.Flatten(-2, -1), nn.Flatten(2)]
)
def test_flatten_of_two_dimensional_features(flatten: nn.Flatten) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, 2).double()
    layers = [flatten, dense(4, 3), nn.ReLU(), dense(3, 1)]
    if flatten.start_dim == 2:
        # Nothing is merged: a Flatten of the whole sample still has to follow.
        layers.insert(1, nn.Flatten())
    model = nn.Sequential(*layers)
    assert_same_run(
        model, (x, torch.arange(6) % 2), Training(loss="bce", learning_rate=0.3, epochs=3)
    )


def test_flatten_after_layers_and_of_features_with_three_axes() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, 1, 3).double()
    model = nn.Sequential(nn.ReLU(), nn.Flatten(1, 2), nn.Flatten(), dense(6, 2), nn.Flatten())
    assert_same_run(model, (x, torch.arange(5) % 2), Training(loss="cross_entropy", epochs=3))


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "decay": {"weight_decay": 0.3},
    "momentum": {"momentum": 0.9},
    "momentum-decay": {"momentum": 0.9, "weight_decay": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov-decay": {"momentum": 0.5, "nesterov": True, "weight_decay": 2.0},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_optimiser_option_trains_as_torch(name: str, options: str) -> None:
    loss, outputs = LOSSES[name]
    training = Training(loss=loss, learning_rate=0.3, epochs=5, **OPTIONS[options])
    assert_same_run(mlp(2, 4, outputs, seed=5), data_for(loss, outputs), training)


def test_all_losses_are_tested() -> None:
    assert {loss for loss, _ in LOSSES.values()} == set(losses())


def test_single_targets_of_any_shape() -> None:
    x, y = small_data(5, 2, 0, seed=0)
    for target in (y, y.reshape(-1, 1)):
        assert_same_run(mlp(2, 3, 1), (x, target), Training(loss="mse", epochs=2))


@pytest.mark.parametrize("activation", [nn.ReLU, lambda: nn.LeakyReLU(0.1)], ids=["relu", "leaky"])
def test_points_on_the_kink_of_an_activation(activation: Callable[[], nn.Module]) -> None:
    """z = 0 exactly for one sample and both units: torch takes the left derivative."""
    model = mlp(2, 2, 1, activation=activation)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 2.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -4.0]))
    x = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, -0.5]]).double()
    z = model[0](x)
    assert int((z == 0).sum()) == 3
    assert_same_run(model, (x, torch.tensor([0, 1, 1])), Training(loss="bce", epochs=3))


def test_points_on_the_kink_of_the_hinge() -> None:
    """1 - y f = 0 exactly: the derivative is 0."""
    model = nn.Sequential(dense(1, 1, bias=False))
    nn.init.constant_(model[0].weight, 1.0)
    x, y = torch.tensor([[1.0], [-1.0], [0.5]]).double(), torch.tensor([1, 0, 1])
    on_kink = 1.0 - (2.0 * y.double() - 1.0) * model(x)[:, 0]
    assert (on_kink[:2] == 0).all()
    assert_same_run(model, (x, y), Training(loss="hinge", learning_rate=0.5, epochs=1))
    step_graph = trace(model, "hinge", (1,))
    (state,) = graph_states(step_graph, (x[:2], y[:2]), Training(loss="hinge"))
    assert state["0.weight"].item() == 1.0


def test_an_all_zero_relu_network_stays_where_torch_leaves_it() -> None:
    model = mlp(2, 3, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert_same_run(model, data_for("bce", 1), Training(loss="bce", learning_rate=1.0, epochs=3))


@pytest.mark.parametrize("name", LOSSES)
def test_loss_values_agree_with_torch(name: str) -> None:
    loss, outputs = LOSSES[name]
    rng = np.random.default_rng(0)
    f = torch.from_numpy(4.0 * rng.normal(size=(9, outputs)))
    _, raw = data_for(loss, outputs, samples=9)
    rule = get_loss(loss)
    own = rule.value(f, rule.encode(raw, outputs))
    assert own.shape == (9,)
    for i in range(9):
        expected = torch_loss(loss, f[i : i + 1], raw[i : i + 1])
        assert float((own[i] - expected).abs()) <= TOL.torch * (1.0 + float(expected))
