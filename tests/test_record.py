"""A training loop of the user's own: recorded, certified as it is, or refused by name."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import milp_agt as agt
from milp_agt.errors import (
    InvalidInputError,
    MilpAgtError,
    SoundnessError,
    UnsupportedOperationError,
)
from milp_agt.recording import Recording
from milp_agt.runfile.run_file import load_config

CANCER = agt.load_dataset("breast_cancer", test_fraction=0.8, seed=0, standardise=True)
X = torch.from_numpy(CANCER.x_train).float()
Y = torch.from_numpy(CANCER.y_train)
THREAT = agt.FeaturePoisoning(budget=1, radius=0.01)


@dataclass
class Script:
    """The script of a user: their objects, and their loop with places where quirks go in."""

    dtype: torch.dtype = torch.float32
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    options: dict[str, Any] = field(default_factory=lambda: {"momentum": 0.9, "weight_decay": 1e-3})
    loss_fn: Callable[..., Tensor] = field(default_factory=nn.CrossEntropyLoss)
    dataset: Dataset[Any] | None = None
    loader_options: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None
    epochs: int = 2
    before: Callable[[Script], object] = lambda script: None
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    start: Callable[[Script], object] = lambda script: None
    batch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda x, y: (x, y)
    output: Callable[[Tensor], Tensor] = lambda output: output
    loss: Callable[[Script, Tensor], Tensor] = lambda script, loss: loss
    after_backward: Callable[[Script], object] = lambda script: None
    after_step: Callable[[Script, Tensor], object] = lambda script, loss: None
    after_epoch: Callable[[Script, Tensor], bool | None] = lambda script, loss: None
    hard: bool = False
    recorded: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        if self.model is None:
            self.model = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2))
        self.model = self.model.to(self.dtype)
        generator = torch.Generator().manual_seed(1)
        options = {"batch_size": 40, "shuffle": True, "generator": generator} | self.loader_options
        self.loader = DataLoader(self.dataset or TensorDataset(X.to(self.dtype), Y), **options)
        self.opt = self.optimizer(self.model.parameters(), lr=0.1, **self.options)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.opt, step_size=1, gamma=0.5)
        self.initial = copy.deepcopy(self.model.state_dict())
        self.seen: list[tuple[Tensor, Tensor]] = []

    def train(self) -> Recording:
        self.before(self)
        assert self.model is not None
        with agt.record(self.model, self.opt, self.loss_fn, self.loader, **self.recorded) as run:
            self.start(self)
            for _ in range(self.epochs):
                for x, y in self.loader:
                    self.opt.zero_grad()
                    x, y = self.batch(x, y)
                    if self.hard:
                        with torch.no_grad():
                            order = self.model(x)[:, 0].argsort()[:5]
                        x, y = x[order], y[order]
                    self.seen.append((x.clone(), y.clone()))
                    with self.context():
                        loss = self.loss_fn(self.output(self.model(x)), y)
                    loss = self.loss(self, loss)
                    loss.backward()
                    self.after_backward(self)
                    self.opt.step()
                    self.after_step(self, loss)
                self.scheduler.step()
                if self.after_epoch(self, loss):
                    break
        return run


def certified(run: Recording, **options: Any) -> agt.Result:
    return agt.certify(run, THREAT, relaxation="interval", **options)


def assert_right(script: Script, run: Recording) -> None:
    """What was recorded is what the script did: samples, start, end."""
    found = run.finished()
    assert len(found.batches) == len(script.seen)
    for batch, (x, y) in zip(found.batches, script.seen, strict=True):
        index = torch.from_numpy(batch)
        assert torch.equal(found.features[index], x.reshape(len(x), *found.features.shape[1:]))
        assert torch.equal(found.labels[index].reshape(-1).double(), y.reshape(-1).double())
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, script.initial[name])
    assert script.model is not None
    for name, value in found.final.items():
        assert torch.equal(value, script.model.state_dict()[name])
    result = certified(run)
    check = result.nominal_check
    assert check is not None
    eps = torch.finfo(script.dtype).eps
    assert check.difference <= 100 * eps
    assert check.dtype == str(script.dtype).removeprefix("torch.")
    nominal = result.reachable.nominal
    apart = max(
        float(np.abs(nominal[n] - v.double().numpy()).max()) for n, v in found.final.items()
    )
    assert apart == check.difference
    assert str(check) == (
        f"your model is the nominal run up to {check.difference:.2g} ({check.dtype})"
    )


# What is recorded ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shuffled_loader_momentum_decay_and_schedule(dtype: torch.dtype) -> None:
    script = Script(dtype)
    run = script.train()
    assert_right(script, run)
    rules = run.finished().training.rules
    assert [rule.rate for rule in rules] == [0.1] * 3 + [0.05] * 3
    assert {(r.momentum, r.weight_decay, r.nesterov) for r in rules} == {(0.9, 1e-3, False)}


def assert_inside(result: agt.Result, model: nn.Module) -> None:
    """Without a tolerance, and elsewhere than the nominal run."""
    for name, value in model.state_dict().items():
        assert (value.double().numpy() >= result.reachable.lower[name]).all()
        assert (value.double().numpy() <= result.reachable.upper[name]).all()
        assert not np.array_equal(value.double().numpy(), result.reachable.nominal[name])


def poisoned_data(seed: int, radius: float = 0.0099) -> Tensor:
    """The features with those of one sample moved, in float32."""
    rng = np.random.default_rng(seed)
    moved = X.clone()
    moved[int(rng.integers(len(X)))] += (
        radius * torch.from_numpy(rng.choice([-1.0, 1.0], 30)).float()
    )
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poisoned_runs_of_plain_torch_lie_inside(dtype: torch.dtype) -> None:
    result = certified(Script(dtype).train())
    for seed in range(3):
        other = Script(dtype, dataset=TensorDataset(poisoned_data(seed).to(dtype), Y))
        for _ in range(2):
            for x, y in other.loader:
                other.opt.zero_grad()
                other.loss_fn(other.model(x), y).backward()
                other.opt.step()
            other.scheduler.step()
        assert_inside(result, other.model)


def unusual_run(x: Tensor, watch: Any = None) -> tuple[nn.Module, Any]:
    """Dampening and accumulated gradients, in the precision of the data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 3), nn.ReLU(), nn.Linear(3, 2)).to(x.dtype)
    opt = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.7, dampening=0.4, weight_decay=0.1)
    order = torch.randperm(len(x))[:63]
    context = (
        nullcontext() if watch is None else agt.record(model, opt, nn.CrossEntropyLoss(), (x, Y))
    )
    with context as run:
        for i, part in enumerate(order.split(7)):
            (functional.cross_entropy(model(x[part]), Y[part]) / 3).backward()
            if i % 3 == 2:
                opt.step()
                opt.zero_grad()
    return model, run


