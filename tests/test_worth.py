"""Vacuous results are called so: on the screen, in the report and by a word in result.json."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from run_texts import certified, run_text, write_run

import milp_agt as agt
from milp_agt.certification.verdicts import Verdict
from milp_agt.certification.worth import LISTED, BoxWorth, Worth
from milp_agt.core.deadline import Deadline
from milp_agt.core.reachable import StepRecord
from milp_agt.experiments import still_proved
from milp_agt.experiments.sweep import resized
from milp_agt.reports import write_page
from milp_agt.runfile.run_file import LoadedRun


def records(*widths: float) -> list[StepRecord]:
    return [
        StepRecord(t, width, width, 0.0, "interval", "static, dataset", 1, {})
        for t, width in enumerate(widths, 1)
    ]


def test_the_last_steps_that_say_something() -> None:
    useful = BoxWorth.of(records(0.1, 0.2, 1.0), 1.0)
    assert (useful.worth, useful.words) == (Worth.USEFUL, "")
    wide = BoxWorth.of(records(0.1, 2.0, 0.5, 3.0), 1.0)
    assert (wide.worth, wide.useful_until, wide.bounded_until) == (Worth.WIDE, 1, 4)
    assert "after step 1" in wide.words
    vacuous = BoxWorth.of(records(0.1, 2.0, math.inf, math.inf), 1.0)
    assert (vacuous.worth, vacuous.useful_until, vacuous.bounded_until) == (Worth.VACUOUS, 1, 2)
    assert "vacuous: after step 2 of 4 some parameters have no bound" in vacuous.words
    exact = [dataclasses.replace(each, relaxation=LISTED) for each in records(0.1, 2.0)]
    assert "a smaller threat or fewer steps, and no setting" in BoxWorth.of(exact, 1.0).words
    never = BoxWorth.of(records(2.0), 1.0)
    assert "at any step" in never.words


@pytest.mark.parametrize(
    ("kind", "lower", "upper", "vacuous"),
    [
        ("accuracy", 0.0, 1.0, True),
        ("accuracy", 0.0, 0.9, False),
        ("backdoor", 0.0, 1.0, True),
        ("loss", 0.0, math.inf, True),
        ("loss", 0.1, math.inf, False),
        ("loss", 0.0, 5.0, False),
        ("functional", -math.inf, math.inf, True),
        ("functional", -1.0, math.inf, False),
    ],
)
def test_bounds_that_hold_for_every_model(
    kind: str, lower: float, upper: float, vacuous: bool
) -> None:
    found = Verdict(kind, "test", lower, 0.5, upper, None, None, "REPORTED")
    assert found.is_vacuous is vacuous


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("rate", "budget", "worth"), [(0.001, 1, "useful"), (30.0, 12, "vacuous")])
def test_the_word_stands_in_the_file_and_on_the_screen(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rate: float,
    budget: int,
    worth: str,
) -> None:
    text = run_text(
        [{"kind": "accuracy"}],
        model={"layers": [2, 4, 4, 4, 2]},
        training={"learning_rate": rate, "epochs": 25},
        threat={"kind": "labels", "budget": budget},
        certify={"relaxation": "interval"},
    )
    path = write_run(tmp_path, text)
    found, shown = certified(path), capsys.readouterr().out
    write_page(tmp_path / "out")
    told = (tmp_path / "out" / "report.html").read_text()
    assert found["worth"]["boxes"] == worth
    vacuous = worth == "vacuous"
    assert found["properties"][0]["vacuous"] is vacuous
    for text, said in (
        (shown, "worth: vacuous: after step"),
        (told, "some parameters have no bound"),
    ):
        assert (said in text) is vacuous
    assert ("bounds of accuracy on test hold for every model" in shown) is vacuous


def test_the_largest_smaller_threat_that_still_proves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told of a smaller budget or radius is what a run under it proves, with the data as given."""
    monkeypatch.setattr(still_proved, "seconds_without_limit", lambda _: 1e4)

    def under(threat: dict[str, Any], *options: str, epochs: int = 6) -> dict[str, Any]:
        text = run_text(
            [{"kind": "accuracy", "at_least": 0.75}],
            training={"learning_rate": 0.3, "epochs": epochs},
            threat=threat,
            certify={"relaxation": "interval"},
        )
        path, y = write_run(tmp_path, text), np.arange(16) % 2
        x = np.random.default_rng(0).normal(size=(16, 2)) / 2 + 4 * y[:, None] - 2
        np.savez(tmp_path / "d.npz", X=x, y=y)
        return certified(path, *options, code=None)

    name, features = "accuracy on test >= 0.75", {"kind": "features", "budget": 12}
    labels = {"kind": "labels", "budget": 12}
    for wide, what in ((labels, "budget"), (features | {"radius": 100.0}, "radius")):
        found = under(wide)
        assert found["properties"][0]["status"] != "PROVED"
        bracket = found["still_proved"][what][name]
        assert 0 < bracket["proved"] < bracket["unproved"]
        assert f"{what} = {bracket['proved']:g}" in " ".join(found["worth"]["helps"])
        assert f"{what} = {bracket['proved']:g}" in capsys.readouterr().out
    # The last one was searched by the level of the run itself.
    near, far = (under(features | {"radius": bracket[end]}) for end in ("proved", "unproved"))
    assert [run["properties"][0]["status"] for run in (near, far)] == ["PROVED", "OPEN"]
    assert under(labels, "--time-limit", "0")["still_proved"] is None
    assert under(labels | {"budget": 0})["still_proved"] is None
    apart = {"features.budget": 1, "features.radius": 9.0, "labels.budget": 1}
    found = under({"kind": "separate"} | apart)
    assert found["run"]["threat"]["kind"] == "separate"
    assert found["properties"][0]["status"] != "PROVED"
    assert found["still_proved"]["budget"] is None
    assert 0 < found["still_proved"]["radius"][name]["proved"] < 9.0
    # What the run itself has proved after some of its steps is what a run of so many steps proves.
    long = under(features | {"radius": 0.5}, epochs=12)["still_proved"]["steps"][name]
    assert 0 < long["proved"] < long["unproved"] == 12
    short = under(features | {"radius": 0.5}, epochs=long["proved"])
    assert short["properties"][0]["status"] == "PROVED"
    # A run that is late ends between two steps, and proves nothing.
    seen: list[int] = []
    certify = LoadedRun.certify

    def late(self: LoadedRun, *given: Any, on_step: Any = None, **more: Any) -> Any:
        def told(result: Any, step: int, steps: int) -> None:
            seen.append(step)
            on_step(result, step, steps)

        return certify(self, *given, on_step=told, **more)

    monkeypatch.setattr(LoadedRun, "certify", late)

    class OnceInTime(Deadline):
        """Lets the search begin."""

        within = staticmethod(lambda _: OnceInTime(1e9))

        def is_over(self, grace: float = 0.0) -> bool:
            over, self.missed = self.missed, True
            return over

    monkeypatch.setattr(still_proved, "Deadline", OnceInTime)
    capsys.readouterr()
    found = under(labels)["still_proved"]
    assert found["budget"][name] == {"proved": None, "unproved": 1}
    tried = f"by 'linear': budget = 1 does not prove {still_proved.BOXES}, {name} either"
    assert tried in capsys.readouterr().out
    assert seen[-1] == 1


