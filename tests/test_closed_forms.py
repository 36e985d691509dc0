"""Problems whose exact answer is known: one step, and linear regression under moved labels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attacks import Problem, Replay, network, torch_loss
from pairs import every_pair, every_value
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.bounds.step import step_at_points, velocity_of
from milp_agt.training.training import Training

ONE_STEP = 1e-9
MANY_STEPS = 1e-6


def regression(count: int = 8, width: int = 3, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    y = torch.randn(count, generator=generator, dtype=torch.float64)
    return network((width, 1), seed=seed), x, y


def top(hurt: Tensor, budget: int) -> Tensor:
    """Sum of the ``budget`` largest entries along axis 0."""
    return hurt.sort(dim=0, descending=True).values[:budget].sum(0)


def assert_equals(box: Any, name: str, lower: Tensor, upper: Tensor, relative: float) -> None:
    for own, exact in ((box.lower[name], lower), (box.upper[name], upper)):
        exact_array = exact.numpy().reshape(own.shape)
        gap = abs(own - exact_array).max()
        assert gap <= relative * (1e-12 + abs(exact_array).max()), (name, gap)
    assert (box.lower[name] <= lower.numpy().reshape(box.lower[name].shape)).all()
    assert (box.upper[name] >= upper.numpy().reshape(box.upper[name].shape)).all()


@pytest.mark.parametrize("budget", [0, 1, 3, 8])
def test_one_step_of_regression_under_moved_labels(budget) -> None:
    model, x, y = regression()
    rate, radius, count = 0.1, 0.2, len(x)
    case = Problem(model, x, y, Training("mse", rate), agt.LabelPoisoning(budget, radius))
    result, _ = case.certify(relaxation="linear")
    residual = model(x).detach()[:, 0] - y
    weight, bias = model[0].weight.detach()[0], model[0].bias.detach()
    centre = weight - rate * 2 / count * (residual @ x)
    reach = rate * 2 / count * top(radius * x.abs(), budget)
    box = result.reachable
    assert_equals(box, "0.weight", centre - reach, centre + reach, ONE_STEP)
    centre = bias - rate * 2 / count * residual.sum()
    reach = torch.tensor(rate * 2 / count * radius * budget, dtype=torch.float64)
    assert_equals(box, "0.bias", centre - reach, centre + reach, ONE_STEP)


@pytest.mark.parametrize("budget", [0, 1, 3, 8])
@pytest.mark.parametrize("radius", [0.05, [0.0, 0.1, 0.3]], ids=str)
def test_one_step_of_regression_under_moved_features(budget, radius) -> None:
    """The gradient of the bias is affine in the features: top-k of 2/n r.|w| is exact."""
    model, x, y = regression()
    rate, count = 0.1, len(x)
    threat = agt.FeaturePoisoning(budget, radius)
    case = Problem(model, x, y, Training("mse", rate), threat)
    box = case.certify(relaxation="linear")[0].reachable
    weight, bias = model[0].weight.detach()[0], model[0].bias.detach()
    centre = bias - rate * 2 / count * (model(x).detach()[:, 0] - y).sum()
    each = (weight.abs() * torch.as_tensor(radius, dtype=torch.float64)).sum()
    reach = rate * 2 / count * budget * each
    assert_equals(box, "0.bias", centre - reach, centre + reach, ONE_STEP)


def gradients_by_class(model: nn.Module, loss: str, x: Tensor, classes: int) -> dict[str, Tensor]:
    """Gradient of every sample for every class as its label: (samples, classes, *shape) by name."""
    own: dict[str, list[Tensor]] = {n: [] for n, _ in model.named_parameters()}
    for row in x:
        for label in range(classes):
            copied = copy.deepcopy(model)
            code = torch.eye(classes, dtype=torch.float64)[label] if classes > 2 else label
            encoded = torch.as_tensor(code, dtype=torch.float64).reshape(1, -1)
            torch_loss(loss, copied(row[None]), encoded).backward()
            for name, parameter in copied.named_parameters():
                assert parameter.grad is not None
                own[name].append(parameter.grad)
    return {n: torch.stack(g).reshape(len(x), classes, *g[0].shape) for n, g in own.items()}


@every_pair(activation=[nn.ReLU, nn.Tanh], budget=[1, 2, 6], loss=["bce", "hinge", "cross_entropy"])
def test_one_step_under_flipped_labels_is_exact_at_any_depth(loss, budget, activation) -> None:
    classes = 3 if loss == "cross_entropy" else 2
    generator = torch.Generator().manual_seed(budget)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (6,), generator=generator)
    model = network((2, 3, 2, 3 if classes == 3 else 1), activation, seed=1)
    rate = 0.5
    case = Problem(model, x, y, Training(loss, rate), agt.LabelPoisoning(budget))
    box = case.certify(relaxation="linear")[0].reachable
    for name, each in gradients_by_class(model, loss, x, classes).items():
        nominal = each[torch.arange(6), y]
        start = dict(model.named_parameters())[name].detach()
        centre = start - rate / 6 * nominal.sum(0)
        up = top((each - nominal[:, None]).amax(1), budget) * rate / 6
        down = top((nominal[:, None] - each).amax(1), budget) * rate / 6
        # Ends that cancel to nothing are compared with the size of the step.
        exact = torch.stack([centre - up, centre + down])
        own = torch.stack([torch.from_numpy(box.lower[name]), torch.from_numpy(box.upper[name])])
        assert float((own - exact).abs().max()) <= ONE_STEP * (1 + float(exact.abs().max()))
        assert (own[0] <= exact[0] + 1e-15).all()
        assert (own[1] >= exact[1] - 1e-15).all()


def jacobian(replay: Replay, name: str) -> Tensor:
    """d theta_T / d y(t, i): (entries of the parameter, steps, samples), the labels of each step apart."""
    steps, count = len(replay.batches), len(replay.poison.labels)
    labels = replay.poison.labels[:, 0].expand(steps, count).clone().requires_grad_()
    state = {n: v.clone() for n, v in replay.step_graph.initial.items()}
    if replay.problem.training.momentum > 0:
        state |= {velocity_of(n): torch.zeros_like(v) for n, v in list(state.items())}
    for t, (batch, update) in enumerate(zip(replay.batches, replay.updates, strict=True)):
        state = step_at_points(
            replay.step_graph,
            replay.schedule,
            state,
            replay.poison.features[batch],
            labels[t, batch, None],
            update,
        )
    rows = []
    for entry in state[name].flatten():
        rows.append(torch.autograd.grad(entry, labels, retain_graph=True)[0])
    return torch.stack(rows)


RUNS: dict[str, dict[str, Any]] = {
    "full batch": {"epochs": 20},
    "mini-batches": {"epochs": 4, "batch_size": 3, "shuffle_seed": 0},
    "momentum and decay": {"epochs": 8, "momentum": 0.8, "nesterov": True, "weight_decay": 0.3},
    "decay beyond 1 / rate": {"epochs": 6, "weight_decay": 12.0},
    "schedule": {"epochs": 6, "batch_size": 4, "schedule": agt.InverseTimeDecay(0.3, 0.02)},
}


@pytest.mark.parametrize("adversary", ["static", "adaptive", "adaptive, batch"])
@pytest.mark.parametrize("options", list(RUNS.values()), ids=list(RUNS))
def test_regression_over_many_steps_is_affine_in_the_labels(options, adversary) -> None:
    model, x, y = regression(seed=3)
    budget, radius = 2, 0.3
    threat = agt.LabelPoisoning(
        budget,
        radius,
        static=adversary == "static",
        scope="batch" if adversary.endswith("batch") else "dataset",
    )
    case = Problem(model, x, y, Training("mse", **({"learning_rate": 0.1} | options)), threat)
    result, _ = case.certify(relaxation="linear")
    replay = Replay(case)
    for name in replay.step_graph.parameters:
        backward = jacobian(replay, name)
        if adversary == "static":
            reach = top(backward.sum(1).abs().T, budget)
        elif adversary == "adaptive":
            reach = top(backward.abs().sum(1).T, budget)
        else:
            reach = top(backward.abs().permute(2, 0, 1), budget).sum(-1)
        width = torch.from_numpy(result.reachable.upper[name] - result.reachable.lower[name])
        exact = 2 * radius * reach.reshape(width.shape)
        assert ((width - exact).abs() <= MANY_STEPS * exact).all()
        assert (width >= exact * (1 - 1e-12)).all()
        assert torch.from_numpy(result.reachable.nominal[name]).allclose(
            torch.from_numpy(0.5 * (result.reachable.lower[name] + result.reachable.upper[name])),
            rtol=0.0,
            atol=1e-6 * float(exact.max()),
        )


@every_value(loss=["mse", "bce", "cross_entropy", "hinge"], relaxation=["interval", "linear"])
def test_budget_zero_leaves_only_rounding(loss, relaxation) -> None:
    outputs = 3 if loss == "cross_entropy" else 1
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (6,), generator=generator)
    model = network((2, 3, outputs), nn.Tanh)
    targets = y.to(torch.float64) if loss == "mse" else y
    run = Training(loss, 0.1, epochs=5, momentum=0.5)
    for threat in (agt.FeaturePoisoning(0, 1.0), agt.FeaturePoisoning(3, 0.0)):
        result, _ = Problem(model, x, targets, run, threat).certify(relaxation=relaxation)
        assert 0 < result.reachable.max_width <= 1e-9
        assert result.loss(x, targets).upper - result.loss(x, targets).lower <= 1e-8