@pytest.mark.parametrize("level", ["interval", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poisoned_runs_with_dampening_and_accumulation_lie_inside(
    dtype: torch.dtype, level: str
) -> None:
    _, run = unusual_run(X.to(dtype), True)
    assert [len(b) for b in run.finished().batches] == [21, 21, 21]
    for radius in (0.0, 0.01):
        threat = agt.FeaturePoisoning(budget=1, radius=max(radius, 1e-30))
        result = agt.certify(run, threat, relaxation=level)
        for seed in range(4 if radius else 1):
            model, _ = unusual_run(poisoned_data(seed, 0.99 * radius).to(dtype))
            for name, value in model.state_dict().items():
                assert (value.double().numpy() >= result.reachable.lower[name]).all()
                assert (value.double().numpy() <= result.reachable.upper[name]).all()
        if not radius:
            assert result.reachable.max_width < 2e4 * torch.finfo(dtype).eps


def test_nesterov_and_dampening_exclude_each_other() -> None:
    def both(script: Script, loss: Tensor) -> None:
        script.opt.param_groups[0].update(nesterov=True, dampening=0.1)

    script = Script(after_step=both)
    with pytest.warns(UserWarning, match=r"step 2: nesterov with dampening = 0\.1"):
        script.train()


LOADERS: dict[str, dict[str, Any]] = {
    "in order": {"shuffle": False},
    "drop_last": {"drop_last": True},
    "workers": {"num_workers": 2},
    "persistent workers": {"num_workers": 1, "persistent_workers": True},
    "sampler": {"shuffle": None, "sampler": torch.utils.data.SubsetRandomSampler(range(60))},
    "batch_sampler": {
        "shuffle": None,
        "generator": None,
        "batch_size": 1,
        "batch_sampler": [[0, 5, 3], [2, 1], [3, 7, 9]],
    },
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_is_recorded(name: str) -> None:
    script = Script(loader_options=LOADERS[name])
    kind, sampler = type(script.loader), script.loader.batch_sampler
    run = script.train()
    assert_right(script, run)
    assert type(script.loader) is kind
    assert script.loader.batch_sampler is sampler
    assumed = " ".join(run.finished().assumptions)
    assert ("SubsetRandomSampler draws" in assumed) == (name == "sampler")


def test_recording_changes_nothing_in_the_run() -> None:
    plain, recorded = Script(), Script()
    recorded.train()
    for _ in range(2):
        for x, y in plain.loader:
            plain.opt.zero_grad()
            plain.loss_fn(plain.model(x), y).backward()
            plain.opt.step()
        plain.scheduler.step()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, recorded.model.state_dict()[name])


def test_generators_are_left_where_they_were() -> None:
    torch.manual_seed(3)
    random.seed(3)

    class Drawing(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, i: int) -> Any:
            random.random()
            np.random.random()  # noqa: NPY002
            torch.rand(1)
            return X[i], Y[i]

    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    script = Script(dataset=Drawing())
    torch.set_rng_state(before[1])
    agt.record(script.model, script.opt, script.loss_fn, script.loader)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_arrays_in_place_of_a_loader() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 3), nn.Tanh(), nn.Linear(3, 1))
    opt = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5, nesterov=True)
    order = torch.randperm(len(X))
    with agt.record(model, opt, functional.binary_cross_entropy_with_logits, (X, Y)) as run:
        for i in range(0, 60, 20):
            opt.zero_grad()
            chosen = order[i : i + 20]
            out = model(X[chosen]).squeeze(1)
            functional.binary_cross_entropy_with_logits(out, Y[chosen].float()).backward()
            opt.step()
    assert [b.tolist() for b in run.finished().batches] == order[:60].reshape(3, 20).tolist()
    assert run.finished().training.rules[0].nesterov
    assert certified(run).nominal_check.difference < 1e-6


