"""Hybrid zonotopes through layers, behind frozen ones, from boxes of theta_0, under all adversaries."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Attacks, Problem, Replay, assert_sound
from golden_runs import behind, convolution, frozen_convolution
from pairs import every_pair
from problems import data, problem, threat, tiny
from zonotope_runs import Passed, assert_in_boxes, attacks_of

import milp_agt as agt
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.bounds.zonotope import samples as room
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.formulations.loss import get_loss


def images(body: Any, kind: str, loss: str = "cross_entropy") -> tuple[Problem, Any, Any]:
    """Six images of three by three pixels, and test images."""
    x, y, test, labels = data(loss, 6, 9)
    x, test = (t.reshape(-1, 1, 3, 3) for t in (x, test))
    model = behind(body, x, 3)
    training = agt.Training(loss=loss, learning_rate=0.3, epochs=3)
    return Problem(model, x, y, training, threat(kind, loss, 1, 0.05)), test, labels


@pytest.mark.parametrize("kind", ["features", "labels"])
@pytest.mark.parametrize("body", [convolution, frozen_convolution])
def test_attacks_on_convolutions_stay_inside(body: Any, kind: str) -> None:
    """Trained ones, and those that are frozen, with max pooling behind them."""
    case, test, labels = images(body, kind)
    result = assert_sound(case, test, labels, relaxation="zonotope")
    wide, _ = case.certify(relaxation="interval")
    assert result.reachable.mean_width < 0.9 * wide.reachable.mean_width


@pytest.mark.parametrize(
    "training",
    [
        {"momentum": 0.7, "nesterov": True, "epochs": 4},
        {"schedule": agt.StepDecay(2, 0.5), "epochs": 4, "batch_size": 4},
        {"schedule": [0.5, 0.1, 0.3], "momentum": 0.5},
    ],
)
def test_attacks_from_every_start_in_a_box_stay_inside(training: dict[str, Any]) -> None:
    case, _, _ = problem("bce", "both", training, (3,), radius=0.05)
    start = {n: v.detach().numpy() for n, v in case.model.state_dict().items()}
    case = replace(case, initial={n: (v - 0.02, v + 0.02) for n, v in start.items()})
    passed = Passed.of(case)
    for attacks in attacks_of(passed):
        assert_in_boxes(passed, attacks)


def choices(case: Problem, budget: int) -> Attacks:
    """Every choice of at most ``budget`` samples, each at every corner or with its label flipped."""
    x, y = Replay(case).poison.features, Replay(case).poison.labels
    radius = getattr(case.threat, "radius", None)
    features, labels = [x], [y]
    corners = list(itertools.product((-1.0, 1.0), repeat=x.shape[1]))
    for count in range(1, budget + 1):
        for chosen in itertools.combinations(range(len(x)), count):
            for moved in itertools.product(corners, repeat=count) if radius else [None]:
                own_x, own_y = x.clone(), y.clone()
                for number, sample in enumerate(chosen):
                    if moved is None:
                        own_y[sample] = 1.0 - y[sample]
                    else:
                        own_x[sample] += radius * torch.tensor(moved[number]).double()
                features.append(own_x)
                labels.append(own_y)
    replay = Replay(case)
    start = replay.start(len(features), torch.Generator().manual_seed(0))
    return Attacks(replay.unrolled, Poisoning(torch.stack(features), torch.stack(labels)), start)


@pytest.mark.parametrize(
    "poison",
    [
        agt.FeaturePoisoning(1, 0.3),
        agt.FeaturePoisoning(2, 0.05),
        agt.LabelPoisoning(1),
        agt.LabelPoisoning(4),
    ],
    ids=str,
)
def test_every_corner_of_a_tiny_run_is_inside_and_the_worst_is_near(poison: Any) -> None:
    case = tiny(poison, epochs=4)
    passed = Passed.of(case)
    attacks = choices(case, poison.budget)
    assert_in_boxes(passed, attacks)
    reached = passed.replay.run(attacks)[-1]
    width = sum(float(box.width.sum()) for box in passed.last.state().values())
    spread = sum(float((v.amax(0) - v.amin(0)).sum()) for v in reached.values())
    assert spread > 0.0
    assert width <= 4.0 * spread


ADVERSARIES = {
    "anew, one set": {"static": False},
    "anew, in each batch": {"static": False, "scope": "batch"},
    "once, in each batch": {"scope": "batch"},
}


@every_pair(kind=["features", "labels", "both"], name=list(ADVERSARIES), batch=[None, 3])
def test_other_adversaries_stay_inside(name: str, kind: str, batch: int | None) -> None:
    training = {"epochs": 3, "batch_size": batch, "shuffle_seed": 1}
    case, test, labels = problem("bce", kind, training, (4,), budget=1, **ADVERSARIES[name])
    result = assert_sound(case, test, labels, relaxation="zonotope")
    wide, _ = case.certify(relaxation="interval")
    share = 0.9 if kind == "features" else 1.0
    assert result.reachable.mean_width <= share * wide.reachable.mean_width


LIMITS = [
    Restriction(frozenset({1})),
    Restriction(frozenset({0, 4})),
    Restriction(frozenset({2}), frozenset({3, 5})),
]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("static", [True, False])
def test_attacks_within_a_restriction_stay_inside_less(limits: Restriction, static: bool) -> None:
    case, _, _ = problem("bce", "features", {"epochs": 4}, (4,), radius=0.05, static=static)
    free = Passed.of(case)
    passed = Passed.of(replace(case, restriction=limits))
    for attacks in passed.replay.all(
        torch.Generator().manual_seed(0), case.features[:4], case.labels[:4], 64, 3
    ):
        assert_in_boxes(passed, attacks)
    widths = [sum(float(b.width.sum()) for b in p.last.state().values()) for p in (passed, free)]
    assert widths[0] < widths[1]


def generators(static: bool, per_batch: bool, limits: Restriction) -> SampleGenerators:
    features = torch.zeros(5, 1).double()
    moves = agt.FeaturePoisoning(2, 0.1, static=static, scope="batch" if per_batch else "dataset")
    poison = moves.bind(features, torch.zeros(5, 1).double(), get_loss("bce"))
    batches = [[0, 1, 2], [3, 4], [2, 0, 4]]
    return SampleGenerators.of(poison, [np.array(b) for b in batches], limits)


@pytest.mark.parametrize("limits", [UNRESTRICTED, Restriction(frozenset({1}), frozenset({4}))])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("per_batch", [True, False])
def test_worst_cases_are_those_of_all_choices(
    static: bool, per_batch: bool, limits: Restriction
) -> None:
    if per_batch and limits.inside:
        limits = Restriction(outside=limits.outside)
    samples = generators(static, per_batch, limits)
    drawn = torch.rand(4, samples.count, generator=torch.Generator().manual_seed(0)).double()
    chosen = [torch.tensor(c) for c in itertools.product((0, 1), repeat=len(samples.known))]
    padded = [torch.cat([c, torch.zeros(1, dtype=torch.int64)])[samples.members] for c in chosen]
    kept = [
        c
        for c, each in zip(chosen, padded, strict=True)
        if bool((each.sum(-1) <= 2).all()) and bool((c[samples.known] == 1).all())
    ]
    # Every choice, and what it adds up to.
    taken = torch.stack(kept)[:, samples.unit].double()
    sums = drawn @ taken.T
    assert torch.allclose(samples.worst(drawn), sums.amax(1))
    clean, poisoned = samples.conditional(drawn)
    for column in range(samples.count):
        if samples.known[samples.unit[column]]:
            continue
        own = torch.full((4, 1), column)
        mine = taken[:, column] > 0
        assert torch.allclose(clean[:, column], sums[:, ~mine].amax(1))
        assert torch.allclose(poisoned[:, column], sums[:, mine].amax(1))
        others, part = samples.others(drawn, own)
        assert torch.allclose(samples.worst(others), clean[:, column])
        assert torch.allclose(part[:, 0] + samples.worst(others, own), poisoned[:, column])
    assert torch.allclose((samples.chosen(drawn) * drawn).sum(1), sums.amax(1))


@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_choice_too_few_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = room.largest
    monkeypatch.setattr(room, "largest", lambda reach, count: 0.97 * largest(reach, count))
    training = {"epochs": 3, "batch_size": 3}
    case, _, _ = problem(
        "mse", "features", training, (), budget=1, radius=0.02, **ADVERSARIES[name]
    )
    passed = Passed.of(case)
    drawn = torch.Generator().manual_seed(0)
    test, labels = case.features[:4], case.labels[:4]
    with pytest.raises(AssertionError, match="step"):
        all_inside(passed, passed.replay.all(drawn, test, labels, 64, 10))


def all_inside(passed: Passed, attacks: Iterable[Attacks]) -> None:
    for each in attacks:
        assert_in_boxes(passed, each)
