"""The step graph at points: torch autograd and torch.optim.SGD are reproduced; tracing refuses the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
import pytest
import torch
from checks_steps import mlp, small_data
from draws import TOL
from torch import Tensor, nn
from torch.nn import functional

from milp_agt.core.evaluate import evaluate
from milp_agt.core.interval import Interval
from milp_agt.engines.step import Schedule, step_at_points, velocity_of
from milp_agt.errors import EncodingError, InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.leaves import Features
from milp_agt.formulations.loss import get_loss, losses
from milp_agt.formulations.relu import Relu
from milp_agt.inputs import labels_of
from milp_agt.schedules import InverseTimeDecay
from milp_agt.tracing import FEATURES, LABELS, StepGraph, supported_layers, trace
from milp_agt.training import Training

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
    schedule = Schedule.of(step_graph)
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


def _linear(a: int, b: int, bias: bool = True, frozen: bool = False) -> nn.Linear:
    layer = nn.Linear(a, b, bias=bias).double()
    return layer.requires_grad_(not frozen)


def shared_module() -> nn.Module:
    twice = _linear(2, 2)
    return nn.Sequential(twice, nn.Tanh(), twice, nn.ReLU(), _linear(2, 1))


def shared_parameter() -> nn.Module:
    model = nn.Sequential(_linear(2, 2), nn.Sigmoid(), _linear(2, 2), nn.ReLU(), _linear(2, 1))
    model[2].weight = model[0].weight
    return model


def shared_activation() -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(_linear(2, 3), relu, _linear(3, 3), relu, _linear(3, 1))


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
    "depth-1": lambda: nn.Sequential(_linear(2, 1)),
    "bare-linear": lambda: _linear(2, 1),
    "depth-2": lambda: mlp(2, 3, 1),
    "depth-3": lambda: mlp(2, 3, 4, 1),
    "depth-4": lambda: mlp(2, 3, 2, 3, 1),
    "leaky": lambda: mlp(2, 3, 1, activation=lambda: nn.LeakyReLU(0.1)),
    "leaky-negative": lambda: mlp(2, 3, 1, activation=lambda: nn.LeakyReLU(-0.2)),
    "leaky-steep": lambda: mlp(2, 3, 1, activation=lambda: nn.LeakyReLU(1.5)),
    "leaky-identity": lambda: mlp(2, 3, 1, activation=lambda: nn.LeakyReLU(1.0)),
    "sigmoid": lambda: mlp(2, 3, 3, 1, activation=nn.Sigmoid),
    "tanh": lambda: mlp(2, 3, 3, 1, activation=nn.Tanh),
    "no-bias": lambda: nn.Sequential(
        _linear(2, 3, bias=False), nn.ReLU(), _linear(3, 1, bias=False)
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(_linear(2, 3), nn.Sequential(nn.ReLU())), nn.Sequential(_linear(3, 1))
    ),
    "two-activations": lambda: nn.Sequential(_linear(2, 3), nn.ReLU(), nn.Tanh(), _linear(3, 1)),
    "no-activation": lambda: nn.Sequential(_linear(2, 3), _linear(3, 1)),
    "first-activation": lambda: nn.Sequential(nn.Tanh(), _linear(2, 1)),
    "last-activation": lambda: nn.Sequential(_linear(2, 1), nn.Tanh()),
    "shared-module": shared_module,
    "shared-parameter": shared_parameter,
    "shared-activation": shared_activation,
    "frozen-first": lambda: nn.Sequential(_linear(2, 3, frozen=True), nn.ReLU(), _linear(3, 1)),
    "frozen-middle": lambda: nn.Sequential(
        _linear(2, 3), nn.Tanh(), _linear(3, 3, frozen=True), nn.ReLU(), _linear(3, 1)
    ),
    "frozen-last": lambda: nn.Sequential(_linear(2, 3), nn.ReLU(), _linear(3, 1, frozen=True)),
    "frozen-no-bias": lambda: nn.Sequential(
        _linear(2, 3, bias=False, frozen=True), nn.ReLU(), _linear(3, 1)
    ),
    "frozen-bias": frozen_bias,
    "frozen-weight": frozen_weight,
}


@pytest.mark.parametrize("loss", ["mse", "bce"])
@pytest.mark.parametrize("name", MODELS)
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
    layers = [flatten, _linear(4, 3), nn.ReLU(), _linear(3, 1)]
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
    model = nn.Sequential(nn.ReLU(), nn.Flatten(1, 2), nn.Flatten(), _linear(6, 2), nn.Flatten())
    assert_same_run(model, (x, torch.arange(5) % 2), Training(loss="cross_entropy", epochs=3))


LOSSES = {
    "mse-1": ("mse", 1),
    "mse-3": ("mse", 3),
    "bce": ("bce", 1),
    "hinge": ("hinge", 1),
    "cross_entropy-2": ("cross_entropy", 2),
    "cross_entropy-3": ("cross_entropy", 3),
    "cross_entropy-5": ("cross_entropy", 5),
}

OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "decay": {"weight_decay": 0.3},
    "momentum": {"momentum": 0.9},
    "momentum-decay": {"momentum": 0.9, "weight_decay": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov-decay": {"momentum": 0.5, "nesterov": True, "weight_decay": 2.0},
}


def data_for(loss: str, outputs: int, samples: int = 7) -> tuple[Tensor, Tensor]:
    if loss == "mse":
        x, _ = small_data(samples, 2, 0, seed=3)
        return x, torch.from_numpy(np.random.default_rng(4).normal(size=(samples, outputs)))
    return small_data(samples, 2, max(outputs, 2), seed=3)


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


# -------------------------------------------------------------------------- batches and schedules


def test_incomplete_last_batch_has_its_own_size() -> None:
    training = Training(loss="bce", learning_rate=0.3, epochs=2, batch_size=3, momentum=0.9)
    expected = [[0, 1, 2], [3, 4, 5], [6]] * 2
    assert [b.tolist() for b in training.batch_order(7)] == expected
    assert_same_run(mlp(2, 3, 1), data_for("bce", 1), training, expected)


def test_shuffled_batches_are_a_new_permutation_in_each_epoch() -> None:
    training = Training(loss="bce", epochs=3, batch_size=4, shuffle_seed=8)
    generator = np.random.default_rng(8)
    expected: list[list[int]] = []
    for _ in range(3):
        order = generator.permutation(7).tolist()
        expected += [order[:4], order[4:]]
    assert [b.tolist() for b in training.batch_order(7)] == expected
    assert expected[0] != expected[2]
    assert_same_run(mlp(2, 3, 1), data_for("bce", 1), training, expected)


def test_recorded_batches() -> None:
    batches = [[3, 1], [0, 6, 5, 2], [4]]
    training = Training(loss="hinge", learning_rate=0.2, batches=batches, momentum=0.5)
    assert_same_run(mlp(2, 3, 1), data_for("hinge", 1), training, batches)


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    assert [b.tolist() for b in Training(loss="mse", batch_size=9).batch_order(3)] == [[0, 1, 2]]


@pytest.mark.parametrize("batches", [[[0, 0]], [[]], [[7]], [[-1]]])
def test_bad_recorded_batches_are_refused(batches: Batches) -> None:
    with pytest.raises(InvalidInputError):
        Training(loss="mse", batches=batches).batch_order(7)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (None, [0.4] * 4),
        (InverseTimeDecay(0.5), [0.4, 0.4 / 1.5, 0.4 / 2.0, 0.4 / 2.5]),
        (InverseTimeDecay(0.5, floor=0.25), [0.4, 0.4 / 1.5, 0.25, 0.25]),
        ([0.1, 0.4, 0.2, 0.3], [0.1, 0.4, 0.2, 0.3]),
    ],
    ids=["constant", "decay", "floor", "list"],
)
def test_learning_rate_schedules(schedule: object, rates: list[float]) -> None:
    training = Training(
        loss="cross_entropy",
        learning_rate=0.4,
        epochs=4,
        schedule=schedule,
        momentum=0.9,
        nesterov=True,
    )
    assert_same_run(mlp(2, 3, 3), data_for("cross_entropy", 3), training, rates=rates)


def test_a_schedule_that_is_too_short_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="4 steps"):
        Training(loss="mse", epochs=4, schedule=[0.1]).update_rules(4)


# ------------------------------------------------------------------------------------------ kinks


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
    model = nn.Sequential(_linear(1, 1, bias=False))
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


# -------------------------------------------------------------------------- the graph as an object


def test_many_attacks_at_once_equal_one_at_a_time() -> None:
    model = mlp(2, 3, 3, activation=nn.Tanh)
    step_graph = trace(model, "cross_entropy", (2,))
    schedule = Schedule.of(step_graph)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2, 4, 5, 2)))
    y = get_loss("cross_entropy").encode(torch.from_numpy(rng.integers(0, 3, (2 * 4 * 5))), 3)
    y = y.reshape(2, 4, 5, 3)
    rule = Training(loss="cross_entropy").update_rules(1)[0]
    state = {
        n: v + 0.1 * torch.from_numpy(rng.normal(size=(2, 4, *v.shape)))
        for n, v in step_graph.initial.items()
    }
    many = step_at_points(step_graph, schedule, state, x, y, rule)
    for a in range(2):
        for b in range(4):
            one = {n: v[a, b] for n, v in state.items()}
            single = step_at_points(step_graph, schedule, one, x[a, b], y[a, b], rule)
            for name, value in single.items():
                assert torch.allclose(many[name][a, b], value, rtol=0, atol=TOL.torch)


NAMES = [
    "features",
    "0.weight",
    "0.bias",
    "bilinear/0.weight",
    "0:z",
    "1:h",
    "2.weight",
    "2.bias",
    "bilinear/2.weight",
    "2:z",
    "labels",
    "probability",
    "loss_gradient",
    "sum_samples/loss_gradient",
    "bilinear/loss_gradient",
    "sum_samples/bilinear/loss_gradient",
    "bilinear/loss_gradient#2",
    "step/0:z",
    "bilinear/bilinear/loss_gradient#2",
    "sum_samples/bilinear/bilinear/loss_gradient#2",
    "bilinear/bilinear/bilinear/loss_gradient#2",
    "sum_samples/bilinear/bilinear/bilinear/loss_gradient#2",
]


def test_names_are_stable_strings() -> None:
    graphs = [trace(mlp(2, 3, 1, seed=s), "bce", (2,)) for s in (0, 1)]
    names = [[n.name for n in g.graph] for g in graphs]
    assert names[0] == names[1]
    assert names[0] == NAMES
    assert graphs[0].parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert graphs[0].output == "2:z"
    assert set(graphs[0].gradients) == set(graphs[0].parameters)


def test_a_module_used_twice_has_one_parameter_node() -> None:
    step_graph = trace(shared_module(), "bce", (2,))
    assert step_graph.parameters == ("0.weight", "0.bias", "4.weight", "4.bias")
    assert dict(step_graph.aliases) == {"2.weight": "0.weight", "2.bias": "0.bias"}
    assert "2:z" in step_graph.graph
    assert dict(trace(shared_parameter(), "bce", (2,)).aliases) == {"2.weight": "0.weight"}


def test_frozen_parameters_are_constants() -> None:
    step_graph = trace(MODELS["frozen-middle"](), "bce", (2,))
    assert step_graph.parameters == ("0.weight", "0.bias", "4.weight", "4.bias")
    assert set(step_graph.frozen) == {"2.weight", "2.bias"}
    assert step_graph.parameter_count == 2 * 3 + 3 + 3 + 1


@pytest.mark.parametrize("name", MODELS)
def test_networkx_view_is_a_dag_with_attributes(name: str) -> None:
    graph = trace(MODELS[name](), "bce", (2,)).graph
    view = graph.nx
    assert nx.is_directed_acyclic_graph(view)
    assert list(view) == [n.name for n in graph]
    position = {n.name: k for k, n in enumerate(graph)}
    for node in graph:
        assert view.nodes[node.name] == {
            "op": node.op.key,
            "shape": node.shape,
            "batched": node.batched,
        }
        assert set(view.predecessors(node.name)) == set(node.inputs)
        assert all(position[i] < position[node.name] for i in node.inputs)
    assert view.nodes[FEATURES]["op"] == "features"
    assert view.nodes[LABELS]["batched"] is True


def test_shapes_agree_with_values() -> None:
    step_graph = trace(mlp(2, 3, 3), "cross_entropy", (2,))
    x, y = data_for("cross_entropy", 3)
    leaves = dict(step_graph.initial) | {FEATURES: x, LABELS: step_graph.loss.encode(y, 3)}
    values = evaluate(step_graph.graph, leaves)
    for node in step_graph.graph:
        lead = (len(x),) if node.batched else ()
        assert values[node.name].shape == (*lead, *node.shape), node.name
    assert torch.allclose(values[step_graph.output], mlp(2, 3, 3)(x), atol=TOL.torch)


def test_schedule_parts_the_nodes_at_the_sums() -> None:
    step_graph = trace(mlp(2, 3, 1), "bce", (2,))
    schedule = Schedule.of(step_graph)
    assert len(schedule.sums) == 4
    assert not any(n.op.key == "sum_samples" for n in (*schedule.before, *schedule.after))
    assert {step_graph.gradients[p] for p in step_graph.parameters} <= {
        n.name for n in schedule.all
    }
    assert not any(n.batched for n in (*schedule.sums, *schedule.after))


def test_the_model_is_copied() -> None:
    model = mlp(2, 3, 1)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    step_graph = trace(model, "bce", (2,))
    step_graph.initial["0.weight"].add_(1.0)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_float32_models_are_converted() -> None:
    step_graph = trace(mlp(2, 3, 1).float(), "bce", (2,))
    assert all(v.dtype == torch.float64 for v in step_graph.initial.values())


def test_graph_refuses_taken_names_and_foreign_nodes() -> None:
    graph = trace(mlp(2, 1), "bce", (2,)).graph
    with pytest.raises(EncodingError, match="exists"):
        graph.add(Features((2,)), name=FEATURES)
    other = trace(mlp(2, 3, 1), "bce", (2,)).graph
    with pytest.raises(EncodingError, match="no such node"):
        graph.add(Relu(), other["0:z"])


# --------------------------------------------------------------------------------------- refusals


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


class DoubledSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class DoubledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


UNSUPPORTED: dict[str, nn.Module] = {
    "Conv1d": nn.Conv1d(1, 1, 2),
    "AlphaDropout": nn.AlphaDropout(),
    "LayerNorm": nn.LayerNorm(2),
    "Softmax": nn.Softmax(dim=1),
    "Doubled": Doubled(),
    "DoubledLinear": DoubledLinear(2, 2),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_layers_are_refused_by_name_with_the_list(name: str) -> None:
    model = nn.Sequential(_linear(2, 2), nn.Sequential(UNSUPPORTED[name]), _linear(2, 1))
    with pytest.raises(UnsupportedOperationError) as error:
        trace(model, "bce", (2,))
    assert name in str(error.value)
    assert "'1.0'" in str(error.value)
    for layer in supported_layers():
        assert layer in error.value.remedy


def test_a_subclass_of_sequential_with_its_own_forward_is_refused() -> None:
    with pytest.raises(UnsupportedOperationError, match="DoubledSequential"):
        trace(DoubledSequential(_linear(2, 1)), "bce", (2,))


@pytest.mark.parametrize("kind", ["forward", "pre"])
def test_layers_with_hooks_are_refused(kind: str) -> None:
    model = mlp(2, 3, 1)
    if kind == "forward":
        model[0].register_forward_hook(lambda module, args, out: 2.0 * out)
    else:
        model[2].register_forward_pre_hook(lambda module, args: (2.0 * args[0],))
    with pytest.raises(UnsupportedOperationError, match="hook"):
        trace(model, "bce", (2,))


def test_supported_layers() -> None:
    assert set(supported_layers()) == {
        "AdaptiveAvgPool2d",
        "AvgPool2d",
        "BatchNorm1d",
        "BatchNorm2d",
        "Conv2d",
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Flatten",
        "Identity",
        "LeakyReLU",
        "Linear",
        "MaxPool2d",
        "ReLU",
        "Sequential",
        "Sigmoid",
        "Tanh",
    }


def test_unsupported_losses_are_refused_with_the_list() -> None:
    with pytest.raises(UnsupportedOperationError) as error:
        trace(mlp(2, 1), "huber", (2,))
    assert "huber" in str(error.value)
    for loss in losses():
        assert loss in error.value.remedy


@pytest.mark.parametrize(
    ("model", "loss", "shape", "words"),
    [
        (mlp(3, 1), "bce", (2,), "Linear"),
        (mlp(2, 2), "bce", (2,), "one output"),
        (mlp(2, 1), "cross_entropy", (2,), "each class"),
        (nn.Sequential(nn.ReLU()), "mse", (2,), "trainable"),
        (mlp(2, 1).requires_grad_(False), "mse", (2,), "trainable"),
        (mlp(4, 1), "bce", (2, 2), "Flatten"),
        (nn.Sequential(_linear(2, 1), nn.Flatten(0)), "bce", (2,), "Flatten|flatten"),
    ],
    ids=["sizes", "two-logits", "one-class", "nothing", "all-frozen", "not-flat", "sample-axis"],
)
def test_models_that_do_not_fit_are_refused(
    model: nn.Module, loss: str, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises((InvalidInputError, UnsupportedOperationError), match=words):
        trace(model, loss, shape)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_must_be_finite(bad: float) -> None:
    model = mlp(2, 3, 1)
    with torch.no_grad():
        model[2].weight[0, 1] = bad
    with pytest.raises(InvalidInputError, match=r"2\.weight"):
        trace(model, "bce", (2,))


# ------------------------------------------------------------------------------------- loss values


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


@pytest.mark.parametrize("name", LOSSES)
def test_forms_decide_loss_and_correctness(name: str) -> None:
    """``of_forms`` at the forms' own values is the loss; margins are positive iff all is right."""
    loss, outputs = LOSSES[name]
    rule = get_loss(loss)
    rng = np.random.default_rng(1)
    f = torch.from_numpy(2.0 * rng.normal(size=(40, outputs)))
    _, raw = data_for(loss, outputs, samples=40)
    labels = rule.encode(raw, outputs)
    coefficients, constants = rule.forms(labels, outputs)
    forms = torch.einsum("nko,no->nk", coefficients.expand(40, -1, -1), f) + constants
    point = rule.of_forms(Interval.point(forms))
    expected = rule.value(f, labels)
    assert torch.allclose(point.lower, expected, atol=TOL.torch)
    assert torch.allclose(point.upper, expected, atol=TOL.torch)
    if rule.is_classification:
        predicted = (f[:, 0] > 0).long() if outputs == 1 else f.argmax(-1)
        assert torch.equal((forms > 0).all(-1), predicted == raw)
    else:
        assert torch.allclose(forms, f - labels)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_bounds_from_boxes_of_forms(name: str) -> None:
    loss, outputs = LOSSES[name]
    rule = get_loss(loss)
    rng = np.random.default_rng(2)
    count = rule.forms(rule.encode(data_for(loss, outputs)[1], outputs), outputs)[0].shape[1]
    low = torch.from_numpy(3.0 * rng.normal(size=(20, count)))
    high = low + torch.from_numpy(3.0 * rng.random((20, count)))
    bound = rule.of_forms(Interval(low, high))
    assert bound.lower.shape == (20,)
    for _ in range(50):
        pick = low + (high - low) * torch.from_numpy(rng.random((20, count))).round()
        value = rule.of_forms(Interval.point(pick))
        assert bool((bound.lower <= value.lower + 1e-15).all())
        assert bool((value.upper <= bound.upper + 1e-15).all())
