"""Questions keep the time limit of their run: late ones are answered from boxes, and it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from attacks import network
from run_texts import certified, run_text

import milp_agt as agt
from milp_agt.bounds.cells.passing import passed
from milp_agt.bounds.program import state_bounds
from milp_agt.certification.time_limit import TimeLimit
from milp_agt.core.deadline import Deadline
from milp_agt.properties.models import ReachableModels

X = np.random.default_rng(1).normal(size=(150, 2))
Y = (X[:, 0] > 0).astype(int)
RUN = run_text(
    [{"kind": "accuracy", "at_least": 1.0}],
    data={"path": "d.npz", "test_fraction": 0.5},
    threat={"kind": "features", "budget": 2, "radius": 1.0},
    training={"learning_rate": 0.3},
    certify={"time_limit": 1000000.0},
)


def run(relaxation: str = "linear", radius: float = 0.05, **options: object) -> agt.Result:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2)), np.arange(6) % 2
    training = agt.Training(loss="bce", learning_rate=0.3, epochs=4)
    threat = agt.FeaturePoisoning(budget=1, radius=radius)
    return agt.certify(
        network((2, 2, 1), seed=1),
        (x, y),
        training,
        threat,
        relaxation=relaxation,
        selections="joint",
        **options,
    )  # type: ignore[arg-type]


def test_a_tree_over_a_zonotope_that_the_limit_leaves_out_is_left_out() -> None:
    """Whether a run is refused does not hang on how fast a machine is."""
    threat = agt.FeaturePoisoning(budget=5, radius=0.01)  # of too many selections for a list
    training = agt.Training(loss="bce", learning_rate=0.3, epochs=4)
    result = agt.certify(
        network((2, 8, 1)), (X, Y), training, threat, tree=30.0, time_limit=1e-3, refute="none"
    )
    assert result.limit_reached
    assert any(line.startswith("no tree: ") for line in result.fallbacks)
    assert result.accuracy(X[:9], Y[:9]).lower <= 1.0


def at(result: agt.Result, seconds: float) -> agt.Result:
    deadline = Deadline(monotonic() + seconds)
    return replace(result, models=replace(result.models, deadline=deadline))


def test_preparation_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TimeLimit] = []
    honest = TimeLimit.refusal

    def refusal(self: TimeLimit, *asked: object) -> str | None:
        made.append(self)
        return honest(self, *asked)  # type: ignore[arg-type]

    monkeypatch.setattr(TimeLimit, "refusal", refusal)
    before = monotonic()
    result = run(time_limit=1000.0)
    assert made[0].deadline is not None
    assert before + 1000.0 <= made[0].deadline <= before + 1000.5
    # Each question that is asked from Python, whenever that is, has what the run left of its limit.
    assert result.models.deadline is None
    assert result.models.seconds is not None
    assert 990.0 < result.models.seconds < 1000.0
    assert result.models.asked_now.deadline is not None


def test_questions_in_time_are_the_same_as_without_a_limit() -> None:
    plain = run()
    limited = at(plain, 1e6)
    assert limited.accuracy(X, Y).lower == plain.accuracy(X, Y).lower
    assert limited.loss(X, Y).upper == plain.loss(X, Y).upper
    assert limited.models.deadline is not None
    assert not limited.models.deadline.missed


def test_late_questions_hold_and_walk_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run()
    tight = [plain.accuracy(X, Y), plain.loss(X, Y)]
    late = at(plain, -1.0)

    def walked(*_: object) -> None:
        raise AssertionError("a late question went through training")

    monkeypatch.setattr(ReachableModels, "bound", walked)
    for own, loose in zip(tight, (late.accuracy(X, Y), late.loss(X, Y)), strict=True):
        assert loose.lower <= own.lower <= own.upper <= loose.upper
    assert tight[1].upper < late.loss(X, Y).upper
    late.margins(X, Y)
    assert late.models.deadline is not None
    assert late.models.deadline.missed


@pytest.mark.parametrize("relaxation", ["linear", "zonotope", "lp"])
def test_a_question_has_a_time_of_its_own(relaxation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late ones solve nothing, search nothing and hold; solvers are told what is left to the others."""
    result, asked = run(relaxation, radius=0.5), list[float | None]()
    x, y = X[:20], Y[:20]
    plain = [result.accuracy(x, y), result.loss(x, y)]
    solve = state_bounds._solve

    def solved(*given: Any) -> Any:
        asked.append(given[-1])
        return solve(*given)

    monkeypatch.setattr(state_bounds, "_solve", solved)
    late, rich = result.within(0.0), result.within(1e6)
    assert late.functional({"0.bias": [1.0, 0.0]})[0].limit_reached
    for own, loose in zip(plain, (late.accuracy(x, y), late.loss(x, y)), strict=True):
        assert loose.lower <= own.lower <= own.upper <= loose.upper
        assert not own.limit_reached
    assert loose.limit_reached
    assert loose.reached is None
    assert not asked
    assert not rich.functional({"0.bias": [1.0, 0.0]})[0].limit_reached
    for own, same in zip(plain, (rich.accuracy(x, y), rich.loss(x, y)), strict=True):
        assert (own.lower, own.upper, own.limit_reached) == (same.lower, same.upper, False)
    if relaxation == "lp":
        assert asked
        assert all(seconds is not None and 0.0 < seconds < 1e6 for seconds in asked)
    with pytest.raises(agt.errors.InvalidInputError):
        result.within(-1.0)


def test_a_pass_of_cells_ends_between_two_steps() -> None:
    """Its leaves keep the bounds that they have, and the question is told that time was short."""
    result = run("auto", radius=0.5, tree=1.0)
    assert result.models.tree is not None
    cells = result.models.tree.cells
    assert cells is not None
    origins = [cells.run.roots(cells.selections[:2])]
    assert passed(cells.run, origins) is not None
    assert passed(cells.run, origins, ends=monotonic()) is None
    plain, short = result.accuracy(X, Y), result.within(0.05).accuracy(X, Y)
    assert short.lower <= plain.lower <= plain.upper <= short.upper


@pytest.mark.parametrize("question", ["accuracy", "collective"])
def test_what_is_decided_when_time_ends_is_not_cut_short(
    question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a question is over once its last point was walked: a tree would have nothing to do."""
    result = run("zonotope", radius=0.05, tree=1.0)
    assert result.models.tree is not None
    points, labels = X[:40], Y[:40]
    keep = result.accuracy(points, labels).points.score_lower > 0
    points = points[keep]
    late, honest = at(result, 1e6), ReachableModels.refine
    assert late.models.deadline is not None

    def refined(self: ReachableModels, *given: Any) -> Any:
        found = honest(self, *given)
        assert self.deadline is not None
        self.deadline.at = monotonic()
        return found

    monkeypatch.setattr(ReachableModels, "refine", refined)
    answer = getattr(late, question)(points, labels[keep])
    assert late.models.deadline.is_over()
    assert answer.lower == 1.0
    assert not answer.limit_reached


def test_questions_cut_short_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def over(self: Deadline, _grace: float = 0.0) -> bool:
        self.missed = True
        return True

    monkeypatch.setattr(Deadline, "is_over", over)
    np.savez(tmp_path / "d.npz", X=X[:24], y=Y[:24])
    path = tmp_path / "run.toml"
    path.write_text(RUN, encoding="utf-8")
    # 1 where an attack refutes it all the same, which is an answer; 4 where it stays open.
    relaxation = certified(path, "--quiet", code=None)["relaxation"]
    assert relaxation["limit_reached"] is True
    assert any("bounded from the boxes" in line for line in relaxation["fallbacks"])
