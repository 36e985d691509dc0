"""Trees of certificates: they prove more, their leaves hold every run, and forged ones are rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified import Change, arr, at, certified, data_of, forged, put, run_of, statement_in

from milp_agt.certificates import growing
from milp_agt.checker import layers, training
from milp_agt.checker.boxes import Box
from milp_agt.checker.check import Outcome, check
from milp_agt.checker.forms import Symbols
from milp_agt.checker.layers import Layer, Samples
from milp_agt.checker.proof import LEAF, PHASE, WHERE, WHO, Reached, answer, leaves, reached
from milp_agt.checker.statement import Statement

ENDS = LEAF, 0.0, 0.0
AT = 2  # a step whose phases differ between runs


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More points than by affine forms alone; four samples may be poisoned."""
    return certified(
        tmp_path_factory.mktemp("grown"),
        relaxation="zonotope",
        epochs=3,
        threat='kind = "features"\nbudget = 1\nradius = 0.5\nsamples = [3, 29, 20, 19]',
        certify="tree = 20.0",
        properties='[[property]]\nkind = "stable"',
    )


def without(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    claim["tree"] = None
    arrays.pop("tree.npy")
    claim["files"].pop("tree.npy")


def test_a_tree_proves_more_points(grown: Path, tmp_path: Path) -> None:
    assert check(grown).outcome is Outcome.PROVED
    assert check(forged(grown, tmp_path / "bare", without)).outcome is Outcome.REJECTED


def test_answers_hold_in_every_leaf() -> None:
    cases = [Reached({}, ends) for ends in (((3, 9), (0.5, 0.6)), ((5, 12), (0.1, 0.7)))]
    assert [answer(number, cases) for number in range(2)] == [(3, 12), (0.1, 0.7)]
    assert [answer(number, cases[::-1]) for number in range(2)] == [(3, 12), (0.1, 0.7)]


def test_every_run_lies_in_a_leaf_and_in_its_box(grown: Path) -> None:
    given = statement_in(grown)
    parts, cases = list(leaves(given)), reached(given)
    assert len(parts) == len(cases) > 1
    rng = np.random.default_rng(0)
    open_ = np.flatnonzero(given.poisoned.open)
    for number in range(60):
        x = given.samples.x.lo.copy()
        chosen = rng.choice(open_)
        if number:  # else the data as given
            ends = given.poisoned.samples.x
            share = rng.choice([0.0, 1.0], x.shape[2]) if number % 2 else rng.random(x.shape[2])
            low, high = ends.lo[0, chosen], ends.hi[0, chosen]
            x[0, chosen] = np.clip(low + share * (high - low), low, high)
        own = [
            k
            for k, part in enumerate(parts)
            if part.poisoned.open[chosen]
            and (part.poisoned.samples.x.lo <= x)[0, chosen].all()
            and (x <= part.poisoned.samples.x.hi)[0, chosen].all()
        ]
        assert own
        final = training.train(given.problem, given.initial, Samples(Box.point(x), given.samples.y))
        for k in own:
            for name, box in final.items():
                assert (cases[k].boxes[name].lo <= box.hi).all()
                assert (box.lo <= cases[k].boxes[name].hi).all()


@pytest.fixture(scope="module")
def runs() -> tuple[Statement, list[tuple[np.ndarray, dict[str, Box]]]]:
    """Runs with one sample poisoned: which arguments are above 0 in step AT, and what they end with."""
    rng, one = np.random.default_rng(4), Layer("dense", "a", "b")
    x, y = rng.normal(size=(24, 2)), rng.integers(0, 2, (24, 1)) * 1.0
    shapes = {"a": (4, 2), "b": (4,), "c": (1, 4)}
    initial = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    own = run_of("bce", one, Layer("relu"), Layer("dense", "c"), batches=[range(24)] * 4)
    samples, poisoned = data_of(x, y, 1, moved_x=1.0, open_=np.arange(24) == 0)
    given = Statement(own, samples, poisoned, "affine", initial)
    found = []
    for _ in range(60):
        moved = x[None].copy()
        moved[0, 0] += rng.uniform(-1, 1, 2)
        data = Samples(Box.point(moved), samples.y)
        state = training.begin(own, initial, lambda values: Box.point(values[None]))
        for index, batch in enumerate(own.batches):
            if index == AT:
                z = layers.forward(own, state, data.at(batch).x)[1]
            state = training.step(own, index, state, data, None)
        assert not ((z.lo <= 0) & (z.hi > 0)).any()
        found.append(((z.lo[0] > 0).reshape(-1), state))
    return given, found


def inside(case: dict[str, Box], final: dict[str, Box]) -> bool:
    pairs = [(case[name], box) for name, box in final.items()]
    return all((a.lo <= b.hi).all() and (b.lo <= a.hi).all() for a, b in pairs)


def width(boxes: dict[str, Box]) -> float:
    return float(np.concatenate([(box.hi - box.lo).ravel() for box in boxes.values()]).mean())


def test_forced_phases_hold_their_runs(runs: Any) -> None:
    given, found = runs
    above = np.array([signs for signs, _ in found])
    numbers = np.flatnonzero((above.mean(0) > 0.1) & (above.mean(0) < 0.9))
    assert len(numbers) > 0
    whole = width(reached(given)[0].boxes)
    for number in numbers[:3]:
        tree = np.array([(PHASE, AT, number), ENDS, ENDS])
        cases = [case.boxes for case in reached(replace(given, tree=tree))]
        assert min(map(width, cases)) < whole
        for signs, final in found:
            assert inside(cases[1 if signs[number] else 0], final)


@pytest.mark.parametrize("first", ["relu", "leaky_relu"])
def test_a_forced_phase_may_have_the_centre_of_a_tangent_outside_of_it(first: str) -> None:
    """sigmoid right behind a relu whose phase is forced: every run, most of which have the other phase."""
    x, y = np.array([[-1.8]]), np.array([[0.6]])
    initial = {"a": np.ones((1, 1)), "c": np.array([[-8.3]])}
    hidden = Layer(first, slope=0.01 * (first == "leaky_relu")), Layer("sigmoid")
    own = run_of("mse", Layer("dense", "a"), *hidden, Layer("dense", "c"), batches=[[0]])
    samples, poisoned = data_of(x, y, 1, moved_x=2.1)
    tree = np.array([(PHASE, 0, 0), ENDS, ENDS])
    stated = Statement(own, samples, poisoned, "affine", initial, tree=tree)
    cases = [case.boxes for case in reached(stated)]
    for moved in np.linspace(-3.9, 0.3, 43):
        data = Samples(Box.point(np.full((1, 1, 1), moved)), samples.y)
        assert inside(cases[int(moved > 0)], training.train(own, initial, data))


def test_writers_know_which_phases_flip_first(runs: Any) -> None:
    """In the first step in which some runs have them on and others off; then another one."""
    given, found = runs
    *_, (kind, step, number) = growing._cuts(given)
    assert (kind, step) == (PHASE, 0)
    parts = list(leaves(replace(given, tree=np.array([(kind, step, number), ENDS, ENDS]))))
    for part in parts:
        *_, following = growing._cuts(replace(part, tree=None))
        assert following != (kind, step, number)
    boxes = [reached(replace(part, tree=None))[0].boxes for part in parts]
    assert all(any(inside(box, final) for box in boxes) for _, final in found)


def test_sides_that_are_exchanged_show(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(given: Any) -> Any:
        return reversed(list(leaves(given)))

    monkeypatch.setattr("milp_agt.checker.proof.leaves", exchanged)
    with pytest.raises(AssertionError):
        test_forced_phases_hold_their_runs(runs)


def test_phases_that_are_not_there_change_nothing(runs: Any) -> None:
    given, _ = runs
    whole = reached(given)[0].boxes
    for step, number in ((AT, 10**6), (AT, -1), (99, 0), (-1, 0)):
        for case in reached(replace(given, tree=np.array([(PHASE, step, number), ENDS, ENDS]))):
            assert width(case.boxes) == width(whole)


def rows(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return arr("tree.npy", change)


def instead(*nodes: tuple[float, float, float]) -> Change:
    return rows(lambda tree: np.array(nodes))


FORGERIES = {
    "a leaf dropped": rows(lambda tree: tree[:-1]),
    "a leaf more": rows(lambda tree: np.concatenate([tree, [ENDS]])),
    "a node that is none": at("tree.npy", (0, 0), lambda v: 4.0),
    "half a node": at("tree.npy", (0, 0), lambda v: 0.5),
    "no tree": rows(lambda tree: tree[:0]),
    "two columns": rows(lambda tree: tree[:, :2].copy()),
    "cut outside of itself": instead((WHO, 20.0, 0.0), (WHERE, 0.0, 99.0), ENDS, ENDS, ENDS),
    "cut where nothing is": instead((WHO, 20.0, 0.0), (WHERE, 99.0, 0.0), ENDS, ENDS, ENDS),
    "a box of several samples": instead((WHERE, 0.0, 0.0), ENDS, ENDS),
    "a tree of one leaf": instead(ENDS),
    "a phase instead": instead((PHASE, 0.0, 0.0), ENDS, ENDS),
    "one phase twice, one side": instead((PHASE, 1.0, 0.0), (PHASE, 1.0, 0.0), ENDS, ENDS),
    "multipliers that are not there": instead((LEAF, 0.0, 9.0)),
    "multipliers backwards": instead((LEAF, 0.0, -9.0)),
    "all samples on one side": instead((WHO, 0.0, 0.0), ENDS, ENDS),
    "no number": at("tree.npy", (0, 2), lambda v: np.nan),
    "moves anew in every step": put("threat/poisoned", "anew in every step"),
    "another method": put("method", "interval"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_trees_are_rejected(grown: Path, tmp_path: Path, name: str) -> None:
    """A tree that is none; one that proves less than is claimed."""
    report = check(forged(grown, tmp_path / "forged", FORGERIES[name], words=False))
    assert report.outcome is Outcome.REJECTED, report.items


def test_a_node_that_loses_runs_shows(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above that looks for runs outside of all leaves finds a checker that drops some."""
    whole = leaves

    def fewer(given: Any) -> Any:
        return (part for k, part in enumerate(whole(given)) if k)

    monkeypatch.setitem(globals(), "leaves", fewer)
    monkeypatch.setattr("milp_agt.checker.proof.leaves", fewer)
    with pytest.raises(AssertionError):
        test_every_run_lies_in_a_leaf_and_in_its_box(grown)


@pytest.mark.parametrize("rule", ["worst", "given", "with_flips"])
def test_an_engine_that_is_too_tight_is_rejected(
    rule: str, grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checker with a rule one percent too tight would prove, and claims."""
    original = getattr(Symbols, rule)

    def tight(self: Symbols, *parts: Any, **own: Any) -> Any:
        if rule == "with_flips":
            return original(self, *parts, **{**own, "most": 0.99 * own["most"]})
        found = original(self, *parts)
        return 0.99 * found if rule == "worst" else tuple(0.99 * each for each in found)

    given = replace(statement_in(grown), tree=None)
    with monkeypatch.context() as patched:
        patched.setattr(Symbols, rule, tight)
        case = reached(given)[0]

    def change(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        without(claim, arrays)
        claim["questions"][0] |= {"least": 0, "most": len(arrays["points_0.npy"])}
        for number, name in enumerate(claim["model"]["parameters"]):
            arrays[f"lower_{number}.npy"] = case.boxes[name].lo[0]
            arrays[f"upper_{number}.npy"] = case.boxes[name].hi[0]

    report = check(forged(grown, tmp_path / "forged", change))
    assert report.outcome is Outcome.REJECTED, report.items
