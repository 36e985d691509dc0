"""Commands at their limits, and attacks on the command line."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from run_texts import certified, run_text, write_run

import milp_agt as agt
from milp_agt.cli import in_time, main
from milp_agt.cli import progress as cli_progress
from milp_agt.cli.progress import Lines, progress
from milp_agt.errors import ConfigurationError
from milp_agt.runfile.run_file import load_config

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return written(tmp_path, 0.5)


def written(folder: Path, rate: float) -> Path:
    search = {"pool": 4, "restarts": 1, "rounds": 0}
    text = run_text([{"kind": "accuracy"}], training={"learning_rate": rate}, attack=search)
    return write_run(folder, text)


@pytest.mark.parametrize(
    ("command", "name", "options"),
    [("certify", "result.json", ["--no-report"]), ("attack", "attack.json", [])],
)
def test_another_run_is_written_over_only_by_force(
    run: Path,
    command: str,
    name: str,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = run.parent / "out"
    call = [command, str(run), "--out", str(out), "--quiet", *options]
    assert main(call) == 0
    assert main(call) == 0  # the same run: the same numbers
    before = (out / name).read_bytes()
    written(run.parent, 0.25)
    assert main(call) == 2
    assert (out / name).read_bytes() == before
    err = capsys.readouterr().err
    for part in (f"Write the result to the folder {out}", "another run file", "--force"):
        assert part in err
    assert main([*call, "--force"]) == 0
    assert json.loads((out / name).read_text())["run"]["training"]["learning_rate"] == 0.25


def test_other_options_are_another_run_and_so_is_a_damaged_file(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parent / "out"
    call = ["certify", str(run), "--out", str(out), "--quiet", "--no-report"]
    assert main([*call, "--relaxation", "interval"]) == 0
    assert main([*call, "--relaxation", "linear"]) == 2
    assert "other options" in capsys.readouterr().err
    (out / "result.json").write_text("{", encoding="utf-8")
    assert main(call) == 2
    assert main([*call, "--force"]) == 0


@pytest.mark.parametrize(
    ("limit", "waited", "kept"),
    [(1000.0, 1.0, 50.0), (60.0, 1.0, 4.0), (60.0, 3.0, 12.0), (8.0, 3.0, 2.0)],
)
def test_a_time_limit_is_spent_from_the_start_of_the_process(
    limit: float, waited: float, kept: float, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, questions, smaller threats and the certificate end one before the other, and files have time."""
    loaded = load_config(run).build({"time_limit": limit, "relaxation": "linear"})
    now = 100.0
    monkeypatch.setattr(in_time, "monotonic", lambda: now)
    monkeypatch.setattr(in_time, "process_time", lambda: (now - 99.0) / waited)
    time = in_time.CommandTime(loaded, begun=99.0)
    steps, attacked = (time.steps(attacks).options.time_limit for attacks in (False, True))
    assert steps is not None
    assert attacked is not None
    left = limit - kept
    assert steps == pytest.approx(left - (0.08 + 0.08 + 0.12) * limit)
    assert attacked == pytest.approx(steps - 0.25 * limit)
    assert time.for_certificate() == pytest.approx(left - 1.0)
    resumed = in_time.CommandTime(loaded, begun=99.0, spent=0.5)
    assert resumed.for_certificate() == pytest.approx(left - 1.5)


