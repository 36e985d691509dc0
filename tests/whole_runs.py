"""Small runs with whole samples exchanged, and all that they can end in."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from attacks import Problem, network
from torch import Tensor
from whole import State, Trainer, subsets

import milp_agt as agt
from milp_agt.training.training import Training

X = torch.tensor(
    [[1.0, 0.2], [-0.8, 0.5], [0.3, -1.0], [-0.4, -0.6], [0.7, 0.9]], dtype=torch.float64
)
Y = torch.tensor([1, 0, 1, 0, 0])


# Ordinary samples, and some whose gradients are far beyond the clipping norm.
POOL = torch.tensor(
    [[0.0, 0.0], [1e6, -1e6], [-1e6, 1e6], [3.0, 4.0], [-3.0, 1.0], [1e6, 1e6]], dtype=torch.float64
)
POOL_Y = torch.tensor([1, 0, 1, 0, 1, 0])
KINDS = {"substitution": agt.Substitution, "removal": agt.Removal, "insertion": agt.Insertion}


def problem(
    kind: str, budget: int, samples: int = 4, hidden: tuple[int, ...] = (2,), **training: Any
) -> Problem:
    if kind != "removal":
        training = {"clip": 0.3} | training
    run = Training(**({"loss": "bce", "learning_rate": 0.5, "epochs": 3} | training))
    model = network((2, *hidden, 1), seed=1)
    return Problem(model, X[:samples], Y[:samples], run, KINDS[kind](budget))


def truth(case: Problem) -> list[State]:
    """States after every step of all removals, or of all changes by samples of the pool."""
    trainer, budget = Trainer(case), case.threat.budget
    if isinstance(case.threat, agt.Removal):
        return trainer.removed(list(subsets(len(case.features), budget)))
    if isinstance(case.threat, agt.Insertion):
        return trainer.inserted(budget, POOL, POOL_Y)
    chosen = list(itertools.combinations(range(len(case.features)), budget))
    return trainer.substituted(chosen, POOL, POOL_Y)


def share(case: Problem, result: agt.Result) -> float:
    """How much of the mean width of the box real runs fill."""
    final = truth(case)[-1]
    reached = torch.cat([(v.amax(0) - v.amin(0)).flatten() for v in final.values()])
    return float(reached.mean()) / result.reachable.mean_width


def one_step(kind: str, budget: int, relaxation: str, **training: Any) -> Any:
    """The result of one step, its rate, and the clipped gradient of every sample."""
    case = problem(kind, budget, samples=5, epochs=1, **training)
    result, _ = case.certify(relaxation=relaxation)
    trainer = Trainer(case)
    state = {n: p.detach()[None] for n, p in case.model.named_parameters()}
    y = trainer.encoded(case.labels)
    found = trainer.gradients(state, case.features[None], y[None])
    return result, case, {n: g[0] for n, g in found.items()}


def extremes(kind: str, budget: int, g: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest mean of values (n, ...), where new values lie in ``[-size, size]``."""
    ordered, n = g.sort(dim=0).values, len(g)
    if kind == "insertion":
        both = [(ordered.sum(0) + s * budget * size) / (n + budget) for s in (-1, 1)]
        return torch.minimum(both[0], g.mean(0)), torch.maximum(both[1], g.mean(0))
    low, high = ordered[: n - budget].sum(0), ordered[budget:].sum(0)
    if kind == "removal":
        return low / (n - budget), high / (n - budget)
    return (low - budget * size) / n, (high + budget * size) / n


def assert_form_meets_the_ball(kind: str, mode: str) -> None:
    """Clipped by their norm, new gradients lie in a ball over all parameters, not in its box."""
    result, case, gradients = one_step(kind, 2, "linear", clip_mode=mode)
    generator = torch.Generator().manual_seed(0)
    form = {
        n: torch.randn(g.shape[1:], generator=generator, dtype=torch.float64)
        for n, g in gradients.items()
    }
    flat = torch.cat([c.flatten() for c in form.values()])
    size = case.training.clip * torch.linalg.vector_norm(flat, ord=2 if mode == "norm" else 1)
    values = sum((gradients[n] * c).flatten(1).sum(1) for n, c in form.items())
    low, high = extremes(kind, 2, values, size)
    start = sum(float((case.model.state_dict()[n] * c).sum()) for n, c in form.items())
    (found,) = result.functional({n: c.numpy() for n, c in form.items()})
    rate = case.training.learning_rate
    assert found.upper == pytest.approx(start - rate * float(low), abs=1e-9)
    assert found.lower == pytest.approx(start - rate * float(high), abs=1e-9)


RUNS: dict[str, dict[str, Any]] = {
    "full batch": {},
    "clamped": {"clip_mode": "clamp"},
    "mini-batches": {"epochs": 2, "batch_size": 3, "shuffle_seed": 0},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov, mini-batches": {
        "momentum": 0.5, "nesterov": True, "epochs": 2, "batch_size": 2, "clip_mode": "clamp",
    },
}  # fmt: skip


def of(kind: str, name: str) -> dict[str, Any]:
    options = dict(RUNS[name])
    if kind == "removal":
        options.pop("clip_mode", None)
    return options
