"""Shortcuts through whole steps: forms of all ends of the state, composed by matrix products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, assert_sound, network
from boxes import assert_same, resumed
from checks_steps import (
    StepCase,
    check_step_linear,
    check_walk_of_update,
    mlp,
    small_data,
    step_case,
)

import milp_agt as agt
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.linear import window_bounds
from milp_agt.bounds.linear.composed import ComposedStep
from milp_agt.bounds.step import State
from milp_agt.certification import planning

OUTPUTS = {"bce": 1, "cross_entropy": 2, "three": 3, "mse": 1}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every network counts as large; the steps whose shortcuts are walked."""
    monkeypatch.setattr(planning, "THREADED_ELEMENTS", 0)
    monkeypatch.setattr(planning, "FEWEST_SAMPLES", 4)
    monkeypatch.setattr(planning, "_pays", lambda sizes, moved: sizes.window > 1)
    steps: list[int] = []
    walk = ComposedStep.walk

    def spy(self: ComposedStep, step: Any, *others: Any) -> Any:
        steps.append(step.index)
        return walk(self, step, *others)

    monkeypatch.setattr(ComposedStep, "walk", spy)
    return steps


def problem(
    loss: str = "cross_entropy", hidden: tuple[int, ...] = (5,), threat: Any = None, **run: Any
) -> Problem:
    generator = torch.Generator().manual_seed(1)
    name = "cross_entropy" if loss == "three" else loss
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(max(OUTPUTS[loss], 2), (9,), generator=generator)
    moved = 0.05 if loss == "mse" else None
    if loss == "mse":
        y = torch.randn(9, 1, generator=generator, dtype=torch.float64)
    threat = threat or agt.FeatureLabelPoisoning(2, 0.03, moved)
    training = agt.Training(loss=name, **({"learning_rate": 0.3, "epochs": 3} | run))
    return Problem(network((2, *hidden, OUTPUTS[loss]), seed=3), x, y, training, threat)


THREATS = {
    "static": agt.FeaturePoisoning(2, 0.03),
    "adaptive": agt.FeaturePoisoning(2, 0.03, static=False),
    "per batch": agt.FeaturePoisoning(1, 0.03, static=False, scope="batch"),
    "labels": agt.LabelPoisoning(1),
    "separate": agt.SeparatePoisoning(agt.FeaturePoisoning(2, 0.03), agt.LabelPoisoning(1)),
    "removal": agt.Removal(1),
}


@pytest.mark.parametrize(
    ("loss", "hidden"), [*((loss, (4,)) for loss in OUTPUTS), ("three", (3, 3)), ("mse", ())]
)
def test_attacks_stay_inside(loss: str, hidden: tuple[int, ...], taken: list[int]) -> None:
    case = problem(loss, hidden, weight_decay=0.01, momentum=0.3)
    assert_sound(case, case.features + 0.1, case.labels, in_torch=False)
    assert set(taken) == {0, 1, 2}


@pytest.mark.parametrize("kind", THREATS)
def test_attacks_by_every_adversary_stay_inside(kind: str, taken: list[int]) -> None:
    case = problem(threat=THREATS[kind], batch_size=5, epochs=2)
    assert_sound(case, case.features, case.labels, in_torch=False)
    assert set(taken) == {0, 1, 2, 3}


@pytest.mark.parametrize("selections", ["enumerated"])
def test_selections_told_apart_take_shortcuts_too(selections: str, taken: list[int]) -> None:
    case = problem("bce", threat=agt.FeatureLabelPoisoning(1, 0.03))
    assert_sound(case, case.features, case.labels, in_torch=False, selections=selections)
    assert set(taken) == {0, 1, 2}


def last_width(case: Problem, **options: Any) -> float:
    return case.certify(**options)[0].reachable.mean_width


def test_where_a_run_is_affine_in_the_poison_nothing_is_lost(taken: list[int]) -> None:
    case = problem("mse", (), threat=agt.LabelPoisoning(2, radius=0.05))
    composed = last_width(case)
    assert taken
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_pays", lambda *given: False)
        assert composed == pytest.approx(last_width(case), rel=1e-9)


