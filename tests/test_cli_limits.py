"""What commands print while they work, and that they write over no other run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from run_texts import run_text, write_run

from milp_agt.cli import in_time, main
from milp_agt.cli import progress as cli_progress
from milp_agt.cli.progress import Lines, progress
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
