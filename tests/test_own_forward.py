"""Models with a forward of their own: traced, held against themselves, bounded, saved, or refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks import Problem, assert_sound
from own_models import OWN, Nested, Residual, Scaled, own
from pairs import every_value
from problems import data, problem, threat
from refusals import refused
from same_run import assert_same_run
from torch import Tensor, nn
from torch.nn import functional

import milp_agt as agt
from milp_agt.certification import saved
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.training.same_forward import check_forward
from milp_agt.training.tracing import trace
from milp_agt.training.training import Training

ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "elu-0.5": lambda: nn.ELU(0.5),
    "softplus": nn.Softplus,
    "softplus-sharp": lambda: nn.Softplus(beta=3.0, threshold=2.0),
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
}


@every_value(name=list(ACTIVATIONS), relaxation=["linear", "interval"])
def test_new_activations_are_sound(name: str, relaxation: str) -> None:
    case, test, labels = problem(
        "cross_entropy", "both", hidden=(3, 2), activation=ACTIVATIONS[name], outputs=2, radius=0.05
    )
    assert_sound(case, test, labels, relaxation=relaxation)


@pytest.mark.parametrize(
    "name", ["gelu", *(pytest.param(n, marks=pytest.mark.slow) for n in ("elu-0.5", "hardtanh"))]
)
def test_new_activations_are_sound_by_other_bounds(name: str) -> None:
    case, test, labels = problem(
        "bce", "features", {"epochs": 2}, (2,), ACTIVATIONS[name], count=3, budget=1, radius=0.05
    )
    assert_sound(case, test, labels, attacks=24, relaxation="lp")
    assert_sound(case, test, labels, attacks=24, inner_bounds="interval")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_new_activations_train_as_torch(name: str) -> None:
    layers = [nn.Linear(2, 4), ACTIVATIONS[name](), nn.Linear(4, 3), ACTIVATIONS[name]()]
    model = nn.Sequential(*layers, nn.Linear(3, 1)).double()
    x, y, _, _ = data("bce", count=8)
    # Points on kinks and far out, too.
    x[0], x[1], x[2] = 0.0, 40.0, -40.0
    assert_same_run(model, (x, y), Training(loss="bce", learning_rate=0.3, epochs=4, momentum=0.5))


@pytest.mark.parametrize("kind", OWN)
def test_own_forwards_train_as_torch(kind: type[nn.Module]) -> None:
    x, y, _, _ = data("bce", count=8)
    training = Training(loss="bce", learning_rate=0.2, epochs=4, momentum=0.5, weight_decay=0.01)
    assert_same_run(own(kind), (x, y), training)


@every_value(kind=OWN, relaxation=["linear", "interval"])
def test_own_forwards_are_sound(kind: type[nn.Module], relaxation: str) -> None:
    x, y, test, labels = data("bce")
    run = Training(loss="bce", learning_rate=0.3, epochs=3)
    case = Problem(own(kind), x, y, run, threat("both", "bce", radius=0.03))
    assert_sound(case, test, labels, relaxation=relaxation)


@pytest.mark.parametrize("kind", OWN)
def test_results_of_own_forwards_are_saved_and_loaded(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    x, y, test, labels = data("bce")
    run = Training(loss="bce", learning_rate=0.3, epochs=1)
    case = Problem(own(kind), x, y, run, agt.FeaturePoisoning(1, 0.01))
    result, _ = case.certify(relaxation="interval")
    result.save(tmp_path / "own.npz")
    loaded = agt.load(tmp_path / "own.npz")
    assert loaded.accuracy(test, labels) is not None
    assert torch.equal(loaded.models.outputs(test), result.models.outputs(test))
    model = saved.rebuild(saved.describe(result.models.step_graph.model))
    model.load_state_dict(case.model.state_dict())
    assert torch.allclose(model(test), case.model(test), rtol=1e-14)


def test_a_model_that_is_used_twice_is_one_parameter() -> None:
    step_graph = trace(own(Residual), "bce", (2,))
    assert step_graph.parameters == (
        *("inner.weight", "inner.bias", "back.weight", "back.bias"),
        *("head.weight", "head.bias"),
    )
    assert trace(own(Nested), "bce", (2,)).parameter_count == 15


def test_own_layers_stand_in_sequentials() -> None:
    x, y, _, _ = data("bce")
    model = nn.Sequential(nn.Linear(2, 2).double(), own(Scaled, outputs=2), nn.ReLU(), own(Nested))
    assert_same_run(model, (x, y), Training(loss="bce", learning_rate=0.1, epochs=2))


# ------------------------------------------------------------------ what is refused


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 1)


class Counts(Base):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(x) * self.calls


def forward_of(forward: Any, kind: type[nn.Module] = Base) -> type[nn.Module]:
    return type("Own", (kind,), {"forward": forward})


REFUSED: dict[str, tuple[type[nn.Module], str]] = {
    "branches": (forward_of(lambda self, x: self.head(-x if x.sum() > 0 else x)), "branch"),
    "counts": (Counts, "calls"),
    "random": (forward_of(lambda self, x: self.head(x + torch.randn(2))), "random"),
    "numbers": (forward_of(lambda self, x: self.head(x) * float(x.mean())), "numbers"),
    "over samples": (forward_of(lambda self, x: self.head(x - x.mean(0))), "sample axis"),
    "detached": (forward_of(lambda self, x: self.head(self.inner(x).detach())), "detach"),
    "two": (forward_of(lambda self, x: (self.head(x), x)), "one tensor"),
    "by size": (forward_of(lambda self, x: self.head(x if x.shape[0] > 3 else -x)), "branch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_forwards_that_no_graph_tells_are_refused_by_name(name: str) -> None:
    kind, said = REFUSED[name]
    with refused(said=said, kind=UnsupportedOperationError):
        trace(own(kind), "bce", (2,))


class Masked(nn.Module):
    """A second input that nobody gives, and a layer called by keyword."""

    def __init__(self, shape: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.head = nn.Linear(2, 1)
        self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x * mask
        return self.head(input=x) * self.gain


def test_inputs_at_their_defaults_and_numbers_without_an_axis() -> None:
    x, y, _, _ = data("bce")
    assert_same_run(own(Masked), (x, y), Training(loss="bce", learning_rate=0.1, epochs=2))
    with pytest.raises(UnsupportedOperationError, match=r"'gain'.*nn\.Parameter\(torch\.ones\(1"):
        trace(own(Masked, shape=()), "bce", (2,))
    with pytest.raises(UnsupportedOperationError, match="keep the axis"):
        trace(own(forward_of(lambda self, x: self.head(x).squeeze(-1))), "bce", (2,))


class Many(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.exp(self.inner(x)))
        x = torch.where(x > 0, x, 2.0 * x)
        return torch.softmax(self.head(x), dim=1)


def test_all_that_has_no_rule_is_said_at_once() -> None:
    with pytest.raises(UnsupportedOperationError) as error:
        trace(nn.Sequential(nn.Mish(), own(Many)), "bce", (2,))
    text = str(error.value)
    for said in ("'0' of type Mish", "'1.norm'", "'exp'", "'where'", "'softmax'"):
        assert said in text
    assert text.count("test_own_forward.py:") >= 4
    for instead in ("nn.SiLU", "nn.BatchNorm1d", "softplus", "relu, clamp", "leave it out"):
        assert instead in text


def test_a_forward_that_does_not_fit_the_features_says_so() -> None:
    with pytest.raises(InvalidInputError, match=r"features \(3, 5\)"):
        trace(own(Residual), "bce", (5,))


class Aliased(Base):
    """``y`` is the tensor that is changed in place; the graph would keep the old value."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        y = x.view(-1, 2)
        x += 1.0
        return self.head(y + x)