def test_regression_and_a_closure() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 1))
    target = X[:, :1] * 2.0
    opt = torch.optim.SGD(model.parameters(), lr=0.01)

    with agt.record(model, opt, nn.MSELoss(), (X, target)) as run:

        def closure() -> Tensor:
            opt.zero_grad()
            loss = functional.mse_loss(model(X), target)
            loss.backward()
            return loss

        for _ in range(3):
            opt.step(closure)
    assert run.steps == 3
    assert certified(run).nominal_check.difference < 1e-6


def test_changing_momentum_and_rates_of_zero_are_followed() -> None:
    def after(script: Script, loss: Tensor) -> None:
        group = script.opt.param_groups[0]
        group["momentum"] *= 0.9
        group["lr"] = 0.0 if group["lr"] == 0.1 else 0.1

    script = Script(torch.float64, after_step=after)
    run = script.train()
    assert_right(script, run)
    rules = run.finished().training.rules
    assert len({r.momentum for r in rules}) == 6
    assert 0.0 in {r.rate for r in rules}
    attack = agt.attack(
        run, THREAT, search=agt.attacks.Search(pool=8, restarts=1, rounds=0, iterations=1, aims=2)
    )
    assert certified(run).reachable.mean_width >= attack.mean_width > 0


def test_a_frozen_body_and_parameters_that_no_optimiser_has() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    opt = torch.optim.SGD(model[4].parameters(), lr=0.1)
    with agt.record(model, opt, nn.CrossEntropyLoss(), (X, Y)) as run:
        for _ in range(2):
            model.zero_grad()
            functional.cross_entropy(model(X), Y).backward()
            opt.step()
    result = certified(run)
    assert result.models.step_graph.parameters == ("4.weight", "4.bias")
    assert result.nominal_check.difference < 1e-6


def test_a_batch_used_twice_is_two_steps() -> None:
    def again(script: Script, loss: Tensor) -> None:
        x, y = script.seen[-1]
        script.seen.append((x, y))
        script.opt.zero_grad()
        script.loss_fn(script.model(x), y).backward()
        script.opt.step()

    script = Script(after_step=again)
    run = script.train()
    assert_right(script, run)
    assert run.steps == 12
    batches = run.finished().batches
    assert all(set(batches[i]) == set(batches[i + 1]) for i in range(0, 12, 2))


