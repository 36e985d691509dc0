"""PROVED, REFUTED, OPEN: verdicts against brute force, witnesses against plain torch, forgeries."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import attacks as shared
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.attacks.unrolled import Pace, Unrolled
from milp_agt.certification.verdicts import judge
from milp_agt.core import deadline as core_deadline
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.properties.functional import AttackedFunctional
from milp_agt.properties.witness import load_witness
from milp_agt.runfile.run_file import parse_properties
from milp_agt.threats import ThreatModel
from milp_agt.training.groups import ParameterGroup

Array = npt.NDArray[Any]


def moons(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0.0).long()
    return x, y


RATE, RADIUS = 0.3, 0.7
X, Y = moons(16)
TEST, LABELS = moons(30, seed=1)
TRAINING = agt.Training("cross_entropy", learning_rate=RATE, epochs=3, batch_size=8, momentum=0.5)


def model() -> nn.Sequential:
    return shared.network((2, 4, 2), seed=3)


def certified(threat: ThreatModel, **options: Any) -> agt.Result:
    options = {"relaxation": "linear", "carried": "none"} | options
    return agt.certify(model(), (X, Y), TRAINING, threat, **options)


def trained(x: Tensor, y: Tensor, kept: Sequence[int] | None = None) -> nn.Sequential:
    """Plain training, as a user writes it; nothing of the package in it."""
    own, there = model(), set(range(len(X)) if kept is None else kept)
    optimiser = torch.optim.SGD(own.parameters(), lr=RATE, momentum=0.5)
    for _ in range(3):
        for begin in (0, 8):
            batch = [i for i in range(begin, begin + 8) if i in there]
            if batch:
                optimiser.zero_grad()
                nn.functional.cross_entropy(own(x[batch]), y[batch]).backward()
                optimiser.step()
    return own


def margins(own: nn.Module, x: Tensor = TEST, y: Tensor = LABELS) -> Tensor:
    with torch.no_grad():
        scores = own(x)
    rows = torch.arange(len(x))
    return scores[rows, y] - scores[rows, 1 - y]


def flipped(budget: int) -> list[nn.Module]:
    """The models of every way to flip at most so many labels."""
    found = []
    for size in range(budget + 1):
        for chosen in itertools.combinations(range(len(X)), size):
            y = Y.clone()
            y[list(chosen)] = 1 - y[list(chosen)]
            found.append(trained(X, y))
    return found


def removed(budget: int) -> list[nn.Module]:
    ways = [c for n in range(budget + 1) for c in itertools.combinations(range(len(X)), n)]
    return [trained(X, Y, [i for i in range(len(X)) if i not in gone]) for gone in ways]


@pytest.mark.parametrize(
    ("threat", "models_of", "options"),
    [
        (agt.LabelPoisoning(2), flipped, {}),
        (agt.Removal(2), removed, {}),
        (agt.LabelPoisoning(1), flipped, {"selections": "joint"}),
    ],
    ids=["two flipped labels, listed", "two samples removed, listed", "one flipped label, joint"],
)
def test_verdicts_are_the_truth_where_everything_can_be_listed(
    threat: Any, models_of: Callable[[int], list[nn.Module]], options: dict[str, Any]
) -> None:
    answer = certified(threat, **options).accuracy(TEST, LABELS)
    every = torch.stack([margins(own) for own in models_of(threat.budget)])
    truth = every.amin(0).numpy()
    verdict, points = answer.points.verdict, answer.points
    assert verdict is not None
    assert points.reached is not None
    assert ((verdict == "PROVED") <= (truth > 0)).all()
    assert ((verdict == "REFUTED") == (truth < 0)).all()  # every way is tried: none is missed
    assert "REFUTED" in verdict
    if not options:
        assert {"PROVED", "REFUTED"} == set(verdict)
    aimed = (points.score_nominal > 0) & (verdict != "PROVED")
    assert aimed.any()
    np.testing.assert_allclose(points.reached[aimed], truth[aimed], rtol=0, atol=1e-9)
    assert (points.score_lower <= truth).all()
    worst = (every > 0).double().mean(1).min()
    assert answer.reached == pytest.approx(float(worst), abs=1e-12)
    assert answer.lower <= float(worst)


def test_functionals_and_subgroups_are_decided_as_points_are(tmp_path: Path) -> None:
    """Both ends of a functional against every data set, with the data that show them; groups likewise."""
    models, result = flipped(2), certified(agt.LabelPoisoning(2))
    coefficients = {"0.bias": [1.0, -1.0, 0.0, 0.5], "2.weight": np.eye(2, 4).tolist()}

    def value(state: Mapping[str, Tensor]) -> float:
        parts = [(torch.tensor(c).double() * state[n]).sum() for n, c in coefficients.items()]
        return float(sum(parts))

    values = [value(own.state_dict()) for own in models]
    nobody = agt.Dataset.of(X, Y)
    for end, worst, sign in (("at_least", min(values), 1.0), ("at_most", max(values), -1.0)):
        for beyond, status in ((-1e-3, "PROVED"), (1e-3, "REFUTED")):
            asked = {"kind": "functional", "coefficients": coefficients, end: worst + sign * beyond}
            (verdict,) = judge(result, nobody, *parse_properties([asked]))
            assert verdict.status == status
            if status == "REFUTED":
                assert verdict.shown is not None
                assert verdict.worst == pytest.approx(worst, abs=1e-12)
                saved = load_witness(verdict.shown.save(tmp_path / "w.npz"))
                assert value(result.replay(saved)) == pytest.approx(worst, abs=1e-12)
    (bare,) = judge(
        result, nobody, *parse_properties([{"kind": "functional", "coefficients": coefficients}])
    )
    assert (bare.status, bare.worst) == ("REPORTED", None)
    rows = {name: np.stack([np.array(c), -np.array(c)]) for name, c in coefficients.items()}
    found = result.functional(rows, at_least=min(values) + 1e-3)
    assert isinstance(found[0], AttackedFunctional)
    assert found[0].reached == pytest.approx(min(values), abs=1e-12)
    assert found[1].reached == pytest.approx(-max(values), abs=1e-12)
    assert all(each.reached is None for each in result.functional(rows))
    names = np.arange(len(TEST)) % 3
    answer = result.accuracy(TEST, LABELS, groups=names)
    right = torch.stack([margins(own) for own in models]) > 0
    for name, bounds in answer.groups.items():
        among = torch.from_numpy(names == name)
        truth = float(right[:, among].double().mean(1).min())
        assert bounds.lower <= truth
        assert bounds.reached == pytest.approx(truth, abs=1e-12)
        own = model()
        own.load_state_dict(result.replay(answer.shown_in[name]))
        assert float((margins(own) > 0)[among].double().mean()) == pytest.approx(truth, abs=1e-12)


def test_a_run_outside_the_bounds_of_its_point_is_an_error() -> None:
    answer = certified(agt.FeaturePoisoning(2, RADIUS), refute="none").accuracy(TEST, LABELS)
    points, nobody = answer.points, np.full(len(TEST), -1)
    least = points.score_lower
    assert replace(points, reached=least, witness=nobody).reached is least
    with pytest.raises(SoundnessError, match="within the certificate of every test point"):
        replace(points, reached=np.nextafter(least, -np.inf), witness=nobody)
    with pytest.raises(SoundnessError, match="by a margin below zero"):
        replace(points, reached=np.maximum(least, 0.0), witness=nobody + 1)


def test_the_other_questions() -> None:
    result = certified(agt.FeaturePoisoning(1, 0.3))
    stable = result.stable(TEST)
    hit = result.targeted(TEST, 0)
    loss = result.loss(TEST, LABELS)
    trigger = result.backdoor(TEST, LABELS, 0.05)
    for answer, low in ((stable, True), (hit, False), (trigger, False)):
        assert answer.reached is not None
        assert answer.points.verdict is not None
        assert answer.lower <= answer.reached <= answer.upper
        assert (answer.reached <= answer.nominal) if low else (answer.reached >= answer.nominal)
        shown = result.witness(answer)
        assert result.reachable.contains(result.replay(shown))
    assert loss.points.verdict is None
    assert loss.reached is not None
    assert loss.nominal < loss.reached <= loss.upper
    shown = result.witness(loss)
    x, y = (torch.from_numpy(values) for values in shown.data_set)
    own = trained(x, y)
    with torch.no_grad():
        value = float(nn.functional.cross_entropy(own(TEST), LABELS))
    assert loss.reached == pytest.approx(value, abs=1e-9)
    point = int(np.flatnonzero(stable.points.verdict == "PROVED")[0])
    with pytest.raises(InvalidInputError, match="PROVED"):
        result.witness(stable, point)


def test_refute_none_attacks_nothing() -> None:
    threat = agt.FeaturePoisoning(2, RADIUS)
    assert certified(threat, refute="none").decider is None
    with pytest.raises(InvalidInputError, match="refute"):
        certified(threat, refute="some")


def test_attacks_on_a_question_end_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 seconds, what ends in time counts, and what does not is told; a run takes ``needed``."""
    now, needed = [0.0], 0.0
    honest = Unrolled.stepped

    def stepped(self: Unrolled, state: Any, step: int, data: Any) -> Any:
        now[0] += needed * len(data[1]) / len(self.updates)
        return honest(self, state, step, data)

    monkeypatch.setattr(core_deadline, "monotonic", lambda: now[0])
    monkeypatch.setattr(Unrolled, "stepped", stepped)
    monkeypatch.setattr(Unrolled, "pace", lambda _: Pace(needed, needed))
    result = certified(agt.FeaturePoisoning(2, 0.3))
    whole = result.accuracy(TEST, LABELS)
    assert whole.reached is not None
    reached = []
    for needed in (0.01, 0.4, 30.0):
        ends = core_deadline.Deadline(now[0] + 60.0)
        timed = replace(result, models=replace(result.models, deadline=ends))
        found = timed.accuracy(TEST, LABELS)
        assert now[0] <= ends.at
        assert ends.missed == (needed > 0.01)
        assert (found.lower, found.upper) == (whole.lower, whole.upper)
        reached.append(found.reached)
    assert reached[0] == whole.reached
    assert reached[2] is None
    assert reached[1] is not None
    assert whole.reached <= reached[1] <= whole.nominal