def test_the_latest_step_after_which_something_was_proved() -> None:
    least = {2: 0.9, 4: 0.85, 8: 0.1}

    def judged(result: Any, _seconds: float) -> list[Verdict]:
        low = least[len(result.steps)]
        status: Any = "PROVED" if low >= 0.9 else "OPEN"
        return [Verdict("accuracy", "test", low, 0.95, 0.95, 0.9, None, status)]

    box = SimpleNamespace(worth=Worth.USEFUL)
    earlier: Any = [SimpleNamespace(steps=[0] * n, worth=box, total_steps=9) for n in least]
    asked = ["accuracy on test >= 0.9"], {"accuracy on test"}, judged, Deadline.within(None)
    found = still_proved._earlier(earlier[0], earlier, *asked)
    assert found is not None
    assert {name: (b.proved, b.unproved) for name, b in found.brackets.items()} == {
        "accuracy on test >= 0.9": (2, 4),
        "accuracy on test in [0.85, 0.95]": (4, 9),
    }


def test_two_budgets_are_replaced_together() -> None:
    threat = agt.SeparatePoisoning(agt.FeaturePoisoning(1, 0.1), agt.LabelPoisoning(2))
    for budget, radius, expected in ((3, None, (3, 0.1, 3)), (None, 0.2, (1, 0.2, 2))):
        found = resized(threat, budget, radius)
        assert isinstance(found, agt.SeparatePoisoning)
        assert (found.features.budget, found.features.radius, found.labels.budget) == expected
    labels_only = dataclasses.replace(threat, features=agt.FeaturePoisoning(0, 0.1))
    assert resized(labels_only, 3, None).budget == 3
    run: Any = lambda threat: threat  # noqa: E731
    asked = agt.sweep(run, threat, lambda t: {"q": agt.Bounds(0.0, 0.5, 1.0)}, radii=[1])
    assert [(c.budget, c.radius) for c in asked.cells] == [(3, 1)]