def test_copies_of_samples_are_told_apart_by_what_the_loader_drew() -> None:
    x = torch.cat([X[:20], X[:20]])
    y = torch.cat([Y[:20], Y[:20]])
    drawn: list[list[int]] = []

    class Sampler:
        def __iter__(self) -> Iterator[list[int]]:
            for _ in range(4):
                drawn.append(torch.randperm(40)[:7].tolist())
                yield drawn[-1]

        def __len__(self) -> int:
            return 4

    options = {"shuffle": None, "generator": None, "batch_size": 1, "batch_sampler": Sampler()}
    script = Script(dataset=TensorDataset(x, y), loader_options=options, epochs=1)
    batches = script.train().finished().batches
    assert [sorted(b.tolist()) for b in batches] == [sorted(d) for d in drawn]


def test_copies_of_samples_with_nothing_to_tell_them_apart() -> None:
    x, y = torch.cat([X[:20], X[:20]]), torch.cat([Y[:20], Y[:20]])
    model = nn.Sequential(nn.Linear(30, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with agt.record(model, opt, nn.CrossEntropyLoss(), (x, y)) as run:
        loss = functional.cross_entropy(model(x[:10]), y[:10])
        with pytest.warns(UserWarning, match="occur several times"):
            loss.backward()
        opt.step()
    with pytest.raises(UnsupportedOperationError, match=r"DataLoader that agt\.record was given"):
        run.finished()


def test_whole_data_sets_with_copies_are_fine() -> None:
    x, y = torch.cat([X[:20], X[:20]]), torch.cat([Y[:20], Y[:20]])
    model = nn.Sequential(nn.Linear(30, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with agt.record(model, opt, nn.CrossEntropyLoss(), (x, y)) as run:
        functional.cross_entropy(model(x), y).backward()
        opt.step()
    assert sorted(run.finished().batches[0].tolist()) == list(range(40))


# What is refused ---------------------------------------------------------------------------------


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


def _stop_by_tensor(script: Script, loss: Tensor) -> bool:
    return bool(loss < 1e-9)


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


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hook on parameters": ({"start": _hook}, "a hook on a tensor"),
    "hook in the middle": ({"after_backward": _fourth(_hook)}, "step 4: a hook on a tensor"),
    "hook on the loss": (
        {"loss": lambda s, loss: (loss.register_hook(lambda g: g), loss)[1]},
        "a hook on a tensor",
    ),
    "hook on a module": (
        {"start": lambda s: s.model[1].register_full_backward_hook(lambda *a: None)},
        "a backward hook on layer '1'",
    ),
    "hook on all modules": (
        {
            "start": lambda s: setattr(
                s, "undo", nn.modules.module.register_module_forward_hook(lambda *a: None)
            ),
            "after_epoch": lambda s, loss: s.undo.remove(),
        },
        "a forward hook on all modules",
    ),
    "hook on the optimiser": (
        {"start": lambda s: s.opt.register_step_pre_hook(lambda *a: None)},
        "a hook on the optimiser's step",
    ),
    "hook on a node": ({"loss": _graph_hook}, "a node of the gradient's graph"),
    "label smoothing": (
        {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)},
        r"label smoothing \(0.1\)",
    ),
    "class weights": (
        {"loss_fn": nn.CrossEntropyLoss(weight=torch.ones(2))},
        "class or sample weights",
    ),
    "sum": ({"loss_fn": nn.CrossEntropyLoss(reduction="sum")}, "reduction = 'sum'"),
    "clip_grad_norm_": (
        {"after_backward": _clip},
        "step 1: gradients that are changed.*clip_grad_norm_",
    ),
    "clip in step 4": ({"after_backward": _fourth(_clip)}, "step 4: .*clip_grad_norm_"),
    "clip_grad_value_": ({"after_backward": _clip_value}, "clip_grad_value_"),
    "gradient by hand": (
        {"after_backward": lambda s: [p.grad.data.mul_(1.0) for p in s.model.parameters()]},
        "gradients that are changed by mul_",
    ),
    "gradient assigned": (
        {
            "after_backward": lambda s: setattr(
                s.model[0].weight, "grad", s.model[0].weight.grad + 0
            )
        },
        "gradients that are changed by grad was assigned",
    ),
    "autocast": ({"context": _autocast}, "autocast"),
    "saved tensors packed": ({"context": _packed}, "saved for the backward pass"),
    "GradScaler": (
        {"loss": lambda s, loss: torch.amp.GradScaler("cpu").scale(loss)},
        "GradScaler",
    ),
    "scaled loss": ({"loss": lambda s, loss: 1024.0 * loss}, r"1024 \* mean of 40"),
    "divided loss": ({"loss": lambda s, loss: loss / 2}, "gradient accumulation"),
    "second term": ({"loss": _penalty}, "another term"),
    "clamped loss": ({"loss": lambda s, loss: loss.clamp(max=1e6)}, "the loss was clamped"),
    "term added in place": (
        {"loss": lambda s, loss: loss.add_(0.0 * s.model[0].weight.abs().sum())},
        "another term",
    ),
    "loss clamped in place": ({"loss": lambda s, loss: loss.clamp_(max=1e6)}, "was clamped"),
    "outputs clamped in place": (
        {"output": lambda out: out.clamp_(-1e6, 1e6)},
        "between the model's output and its loss: the loss was clamped|Clamp|clamped",
    ),
    "loss scaled by itself": (
        {"loss": lambda s, loss: loss * (1.0 / (1.0 + loss.item()))},
        "multiplied",
    ),
    "gradients kept": (
        {"loss": _no_zero_grad},
        "step 2: gradients of more than one backward pass",
    ),
    "early stopping": (
        {"after_epoch": _stop},
        "a number of the training is compared at test_record",
    ),
    "early stopping by tensor": ({"after_epoch": _stop_by_tensor}, "is compared at test_record"),
    "early stopping by mean": ({"after_epoch": _stop_by_mean}, "is compared at test_record"),
    "plateau": ({"after_epoch": _plateau}, "ReduceLROnPlateau"),
    "dropout left on": (
        {"model": _dropout(), "start": lambda s: s.model.train()},
        r"Dropout\(p=0.2\) in training mode, layer '2'",
    ),
    "weights re-initialised": (
        {"start": _reinitialise},
        "parameters that are changed by .*uniform_",
    ),
    "weights loaded": ({"after_epoch": _load}, "parameters that are changed by .*copy_"),
    "weights clamped": ({"after_step": _clamp_weights}, "parameters that are changed by clamp_"),
    "second optimiser": ({"after_step": _second_optimizer}, "step 2: parameters that are changed"),
    "noise on batches": ({"batch": _noise}, r"by add\(\) \(data augmentation"),
    "labels changed": (
        {"batch": lambda x, y: (x, 1 - y)},
        "labels that were computed or chosen inside the loop",
    ),
    "outputs scaled": (
        {"output": lambda out: out * 1.0},
        "between the model's output and its loss",
    ),
    "custom function": (
        {"output": _Scale.apply},
        "between the model's output and its loss: .*Scale",
    ),
    "repeated samples": (
        {
            "loader_options": {
                "shuffle": None,
                "generator": None,
                "batch_size": 1,
                "batch_sampler": [[0, 1, 2], [3, 4, 3]],
            }
        },
        "step 2: a sample that occurs twice",
    ),
    "rate by the loss": (
        {"after_step": lambda s, loss: s.opt.param_groups[0].update(lr=0.1 / (1.0 + loss.item()))},
        "step 2: lr = .*computed from tensors",
    ),
    "hard examples": ({"hard": True}, "features that were computed or chosen with the model"),
    "a label left out": (
        {"loss_fn": nn.CrossEntropyLoss(ignore_index=1)},
        "labels that are left out",
    ),
    "a slope that changes": (
        {
            "model": nn.Sequential(nn.Linear(30, 8), nn.LeakyReLU(0.1), nn.Linear(8, 2)),
            "after_epoch": lambda s, loss: setattr(s.model[1], "negative_slope", 0.2),
        },
        "step 4: .*LeakyRelu.*other options",
    ),
    "a layer that is replaced": (
        {"after_epoch": lambda s, loss: s.model.__setitem__(1, nn.Tanh())},
        "step 4: .*Tanh",
    ),
    "a parameter that is replaced": (
        {"after_epoch": lambda s, loss: setattr(s.model[0], "bias", nn.Parameter(torch.ones(8)))},
        "step 4: ",
    ),
    "unfreezing": (
        {"after_epoch": lambda s, loss: s.model[0].requires_grad_(False) and None},
        "step 4: ",
    ),
    "noise on gradients": (
        {"after_backward": lambda s: [p.grad.add_(1e-9) for p in s.model.parameters()]},
        "gradients that are changed by add_",
    ),
    "two losses": (
        {"loss": lambda s, loss: loss + s.loss_fn(s.model(X[:5]), Y[:5])},
        "another term",
    ),
    "adversarial training": (
        {
            "batch": lambda x, y: (x + 1e-3 * x.sign(), y),
        },
        "features that were computed",
    ),
    "features clamped": (
        {"batch": lambda x, y: (x.clamp(-1e3, 1e3), y)},
        r"features that were computed or chosen inside the loop, by clamp\(\)",
    ),
    "features as whole numbers": (
        {
            "dataset": TensorDataset(X.round(), Y),
            "batch": lambda x, y: (x.int().float(), y),
        },
        "features that were .* by a conversion to fewer digits",
    ),
    "noise by numpy": (
        {"batch": lambda x, y: (torch.from_numpy(x.numpy() + np.float32(1e-3)), y)},
        r"row 0 of the batch \(40 of 40 rows\) is not: data augmentation",
    ),
    "outliers left out": (
        {"batch": lambda x, y: (x[x.abs().amax(1) < 1e3], y)},
        "features that were computed or chosen inside the loop",
    ),
    "labels by formula": (
        {"batch": lambda x, y: (x, (y > 0.5).long())},
        "labels that were computed or chosen inside the loop",
    ),
    "labels clamped in place": (
        {"batch": lambda x, y: (x, y.clamp_(0, 1))},
        r"labels that were computed or chosen inside the loop, by clamp_\(\)",
    ),
    "another loss": (
        {"loss_fn": lambda out, y: functional.mse_loss(out, functional.one_hot(y, 2).float())},
        r"labels that were .* by one_hot\(\)",
    ),
    "a loss of their own": (
        {"loss_fn": lambda out, y: -functional.log_softmax(out, 1)[torch.arange(len(y)), y].mean()},
        "does not begin at a known loss: a loss of the user's own",
    ),
}


@pytest.mark.parametrize("level", ["interval", "linear", "lp"])
def test_dampening_is_followed(level: str) -> None:
    torch.manual_seed(0)
    x, y = X[:6, :2].double(), Y[:6]
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    options = {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}
    opt = torch.optim.SGD(model.parameters(), lr=0.3, **options)
    with agt.record(model, opt, nn.CrossEntropyLoss(), (x, y)) as run:
        for _ in range(3):
            opt.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            opt.step()
    assert [r.dampening for r in run.finished().training.rules] == [0.0, 0.3, 0.3]
    threat = agt.FeaturePoisoning(budget=1, radius=0.05)
    result = agt.certify(run, threat, relaxation=level)
    assert result.nominal_check.difference < 1e-14
    attack = agt.attack(run, threat, search=agt.attacks.Search(pool=64, restarts=1, rounds=1))
    for name, lower in attack.lower.items():
        assert (result.reachable.lower[name] <= lower).all()
        assert (result.reachable.upper[name] >= attack.upper[name]).all()
    assert attack.mean_width > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accumulated_gradients_are_one_step_on_the_batches_joined(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = X.to(dtype)
    model = nn.Sequential(nn.Linear(30, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
    opt = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    order = torch.randperm(len(x))[:90]
    with agt.record(model, opt, nn.CrossEntropyLoss(), (x, Y)) as run:
        for i, part in enumerate(order.split(15)):
            (functional.cross_entropy(model(x[part]), Y[part]) / 3).backward()
            if i % 3 == 2:
                opt.step()
                opt.zero_grad()
    assert [b.tolist() for b in run.finished().batches] == order.reshape(2, 45).tolist()
    assert certified(run).nominal_check.difference < 20 * torch.finfo(dtype).eps
    assert "several backward passes" in " ".join(run.finished().assumptions)


def test_accumulation_with_other_weights_or_of_one_sample_twice() -> None:
    model = nn.Sequential(nn.Linear(30, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    with agt.record(model, opt, nn.CrossEntropyLoss(), (X, Y)) as run:
        loss = functional.cross_entropy(model(X), Y) * 2.0 * 2.0 * 0.25
        with pytest.warns(UserWarning, match="multiplied 3 times"):
            loss.backward()
    for parts, factor, message in (
        (
            (range(10), range(10, 20)),
            1.0,
            r"no mean over samples.*1 \* mean of 10, 1 \* mean of 10",
        ),
        ((range(10), range(10, 15)), 0.5, r"no mean over samples"),
        ((range(10), range(5, 15)), 0.5, "twice in one step"),
    ):
        model = nn.Sequential(nn.Linear(30, 2))
        opt = torch.optim.SGD(model.parameters(), lr=0.3)
        with agt.record(model, opt, nn.CrossEntropyLoss(), (X, Y)) as run:
            for part in map(list, parts):
                (factor * functional.cross_entropy(model(X[part]), Y[part])).backward()
            with pytest.warns(UserWarning, match=message):
                opt.step()
        with pytest.raises(UnsupportedOperationError, match=message):
            run.finished()


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


def assert_clean(script: Script) -> None:
    """Nothing of the recording is left behind."""
    assert script.model is not None
    assert script.loader.__class__ is DataLoader
    assert torch.overrides._get_current_function_mode() is None
    modules = script.model.modules()
    assert not any("Loop" in repr(h) for m in modules for h in m._forward_hooks.values())
    assert not any("Loop" in repr(h) for m in modules for h in m._forward_pre_hooks.values())
    for table in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        assert not any("Loop" in repr(h) for h in getattr(script.opt, table).values())
    assert torch.optim.lr_scheduler.ReduceLROnPlateau.step.__module__ == "torch.optim.lr_scheduler"


AT_ENTRY: dict[str, tuple[dict[str, Any], str]] = {
    "adam": ({"optimizer": torch.optim.Adam, "options": {}}, "past gradients"),
    "lbfgs": ({"optimizer": torch.optim.LBFGS, "options": {}}, "line search"),
    "hooks before": ({"before": _hook}, "a gradient hook on parameter '0.weight'"),
    "bce on probabilities": ({"loss_fn": nn.BCELoss()}, "Sigmoid"),
    "a loss without a rule": ({"loss_fn": nn.L1Loss()}, "L1Loss"),
    "augmentation in the data set": ({"dataset": _Augmented()}, "data augmentation"),
    "dropout": ({"model": _dropout().train()}, "ropout"),
    "half precision": ({"dtype": torch.bfloat16}, "bfloat16"),
    "own forward that branches": (
        {"model": nn.Sequential(_Branching(30, 8), nn.Linear(8, 2))},
        "_Branching",
    ),
}


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
    told = [a for a in run.finished().assumptions if "test_record.py" in a]
    assert len(told) == 1
    assert "decides neither" in told[0]
    assert told[0] in certified(run).assumptions


def test_reading_and_printing_values_is_nobodys_business(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def report(script: Script, loss: Tensor) -> None:
        script.model.eval()
        with torch.no_grad():
            accuracy = (script.model(X).argmax(1) == Y).float().mean().item()
        script.model.train()
        print(f"{loss.item():.3f} {100 * accuracy:.1f} {round(sum([accuracy, 1.0]), 2)}", loss)

    script = Script(after_step=report)
    assert_right(script, script.train())
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_an_error_in_the_loop_goes_through_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(script: Script, loss: Tensor) -> None:
        raise RuntimeError("out of luck")

    script = Script(after_step=fail)
    recording = agt.record(script.model, script.opt, script.loss_fn, script.loader)
    monkeypatch.setattr(agt, "record", lambda *_, **__: recording)
    with pytest.raises(RuntimeError, match="out of luck"):
        script.train()
    assert_clean(script)
    with pytest.raises(MilpAgtError, match="ended with RuntimeError: out of luck"):
        certified(recording)


def test_a_run_without_steps_and_a_block_that_has_not_ended() -> None:
    script = Script(epochs=0)
    with pytest.warns(UserWarning, match="no step"):
        run = script.train()
    with pytest.raises(InvalidInputError, match="no step"):
        certified(run)
    open_one = agt.record(script.model, script.opt, script.loss_fn, script.loader)
    with pytest.raises(InvalidInputError, match="has not ended"):
        certified(open_one)
    with pytest.raises(InvalidInputError, match="certify\\(run, threat\\)"):
        agt.certify(run, THREAT, agt.Training(loss="mse"), THREAT)


def test_weights_changed_after_the_last_step_or_by_value_are_found() -> None:
    """Through a view of numpy, which no call of torch shows."""

    def by_numpy(script: Script, loss: Tensor) -> bool:
        script.model[0].bias.detach().numpy()[0] += 1e-3
        return False

    for epochs, when in ((1, "after the last step"), (2, "step 4: .*before this step")):
        script = Script(after_epoch=by_numpy, epochs=epochs)
        with pytest.warns(UserWarning, match=when):
            run = script.train()
        with pytest.raises(MilpAgtError, match=r"other values of parameter '0\.bias'"):
            certified(run)


def test_a_final_model_that_is_another_is_never_certified() -> None:
    run = Script().train().finished()
    name = next(iter(run.final))
    run.final[name][0] += 0.01  # type: ignore[index]
    with pytest.raises(UnsupportedOperationError, match=f"'{name}' is 0.01 off after 6 steps"):
        agt.certify(run, THREAT, relaxation="interval")


# Files ---------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path: Path) -> None:
    script = Script()
    run = script.train()
    run.save(tmp_path / "run")
    fresh = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2))
    loaded = agt.load_run(tmp_path / "run", fresh)
    one, other = certified(run), agt.certify(loaded, THREAT, relaxation="interval")
    for name in one.reachable.lower:
        assert np.array_equal(one.reachable.lower[name], other.reachable.lower[name])
    assert one.nominal_check == other.nominal_check
    assert one.assumptions == other.assumptions
    with pytest.raises(InvalidInputError, match="give the architecture"):
        agt.load_run(tmp_path / "run.npz", nn.Linear(30, 2))
    with pytest.raises(InvalidInputError, match="No such file"):
        agt.load_run(tmp_path / "nothing", fresh)
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(InvalidInputError, match=r"give a file that run\.save"):
        agt.load_run(tmp_path / "other.npz", fresh)
    with pytest.raises(InvalidInputError, match="no such folder"):
        run.save(tmp_path / "none" / "run")


def test_a_layer_that_reads_values_while_the_model_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = nn.ReLU.forward

    def branching(layer: nn.ReLU, x: Tensor) -> Tensor:
        return plain(layer, x) if x.sum() < 1e9 else x

    monkeypatch.setattr(nn.ReLU, "forward", branching)
    script = Script()
    with pytest.raises(UnsupportedOperationError, match=r"ReLU\.forward of torch replaced"):
        script.train()


RUN_FILE = """
[data]
name = "breast_cancer"
test_fraction = 0.8
standardise = true

[model]
layers = [30, 8, 2]

[training]
record = "run.npz"

[threat]
kind = "features"
budget = 1
radius = 0.01

[certify]
relaxation = "interval"

[[property]]
kind = "accuracy"
at_least = 0.1
"""


def test_a_record_in_a_run_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from milp_agt.cli import main

    run = Script().train()
    run.save(tmp_path / "run.npz")
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE)
    built = load_config(path).build()
    one, other = built.certify(), certified(run)
    for name in one.reachable.lower:
        assert np.array_equal(one.reachable.lower[name], other.reachable.lower[name])
    assert one.nominal_check == other.nominal_check
    assert main(["certify", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "your model is the nominal run up to" in capsys.readouterr().out
    assert main(["attack", str(path), "--out", str(tmp_path / "attack")]) == 0
    one.save(tmp_path / "result")
    saved = agt.load(tmp_path / "result")
    assert saved.assumptions == one.assumptions == other.assumptions
    assert saved.nominal_check == one.nominal_check


def test_a_record_of_other_data_or_beside_options(tmp_path: Path) -> None:
    Script().train().save(tmp_path / "run.npz")
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE.replace("standardise = true", "standardise = true\nseed = 1"))
    with pytest.raises(InvalidInputError, match=r"in the same order; or certify in Python"):
        load_config(path).build()
    path.write_text(RUN_FILE.replace("[training]", '[training]\nloss = "mse"'))
    with pytest.raises(InvalidInputError, match=r"'loss' beside 'record'.*the record holds all"):
        load_config(path)
    path.write_text(RUN_FILE.replace("run.npz", "none.npz"))
    with pytest.raises(InvalidInputError, match="No such file"):
        load_config(path).build()
    path.write_text(RUN_FILE.replace('record = "run.npz"', ""))
    with pytest.raises(InvalidInputError, match="without the key 'loss'"):
        load_config(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_users_own_model_must_lie_inside(dtype: torch.dtype) -> None:
    """One that is off by less than the nominal check grants, and by more than rounding."""
    run = Script(dtype).train()
    assert certified(run).reachable.contains(run.finished().final)
    off = next(iter(run.finished().final.values()))
    width = 0.4 * run.finished().nominal_check().tolerance
    off[0] += width
    still = agt.FeaturePoisoning(budget=1, radius=1e-30)
    with pytest.raises(SoundnessError, match="must lie in its reachable set"):
        agt.certify(run, still, relaxation="linear")
