"""Sums, worst cases, leaves, updates and moves that are too tight are caught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checks_encoding import check_encoded_step
from checks_rules import (
    check_interval,
    check_leaf_boxes,
    check_poisoned_sum,
)
from checks_steps import (
    StepCase,
    check_step_interval,
    check_step_linear,
    check_update,
    check_walk_of_update,
    mlp,
    small_data,
    step_case,
)
from checks_worst_case import check_worst_case, worst_case_problem
from draws import make_box, make_boxes, poison_of
from instances import INSTANCES, per_sample
from mutants import SHARE, is_caught, shrunk
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.adversary import joint, worst_case
from milp_agt.bounds.adversary.joint import Joint, Masks, PoisonedSum
from milp_agt.bounds.linear import window_bounds
from milp_agt.bounds.linear.linearized_step import linearize_step
from milp_agt.bounds.program import window
from milp_agt.bounds.step import Step
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression
from milp_agt.core.interval import Interval
from milp_agt.formulations import optimiser_step, univariate
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Box, Vertices
from milp_agt.training.training import Training


def _terms(seed: int) -> Interval:
    rng = np.random.default_rng(seed)
    parts = [make_box(per_sample(2), ("straddle",), "nested", rng) for _ in range(2)]
    return Interval(
        torch.cat([p.lower for p in parts], 1)[:, :4], torch.cat([p.upper for p in parts], 1)[:, :4]
    )


@pytest.mark.parametrize("kind", ["shrunk", "budget", "clean"])
def test_poisoned_sum_mutants(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result, add = PoisonedSum.result, PoisonedSum.add

    def check(seed: int) -> None:
        check_poisoned_sum(_terms(seed), 2, Masks(), 2, np.random.default_rng(seed))

    check(0)
    if kind == "shrunk":

        def narrow(total: PoisonedSum, inside: int = 0) -> tuple[Interval, Tensor]:
            box, size = result(total, inside)
            return shrunk(box), size

        monkeypatch.setattr(PoisonedSum, "result", narrow)
    elif kind == "budget":
        worst = joint.worst_sum
        monkeypatch.setattr(joint, "worst_sum", lambda hurt, k: worst(hurt, k - 1))
    else:
        monkeypatch.setattr(
            PoisonedSum, "add", lambda total, terms, masks: add(total, terms.clean, masks)
        )
    assert is_caught(check)


@pytest.mark.parametrize("kind", ["worst", "budget", "charges", "support", "labels"])
@pytest.mark.parametrize("per_batch", [False, True], ids=["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
def test_worst_case_mutants(
    static: bool, per_batch: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0))

    def check(seed: int) -> None:
        check_worst_case(
            worst_case_problem(poison_of(2, static, per_batch, "xv"), batches, 3, seed), tight=False
        )

    check(0)
    worst_sum, dev, support = worst_case.worst_sum, worst_case._dev, Poison.support
    if kind == "worst":
        monkeypatch.setattr(worst_case, "worst_sum", lambda h, k: (1.0 - SHARE) * worst_sum(h, k))
    elif kind == "budget":
        monkeypatch.setattr(worst_case, "worst_sum", lambda h, k: worst_sum(h, k - 1))
    elif kind == "charges":

        def without(poison: Poison, x: Any, y: Any, charges: Tensor | None) -> Tensor | None:
            return dev(poison, x, y, None if x is None else torch.zeros_like(charges))

        monkeypatch.setattr(worst_case, "_dev", without)
    elif kind == "support":
        monkeypatch.setattr(Poison, "support", lambda p, x, y: (1.0 - SHARE) * support(p, x, y))
    else:
        monkeypatch.setattr(Poison, "support", lambda p, x, y: support(p, x, None))
    assert is_caught(check)


@pytest.mark.parametrize("leaf", ["feature_box", "label_box"])
@pytest.mark.parametrize("what", ["xr", "xv"])
def test_leaf_mutants(what: str, leaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(Poison, leaf)
    check_leaf_boxes(poison_of(2, True, False, what))
    monkeypatch.setattr(Poison, leaf, lambda poison: shrunk(original(poison)))
    with pytest.raises(AssertionError):
        check_leaf_boxes(poison_of(2, True, False, what))


def _case(labels: bool = False, loss: str = "mse", budget: int = 2) -> StepCase:
    """One output, no hidden layer: without poison, linear bounds of a step are exact for mse."""
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3}
    training = Training(loss=loss, learning_rate=0.4, **options)
    data = small_data(4, 2, 0 if loss == "mse" else 2, seed=1)
    threat: Any = agt.FeaturePoisoning(budget=budget, radius=0.2)
    if labels:
        threat = agt.LabelPoisoning(budget=budget, radius=0.3 if loss == "mse" else None)
    return step_case(mlp(2, 1), data, training, threat, width=0.05)


def _step_checks() -> dict[str, Callable[[StepCase, int], object]]:
    return {
        "interval": lambda case, seed: check_update(case, np.random.default_rng(seed)),
        "walk": lambda case, seed: check_walk_of_update(case, np.random.default_rng(seed)),
        "lp": lambda case, seed: check_encoded_step(
            case, False, np.random.default_rng(seed), count=2
        ),
    }


@pytest.mark.parametrize("which", ["theta_scalars", "velocity_scalars"])
@pytest.mark.parametrize("engine", _step_checks())
def test_update_mutants(engine: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scalar of the optimiser is one per cent too small, in one engine after the other."""
    case = _case(budget=0 if engine == "walk" else 2)
    check = _step_checks()[engine]
    check(case, 0)
    original = getattr(Step, which).fget
    for position in range(3):

        def mutant(step: Step, position: int = position) -> tuple[float, ...]:
            scalars = list(original(step))
            scalars[position] *= 1.0 - SHARE
            return tuple(scalars)

        with monkeypatch.context() as patch:
            patch.setattr(Step, which, property(mutant))
            relaxed = linearize_step(
                case.schedule, case.state, case.step, case.relaxed.ranges, Joint(case.poison)
            )
            wrong = replace(case, relaxed=relaxed)
            assert is_caught(lambda seed, c=wrong: check(c, seed)), f"{engine}, scalar {position}"


