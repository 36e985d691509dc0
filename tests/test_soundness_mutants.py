"""Attacks catch sets that are too tight."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attacks import (
    Problem,
)
from problems import caught, problem

from milp_agt.bounds.adversary import joint, worst_case
from milp_agt.bounds.adversary.top_k import worst_sum
from milp_agt.bounds.linear import linearized_step
from milp_agt.core.reachable import ReachableSet
from milp_agt.errors import SoundnessError


def shrunk(box: ReachableSet, share: float) -> Any:
    middle = {n: 0.5 * (box.lower[n] + box.upper[n]) for n in box.lower}
    keep = 1.0 - share
    lower = {n: middle[n] + keep * (box.lower[n] - middle[n]) for n in box.lower}
    upper = {n: middle[n] + keep * (box.upper[n] - middle[n]) for n in box.lower}
    return SimpleNamespace(lower=lower, upper=upper)


def regression(kind: str) -> tuple[Problem, Any, Any]:
    case, test, labels = problem(
        "mse", kind, {"epochs": 1, "learning_rate": 0.1}, (), outputs=1, radius=0.05, budget=2
    )
    return case, test, labels


@pytest.mark.parametrize("kind", ["features", "labels"])
def test_attacks_catch_a_box_one_per_cent_too_tight(kind) -> None:
    case, test, labels = regression(kind)
    _, boxes = case.certify(relaxation="linear")
    assert not caught(case, boxes, test, labels)
    assert caught(case, [shrunk(b, 0.01) for b in boxes], test, labels)


def test_attacks_catch_a_dropped_charge(monkeypatch) -> None:
    def uncharged(self: Any, *arguments: Any) -> Any:
        return torch.zeros_like(honest(self, *arguments))

    honest = linearized_step.Intercepts._charges
    monkeypatch.setattr(linearized_step.Intercepts, "_charges", uncharged)
    escaped = False
    for seed in range(6):
        case, test, labels = problem(
            "bce", "features", {"epochs": 4, "learning_rate": 1.0}, (4,), seed=seed, radius=0.5
        )
        try:
            _, boxes = case.certify(relaxation="linear")
        except SoundnessError:
            continue
        escaped = escaped or caught(case, boxes, test, labels)
    assert escaped


def test_attacks_catch_a_budget_one_too_small(monkeypatch) -> None:
    case, test, labels = regression("labels")
    monkeypatch.setattr(worst_case, "worst_sum", lambda hurt, budget: worst_sum(hurt, budget - 1))
    monkeypatch.setattr(joint, "worst_sum", lambda hurt, budget: worst_sum(hurt, budget - 1))
    _, boxes = case.certify(relaxation="linear")
    assert caught(case, boxes, test, labels)
