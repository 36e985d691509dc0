"""What makes another run of a recorded loop is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from recorded_script import THREAT, Script, X, Y, assert_clean, assert_right, certified
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

import milp_agt as agt
from milp_agt.errors import InvalidInputError, MilpAgtError


def _nothing(*_: Any) -> None:
    return None


def _hook(script: Script) -> None:
    for parameter in script.model.parameters():
        parameter.register_hook(lambda g: g.clamp(-1e3, 1e3))  # never reached


def _fourth(action: Callable[[Script], object]) -> Callable[[Script], object]:
    """An action that is taken in the fourth step."""

    def act(script: Script) -> None:
        if len(script.seen) == 4:
            action(script)

    return act


def _clip(script: Script) -> None:
    nn.utils.clip_grad_norm_(script.model.parameters(), 1e6)  # never reached


def _norm(script: Script) -> float:
    return script.model[0].bias.grad.norm().item()


def _clip_value(script: Script) -> None:
    nn.utils.clip_grad_value_(script.model.parameters(), 1e6)


def _reinitialise(script: Script) -> None:
    for layer in script.model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()


def _clamp_weights(script: Script, loss: Tensor) -> None:
    for parameter in script.model.parameters():
        parameter.data.clamp_(-100.0, 100.0)  # never reached, and no version counts it


def _penalty(script: Script, loss: Tensor) -> Tensor:
    return loss + 0.0 * sum(p.abs().sum() for p in script.model.parameters())


def _stop(script: Script, loss: Tensor) -> bool:
    return loss.item() < 1e-9


def _stop_by_mean(script: Script, loss: Tensor) -> bool:
    total = 0.0
    for _ in range(2):
        total += loss.item()
    return min(total / 2, 1.0) < 1e-9


def _second_optimizer(script: Script, loss: Tensor) -> None:
    torch.optim.SGD(script.model.parameters(), lr=1e-3).step()


def _load(script: Script, loss: Tensor) -> bool:
    script.model.load_state_dict(script.model.state_dict())
    return False


def _plateau(script: Script, loss: Tensor) -> bool:
    torch.optim.lr_scheduler.ReduceLROnPlateau(script.opt).step(loss.item())
    return False


def _no_zero_grad(script: Script, loss: Tensor) -> Tensor:
    script.opt.zero_grad = lambda *_, **__: None
    return loss


def _dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2)).eval()


class _Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) < 1e9 else x[:, :8]


class _Augmented(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return X[i] + 1e-3 * torch.randn(30), Y[i]


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp(-1e6, 1e6)


def _autocast() -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16)


def _packed() -> AbstractContextManager[object]:
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


def _noise(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x + 1e-3 * torch.randn_like(x), y


def _graph_hook(script: Script, loss: Tensor) -> Tensor:
    loss.grad_fn.register_hook(lambda inputs, outputs: None)
    return loss


_wrapped = _fourth(lambda s: nn.utils.parametrizations.weight_norm(s.model[0]))
COMPUTED = "were computed or chosen inside the loop"
COMPARED = "compared or converted at test_record"
SAMPLED = {"shuffle": None, "generator": None, "batch_size": 1}
# By where a quirk goes into the script: what it is, and what is said of it.
PLACES: dict[str, dict[str, tuple[Any, str]]] = {
    "start": {
        "hook on parameters": (_hook, "a hook on a tensor"),
        "hook on a module": (lambda s: s.model[1].register_full_backward_hook(_nothing),
            "layer '1': a backward hook"),
        "hook on the optimiser": (lambda s: s.opt.register_step_pre_hook(_nothing),
            "a hook on the optimiser's step"),
        "weights re-initialised": (_reinitialise, "parameters that are changed by .*uniform_"),
    },
    "context": {
        "autocast": (_autocast, "autocast"),
        "saved tensors packed": (_packed, "saved for the backward pass"),
    },
    "batch": {
        "noise on batches": (_noise, r"by add\(\) \(data augmentation"),
        "labels changed": (lambda x, y: (x, 1 - y), f"labels that {COMPUTED}"),
        "adversarial training": (lambda x, y: (x + 1e-3 * x.sign(), y),
            "features that were computed"),
        "features clamped": (lambda x, y: (x.clamp(-1e3, 1e3), y),
            rf"features that {COMPUTED}, by clamp\(\)"),
        "noise by numpy": (lambda x, y: (torch.from_numpy(x.numpy() + np.float32(1e-3)), y),
            "numbers of the training leave torch at test_record"),
        "outliers left out": (lambda x, y: (x[x.abs().amax(1) < 1e3], y),
            f"features that {COMPUTED}"),
        "labels by formula": (lambda x, y: (x, (y > 0.5).long()), f"labels that {COMPUTED}"),
        "labels clamped in place": (lambda x, y: (x, y.clamp_(0, 1)),
            rf"labels that {COMPUTED}, by clamp_\(\)"),
    },
    "output": {
        "outputs clamped in place": (lambda out: out.clamp_(-1e6, 1e6),
            "between the model's output and its loss: the loss was clamped|Clamp|clamped"),
        "outputs scaled": (lambda out: out * 1.0, "between the model's output and its loss"),
        "custom function": (_Scale.apply, "between the model's output and its loss: .*Scale"),
    },
    "loss_fn": {
        "class weights by the data": (
            lambda out, y: functional.cross_entropy(out, y, 1.0 / y.bincount().float()),
            f"weights of the loss that {COMPUTED}",
        ),
        "sum": (nn.CrossEntropyLoss(reduction="sum"), "reduction = 'sum'"),
        "a label left out": (nn.CrossEntropyLoss(ignore_index=1), "labels that are left out"),
        "another loss": (lambda out, y: functional.mse_loss(out, functional.one_hot(y, 2).float()),
            r"labels that were .* by one_hot\(\)"),
        "a loss of their own": (
            lambda out, y: -functional.log_softmax(out, 1)[torch.arange(len(y)), y].mean(),
            "does not begin at a known loss: a loss of the user's own",
        ),
    },
    "loss": {
        "hook on the loss": (lambda s, loss: (loss.register_hook(lambda g: g), loss)[1],
            "a hook on a tensor"),
        "layer wrapped in the middle": (lambda s, loss: (_wrapped(s), loss)[1],
            "step 4: other parameters before this step"),
        "hook on a node": (_graph_hook, "a node of the gradient's graph"),
        "GradScaler": (lambda s, loss: torch.amp.GradScaler("cpu").scale(loss), "GradScaler"),
        "scaled loss": (lambda s, loss: 1024.0 * loss, r"1024 \* mean of 40"),
        "divided loss": (lambda s, loss: loss / 2, "gradient accumulation"),
        "second term": (_penalty, "another term"),
        "clamped loss": (lambda s, loss: loss.clamp(max=1e6), "the loss was clamped"),
        "term added in place": (lambda s, loss: loss.add_(0.0 * s.model[0].weight.abs().sum()),
            "another term"),
        "loss clamped in place": (lambda s, loss: loss.clamp_(max=1e6), "was clamped"),
        "loss scaled by itself": (lambda s, loss: loss * (1.0 / (1.0 + loss.item())), "multiplied"),
        "gradients kept": (_no_zero_grad, "step 2: gradients of more than one backward pass"),
        "two losses": (lambda s, loss: loss + s.loss_fn(s.model(X[:5]), Y[:5]), "another term"),
    },
    "after_backward": {
        "hook in the middle": (_fourth(_hook), "step 4: a hook on a tensor"),
        "clip of a part": (lambda s: nn.utils.clip_grad_norm_(s.model[0].parameters(), 1e6),
            "step 1: clip_grad_norm_ of 2 of 4 trained parameters"),
        "clip of another norm": (lambda s: nn.utils.clip_grad_norm_(s.model.parameters(), 1e6, 1.0),
            "clip_grad_norm_ with norm_type = 1.0"),
        "clip by the loss": (lambda s: nn.utils.clip_grad_norm_(s.model.parameters(), _norm(s)),
            "clip_grad_norm_ with max_norm = "),
        "clipped twice": (lambda s: (_clip(s), _clip(s)),
            "step 1: gradients that were clipped, and changed besides"),
        "clipped and scaled": (lambda s: (_clip(s), s.model[0].bias.grad.mul_(0.5)),
            "step 1: gradients that are changed by mul_"),
        "clip_grad_value_": (_clip_value, "clip_grad_value_"),
        "gradient by hand": (lambda s: [p.grad.data.mul_(1.0) for p in s.model.parameters()],
            "gradients that are changed by mul_"),
        "gradient assigned": (
            lambda s: setattr(s.model[0].weight, "grad", s.model[0].weight.grad + 0),
            "gradients that are changed by grad was assigned",
        ),
        "noise on gradients": (lambda s: [p.grad.add_(1e-9) for p in s.model.parameters()],
            "gradients that are changed by add_"),
    },
    "after_step": {
        "weights clamped": (_clamp_weights, "parameters that are changed by clamp_"),
        "second optimiser": (_second_optimizer, "step 2: parameters that are changed"),
        "nesterov with dampening": (
            lambda s, loss: s.opt.param_groups[0].update(nesterov=True, dampening=0.1),
            r"step 2: nesterov with dampening = 0\.1",
        ),
        "rate by the loss": (
            lambda s, loss: s.opt.param_groups[0].update(lr=0.1 / (1.0 + loss.item())),
            "step 2: lr = .*computed from tensors",
        ),
    },
    "after_epoch": {
        "class weights that change": (
            lambda s, loss: setattr(s.loss_fn, "weight", torch.tensor([1.0, 2.0])),
            "step 4: another loss than in the first step",
        ),
        "early stopping": (_stop, COMPARED),
        "early stopping by tensor": (lambda s, loss: bool(loss < 1e-9), COMPARED),
        "early stopping by mean": (_stop_by_mean, COMPARED),
        "plateau": (_plateau, "ReduceLROnPlateau"),
        "weights loaded": (_load, "parameters that are changed by .*copy_"),
        "a layer that is replaced": (lambda s, loss: s.model.__setitem__(1, nn.Tanh()),
            "step 4: .*Tanh"),
        "a parameter that is replaced": (
            lambda s, loss: setattr(s.model[0], "bias", nn.Parameter(torch.ones(8))),
            "step 4: ",
        ),
        "unfreezing": (lambda s, loss: s.model[0].requires_grad_(False) and None, "step 4: "),
    },
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    name: ({place: quirk}, message)
    for place, quirks in PLACES.items()
    for name, (quirk, message) in quirks.items()
} | {
    "hook on all modules": (
        {
            "start": lambda s: setattr(
                s, "undo", nn.modules.module.register_module_forward_hook(_nothing)
            ),
            "after_epoch": lambda s, loss: s.undo.remove(),
        },
        "all modules: a forward hook",
    ),
    "dropout left on": (
        {"model": _dropout(), "start": lambda s: s.model.train()},
        r"Dropout\(p=0.2\) in training mode, layer '2'",
    ),
    "repeated samples": (
        {"loader_options": {**SAMPLED, "batch_sampler": [[0, 1, 2], [3, 4, 3]]}},
        "step 2: a sample that occurs twice",
    ),
    "hard examples": ({"hard": True}, "features that were computed or chosen with the model"),
    "a slope that changes": (
        {
            "model": nn.Sequential(nn.Linear(30, 8), nn.LeakyReLU(0.1), nn.Linear(8, 2)),
            "after_epoch": lambda s, loss: setattr(s.model[1], "negative_slope", 0.2),
        },
        "step 4: .*LeakyRelu.*other options",
    ),
    "features as whole numbers": (
        {"dataset": TensorDataset(X.round(), Y), "batch": lambda x, y: (x.int().float(), y)},
        "features that were .* by a conversion to fewer digits",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_is_another_is_refused_by_name(name: str) -> None:
    quirks, message = REFUSED[name]
    script = Script(**copy.deepcopy(quirks) if "model" in quirks else quirks)
    with pytest.warns(UserWarning, match="This run cannot be certified"):
        run = script.train()
    with pytest.raises(MilpAgtError, match=message) as found:
        certified(run)
    assert found.value.asked
    assert found.value.remedy
    with pytest.raises(type(found.value)):
        agt.attack(run, THREAT)
    assert_clean(script)


AT_ENTRY: dict[str, tuple[dict[str, Any], str]] = {
    "adam": ({"optimizer": torch.optim.Adam, "options": {}}, "past gradients"),
    "lbfgs": ({"optimizer": torch.optim.LBFGS, "options": {}}, "line search"),
    "hooks before": ({"before": _hook}, "parameter '0.weight': a gradient hook"),
    "bce on probabilities": ({"loss_fn": nn.BCELoss()}, "Sigmoid"),
    "a loss without a rule": ({"loss_fn": nn.L1Loss()}, "L1Loss"),
    "augmentation in the data set": ({"dataset": _Augmented()}, "data augmentation"),
    "dropout": ({"model": _dropout().train()}, "ropout"),
    "half precision": ({"dtype": torch.bfloat16}, "bfloat16"),
    "own forward that branches": ({"model": nn.Sequential(_Branching(30, 8), nn.Linear(8, 2))},
        "_Branching"),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_ENTRY)
def test_what_can_be_known_before_the_loop_is_refused_there(name: str) -> None:
    quirks, message = AT_ENTRY[name]
    script = Script(**quirks)
    with pytest.raises(MilpAgtError, match=message):
        script.train()
    assert script.seen == []
    assert_clean(script)


def test_an_optimiser_of_another_model_or_with_a_past() -> None:
    script, other = Script(), Script()
    with pytest.raises(InvalidInputError, match="4 parameters that are not the model's"):
        agt.record(other.model, script.opt, script.loss_fn, script.loader)
    script.train()
    with pytest.raises(InvalidInputError, match="momentum buffers of earlier steps"):
        agt.record(script.model, script.opt, script.loss_fn, script.loader)


def test_comparisons_that_only_log_stand_in_the_claim() -> None:
    script = Script(after_epoch=_stop, recorded={"values_only_logged": True})
    run = script.train()
    assert_right(script, run)
    told = [a for a in run.finished().assumptions if "test_record_refused.py" in a]
    assert len(told) == 1
    assert "decides neither" in told[0]
    assert told[0] in certified(run).assumptions