@pytest.mark.parametrize("loss", ["bce", "three"])
def test_little_is_lost_where_errors_are_of_second_order(loss: str, taken: list[int]) -> None:
    case = problem(loss, threat=agt.LabelPoisoning(1), learning_rate=0.05, epochs=4)
    composed, alone = last_width(case), last_width(case, window=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_pays", lambda *given: False)
        walked = last_width(case)
    assert composed < 1.05 * walked
    assert composed < alone


def with_shortcut(case: StepCase) -> StepCase:
    return replace(case, relaxed=window_bounds.with_shortcut(case.schedule, case.relaxed, 5))


def own_case(loss: str, threat: Any, *sizes: int, seed: int = 0) -> StepCase:
    data = small_data(6, 2, 0 if loss == "mse" else 2, seed=seed)
    training = agt.Training(loss=loss, learning_rate=0.2, weight_decay=0.1, momentum=0.4)
    return step_case(mlp(*sizes, seed=seed), data, training, threat)


def test_a_single_step_is_bounded_as_by_its_walk() -> None:
    """Ends of the state are the rows of a shortcut: every walk of them goes through one form."""
    case = own_case("bce", agt.FeatureLabelPoisoning(2, 0.03), 2, 4, 1)
    boxes: list[State] = [
        window_bounds.bound_state(one.schedule, [one.relaxed], Joint(one.poison), chunk=64)
        for one in (case, with_shortcut(case))
    ]
    for name, box in boxes[0].items():
        assert torch.allclose(box.lower, boxes[1][name].lower, rtol=1e-9, atol=1e-10)
        assert torch.allclose(box.upper, boxes[1][name].upper, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_sampled_steps_lie_above_their_forms(loss: str, seed: int) -> None:
    moved = 0.1 if loss == "mse" else None
    case = with_shortcut(
        own_case(loss, agt.FeatureLabelPoisoning(2, 0.05, moved), 2, 4, 1, seed=seed)
    )
    check_step_linear(case, np.random.default_rng(seed))
    check_walk_of_update(case, np.random.default_rng(seed))


def scaled(share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: share * value


@pytest.mark.parametrize("part", ["coefficients", "constant", "labels", "features", "charges"])
def test_mutants_of_a_shortcut_are_caught(part: str) -> None:
    """A part that is one per cent off (charges: forgotten) lifts a form above a sampled step."""
    if part in ("features", "charges"):
        case = own_case("bce", agt.FeaturePoisoning(6, 0.5), 2, 3, 1)
    else:
        case = own_case("mse", agt.LabelPoisoning(6, radius=0.3), 2, 1)
    case = with_shortcut(case)
    composed = case.relaxed.composed
    assert composed is not None
    share = 0.0 if part in ("features", "charges") else 0.99
    if part == "coefficients":
        on_state = {n: share * v for n, v in composed.coefficients.items()}
        mutant = replace(composed, coefficients=on_state)
    elif part == "constant":
        mutant = replace(composed, constant=share * composed.constant)
    else:
        own = replace(composed.moves, **{part: share * getattr(composed.moves, part)})
        mutant = replace(composed, moves=own)
    wrong = replace(case, relaxed=replace(case.relaxed, composed=mutant))

    def caught(one: StepCase) -> bool:
        for seed in range(6):
            try:
                check_step_linear(one, np.random.default_rng(seed), count=256)
                check_walk_of_update(one, np.random.default_rng(seed), count=256)
            except AssertionError:
                return True
        return False

    assert not caught(case)
    assert caught(wrong)


def test_a_run_goes_on_to_the_same_numbers(tmp_path: Path, taken: list[int]) -> None:
    case = problem("bce", epochs=4)
    arguments = (case.model, case.data, case.training, case.threat)
    certify = functools.partial(agt.certify, *arguments, selections="joint")
    whole, again = certify(), resumed(certify, tmp_path, 2)
    assert_same(again.reachable, whole.reachable)
    assert again.suspects().samples == whole.suspects().samples
    assert taken


def planned(
    samples: int,
    sizes: tuple[int, ...],
    training: agt.Training,
    threat: Any = agt.LabelPoisoning(5),  # noqa: B008
    **options: Any,
) -> planning.Plan:
    """The plan of a run of which nothing else is done."""
    plans: list[planning.Plan] = []

    class Planned(Exception):
        pass

    settled = planning.make_plan

    def stop(*options: Any, **named: Any) -> planning.Plan:
        plans.append(settled(*options, **named))
        raise Planned

    x = torch.zeros(samples, sizes[0], dtype=torch.float64)
    y = torch.zeros(samples, 1) if training.loss == "mse" else torch.arange(samples) % 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "make_plan", stop)
        with pytest.raises(Planned):
            agt.certify(network(sizes, seed=0), (x, y), training, threat, **options)
    return plans[0]


def test_shortcuts_are_taken_where_they_are_cheaper_and_fit() -> None:
    training = agt.Training(loss="cross_entropy", learning_rate=0.1, epochs=4)
    large = 3000, (6, 128, 2)
    plan = planned(*large, training)
    assert plan.composed_steps
    assert not plan.linear_inner
    assert any("inner bounds by intervals" in note for note in plan.remarks.notes)
    assert not planned(*large, training, window=1).composed_steps  # nothing to walk through
    assert not planned(*large, training, memory="512MiB").composed_steps
    assert not planned(*large, replace(training, projection=(-3.0, 3.0))).composed_steps
    assert not planned(100, (2, 8, 2), training).composed_steps
    assert not planned(1400, (64, 64, 10), training).composed_steps  # more parameters than units
