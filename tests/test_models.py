"""Models of run files, and saved parameters that do not fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checks_steps import mlp
from refusals import refused
from same_run import dense
from test_config import build, with_line
from torch import Tensor, nn

from milp_agt.core.graph import evaluate
from milp_agt.errors import ConfigurationError, InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.loss import losses
from milp_agt.training.tracing import supported_layers, trace


def test_the_model_is_copied() -> None:
    model = mlp(2, 3, 1)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    step_graph = trace(model, "bce", (2,))
    step_graph.initial["0.weight"].add_(1.0)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


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
    "LSTM": nn.LSTM(2, 2),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_layers_are_refused_by_name_with_the_list(name: str) -> None:
    model = nn.Sequential(dense(2, 2), nn.Sequential(UNSUPPORTED[name]), dense(2, 1))
    with pytest.raises(UnsupportedOperationError) as error:
        trace(model, "bce", (2,))
    assert name in str(error.value)
    assert "'1.0'" in str(error.value)
    for layer in supported_layers():
        assert layer in error.value.remedy


@pytest.mark.parametrize("model", [DoubledSequential(dense(2, 1)), DoubledLinear(2, 1)], ids=str)
def test_subclasses_with_a_forward_of_their_own_are_traced(model: nn.Module) -> None:
    step_graph = trace(nn.Sequential(Doubled(), model).double(), "bce", (2,))
    x = torch.tensor([[0.3, -0.7], [1.0, 2.0]], dtype=torch.float64)
    values = evaluate(
        step_graph.graph.needed_for([step_graph.output]), {**step_graph.initial, "features": x}
    )
    assert torch.allclose(values[step_graph.output], model.double()(2.0 * x), rtol=1e-14)


def test_supported_layers() -> None:
    layers = """
        AdaptiveAvgPool2d AvgPool2d BatchNorm1d BatchNorm2d Conv2d Dropout Dropout1d
        Dropout2d ELU Flatten GELU Hardtanh Identity LeakyReLU Linear MaxPool2d ReLU
        ReLU6 Sequential SiLU Sigmoid Softplus Tanh
    """
    assert set(supported_layers()) == set(layers.split())


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
        (nn.Sequential(dense(2, 1), nn.Flatten(0)), "bce", (2,), "Flatten|flatten"),
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


def saved() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = saved()[0], saved()[2]


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"head": saved()})


def load(tmp_path: Path, state: Any) -> Any:
    torch.save(state, tmp_path / "s.pt")
    return build(tmp_path, with_line("model", 'state = "s.pt"')).model.state_dict()


def normed() -> Any:
    model = saved()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


PLAIN = saved().state_dict()
CASES: dict[str, tuple[Any, str, str]] = {
    "DataParallel": (nn.DataParallel(saved()).state_dict(), "'module.' in front of every name",
        "torch.save(model.module.state_dict(), path)"),
    "compiled": ({f"_orig_mod.{n}": v for n, v in PLAIN.items()}, "'_orig_mod.'",
        "model._orig_mod.state_dict()"),
    "inside": (Inside().state_dict(), "'net.head.'", "model.net.head.state_dict()"),
    "checkpoint": ({"epoch": 3, "model_state_dict": PLAIN, "loss": 0.5},
        "the keys 'epoch', 'model_state_dict', 'loss'",
        "torch.save(checkpoint['model_state_dict'], path)"),
    "other names": (Named().state_dict(), "'fc1.weight' for '0.weight'", "dict(zip(['0.weight'"),
    "normed": (normed().state_dict(), "torch.nn.utils.parametrize", "remove_parametrizations"),
    "pruned": ({"0.weight_mask": torch.ones(3, 2)} | PLAIN, "torch.nn.utils.prune", "prune.remove"),
    "another shape": (PLAIN | {"2.bias": torch.zeros(5)},
        "other shapes: 2.bias (5,) where the model has (2,)", "let [model] describe"),
    "too few": ({"0.weight": PLAIN["0.weight"]}, "no tensor for: 0.bias", "let [model] describe"),
    "a tensor": (torch.zeros(2), "an object of type Tensor", "model.state_dict()"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_named_with_what_to_save(name: str, tmp_path: Path) -> None:
    state, found, remedy = CASES[name]
    with refused(found=found, remedy=remedy, kind=ConfigurationError):
        load(tmp_path, state)


def test_the_remedies_help(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(saved())
    renamed = dict(zip(PLAIN, Named().state_dict().values(), strict=True))
    for state in (wrapped.module.state_dict(), Inside().net["head"].state_dict(), renamed):
        loaded = load(tmp_path, state)
        assert all(torch.equal(loaded[name], value) for name, value in PLAIN.items())
