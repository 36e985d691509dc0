"""The table of mutants, and every interval and plane of an operation: one per cent too tight is noticed."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from checks_rules import check_interval, check_relax, check_residual
from draws import all_instances, make_box, univariate_instances
from instances import Instance, per_sample
from mutants import SHARE, Mutant, MutantPlanes, is_caught, moderate, shrunk
from mutants_of_runs import ATTACKED, TWO_BUDGETS, WHOLE
from mutants_of_steps import ONE_BUDGET, UPDATES
from problems import caught, problem

from milp_agt.core.interval import Interval


@pytest.mark.parametrize("ends", ["both", "lower", "upper"])
@pytest.mark.parametrize("instance", [i for i in all_instances() if i.has_interval], ids=str)
def test_interval_mutants(instance: Instance, ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(instance.op).interval

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        check_interval(instance, moderate(instance, "nested", seed), rng, count=256)

    check(0)
    monkeypatch.setattr(
        type(instance.op), "interval", lambda op, *boxes: shrunk(original(op, *boxes), ends)
    )
    assert is_caught(check)


@pytest.mark.parametrize("state", [0, 1])
@pytest.mark.parametrize("instance", univariate_instances(), ids=str)
def test_interval_mutants_of_one_state(
    instance: Instance, state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one poisoning state is too tight."""
    original = type(instance.op).interval

    def mutant(op: Any, *boxes: Interval) -> Interval:
        box = original(op, *boxes)
        low, high = box.lower.clone(), box.upper.clone()
        small = shrunk(box)
        low[state], high[state] = small.lower[state], small.upper[state]
        return Interval(low, high)

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        check_interval(instance, moderate(instance, "nested", seed), rng, count=256)

    monkeypatch.setattr(type(instance.op), "interval", mutant)
    assert is_caught(check)


@pytest.mark.parametrize("instance", univariate_instances(), ids=str)
def test_residual_mutants(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too tight and too loose extremes of ``f(x) - m x`` are both caught."""
    original = type(instance.op).residual

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        box = make_box(per_sample(2), ("straddle",), "single", rng, instance.domain)
        check_residual(instance, box.lower[0].flatten().numpy(), box.upper[0].flatten().numpy())

    for share in (SHARE, -SHARE):

        def mutant(op: Any, slope: Any, box: Interval, share: float = share) -> Interval:
            found = original(op, slope, box)
            return Interval(found.lower + share * found.width, found.upper)

        with monkeypatch.context() as patch:
            patch.setattr(type(instance.op), "residual", mutant)
            assert is_caught(check)


def _linear_mutants() -> list[Any]:
    cases = []
    for instance in all_instances():
        planes = instance.op.relax(*moderate(instance, "nested", 0))
        kinds = ["slope"]
        if planes.lower is not None:
            kinds += ["lower", "upper"]
            # The identity has no charge to drop.
            if planes.lower.shape[0] > 1 and instance.label != "relu-1.0":
                kinds.append("charge")
        cases += [pytest.param(instance, k, id=f"{instance}-{k}") for k in kinds]
    return cases


@pytest.mark.parametrize(("instance", "kind"), _linear_mutants())
def test_linear_mutants(instance: Instance, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(instance.op).relax

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        check_relax(instance, moderate(instance, "nested", seed), rng, count=128)

    check(0)
    monkeypatch.setattr(
        type(instance.op), "relax", lambda op, *boxes: MutantPlanes(original(op, *boxes), kind)
    )
    assert is_caught(check)


MUTANTS = [*ONE_BUDGET, *UPDATES, *TWO_BUDGETS, *WHOLE, *ATTACKED]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_every_mutant_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.check(0)
    for room, rule in mutant.rules:
        honest = inspect.getattr_static(room, rule)
        monkeypatch.setattr(room, rule, mutant.wrong(honest))
    assert is_caught(mutant.check, range(mutant.seeds))


@pytest.mark.parametrize("kind", ["features", "labels"])
def test_attacks_catch_a_box_one_per_cent_too_tight(kind: str) -> None:
    run = {"epochs": 1, "learning_rate": 0.1}
    case, test, labels = problem("mse", kind, run, (), outputs=1, radius=0.05, budget=2)
    _, boxes = case.certify(relaxation="linear")
    assert not caught(case, boxes, test, labels)
    for box in boxes:
        for n, low in box.lower.items():
            move = 0.005 * (box.upper[n] - low)
            low += move
            box.upper[n] -= move
    assert caught(case, boxes, test, labels)
