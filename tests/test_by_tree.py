"""The option ``tree``: questions that bounds leave open, decided; and what it refuses by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Replay
from problems import problem, tiny
from stand_ins import cluster, die, threads
from torch import nn

import milp_agt as agt
from milp_agt.attacks.refute import Refuter
from milp_agt.bounds.cells import shared
from milp_agt.bounds.cells.goals import Ends
from milp_agt.bounds.cells.plan import Cover, _missing
from milp_agt.bounds.cells.search import Decided, Limits
from milp_agt.bounds.cells.tree import Kind
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.properties.accuracy import AccuracyQuestion


def test_points_that_bounds_leave_open_are_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.3), epochs=4)
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    plain, _ = case.certify(relaxation="linear")
    searched, _ = case.certify(relaxation="linear", tree=60.0, refute="quick")

    def hunt(*_: object) -> None:
        raise AssertionError("attacks on points that trainings of the tree refute")

    monkeypatch.setattr(Refuter, "_hunt", hunt)
    before, after = plain.stable(points), searched.stable(points)
    assert (after.points.score_lower >= before.points.score_lower).all()
    assert after.lower > before.lower
    # Every point that is not certified is lost to some real training: a fine grid of moves shows it.
    replay = Replay(case)
    grid = torch.cartesian_prod(*[torch.linspace(-0.3, 0.3, 41, dtype=torch.float64)] * 2)
    lost = np.zeros(30, dtype=bool)
    nominal = plain.models.outputs(points)[:, 0] > 0
    for sample in range(len(case.features)):
        features = replay.poison.features.expand(len(grid), -1, -1).clone()
        features[:, sample] += grid
        labels = replay.poison.labels.expand(len(grid), -1, -1)
        poisoning = type(replay.unrolled.nominal(1))(features, labels)
        outputs = replay.outputs_at(replay.unrolled.run(poisoning), points)[..., 0]
        lost |= ((outputs > 0) != nominal).any(0).numpy()
    assert lost.any()
    assert ((after.points.lower == 1.0) == ~lost).all()
    assert (after.points.verdict == np.where(lost, "REFUTED", "PROVED")).all()


def test_classes_are_decided_within_enumerated_selections() -> None:
    case, points, labels = problem(
        "cross_entropy", "features", {"epochs": 3}, (3,), radius=0.2, budget=1
    )
    plain, _ = case.certify(relaxation="linear", selections="enumerated")
    searched, _ = case.certify(relaxation="linear", selections="enumerated", tree=30.0)
    before, after = plain.accuracy(points, labels), searched.accuracy(points, labels)
    assert (after.points.lower >= before.points.lower).all()
    assert (after.points.upper <= before.points.upper).all()
    targets = searched.targeted(points, 1)
    assert targets.upper <= plain.targeted(points, 1).upper


def test_no_time_is_no_looser_and_no_tighter() -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.3), epochs=4)
    points = torch.randn(10, 2, generator=torch.Generator().manual_seed(3)).double()
    plain, _ = case.certify(relaxation="linear")
    late, _ = case.certify(relaxation="linear", tree=1e-9)
    before, after = plain.stable(points), late.stable(points)
    assert (before.points.lower == after.points.lower).all()


@pytest.mark.parametrize(
    ("restriction", "kept"),
    [
        (Restriction(inside=frozenset({2})), [[2]]),
        (Restriction(outside=frozenset({2})), [[0], [1], [3]]),
    ],
    ids=["inside", "outside"],
)
def test_restrictions_are_kept(restriction: Restriction, kept: list[list[int]]) -> None:
    case = replace(tiny(agt.FeaturePoisoning(1, 0.3), epochs=4), restriction=restriction)
    plan = case.certify(tree=1.0)[0].models.tree
    assert plan is not None
    assert plan.cells is not None
    assert plan.cells.selections.tolist() == kept


REFUSED = {
    "labels that flip": (("bce", "labels"), {}, {}),
    "an l1 penalty": (("bce", "features", {"l1": 0.1}), {}, {}),
    "a projection": (("bce", "features", {"projection": (-1.0, 1.0)}), {}, {}),
    "coordinates": (("bce", "features"), {"budget": 9, "count": 10}, {}),
    "selections of poisoned samples": (("bce", "features"), {"budget": 8, "count": 40}, {}),
    "adversary that poisons anew": (("bce", "features"), {"static": False}, {}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_by_name(words: str) -> None:
    given, options, more = REFUSED[words]
    case, _, _ = problem(*given, **options)
    with pytest.raises(UnsupportedOperationError, match=words) as error:
        case.certify(relaxation="interval", tree=1.0, **more)
    text = str(error.value)
    assert "tree" in text
    assert "use tree = 0" in text


def test_other_devices_are_refused() -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.1))
    replay = Replay(case)
    found = _missing(replay.schedule, replay.poison.to(torch.device("meta")), [], [], UNRESTRICTED)
    assert found is not None
    assert "device 'meta'" in found


def test_a_plan_is_there_only_after_the_last_step() -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.1))
    seen = []
    agt.certify(
        case.model,
        case.data,
        case.training,
        case.threat,
        tree=1.0,
        on_step=lambda result, index, steps: seen.append(result.models.tree is not None),
    )
    assert seen == [False, False, True]


def test_a_question_of_a_smooth_network_uses_halves_alone() -> None:
    case, points, labels = problem(
        "bce", "features", {"epochs": 4}, (3,), nn.Tanh, radius=0.4, budget=1
    )
    result, _ = case.certify(relaxation="interval", tree=30.0)
    answer = result.accuracy(points, labels)
    question = AccuracyQuestion.of(result.models, *result._test_data(points, labels, "accuracy"))
    assert len(answer.points) == len(question.index)
    assert (answer.points.lower == answer.points.upper).sum() >= 4


def test_narrowed_sets_hold_every_training_and_little_more() -> None:
    case = tiny(agt.FeaturePoisoning(1, 0.1), epochs=4)
    result, _ = case.certify(relaxation="linear", tree=1.0)
    narrow = result.narrowed(60.0)
    assert narrow.reachable.mean_width < 0.8 * result.reachable.mean_width
    replay = Replay(case)
    grid = torch.cartesian_prod(*[torch.linspace(-0.1, 0.1, 31, dtype=torch.float64)] * 2)
    widths = []
    ends: dict[str, list] = {name: [] for name in narrow.reachable.trainable}
    for sample in range(len(case.features)):
        features = replay.poison.features.expand(len(grid), -1, -1).clone()
        features[:, sample] += grid
        labels = replay.poison.labels.expand(len(grid), -1, -1)
        state = replay.unrolled.run(type(replay.unrolled.nominal(1))(features, labels))
        for name, reached in ends.items():
            reached.append(state[name])
    for name, reached in ends.items():
        value = torch.cat(reached).numpy()
        assert (narrow.reachable.lower[name] <= value).all()
        assert (value <= narrow.reachable.upper[name]).all()
        widths.append((value.max(0) - value.min(0)).ravel())
    assert narrow.reachable.mean_width <= 1.06 * np.concatenate(widths).mean()


def searches() -> tuple[Cover, Ends]:
    """Two selections of a tiny run, and its first parameters as ends."""
    case = tiny(agt.FeaturePoisoning(1, 0.1), epochs=4)
    tree = case.certify(relaxation="interval", tree=1.0)[0].models.tree
    assert tree is not None
    assert tree.cells is not None
    size = tree.cells.run.layout.size
    rows = torch.eye(size, dtype=torch.float64)[:4]
    return tree.cells, Ends(torch.cat([rows, -rows]), torch.full((8,), 0.01).double(), 0.5)


def assert_same(found: Decided, alone: Decided, cover: Cover) -> None:
    assert not found.limited
    assert not found.open.any()
    # What trainings reach lies between the two sides, each within a gap of it.
    assert (found.bounds.lower[:, 0] <= alone.reached + 1e-12).all()
    assert (alone.bounds.lower[:, 0] - 0.006 <= found.bounds.lower[:, 0]).all()
    roots = [branch.what for branch in found.tree if branch.kind is Kind.SELECTION]
    assert sorted(roots) == sorted(map(tuple, cover.selections.tolist()))
    for number, branch in enumerate(found.tree):
        assert branch.parent < number
        if branch.parent >= 0:
            assert branch.kind is not Kind.SELECTION


def test_workers_share_selections_and_a_dead_one_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cover, goal = searches()
    alone = shared.searched(cover, goal, Limits(), 1)
    honest, deaths = shared._alone, [1]

    def dies(*given: Any) -> Decided:
        if 0 in given[2] and deaths[0]:
            deaths[0] -= 1
            raise OSError("a worker died")
        return honest(*given)

    monkeypatch.setattr(shared, "_alone", dies)
    with threads():
        assert_same(shared.searched(cover, goal, Limits(), 2), alone, cover)
        assert deaths == [0]
        deaths[0] = 99
        left = shared.searched(cover, goal, Limits(), 2)
    assert left.limited
    assert left.open.all()
    assert torch.isneginf(left.bounds.lower).all()
    roots = [branch.what for branch in left.tree if branch.kind is Kind.SELECTION]
    assert sorted(roots) == sorted(map(tuple, cover.selections.tolist()))


@dataclass(frozen=True)
class Deadly(Ends):
    """A goal that kills the first process that asks for it."""

    folder: str

    def bounded(self, *given: Any) -> Any:
        die(self.folder)
        return super().bounded(*given)


@pytest.mark.slow
def test_a_worker_of_a_cluster_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    cover, goal = searches()
    alone = shared.searched(cover, goal, Limits(), 1)
    with cluster():
        found = shared.searched(cover, Deadly(**vars(goal), folder=str(tmp_path)), Limits(), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert_same(found, alone, cover)


def test_results_without_a_tree_are_not_narrowed() -> None:
    result, _ = tiny(agt.FeaturePoisoning(1, 0.1)).certify(relaxation="interval")
    with pytest.raises(InvalidInputError, match="without one") as error:
        result.narrowed(1.0)
    assert "certify with tree = 60" in str(error.value)