def test_a_graph_that_computes_something_else_is_an_error() -> None:
    x, y, _, _ = data("bce")
    model = own(Aliased)
    model.norm.requires_grad_(False)
    arguments: Any = (model, (x, y), Training(loss="bce"), agt.FeaturePoisoning(1, 0.1))
    with pytest.raises(UnsupportedOperationError, match="the output differs"):
        agt.certify(*arguments)


def test_parameters_that_the_forward_does_not_read_are_named() -> None:
    model = own(forward_of(lambda self, x: self.head(x)))
    with pytest.raises(InvalidInputError, match=r"inner\.weight, inner\.bias, norm\.weight"):
        trace(model, "bce", (2,))
    model.inner.requires_grad_(False)
    model.norm.requires_grad_(False)
    assert set(trace(model, "bce", (2,)).frozen) == {
        *("inner.weight", "inner.bias", "norm.weight", "norm.bias")
    }


@pytest.mark.parametrize(
    "kind", [Residual, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OWN[1:])]
)
def test_own_forwards_are_sound_by_other_bounds(kind: type[nn.Module]) -> None:
    x, y, test, labels = data("bce", count=2)
    model, run = own(kind), Training(loss="bce", learning_rate=0.2, epochs=2)
    case = Problem(model, x, y, run, agt.FeaturePoisoning(1, 0.03))
    options = {"attacks": 16, "iterations": 2}
    assert_sound(case, test, labels, **options, selections="enumerated", window=1)
    # A program of one step, from a box.
    box = {n: (p.detach() - 0.01, p.detach() + 0.01) for n, p in model.named_parameters()}
    case = replace(case, training=replace(run, epochs=1), initial=box)
    assert_sound(case, test, labels, **options, relaxation="lp", program_window=1)


def test_the_check_sees_other_values_and_gradients() -> None:
    x, _, _, _ = data("bce")
    model = own(Residual)
    step_graph = trace(model, "bce", (2,))
    check_forward(step_graph, model, x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.back.bias[0] += 1e-3
    with pytest.raises(UnsupportedOperationError, match="differs"):
        check_forward(step_graph, other, x)


class Cancels(nn.Module):
    """In float32 the product is rounded and nothing is left of the difference."""

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.layer, self.exact = nn.Linear(2, 2), exact
        self.register_buffer("a", torch.tensor([1.0 + 2.0**-12, 0.5]))
        self.register_buffer("b", torch.tensor([1.0 + 2.0**-11, 0.25]))

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.layer(x)
        left = (self.a - 0.5).unsqueeze(0) if self.exact else (self.a * self.a - self.b) * 1e6
        return moved + left


def test_constants_that_float32_rounds_are_refused_in_a_float32_run() -> None:
    x, y = torch.tensor([[0.5, -1.0], [1.0, 0.25], [-0.75, 0.5]]), torch.tensor([0, 1, 1])
    training, nobody = Training("cross_entropy", 0.1, 2), agt.FeaturePoisoning(1, 0.0)
    with pytest.raises(UnsupportedOperationError, match="mul, minus of constants alone"):
        agt.certify(Cancels(False), (x, y), training, nobody, precision="float32")
    for exact, precision in ((True, torch.float32), (True, torch.float64), (False, torch.float64)):
        model, features = Cancels(exact).to(precision), x.to(precision)
        name = str(precision).removeprefix("torch.")
        result = agt.certify(model, (features, y), training, nobody, precision=name)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            functional.cross_entropy(model(features), y).backward()
            optimiser.step()
        assert result.reachable.contains(model.state_dict())
