"""What changes a gradient or a call and stands in no layer is refused by name, before any bound."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import refusals
import torch
from attacks import network
from torch import nn
from torch.nn.modules import module as everywhere
from torch.nn.utils import prune
from torch.optim import optimizer as optimizers

import milp_agt as agt
from milp_agt.errors import MilpAgtError, UnsupportedOperationError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 2))
Y = (X[:, 0] > 0).astype(int)


def certify(model: nn.Module) -> Any:
    run = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=2)
    return agt.certify(model, (X, Y), run, agt.FeaturePoisoning(1, 1e-3), relaxation="interval")


def refused(model: Any) -> MilpAgtError:
    with refusals.refused(kind=MilpAgtError) as error:
        certify(model)
    return error.value


def net() -> Any:
    return network((2, 3, 2))


def with_hook(register: Callable[[Any], Any]) -> Any:
    model = net()
    register(model)
    return model


def clamp(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.clamp(-0.01, 0.01)


def nothing(*_: Any) -> None:
    return None


HOOKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "gradient": (lambda m: m[0].weight.register_hook(clamp), "parameter '0.weight'"),
    "after the gradient": (
        lambda m: m[2].bias.register_post_accumulate_grad_hook(nothing), "parameter '2.bias'",
    ),
    "of several gradients": (
        lambda m: torch.autograd.graph.register_multi_grad_hook(tuple(m.parameters()), nothing),
        "parameter '0.weight', parameter '0.bias'",
    ),
    "forward": (lambda m: m[1].register_forward_hook(nothing), "layer '1': a forward hook"),
    "forward pre": (lambda m: m.register_forward_pre_hook(nothing), "the model: a forward pre-hook"),
    "full backward": (lambda m: m[1].register_full_backward_hook(nothing), "a backward hook"),
    "full backward pre": (
        lambda m: m[0].register_full_backward_pre_hook(nothing), "a backward pre-hook",
    ),
    "old backward": (lambda m: m[1].register_backward_hook(nothing), "a backward hook"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_the_model(kind: str) -> None:
    register, place = HOOKS[kind]
    error = refused(with_hook(register))
    assert place in error.found
    assert "remove()" in error.remedy


GLOBAL: dict[str, Any] = {
    "forward": everywhere.register_module_forward_hook,
    "forward pre": everywhere.register_module_forward_pre_hook,
    "backward": everywhere.register_module_full_backward_hook,
    "backward pre": everywhere.register_module_full_backward_pre_hook,
    "step": optimizers.register_optimizer_step_pre_hook,
    "after step": optimizers.register_optimizer_step_post_hook,
}


@pytest.mark.parametrize("kind", GLOBAL)
def test_hooks_of_the_process(kind: str) -> None:
    handle = GLOBAL[kind](nothing)
    try:
        assert "nothing" in refused(net()).found
    finally:
        handle.remove()
    certify(net())


def test_removed_and_harmless_hooks_are_accepted() -> None:
    model = net()
    model[0].weight.register_hook(clamp).remove()
    model[1].register_forward_hook(nothing).remove()
    model.register_state_dict_post_hook(nothing)
    model.register_load_state_dict_post_hook(nothing)
    certify(model)


def weight_norm(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have it parametrized
        nn.utils.weight_norm(model[0])


PARAMETRISED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "weight_norm": (weight_norm, "remove_weight_norm"),
    "spectral_norm": (lambda m: nn.utils.spectral_norm(m[0]), "remove_spectral_norm"),
    "parametrized": (
        lambda m: nn.utils.parametrizations.weight_norm(m[0]),
        "remove_parametrizations(layer, 'weight')",
    ),
    "orthogonal": (lambda m: nn.utils.parametrizations.orthogonal(m[2]), "remove_parametrizations"),
    "pruned": (lambda m: prune.l1_unstructured(m[0], "weight", 1), "prune.remove(layer, 'weight')"),
}


@pytest.mark.parametrize("kind", PARAMETRISED)
def test_parametrised_weights(kind: str) -> None:
    change, remedy = PARAMETRISED[kind]
    assert remedy in refused(with_hook(change)).remedy


class Twice(nn.Sequential):
    def __call__(self, x: Any) -> Any:
        return 2 * super().__call__(x)


class Backwards(nn.Sequential):
    def __iter__(self) -> Iterator[nn.Module]:
        return iter(list(self._modules.values())[::-1])


class HeadOnly(nn.Sequential):
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield from self[2].parameters(recurse)


class OwnLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class AlwaysEvaluating(nn.Sequential):
    def train(self, mode: bool = True) -> Any:
        return super().train(False)


def test_classes_that_change_a_call() -> None:
    for kind, own in ((Twice, "__call__"), (Backwards, "__iter__"), (HeadOnly, "parameters")):
        assert f"{kind.__name__} with a {own}" in refused(kind(*net())).found
    certify(nn.Sequential(OwnLinear(2, 2, dtype=torch.float64), *net()))
    certify(AlwaysEvaluating(*net()))


def test_methods_replaced_on_instances() -> None:
    model = net()
    model[0].forward = lambda x: x
    assert "layer '0': a replaced forward()" in refused(model).found
    model = net()
    model.parameters = lambda recurse=True: model[2].parameters()
    assert "a replaced parameters()" in refused(model).found
    model = net()
    model[2]._call_impl = lambda x: x
    assert "a replaced _call_impl()" in refused(model).found


@contextmanager
def replaced(home: Any, name: str) -> Iterator[None]:
    own = getattr(home, name)
    setattr(home, name, lambda *args, **kwargs: own(*args, **kwargs))
    try:
        yield
    finally:
        setattr(home, name, own)


@pytest.mark.parametrize(
    ("home", "name", "named"),
    [
        (nn.Linear, "forward", "Linear.forward of torch"),
        (nn.Module, "__call__", "nn.Module.__call__"),
        (nn.functional, "relu", "torch.nn.functional.relu"),
        (nn.functional, "cross_entropy", "torch.nn.functional.cross_entropy"),
        (torch, "sigmoid", "torch.sigmoid"),
        (torch.Tensor, "backward", "torch.Tensor.backward"),
        (torch.optim.SGD, "step", "torch.optim.SGD.step"),
    ],
)
def test_code_of_torch_that_was_replaced(home: Any, name: str, named: str) -> None:
    with replaced(home, name):
        assert named in refused(net()).found
    certify(net())


def test_wrapped_models_name_the_module_to_give() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and used inside of torch.compile
        scripted = torch.jit.script(net())
        traced = torch.jit.trace(net(), torch.zeros(1, 2, dtype=torch.float64))
        compiled = torch.compile(net())
    for wrapped, remedy in (
        (scripted, "load_state_dict(scripted.state_dict())"),
        (traced, "load_state_dict(scripted.state_dict())"),
        (nn.Sequential(scripted), "load_state_dict(scripted.state_dict())"),
        (compiled, "model._orig_mod"),
        (nn.DataParallel(net()), "model.module"),
        (torch.fx.symbolic_trace(net()), "the module that was traced"),
        (nn.Sequential(nn.LazyLinear(2, dtype=torch.float64)), "run one batch"),
    ):
        assert remedy in refused(wrapped).remedy
    model = net()
    model.compile()
    assert "compiled in place" in refused(model).found


def test_memory_that_is_written_under_two_names() -> None:
    def square() -> Any:
        return network((2, 2, 2))

    model = square()
    model[2].weight = nn.Parameter(model[0].weight.data)
    assert "'0.weight' and '2.weight'" in refused(model).found
    model = square()
    model[2].weight = nn.Parameter(model[0].weight.data.T)
    refused(model)
    model = square()
    model.register_buffer("kept", model[0].weight.data[0])
    assert "'0.weight' and 'kept'" in refused(model).found
    model = net()
    model[0].bias = nn.Parameter(torch.zeros(1, dtype=torch.float64).expand(3))
    assert "expand" in refused(model).found
    # One parameter used twice is one parameter, and parts of one vector that do not overlap are apart.
    model = square()
    model[2].weight = model[0].weight
    certify(model)
    model, flat = square(), torch.linspace(-1, 1, 8, dtype=torch.float64)
    model[0].weight = nn.Parameter(flat[:4].reshape(2, 2))
    model[2].weight = nn.Parameter(flat[4:].reshape(2, 2))
    certify(model)


class OwnTensor(torch.Tensor):
    pass


def test_tensors_that_are_no_plain_parameters() -> None:
    model = net()
    model[0].weight = nn.Parameter(OwnTensor(model[0].weight.data))
    assert "OwnTensor" in refused(model).found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not float64 is announced as converted
        assert "half precision" in refused(net().to(torch.bfloat16)).found
    model = net()
    weight = model[0].weight
    del model[0].weight
    model[0].weight = weight.detach() * 2
    assert "in the place of" in refused(model).found
    model[0].weight = weight * 2
    assert "detach()" in refused(model).remedy


def test_a_model_that_cannot_be_copied() -> None:
    model = net()
    model.lock = threading.Lock()
    assert "locks" in refused(model).remedy


def test_everything_at_once() -> None:
    model = with_hook(lambda m: [p.register_hook(clamp) for p in m.parameters()])
    error = refused(model)
    assert isinstance(error, UnsupportedOperationError)
    assert all(name in error.found for name, _ in model.named_parameters())
    assert error.found.count("a gradient hook") == 1
    assert error.remedy.count("remove()") == 1
    nn.utils.parametrizations.weight_norm(model[0])
    model[2].forward = lambda x: x
    error = refused(model)
    assert "parametrized by _WeightNorm" in error.found
    assert "replaced forward()" in error.found
