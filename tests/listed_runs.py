"""Small runs whose data sets are listed by hand, and trained in plain torch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from attacks import network
from same_run import torch_loss
from torch import Tensor, nn

import milp_agt as agt


@dataclass(frozen=True)
class Case:
    """A run whose data sets are listed by the test itself."""

    model: nn.Module
    x: Tensor
    y: Tensor
    training: agt.Training
    threat: Any
    options: tuple[tuple[str, Any], ...] = ()

    def certify(self, **options: Any) -> agt.Result:
        return agt.certify(
            self.model,
            (self.x, self.y),
            self.training,
            self.threat,
            **dict(self.options),
            **options,
        )

    def trained(self, x: Tensor, y: Tensor, kept: Sequence[bool], order: int = 1) -> nn.Module:
        """By torch.optim.SGD, as a user does it; with -1 the samples of a batch are summed backwards."""
        model, run = copy.deepcopy(self.model).double(), self.training
        optimiser = torch.optim.SGD(
            model.parameters(),
            run.learning_rate,
            run.momentum,
            weight_decay=run.weight_decay,
            nesterov=run.nesterov,
        )
        for batch in run.batch_order(len(x)):
            left = [i for i in batch.tolist() if kept[i]][::order]
            if left:
                optimiser.zero_grad()
                torch_loss(run.loss, model(x[left]), y[left]).backward()
                optimiser.step()
        return model


def data(loss: str, count: int, width: int = 2, classes: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    if loss == "mse":
        return x, torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=generator)


def flips(case: Case, budget: int, classes: int) -> Iterator[tuple[Tensor, Tensor, list[bool]]]:
    """All labelings that differ in at most ``budget`` labels."""
    every = [True] * len(case.y)
    for size in range(budget + 1):
        for chosen in itertools.combinations(range(len(case.y)), size):
            for new in itertools.product(range(classes), repeat=size):
                if all(int(case.y[i]) != label for i, label in zip(chosen, new, strict=True)):
                    y = case.y.clone()
                    y[list(chosen)] = torch.tensor(new, dtype=y.dtype)
                    yield case.x, y, every


def removals(case: Case, budget: int) -> Iterator[tuple[Tensor, Tensor, list[bool]]]:
    for size in range(budget + 1):
        for chosen in itertools.combinations(range(len(case.y)), size):
            yield case.x, case.y, [i not in chosen for i in range(len(case.y))]


def categories(case: Case) -> Iterator[tuple[Tensor, Tensor, list[bool]]]:
    """One sample gets another category in columns 1 and 2, another label, or both."""
    every = [True] * len(case.y)
    yield case.x, case.y, every
    for i in range(len(case.y)):
        for hot, label in itertools.product(torch.eye(2, dtype=torch.float64), (0, 1)):
            x, y = case.x.clone(), case.y.clone()
            x[i, 1:], y[i] = hot, label
            if bool((x != case.x).any()) or bool((y != case.y).any()):
                yield x, y, every


def run(loss: str, **options: Any) -> agt.Training:
    return agt.Training(loss, **({"learning_rate": 0.4, "epochs": 4} | options))


def cases() -> dict[str, tuple[Case, list[tuple[Tensor, Tensor, list[bool]]], str]]:
    """Runs with all their data sets, and the kind of runs that bounds them."""
    found = {}

    def add(name: str, case: Case, kind: str, listed: Any) -> None:
        found[name] = case, list(listed(case)), kind

    x, y = data("cross_entropy", 6)
    plain = Case(network((2, 3, 2)), x, y, run("cross_entropy"), agt.LabelPoisoning(2))
    add("two flips", plain, "CentredRuns", lambda c: flips(c, 2, 2))
    momentum = run(
        "cross_entropy", batch_size=3, shuffle_seed=0, momentum=0.9, weight_decay=0.02, epochs=3
    )
    x, y = data("cross_entropy", 5, classes=3)
    case = Case(network((2, 3, 3)), x, y, momentum, agt.LabelPoisoning(2))
    add("three classes, momentum", case, "CentredRuns", lambda c: flips(c, 2, 3))
    nesterov = replace(momentum, nesterov=True)
    add("nesterov", replace(case, training=nesterov), "CentredRuns", lambda c: flips(c, 2, 3))
    x, y = data("bce", 5)
    case = Case(network((2, 3, 1)), x, y, run("bce"), agt.LabelPoisoning(3))
    add("three flips", case, "CentredRuns", lambda c: flips(c, 3, 2))
    tanh = replace(case, model=network((2, 3, 1), nn.Tanh), threat=agt.LabelPoisoning(1))
    add("tanh", tanh, "BoxedRuns", lambda c: flips(c, 1, 2))
    deep = replace(case, model=network((2, 3, 2, 1)), threat=agt.LabelPoisoning(1))
    add("two hidden layers", deep, "BoxedRuns", lambda c: flips(c, 1, 2))
    hinge = replace(case, training=run("hinge", momentum=0.5), threat=agt.LabelPoisoning(1))
    add("hinge", hinge, "BoxedRuns", lambda c: flips(c, 1, 2))
    removal = replace(case, threat=agt.Removal(2), training=run("bce", batch_size=2, momentum=0.8))
    add("removal, emptied batches", removal, "CentredRuns", lambda c: removals(c, 2))
    add(
        "removal by boxes",
        replace(removal, model=network((2, 3, 1), nn.Tanh)),
        "BoxedRuns",
        lambda c: removals(c, 2),
    )
    x, y = data("mse", 6)
    linear = nn.Sequential(nn.Linear(2, 1)).double()
    case = Case(linear, x, y, run("mse", learning_rate=0.1), agt.Removal(2))
    add("least squares", case, "CentredRuns", lambda c: removals(c, 2))
    x, y = data("bce", 5, width=3)
    x[:, 1:] = torch.eye(2, dtype=torch.float64)[(x[:, 1] > 0).long()]
    threat = agt.FeatureLabelPoisoning(1, 0.0, categorical=((1, 2),))
    case = Case(network((3, 3, 1)), x, y, run("bce"), threat)
    add("categories", case, "CentredRuns", categories)
    tanh = replace(case, model=network((3, 3, 1), nn.Tanh))
    add("categories by boxes", tanh, "BoxedRuns", categories)
    return found


CASES = cases()
