"""Commands end within their time limit with what is finished, and say so."""

from __future__ import annotations

import csv
import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import network
from run_texts import run_text, write_run

import milp_agt as agt
from milp_agt.attacks import Search, attack
from milp_agt.attacks.unrolled import Pace, Unrolled
from milp_agt.cli import main
from milp_agt.core import deadline
from milp_agt.core.deadline import Deadline, shorter
from milp_agt.errors import InvalidInputError
from milp_agt.experiments import compare as comparing
from milp_agt.experiments.bench import Series, bench
from milp_agt.experiments.sweep import largest

RUN = run_text(
    [{"kind": "accuracy", "at_least": 0.5}, {"kind": "loss"}],
    threat={"kind": "features", "budget": 1, "radius": 0.1},
    training={"learning_rate": 0.3},
    attack={"pool": 4, "restarts": 1, "rounds": 1},
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, RUN)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by one second whenever it is read."""
    ticks = count()
    monkeypatch.setattr(deadline, "monotonic", lambda: float(next(ticks)))


def small(**options: Any) -> agt.attacks.Attack:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 2)), np.arange(8) % 2
    training = agt.Training(loss="bce", learning_rate=0.3, epochs=3)
    threat = agt.FeaturePoisoning(budget=2, radius=0.3)
    return attack(network((2, 3, 1), seed=1), (x, y), training, threat, **options)


def test_shares_of_what_is_left(ticking: None) -> None:
    ends = Deadline.within(10.0)  # read at 0
    assert ends.share(3) == pytest.approx((10 - 1) / 3)
    assert not ends.is_over()
    assert not ends.missed
    assert [Deadline(at=4.0).is_over() for _ in range(2)] == [False, True]
    assert Deadline.within(None).share(3) is None
    assert (shorter(None, 2.0, 3.0), shorter(None, None)) == (2.0, None)
    with pytest.raises(InvalidInputError, match="give 0 or more"):
        Deadline.within(-1.0)
    with pytest.raises(InvalidInputError, match="give 0 or more"):
        Search(time_limit=float("nan"))


def test_a_search_keeps_what_it_met_in_time(ticking: None) -> None:
    """Each moment to end a search leaves real runs, and more time never reaches less."""
    search = Search(pool=16, restarts=1, rounds=1, iterations=2, corners=8)
    whole = small(search=search)
    assert not whole.limit_reached
    before = 0.0
    for seconds in (0, 2, 4, 8, 16, 10**6):
        found = small(search=Search(**{**vars(search), "time_limit": float(seconds)}))
        assert found.limit_reached == (seconds < 10**6)
        assert before <= found.mean_width <= whole.mean_width
        before = found.mean_width
    assert before == whole.mean_width
    nothing = small(search=Search(time_limit=0.0))
    assert (nothing.trained, nothing.mean_width) == (1, 0.0)


def test_a_search_trains_as_many_runs_again_as_its_time_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"pool": 16, "restarts": 1, "rounds": 1, "iterations": 2, "corners": 8}
    whole = small(search=Search(**settings))
    monkeypatch.setattr(Unrolled, "pace", lambda _: Pace(0.0, 1.0))  # seconds of a run
    cut = small(search=Search(**settings, time_limit=100.0))
    assert len(cut.runs) <= 12 < len(whole.runs)
    assert cut.limit_reached
    assert 0.5 * whole.mean_width < cut.mean_width <= whole.mean_width


def test_a_list_of_all_ways_that_is_cut_short_is_not_all(ticking: None) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 2)), np.arange(8) % 2
    training = agt.Training(loss="bce", learning_rate=0.3, epochs=3)
    threat = agt.LabelPoisoning(budget=1)
    model = network((2, 1), seed=1)
    assert attack(model, data, training, threat).exhaustive
    cut = attack(model, data, training, threat, search=Search(time_limit=0.0))
    assert not cut.exhaustive
    assert cut.limit_reached


def test_attack_ends_in_time_with_its_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "out"
    assert main(["attack", str(run), "--out", str(out), "--time-limit", "0"]) == 4
    assert "a time limit ended the search for" in capsys.readouterr().out
    document = json.loads((out / "attack.json").read_text())
    assert document["complete"]
    assert [each["limit_reached"] for each in document["objectives"]] == [True] * 3
    assert main(["attack", str(run), "--out", str(out), "--time-limit", "1e6"]) == 0
    document = json.loads((out / "attack.json").read_text())
    assert not any(each["limit_reached"] for each in document["objectives"])


def test_attack_that_is_interrupted_leaves_its_searches(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(agt.attacks.Attack, "towards", interrupted)
    out = run.parent / "out"
    assert main(["attack", str(run), "--out", str(out)]) == 4
    assert "interrupted after 1 of 3 searches" in capsys.readouterr().err
    document = json.loads((out / "attack.json").read_text())
    assert not document["complete"]
    with np.load(out / "attack.npz") as arrays:
        assert "0/features/0" in arrays.files


def test_compare_leaves_rows_out_and_names_them(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parent / "out"
    call = ["compare", str(run), "--relaxations", "interval,linear", "--out", str(out)]
    assert main([*call, "--time-limit", "0"]) == 4
    assert "left out: linear, window 1: the time of 0 s was over" in capsys.readouterr().out
    document = json.loads((out / "compare.json").read_text())
    assert [row["relaxation"] for row in document["rows"]] == ["interval"]
    assert main([*call, "--time-limit", "1e6"]) == 0
    assert len(json.loads((out / "compare.json").read_text())["rows"]) == 2


def test_compare_that_is_interrupted_has_its_rows(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = comparing.certify, count()

    def once(*given: Any, **options: Any) -> agt.Result:
        if next(calls):
            raise KeyboardInterrupt
        return honest(*given, **options)

    monkeypatch.setattr(comparing, "certify", once)
    out = run.parent / "out"
    call = ["compare", str(run), "--relaxations", "interval,linear", "--out", str(out)]
    assert main(call) == 4
    with (out / "compare.csv").open(newline="") as stream:
        assert [row["relaxation"] for row in csv.DictReader(stream)] == ["interval"]


def test_a_sweep_that_is_cut_short_holds_for_smaller_threats(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parent / "out"
    call = ["sweep", str(run), "--relaxation", "interval", "--budgets", "1,2", "--radii", "0.1,0.2"]
    assert main([*call, "--out", str(out), "--time-limit", "0"]) == 4
    assert "cut short" in capsys.readouterr().out
    cut = json.loads((out / "sweep.json").read_text())["rows"]
    assert main([*call, "--out", str(out)]) == 0
    full = json.loads((out / "sweep.json").read_text())["rows"]
    assert len(cut) == len(full) == 8
    assert [row["seconds"] is None for row in cut] == [True] * 6 + [False] * 2
    for row, other in zip(cut, full, strict=True):
        assert row["lower"] <= other["lower"] <= other["upper"] <= row["upper"]


def test_a_search_for_the_largest_threat_stops_with_wide_brackets() -> None:
    tried: list[float] = []

    def certify(threat: Any) -> Any:
        tried.append(threat.budget)
        return threat

    threat = agt.FeaturePoisoning(budget=1, radius=0.1)
    options: dict[str, Any] = {"budgets": (0, 16)}
    holds = lambda result: {"all": result.budget <= 5}  # noqa: E731
    found = largest(certify, threat, holds, **options)
    assert (found["all"].proved, found["all"].unproved, found.cut_short) == (5, 6, False)
    tried.clear()
    cut = largest(certify, threat, holds, **options, within=0.0)
    assert (cut["all"].proved, cut["all"].unproved, cut.cut_short) == (0, 16, True)
    assert tried == [16, 0]


def test_a_benchmark_leaves_out_what_is_not_reached() -> None:
    series = Series(
        relaxations=("interval",), windows=(0,), samples=(6,), hidden=(2,), marks=(1, 3)
    )
    cut = bench(series, within=0.0)
    assert cut.cut_short
    assert [row.step for row in cut.rows] == [1]
    whole = bench(series, within=1e6)
    assert not whole.cut_short
    assert [row.step for row in whole.rows] == [1, 3]
    assert whole.rows[0].mean_width == cut.rows[0].mean_width
