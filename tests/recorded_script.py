"""A training script of the user's own in plain torch, with places where quirks go in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import milp_agt as agt
from milp_agt.recording import Recording

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

    def train(self, watch: bool = True) -> Recording:
        """The recorded run, or nothing where nobody watches."""
        self.before(self)
        assert self.model is not None
        given = (self.model, self.opt, self.loss_fn, self.loader)
        with agt.record(*given, **self.recorded) if watch else nullcontext() as run:
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


def assert_clean(script: Script) -> None:
    """Nothing of the recording is left behind."""
    assert script.loader.__class__ is DataLoader
    assert torch.overrides._get_current_function_mode() is None
    modules = script.model.modules()
    assert not any("Loop" in repr(h) for m in modules for h in m._forward_hooks.values())
    assert not any("Loop" in repr(h) for m in modules for h in m._forward_pre_hooks.values())
    for table in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        assert not any("Loop" in repr(h) for h in getattr(script.opt, table).values())
    assert torch.optim.lr_scheduler.ReduceLROnPlateau.step.__module__ == "torch.optim.lr_scheduler"
