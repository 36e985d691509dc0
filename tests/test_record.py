"""A training loop of the user's own: recorded, and certified as it is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from boxes import assert_within
from pairs import every_value
from recorded_script import (
    THREAT,
    Script,
    X,
    Y,
    assert_inside,
    assert_right,
    certified,
    poisoned_data,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

import milp_agt as agt
from milp_agt.errors import UnsupportedOperationError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shuffled_loader_momentum_decay_and_schedule(dtype: torch.dtype) -> None:
    script = Script(dtype)
    run = script.train()
    assert_right(script, run)
    rules = run.finished().training.rules
    assert [rule.rate for rule in rules] == [0.1] * 3 + [0.05] * 3
    assert {(r.momentum, r.weight_decay, r.nesterov) for r in rules} == {(0.9, 1e-3, False)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poisoned_runs_of_plain_torch_lie_inside(dtype: torch.dtype) -> None:
    result = certified(Script(dtype).train())
    for seed in range(3):
        other = Script(dtype, dataset=TensorDataset(poisoned_data(seed).to(dtype), Y))
        other.train(watch=False)
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


@every_value(
    dtype={"float32": torch.float32, "float64": torch.float64}, level=["linear", "interval"]
)
def test_poisoned_runs_with_dampening_and_accumulation_lie_inside(
    dtype: torch.dtype, level: str
) -> None:
    _, run = unusual_run(X.to(dtype), True)
    torch.manual_seed(0)
    nn.Sequential(nn.Linear(30, 3), nn.ReLU(), nn.Linear(3, 2))  # draws as the run does
    order = torch.randperm(len(X))[:63].reshape(3, 21)
    assert [b.tolist() for b in run.finished().batches] == order.tolist()
    assert "several backward passes" in " ".join(run.finished().assumptions)
    for radius in (0.0, 0.01):
        threat = agt.FeaturePoisoning(budget=1, radius=max(radius, 1e-30))
        result = agt.certify(run, threat, relaxation=level)
        for seed in range(4 if radius else 1):
            model, _ = unusual_run(poisoned_data(seed, 0.99 * radius).to(dtype))
            assert result.reachable.contains(model.state_dict())
        if not radius:
            assert result.reachable.max_width < 2e4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("budget", "holds"), [(1, False), (2, True)])
def test_dampening_and_removals_that_may_skip_the_first_step(budget: int, holds: bool) -> None:
    """Torch does not dampen the first step that is taken: without the first batch, that is another one."""
    x, order = X[:9].double(), [[0, 1], [2, 3, 4], [5, 6, 7, 8]]

    def trained(gone: tuple[int, ...], watch: bool = False) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model, loss = nn.Linear(30, 2).double(), nn.CrossEntropyLoss()
        opt = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.7, dampening=0.4)
        context = agt.record(model, opt, loss, (x, Y[:9])) if watch else nullcontext()
        with context as run:
            for batch in order:
                kept = [i for i in batch if i not in gone]
                if kept:
                    opt.zero_grad()
                    loss(model(x[kept]), Y[kept]).backward()
                    opt.step()
        return model, run

    run = trained((), True)[1]
    if holds:
        with pytest.raises(UnsupportedOperationError, match="a first batch that may lose all"):
            agt.certify(run, agt.Removal(budget))
    spared = agt.Removal(budget, samples=list(range(1, 9)))
    result = agt.certify(run, spared if holds else agt.Removal(budget), relaxation="interval")
    for gone in itertools.combinations(range(int(holds), 9), budget):
        assert result.reachable.contains(trained(gone)[0].state_dict())


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
    plain.train(watch=False)
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
    """Part of them is refused, and all of them are known."""
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
    opt.zero_grad()
    with agt.record(model, opt, nn.CrossEntropyLoss(), (x, y)) as run:
        functional.cross_entropy(model(x), y).backward()
        opt.step()
    assert sorted(run.finished().batches[0].tolist()) == list(range(40))


# What is refused ---------------------------------------------------------------------------------


def test_programs_follow_dampening() -> None:
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
    result = agt.certify(run, threat, relaxation="lp")
    assert result.nominal_check.difference < 1e-14
    attack = agt.attack(run, threat, search=agt.attacks.Search(pool=16, restarts=1, rounds=1))
    assert_within(attack, result.reachable)
    assert attack.mean_width > 0


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


# Files ---------------------------------------------------------------------------------------------