def test_searches_bracket_every_point_from_both_sides() -> None:
    def holds(result: agt.Result) -> dict[str, bool | str]:
        verdict = result.accuracy(TEST, LABELS).points.verdict
        assert verdict is not None
        return agt.by_point("point", verdict)

    found = agt.largest(
        certified, agt.FeaturePoisoning(1, 0.1), holds, radii=(0.003, 3.0), precision=20.0
    )
    both = [b for b in found.brackets.values() if b.proved is not None and b.refuted is not None]
    assert len(both) > 5
    assert all(b.proved < b.refuted for b in both)  # type: ignore[operator]


@pytest.mark.parametrize(
    "options",
    [
        {"clip_total": 0.05},
        {"clip": 0.05},
        {"groups": [ParameterGroup(["0.bias"], learning_rate=0.05)], "weight_decay": 0.1},
        {"label_smoothing": 0.1, "class_weights": (0.3, 0.7), "l1": 0.01},
    ],
    ids=["total norm", "single gradients", "groups", "options of the loss"],
)
def test_plain_training_knows_every_option(options: dict[str, Any]) -> None:
    """The plain loop and the batched one end alike, or the search would stop; attacks move the model."""
    training = dataclasses.replace(TRAINING, **options)
    threat = agt.FeaturePoisoning(2, RADIUS)
    result = agt.certify(model(), (X, Y), training, threat, relaxation="interval")
    loss = result.loss(TEST, LABELS)
    assert loss.reached is not None
    assert loss.nominal < loss.reached <= loss.upper
    assert result.witness(loss).changes
