"""Multipliers of rows of flips in certificates: they prove more, and none proves what is not so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified import Change, arr, at, certified, forged, put, statement_in

from milp_agt.certificates import folder
from milp_agt.certificates.ascent import ascended
from milp_agt.checker import training
from milp_agt.checker.boxes import Box
from milp_agt.checker.check import Outcome, check
from milp_agt.checker.forms import Symbols
from milp_agt.checker.layers import Samples
from milp_agt.checker.proof import answer, reached
from milp_agt.checker.statement import Statement, multipliers_of
from milp_agt.checker.steps import stored as stored_in
from milp_agt.checker.steps import train


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples of 30 are moved, and flip phases; multipliers are looked for in any case."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "NEAR_ENOUGH", 1.0)
        return certified(
            tmp_path_factory.mktemp("stored"),
            relaxation="zonotope",
            epochs=6,
            threat='kind = "features"\nbudget = 3\nradius = 0.05',
            properties='[[property]]\nkind = "stable"\n\n[[property]]\nkind = "loss"',
        )


def bare(given: Statement) -> Statement:
    return replace(given, flips=given.flips[:0], multipliers=np.zeros(0))


def width(given: Statement) -> float:
    boxes = reached(given)[0].boxes.values()
    return float(np.concatenate([(box.hi - box.lo).ravel() for box in boxes]).mean())


def test_multipliers_make_bounds_tighter(stored: Path) -> None:
    given = statement_in(stored)
    assert check(stored).outcome is Outcome.PROVED
    assert width(given) < 0.95 * width(bare(given))


def test_poisoned_runs_lie_in_the_box_whatever_the_multipliers(stored: Path) -> None:
    given = statement_in(stored)
    rng = np.random.default_rng(0)
    noise = [given.multipliers, *(s * rng.normal(size=given.multipliers.size) for s in (0.01, 1.0))]
    proved = [reached(replace(given, multipliers=each))[0].boxes for each in noise]
    open_, ends = np.flatnonzero(given.poisoned.open), given.poisoned.samples.x
    for _ in range(60):
        x, chosen = given.samples.x.lo.copy(), rng.choice(open_, 3, replace=False)
        side = rng.random((3, x.shape[2])) < 0.5
        x[0, chosen] = np.where(side, ends.lo[0, chosen], ends.hi[0, chosen])
        final = training.train(given.problem, given.initial, Samples(Box.point(x), given.samples.y))
        for name, box in final.items():
            for boxes in proved:
                assert (boxes[name].lo <= box.hi).all()
                assert (box.lo <= boxes[name].hi).all()


def unsure(given: Statement, margin: float) -> Statement:
    """With other phases judged as ones that may flip."""
    numbers = replace(given.problem.arithmetic, margin=margin)
    return replace(given, problem=replace(given.problem, arithmetic=numbers))


def test_phases_that_are_judged_otherwise_cost_width_alone(stored: Path, tmp_path: Path) -> None:
    """A checker that finds more flips than are listed, or fewer, has bounds: the wider ones for more."""
    given = statement_in(stored)
    more = unsure(given, 0.02)
    flips = [train(each, stored_in(each)).symbols.names for each in (given, more)]
    assert len(flips[0]) < len(flips[1])
    assert width(given) < width(more) < 1.5 * width(given)

    def listed(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        names, values = ascended(more, 60.0)
        arrays |= {"flips.npy": names, "multipliers.npy": values}
        case = reached(replace(more, flips=names, multipliers=multipliers_of(values)))[0]
        for number, name in enumerate(claim["model"]["parameters"]):
            arrays[f"lower_{number}.npy"] = case.boxes[name].lo[0]
            arrays[f"upper_{number}.npy"] = case.boxes[name].hi[0]
        for number, (asked, table) in enumerate(
            zip(given.questions, claim["questions"], strict=True)
        ):
            least, most = answer(number, [case])
            if asked.kind == "loss":
                table |= {"least": float(least).hex(), "most": float(most).hex()}
            else:
                table |= {"least": int(least), "most": int(most)}

    report = check(forged(stored, tmp_path / "more", listed))
    assert report.outcome is Outcome.PROVED, report.items


def without(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    claim["multipliers"] = None
    claim.pop("flips")
    for key in ("flips", "multipliers"):
        arrays.pop(f"{key}.npy")
        claim["files"].pop(f"{key}.npy")


def words(change: Any) -> Change:
    return arr("multipliers.npy", change)


FORGERIES = {
    "none": without,
    "all 0": words(lambda m: 0 * m),
    "none at all": words(lambda m: m[:0]),
    "no flips": arr("flips.npy", lambda f: f[:0]),
    "flips of another step": at("flips.npy", (0, 0), lambda v: v + 1),
    "flips of a step that is not there": at("flips.npy", (-1, 0), lambda v: 10**6),
    "flips of a step below 0": at("flips.npy", (0, 0), lambda v: -1),
    "a negative number": at("flips.npy", (0, 1), lambda v: -1),
    "one column": arr("flips.npy", lambda f: f[:, 0].copy()),
    "other flips": arr("flips.npy", lambda f: f + np.array([0, 1])),
    "flips alone": put("multipliers", None),
    "one less": words(lambda m: m[:-1]),
    "one more": words(lambda m: np.append(m, m[:1])),
    "other signs": words(lambda m: m ^ np.uint16(0x8000)),
    "in another order": words(lambda m: m[::-1].copy()),
    "twice as large": words(lambda m: np.where(m % 0x8000, m + np.uint16(0x80), m)),
    "huge": words(lambda m: np.full_like(m, 0x7F7F)),
    "infinite": at("multipliers.npy", 0, lambda m: 0x7F80),
    "no number": at("multipliers.npy", 0, lambda m: 0x7FC0),
    "of another type": words(lambda m: multipliers_of(m)),
    "for intervals": put("method", "interval"),
    "missing": lambda claim, arrays: claim.pop("multipliers"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_multipliers_are_rejected(stored: Path, tmp_path: Path, name: str) -> None:
    """They do not fit, or prove less than is claimed."""
    report = check(forged(stored, tmp_path / "forged", FORGERIES[name], words=False))
    assert report.outcome is Outcome.REJECTED, report.items


def test_other_multipliers_prove_wider_claims(stored: Path, tmp_path: Path) -> None:
    """What is rejected above is rejected for its width alone."""
    case = reached(bare(statement_in(stored)))[0]

    def change(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        for number, name in enumerate(claim["model"]["parameters"]):
            spare = 0.01 * (case.boxes[name].hi[0] - case.boxes[name].lo[0])
            arrays[f"lower_{number}.npy"] = case.boxes[name].lo[0] - spare
            arrays[f"upper_{number}.npy"] = case.boxes[name].hi[0] + spare
        claim["questions"][1] |= {"least": (0.0).hex(), "most": (9.0).hex()}

    rolled = words(lambda m: np.roll(m, 1))
    report = check(forged(stored, tmp_path / "f", change, rolled))
    assert report.outcome is Outcome.PROVED, report.items


@pytest.mark.parametrize("rule", ["most", "pays", "quiet", "shares", "worst"])
def test_an_engine_that_is_too_tight_is_rejected(
    rule: str, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checker whose rule is too tight would prove with these multipliers, and claims."""
    name = "worst" if rule == "worst" else "with_flips"
    original = getattr(Symbols, name)

    def tight(self: Symbols, *given: Any, **own: Any) -> Any:
        if rule == "worst":
            return 0.99 * original(self, *given)
        if rule == "quiet":
            return original(self, *given[:2], 0.99 * given[2], **own)
        return original(self, *given, **{**own, rule: 0.99 * own[rule]})

    with monkeypatch.context() as patched:
        patched.setattr(Symbols, name, tight)
        case = reached(statement_in(stored))[0]

    def change(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        for number, key in enumerate(claim["model"]["parameters"]):
            arrays[f"lower_{number}.npy"] = case.boxes[key].lo[0]
            arrays[f"upper_{number}.npy"] = case.boxes[key].hi[0]

    report = check(forged(stored, tmp_path / "forged", change))
    assert report.outcome is Outcome.REJECTED, report.items
