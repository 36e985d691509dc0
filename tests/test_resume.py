"""``certify --resume``: a killed process loses at most the step in hand, and nothing else changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from run_texts import document, run_text, same_result, write_run

from milp_agt.cli import main
from milp_agt.reports.result_folder import ResultFolder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path, epochs=5)


def write(folder: Path, epochs: int) -> Path:
    return write_run(
        folder,
        run_text(
            [{"kind": "accuracy", "at_least": 0.5}, {"kind": "loss"}],
            model={"layers": [2, 3, 2]},
            training={"learning_rate": 0.3, "epochs": epochs, "momentum": 0.5},
            threat={"kind": "features", "budget": 1, "radius": 0.0005},
            certify={"relaxation": "linear", "window": 3, "inner_bounds": "linear"},
        ),
    )


def whole(run: Path) -> Path:
    """The folder of the same run, never cut off."""
    out = run.parent / "whole"
    assert main(["certify", str(run), "--out", str(out), "--quiet", "--no-report"]) == 0
    return out


def interrupt(
    run: Path, out: Path, step: int, monkeypatch: pytest.MonkeyPatch, *options: str
) -> None:
    def interrupted(self: ResultFolder, result: Any) -> None:
        if len(result.steps) == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ResultFolder, "save_step", interrupted)
        command = ["certify", str(run), "--out", str(out), "--quiet", "--no-report", *options]
        assert main(command) == 4


@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupt_says_how_to_go_on_and_so_does_the_same_command(
    run: Path, resume: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parent / "out"
    interrupt(run, out, 2 if resume else 3, monkeypatch)
    assert f"milp-agt certify --resume {out}" in capsys.readouterr().err
    where = ["--resume", str(out)] if resume else [str(run), "--out", str(out)]
    assert main(["certify", *where, "--quiet", "--no-report"]) == 0
    same_result(out, whole(run))


def test_options_of_the_first_command_are_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run.parent / "out"
    interrupt(run, out, 1, monkeypatch, "--relaxation", "interval")
    assert main(["certify", "--resume", str(out), "--quiet", "--no-report"]) == 0
    assert document(out)["relaxation"]["asked"] == "interval"


def test_another_run_does_not_overwrite_an_unfinished_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parent / "out"
    interrupt(run, out, 2, monkeypatch)
    kept = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    write(run.parent, epochs=6)
    assert main(["certify", str(run), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert "another run file or other data" in err
    assert f"What to do: go on with it by milp-agt certify --resume {out}, " in err
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == kept
    write(run.parent, epochs=5)
    assert main(["certify", "--resume", str(out), "--quiet", "--no-report"]) == 0


def test_nothing_to_resume(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", "--resume", str(tmp_path / "absent")]) == 2
    err = capsys.readouterr().err
    for piece in ("Resume the run in", "Found: no checkpoint there", "What to do: begin one"):
        assert piece in err
    assert main(["certify", "--resume", str(whole(run))]) == 2
    assert "that run is at its end" in capsys.readouterr().err


def test_a_run_file_that_has_moved(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parent / "out"
    interrupt(run, out, 2, monkeypatch)
    moved = run.rename(run.parent / "moved.toml")
    assert main(["certify", "--resume", str(out)]) == 2
    assert "give the path of a RUN.toml" in capsys.readouterr().err
    assert main(["certify", str(moved), "--resume", str(out), "--quiet", "--no-report"]) == 0


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_disk_that_takes_no_more(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real error of the system: no file may grow beyond 4 KiB."""
    out = tmp_path / "out"
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        code = main(["certify", str(run), "--out", str(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    err = capsys.readouterr().err
    assert err.startswith("milp-agt: Write the checkpoint of step 1 to ")
    assert "File too large" in err
    assert "make room" in err
    assert not [p for p in out.rglob("*") if p.is_file()]
    assert main(["certify", str(run), "--out", str(out), "--quiet", "--no-report"]) == 0
