"""Trees of certificates: they prove more, their leaves hold every run, and forged ones are rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified import Change, arr, at, certified, forged, put, statement_in

from milp_agt.checker import affine, training
from milp_agt.checker.boxes import Box
from milp_agt.checker.check import Outcome, check
from milp_agt.checker.forms import Symbols
from milp_agt.checker.layers import Samples
from milp_agt.checker.proof import reached
from milp_agt.checker.tree import LEAF, WHERE, WHO, leaves

ENDS = LEAF, 0.0, 0.0


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


def rows(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return arr("tree.npy", change)


def instead(*nodes: tuple[float, float, float]) -> Change:
    return rows(lambda tree: np.array(nodes))


FORGERIES = {
    "a leaf dropped": rows(lambda tree: tree[:-1]),
    "a leaf more": rows(lambda tree: np.concatenate([tree, [ENDS]])),
    "a node that is none": at("tree.npy", (0, 0), lambda v: 3.0),
    "half a node": at("tree.npy", (0, 0), lambda v: 0.5),
    "no tree": rows(lambda tree: tree[:0]),
    "two columns": rows(lambda tree: tree[:, :2].copy()),
    "cut outside of itself": instead((WHO, 20.0, 0.0), (WHERE, 0.0, 99.0), ENDS, ENDS, ENDS),
    "cut where nothing is": instead((WHO, 20.0, 0.0), (WHERE, 99.0, 0.0), ENDS, ENDS, ENDS),
    "a box of several samples": instead((WHERE, 0.0, 0.0), ENDS, ENDS),
    "a tree of one leaf": instead(ENDS),
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
    assert affine.covers(given.problem)