def test_lines_for_logs_come_every_ten_seconds_and_with_each_phase(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    lines = Lines("steps", before=2, clock=lambda: now[0])

    def shown(at: float, done: int, total: int, text: str = "", unit: str = "") -> str:
        now[0] = at
        lines(done, total, text, unit)
        return capsys.readouterr().err

    assert shown(1.0, 3, 10) == ""  # a run of a second prints nothing
    # Two steps in 4 s, 6 to go; those of the run before do not count.
    assert shown(4.0, 4, 10, "linear") == (
        "milp-agt: steps 4/10, linear, 4 s so far, about 12 s left of this\n"
    )
    assert shown(9.0, 7, 10) == ""
    assert "steps 10/10, 14 s so far\n" in shown(14.0, 10, 10)
    assert shown(15.0, 0, 0, "", "attacks") == "milp-agt: attacks, 15 s so far\n"
    assert "questions: test points 64/128" in shown(16.0, 64, 128, "", "questions: test points")
    assert "report, " in shown(17.0, 0, 0, "", "report")


def test_silence_is_broken_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_progress, "BEAT", 0.01)
    now, told = [0.0], ""
    with Lines("steps", clock=lambda: now[0]) as lines:
        for at in (3.0, 9.0, 14.0):  # nobody says anything until then
            now[0] = at
            time.sleep(0.1)
            told += capsys.readouterr().err
        lines(1, 0, "", "attacks")
    assert told == "milp-agt: steps, 3 s so far\nmilp-agt: steps, 14 s so far\n"


def test_quiet_is_silent_and_logs_get_lines() -> None:
    with progress("steps", quiet=True) as advance:
        assert not isinstance(advance, Lines)
    with progress("steps", quiet=False) as advance:
        assert isinstance(advance, Lines)


def test_a_command_whose_stderr_is_closed_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with progress("steps", quiet=False) as advance:
        assert not isinstance(advance, Lines)


ASKED = [
    {"kind": "accuracy"},
    {"kind": "loss"},
    {"kind": "backdoor", "radius": 0.05},
    {"kind": "targeted", "unsafe": 1},
]


def run_file(folder: Path, kind: str = "features", more: str = "radius = 0.05") -> Path:
    text = run_text(
        ASKED,
        data={"name": "moons", "samples": 24, "test_fraction": 0.25, "seed": 0},
        model={"layers": [2, 3, 1]},
        training={"loss": "bce", "epochs": 3},
        attack={"pool": 32, "restarts": 1, "rounds": 1, "iterations": 2, "seed": 5},
        threat={"kind": kind, "budget": 2},
    )
    text = text.replace("budget = 2\n", f"budget = 2\n{more}\n")
    functional = "[[property]]\nkind = 'functional'\ncoefficients = { '2.bias' = [1.0] }\n"
    return write_run(folder, text + functional)


