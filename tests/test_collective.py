"""How many points are wrong at the same time: between point by point and what enumeration reaches."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import network
from run_texts import run_text
from test_questions_brute import LABELS, TEST, THREATS, TRAINING, X, Y, logits

import milp_agt as agt
from milp_agt.bounds.program import output_objectives as engine
from milp_agt.cli import main
from milp_agt.core.restriction import Restriction
from milp_agt.data.dataset import load_dataset
from milp_agt.errors import InvalidInputError, SolverUnavailableError
from milp_agt.threats.poison import Poison

# Points along the line between the classes: a poisoning pushes it one way or the other.
ANGLES = torch.linspace(0.0, 2.0 * torch.pi, 17, dtype=torch.float64)[:-1]
RING = 0.35 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
RING_LABELS = (RING[:, 0] > 0).long()


def certified(threat: str, relaxation: str, **options) -> agt.Result:
    model = network([2, 2, 1], seed=5)
    if relaxation == "linear":
        options.setdefault("carried", "none")
    return agt.certify(model, (X, Y), TRAINING, THREATS[threat], relaxation=relaxation, **options)


def reached(threat: str, points: torch.Tensor, labels: torch.Tensor) -> float:
    """The least accuracy over all enumerated poisonings."""
    right = (logits(threat, points) > 0) == (labels == 1)
    return float(right.double().mean(-1).min())


CASES = [
    ("one flip", "linear", "joint"),
    ("two flips", "linear", "joint"),
    ("features", "linear", "joint"),
    ("both", "linear", "enumerated"),
    ("two flips", "lp", "joint"),
    ("features", "lp", "joint"),
    pytest.param("one flip", "milp", "joint", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("threat", "relaxation", "selections"), CASES)
def test_between_point_by_point_and_enumeration(
    threat: str, relaxation: str, selections: str
) -> None:
    result = certified(threat, relaxation, selections=selections)
    for points, labels in ((TEST, LABELS), (RING, RING_LABELS)):
        alone, together = result.accuracy(points, labels), result.collective(points, labels)
        assert alone.lower <= together.lower <= reached(threat, points, labels)
        assert (together.nominal, together.upper) == (alone.nominal, alone.upper)
        assert (together.points.lower == alone.points.lower).all()


def test_enumerated_flips_are_exact_already() -> None:
    for threat in ("one flip", "two flips"):
        result = certified(threat, "linear", selections="enumerated")
        answer = result.collective(RING, RING_LABELS)
        assert answer.lower == reached(threat, RING, RING_LABELS)


def test_samples_and_then_the_whole_run_are_worth_points() -> None:
    """Two flips, a linear model: forms alone, which samples they share, and the run as a program.

    The hinge is piecewise linear and the last program holds both steps, so that it is exact.
    """
    train = load_dataset("moons", samples=40, test_fraction=0.0, seed=0)
    test = load_dataset("moons", samples=200, test_fraction=0.0, seed=1)
    data, at = (train.x_train[:12], train.y_train[:12]), (test.x_train[:20], test.y_train[:20])
    torch.manual_seed(18)
    model = torch.nn.Sequential(torch.nn.Linear(2, 1)).double()
    run = (model, data, agt.Training(loss="hinge", learning_rate=0.5, epochs=2))
    threat = agt.LabelPoisoning(2)
    attack = agt.attack(*run, threat, objective=agt.attacks.Accuracy(*at))
    assert attack.exhaustive
    by_forms, by_program = (
        agt.certify(*run, threat, selections="joint", relaxation=level, program_window=2)
        for level in ("linear", "milp")
    )
    samples, whole_run = by_forms.collective(*at).lower, by_program.collective(*at).lower
    assert by_forms.accuracy(*at).lower < samples < whole_run == attack.value


def brute(base, dev, groups, budget, allowed, inside=()) -> int:
    best = 0
    for count in range(budget - len(inside) + 1):
        for more in itertools.combinations(allowed, count):
            chosen = [*inside, *more]
            able = dev[:, :, chosen].sum(-1) >= base
            hits = 0
            for point in range(len(base)):
                names = set(groups[point].tolist())
                hits += any(bool(able[point][groups[point] == g].all()) for g in names)
            best = max(best, hits)
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_best_selection_is_found(seed: int, budget: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(9, 4, generator=generator, dtype=torch.float64) - 0.1
    base[0, 0] = torch.inf  # a form that is above 0 for certain
    dev = torch.rand(9, 4, 6, generator=generator, dtype=torch.float64) ** 2
    groups = torch.randint(2, (9, 4), generator=generator)
    nothing = torch.zeros(6, 2, dtype=torch.float64)
    poison = Poison.none(nothing, nothing[:, :1])
    object.__setattr__(poison, "budget", budget)
    object.__setattr__(poison, "open", torch.tensor([1, 1, 1, 1, 1, 0], dtype=torch.bool))
    none = frozenset[int]()
    found = engine.most_by_selection(base, dev, groups, poison, none, none)
    assert found == brute(base, dev, groups, budget, range(5))
    found = engine.most_by_selection(base, dev, groups, poison, none, frozenset({1}))
    assert found == brute(base, dev, groups, budget, (0, 2, 3, 4))
    if budget > 1:
        found = engine.most_by_selection(base, dev, groups, poison, frozenset({2}), none)
        assert found == brute(base, dev, groups, budget, (0, 1, 3, 4), (2,))


def test_one_percent_less_reach_is_seen() -> None:
    """At the threshold itself a point counts; a little less and it would not."""
    nothing = torch.zeros(3, 1, dtype=torch.float64)
    poison = Poison.none(nothing, nothing)
    object.__setattr__(poison, "open", torch.ones(3, dtype=torch.bool))
    base = torch.tensor([[0.2], [0.3], [0.3]], dtype=torch.float64)
    dev = torch.tensor([0.1, 0.1, 0.2], dtype=torch.float64).expand(3, 1, 3)
    groups, none = torch.zeros(3, 1, dtype=torch.int64), frozenset[int]()
    for budget, wanted in ((1, 1), (2, 3)):
        object.__setattr__(poison, "budget", budget)
        assert engine.most_by_selection(base, dev, groups, poison, none, none) == wanted
        short = engine.most_by_selection(base, 0.99 * dev, groups, poison, none, none)
        assert short < wanted


@pytest.mark.parametrize("budget", [1, 2])
def test_what_is_no_number_proves_nothing(budget: int) -> None:
    nothing = torch.zeros(2, 1, dtype=torch.float64)
    poison = Poison.none(nothing, nothing)
    object.__setattr__(poison, "open", torch.ones(2, dtype=torch.bool))
    object.__setattr__(poison, "budget", budget)
    base = torch.tensor([[torch.nan], [1.0], [1.0]], dtype=torch.float64)
    dev = torch.tensor([[0.1, 0.1], [torch.nan, 0.1], [0.1, 0.1]], dtype=torch.float64)
    groups, none = torch.zeros(3, 1, dtype=torch.int64), frozenset[int]()
    assert engine.most_by_selection(base, dev[:, None], groups, poison, none, none) == 2


def test_without_a_solver_every_point_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SolverUnavailableError("A solver", "none", "install one")

    result = certified("two flips", "linear", selections="joint")
    monkeypatch.setattr(engine, "choose", refuse)
    answer = result.collective(RING, RING_LABELS)
    assert answer.lower == result.accuracy(RING, RING_LABELS).lower


def test_nodes_of_branch_and_bound_and_adaptive_batches() -> None:
    batched = agt.Training(loss="bce", learning_rate=0.6, epochs=2, batch_size=2)
    model = network([2, 2, 1], seed=5)
    threat = agt.FeaturePoisoning(1, 0.2, static=False, scope="batch")
    result = agt.certify(model, (X, Y), batched, threat)
    assert result.collective(TEST, LABELS).lower == result.accuracy(TEST, LABELS).lower
    free = certified("two flips", "linear", selections="joint").collective(RING, RING_LABELS)
    node = certified(
        "two flips", "linear", selections="joint", restriction=Restriction(outside=frozenset({0}))
    )
    assert node.collective(RING, RING_LABELS).lower >= free.lower


def test_subgroups_and_attacks() -> None:
    result = certified("one flip", "linear", selections="joint", attack=True)
    names = np.where(RING_LABELS == 1, "right", "left")
    answer = result.collective(RING, RING_LABELS, groups=names)
    alone = result.accuracy(RING, RING_LABELS, groups=names)
    right = (logits("one flip", RING) > 0) == (RING_LABELS == 1)
    for name, bounds in answer.groups.items():
        own = torch.from_numpy(names == name)
        real = float(right[:, own].double().mean(-1).min())
        assert alone.groups[name].lower <= bounds.lower <= real
    sandwich = result.against(agt.attacks.Accuracy(RING, RING_LABELS), answer)
    assert sandwich.certified[0] == answer.lower <= sandwich.reached[0]


RUN = run_text(
    [{"kind": "collective", "on": "train", "at_least": 0.1}],
    data={"name": "moons", "samples": 12},
    model={"layers": [2, 2, 1]},
    threat={"kind": "labels", "budget": 1},
    training={"loss": "bce"},
    certify={"selections": "joint"},
)


def test_the_property_of_a_run_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN, encoding="utf-8")
    assert main(["certify", str(path), "--out", str(tmp_path / "out"), "--no-report"]) == 0
    assert "collective on train" in capsys.readouterr().out


def test_regression_has_no_collective_accuracy() -> None:
    x = torch.eye(3, dtype=torch.float64)
    model = torch.nn.Sequential(torch.nn.Linear(3, 1)).double()
    training = agt.Training(loss="mse", learning_rate=0.1)
    result = agt.certify(model, (x, x[:, 0]), training, agt.LabelPoisoning(1, radius=0.1))
    with pytest.raises(InvalidInputError) as error:
        result.collective(x, x[:, 0])
    for part in ("'collective' is a question about a classifier", "'mse'", "ask for the loss"):
        assert part in str(error.value)