def test_interval_update_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = optimiser_step.OptimiserStep.interval
    case = _case()
    monkeypatch.setattr(
        optimiser_step.OptimiserStep, "interval", lambda *args: shrunk(honest(*args))
    )
    assert is_caught(lambda seed: check_update(case, np.random.default_rng(seed), count=256))


def test_rounding_of_the_update_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the widening by gamma, float64 steps leave the box."""
    monkeypatch.setattr(joint, "gamma", lambda k: 0.0)
    monkeypatch.setattr(optimiser_step, "gamma", lambda k: 0.0)

    def check(seed: int) -> None:
        data = small_data(4, 2, 0, seed=seed)
        training = Training(loss="mse", learning_rate=0.1, weight_decay=0.3)
        threat = agt.FeaturePoisoning(budget=0, radius=0.0)
        case = step_case(mlp(2, 3, 1, seed=seed), data, training, threat, width=0.0)
        check_update(case, np.random.default_rng(seed))
        check_step_interval(case, np.random.default_rng(seed), count=2)

    assert is_caught(check)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_dropped_charges_of_a_walk(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk forgets what a poisoned sample does to the planes."""
    case = _case(loss=loss)

    def check(seed: int) -> None:
        check_walk_of_update(case, np.random.default_rng(seed), count=128)

    check(0)
    charges = window_bounds.Intercepts._charges
    monkeypatch.setattr(
        window_bounds.Intercepts,
        "_charges",
        lambda own, *args: torch.zeros_like(charges(own, *args)),
    )
    assert is_caught(check)


@pytest.mark.parametrize("labels", [False, True], ids=["features", "labels"])
def test_walk_without_adversary(labels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(labels)

    def check(seed: int) -> None:
        check_step_linear(case, np.random.default_rng(seed))

    check(0)
    monkeypatch.setattr(Poison, "support", lambda poison, x, y: torch.zeros(()))
    monkeypatch.setattr(
        window_bounds.Intercepts,
        "_charges",
        lambda own, c, *args: c.new_zeros(len(c), case.step.size, 1),
    )
    assert is_caught(check)


def test_linear_state_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the walk: a box of states that is one per cent too small."""
    case = _case(labels=True)
    concretise = window_bounds.Forms.concretise

    def mutant(forms: window_bounds.Forms, state: dict[str, Interval], perturbation: Any) -> Tensor:
        return concretise(forms, {n: shrunk(b) for n, b in state.items()}, perturbation)

    monkeypatch.setattr(window_bounds.Forms, "concretise", mutant)
    assert is_caught(lambda seed: check_step_linear(case, np.random.default_rng(seed), count=4096))


@pytest.mark.parametrize("kind", ["budget", "features", "vertices", "box"])
def test_moves_mutants(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adversary's columns and rows of a program are one per cent too small."""
    loss = "bce" if kind == "vertices" else "mse"
    case = _case(labels=kind in ("vertices", "box"), loss=loss)

    def check(seed: int) -> None:
        check_encoded_step(case, False, np.random.default_rng(seed), count=2)

    check(0)
    moves = window.MoveColumns
    if kind == "budget":
        limit = moves._limit

        def tight(own: Any, selected: Sequence[Expression]) -> None:
            poison = own.poison
            own.poison = replace(poison, budget=poison.budget - 1)
            limit(own, selected)
            own.poison = poison

        monkeypatch.setattr(moves, "_limit", tight)
    else:
        kinds: type[Box] | type[Vertices] = Vertices if kind == "vertices" else Box
        original = kinds.add_to

        def narrow(own: Any, encoder: Encoder, gates: Expression) -> Expression:
            return original(own.on(lambda tensor: (1.0 - SHARE) * tensor), encoder, gates)

        monkeypatch.setattr(kinds, "add_to", narrow)
    assert is_caught(check)


def test_rounding_of_planes_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the widening of elementary functions, values leave their interval."""
    monkeypatch.setattr(univariate, "UNIT_ROUNDOFF", 0.0)
    monkeypatch.setattr(univariate, "TINY", 0.0)

    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for instance in INSTANCES["sigmoid"] + INSTANCES["tanh"] + INSTANCES["exponential"]:
            boxes = make_boxes(instance, ("point", "adjacent"), ("single",), rng)
            check_interval(instance, boxes, rng)

    assert is_caught(check)