def test_attack_writes_the_data_that_reach_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["attack", str(run_file(tmp_path)), "--out", str(out), "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert "Envelope: mean width" in printed
    assert "seed 7" in printed
    assert "backdoor (radius 0.05) on test" in printed
    document = json.loads((out / "attack.json").read_text())
    assert document["search"]["seed"] == 7
    assert document["search"]["pool"] == 32
    assert document["parameters"]["mean_width"] > 0
    names = [o["name"] for o in document["objectives"]]
    assert names[1:3] == ["accuracy on test", "loss on test"]
    run = load_config(tmp_path / "run.toml").build()
    with np.load(out / "attack.npz") as arrays:
        bias = document["objectives"][5]
        assert bias["objective"] == "max c . theta"
        assert float(arrays["5/state/2.bias"][0]) == bias["value"]
        x, y = torch.tensor(arrays["5/features/0"]), torch.tensor(arrays["5/labels/0"])
        moved = (x.numpy() != run.dataset.x_train).any(1).nonzero()[0]
        assert moved.tolist() == bias["positions"] == arrays["5/positions"].tolist()
        rows = run.dataset.rows.train[moved].tolist()
        assert sorted(rows) == bias["poisoned"] == arrays["5/poisoned"].tolist()
        assert len(moved) <= 2
        optimiser = torch.optim.SGD(run.model.parameters(), lr=0.5)
        for _ in range(3):
            optimiser.zero_grad()
            out_ = run.model(x)[:, 0]
            torch.nn.functional.binary_cross_entropy_with_logits(out_, y.double()).backward()
            optimiser.step()
        assert float(run.model[2].bias.detach()[0]) == pytest.approx(bias["value"], rel=1e-9)
        assert (arrays["lower/2.bias"] <= arrays["upper/2.bias"]).all()


def test_attack_writes_every_step_of_an_adaptive_adversary(tmp_path: Path) -> None:
    path = run_file(tmp_path, "labels", "static = false")
    assert main(["attack", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    with np.load(tmp_path / "out" / "attack.npz") as arrays:
        assert {f"0/labels/{t}" for t in range(3)} <= set(arrays)


def test_certify_shows_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_file(tmp_path, "labels", "")
    document = certified(path, "--attack")
    printed = capsys.readouterr().out
    assert "Attacks: mean width" in printed
    assert "attacks reach" in printed
    both = document["attack"]
    assert both["mean_width"] <= document["parameters"]["mean_width"]
    assert both["ratio"] == document["parameters"]["mean_width"] / both["mean_width"]
    assert both["exhaustive"] is True
    assert both["seed"] == 5
    for row in document["properties"]:
        assert row["lower"] <= row["reached"][0] <= row["reached"][1] <= row["upper"]
        assert row["ratio"] == "inf" or row["ratio"] >= 1.0
    assert certified(path)["attack"] is None
    assert "Attacks" not in capsys.readouterr().out


def test_the_run_file_can_ask_for_attacks(tmp_path: Path) -> None:
    path = run_file(tmp_path, "labels", "")
    path.write_text(path.read_text() + "\n[certify]\nattack = true\n")
    run = load_config(path).build()
    assert run.options.attack
    assert run.search == agt.Search(pool=32, restarts=1, rounds=1, iterations=2, seed=5)


@pytest.mark.parametrize(
    ("line", "found"),
    [("poool = 3", r"unknown key 'poool'"), ("pool = -3", r"pool"), ('memory = "much"', r"much")],
)
def test_bad_settings_are_refused(tmp_path: Path, line: str, found: str) -> None:
    path = run_file(tmp_path)
    text = path.read_text().replace("pool = 32", line)
    path.write_text(text)
    with pytest.raises((ConfigurationError, agt.MilpAgtError), match=f"{found}.*What to do"):
        load_config(path).build()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("check", "nowhere"), "no such folder"),
        (("report", ""), "no name"),
        (("certify", "nowhere.toml", "--out", ""), "no name"),
        (("certify", "nowhere.toml", "--out", "out"), "No such file"),
        (("attack", "broken.toml", "--out", "out"), "not TOML"),
    ],
)
def test_what_cannot_be_read_or_written_is_said_at_once(
    arguments: tuple[str, ...], found: str, tmp_path: Path
) -> None:
    """With code 2, before anything large is imported, and nothing is written."""
    (tmp_path / "broken.toml").write_text("[data", encoding="utf-8")
    code = "import sys; from milp_agt.cli import main; code = main(); print('torch' in sys.modules)"
    code += "; sys.exit(code)"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert found in done.stderr.partition("Found: ")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["broken.toml"]


def test_a_full_disk_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/sweep.csv")

    monkeypatch.setattr("milp_agt.solvers.solver_table", full)
    assert main(["solvers"]) == 2
    err = capsys.readouterr().err
    assert "Run 'milp-agt solvers'. Found: No space left on device: runs/sweep.csv." in err
    assert "What to do: make room" in err


@pytest.mark.parametrize(("asked", "found"), [("'solvers'", 0), ("'check', '.'", 2)])
def test_a_reader_that_leaves_is_no_failure(tmp_path: Path, asked: str, found: int) -> None:
    """And no verdict: 0 would say of ``check`` that all is proved."""
    for name in ("claim.json", "claim.sha256"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    code = f"import sys; from milp_agt.cli import main; sys.exit(main([{asked}]))"
    command = f'"{sys.executable}" -u -c "{code}" | true; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (found, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_stderr_that_takes_nothing_ends_no_command(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milp_agt.cli.progress.FIRST_LINE", 0.0)
    with contextlib.suppress(OSError), open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main(["certify", str(run), "--out", str(run.parent / "out"), "--no-report"]) == 0
