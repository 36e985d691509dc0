"""What hybrid zonotopes are carried through: layers, frozen bodies, boxes of theta_0, and every run there is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from attacks import Attacks, Problem, Replay, assert_sound
from golden_runs import behind, convolution, frozen_convolution
from problems import data, problem, threat, tiny
from zonotope_runs import Passed, assert_in_boxes, attacks_of

import milp_agt as agt
from milp_agt.attacks.unrolled import Poisoning


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
    case, test, labels = problem("bce", "both", training, (3,), radius=0.05)
    start = {n: v.detach().numpy() for n, v in case.model.state_dict().items()}
    case = replace(case, initial={n: (v - 0.02, v + 0.02) for n, v in start.items()})
    passed = Passed.of(case)
    for attacks in attacks_of(passed):
        assert_in_boxes(passed, attacks)


def choices(case: Problem, budget: int) -> Attacks:
    """Every choice of at most ``budget`` samples, each at every corner of its box or with its label flipped."""
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
    return Attacks(
        replay.unrolled, Poisoning((torch.stack(features),), (torch.stack(labels),)), start
    )


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
