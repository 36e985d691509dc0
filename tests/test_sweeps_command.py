"""Sweeps and searches for the largest threat on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_texts import run_text
from test_sweeps import X, Y

from milp_agt.cli import main
from milp_agt.runfile.run_file import load_config

RUN = run_text(
    [{"kind": "accuracy", "at_least": 0.5}, {"kind": "backdoor", "radius": 0.1}],
    model={"layers": [2, 3, 2]},
    training={"epochs": 3},
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", X=X.numpy(), y=Y.numpy())
    path = tmp_path / "run.toml"
    path.write_text(RUN, encoding="utf-8")
    return path


def swept(run: Path, *options: str) -> Any:
    """The document that a sweep writes."""
    out = run.parent / "out"
    assert main(["sweep", str(run), "--out", str(out), *options]) == 0
    return json.loads((out / "sweep.json").read_text())


def test_curves_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = swept(run, "--budgets", "1,2", "--radii", "0.001,0.5")
    assert "accuracy on test" in capsys.readouterr().out
    rows = document["rows"]
    assert len(rows) == 8
    assert {r["question"] for r in rows} == {"accuracy on test", "backdoor (radius 0.1) on test"}
    assert len((run.parent / "out" / "sweep.csv").read_text().splitlines()) == 9


def test_triggers_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = swept(run, "--triggers", "0.5,0,0.1", "--budgets", "1,2")["rows"]
    assert "backdoor (radius 0.5) on test" in capsys.readouterr().out
    for budget in (1, 2):
        own = {r["question"]: r for r in rows if r["budget"] == budget}
        curve = [own[f"backdoor (radius {r}) on test"]["upper"] for r in ("0", "0.1", "0.5")]
        assert curve == sorted(curve)
        assert curve[0] == pytest.approx(1.0 - own["accuracy on test"]["lower"])


def test_the_largest_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = swept(run, "--largest", "budget", "--between", "0,4", "--points")
    assert "accuracy on test >= 0.5" in capsys.readouterr().out
    names = set(document["brackets"])
    row = load_config(run).build().dataset.rows.test[0]
    assert {f"accuracy on test: row {row}", f"backdoor (radius 0.1) on test: row {row}"} <= names
    assert document["over"] == "budget"
    assert main(["sweep", str(run), "--largest", "radius", "--between", "0.1,0.4"]) == 0
    assert "largest radius proved" in capsys.readouterr().out


LARGEST = ["--largest", "budget", "--between", "1,2"]


@pytest.mark.parametrize(
    ("options", "said", "text"),
    [
        ([], "neither --budgets, --radii, --triggers nor --largest", RUN),
        (["--budgets", "1", *LARGEST], "curves and --largest", RUN),
        (["--largest", "budget"], "give both", RUN),
        (["--largest", "budget", "--between", "1"], "give both", RUN),
        (["--budgets", "1", "--points"], "--points without --largest", RUN),
        (["--budgets", "one"], "is not a whole number >= 0", RUN),
        (["--radii", "x"], "is no number", RUN),
        (["--budgets", "1"], "no [[property]]", RUN.split("[[property]]")[0]),
        (LARGEST, "without at_least or at_most", RUN.replace("at_least = 0.5", "")),
        (
            ["--triggers", "0.1"],
            "0 backdoors with a radius",
            RUN.split('[[property]]\nkind = "back')[0],
        ),
    ],
)
def test_what_cannot_be_swept_is_refused(
    run: Path, options: list[str], said: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.write_text(text, encoding="utf-8")
    assert main(["sweep", str(run), *options]) == 2
    assert said in capsys.readouterr().err
