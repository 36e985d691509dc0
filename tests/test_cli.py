"""The command line: verdicts, exit codes, files, and one message for each kind of bad input."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_texts import certified, document, run_text, write_run

from milp_agt.certification.verdicts import decide
from milp_agt.cli import _parser, main
from milp_agt.cli.common import EXIT_CODES
from milp_agt.reports.result_folder import ResultFolder

pytestmark = pytest.mark.usefixtures("undrawn")

RUN = run_text(
    model={"layers": [2, 3, 2]},
    training={"epochs": 4},
    certify={"relaxation": "linear", "window": 2},
)
ACCURACY = "[[property]]\nkind = 'accuracy'\nat_least = {}\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, RUN)


def write(run: Path, text: str) -> None:
    run.write_text(text, encoding="utf-8")


def test_certify_prints_and_writes_everything(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run, RUN + ACCURACY.format(0.0) + "[[property]]\nkind = 'loss'\n")
    result = certified(run)
    out, err = capsys.readouterr()
    assert all(line.startswith("milp-agt: ") for line in err.splitlines())  # of a slow machine
    assert "Claim: " in out
    assert "mean width" in out
    rows = [line.split() for line in out.splitlines()]
    (accuracy,) = [row for row in rows if row[:3] == ["accuracy", "on", "test"]]
    assert accuracy[-1] == "PROVED"
    (loss,) = [row for row in rows if row[:3] == ["loss", "on", "test"]]
    assert loss[-1] == "REPORTED"
    assert "result.json" in out
    assert "reachable.npz" in out

    assert result["schema_version"] == 1
    assert result["complete"] is True
    assert result["claim"] in out
    assert result["assumptions"]
    assert result["relaxation"]["asked"] == "linear"
    assert result["relaxation"]["used"]
    assert len(result["steps"]) == 4
    assert {"step", "mean_width", "max_width", "seconds", "relaxation"} <= set(result["steps"][0])
    assert [p["status"] for p in result["properties"]] == ["PROVED", "REPORTED"]
    assert {"python", "torch", "numpy", "highspy"} <= set(result["versions"])
    assert set(result["sha256"]) == {"config", "data"}
    assert result["options"]["window"] == 2
    assert result["seconds"] > 0
    assert result["run"]["training"]["epochs"] == 4

    found = {p.name for p in (run.parent / "out").iterdir()}  # and no file is half written
    assert found == {"result.json", "reachable.npz", "certificate"}
    with np.load(run.parent / "out" / "reachable.npz") as arrays:
        names = {key.split("/")[1] for key in arrays.files}
        assert names == {"0.weight", "0.bias", "2.weight", "2.bias"}
        for name in names:
            lower, nominal, upper = (arrays[f"{k}/{name}"] for k in ("lower", "nominal", "upper"))
            assert (lower <= nominal).all()
            assert (nominal <= upper).all()
            width = result["parameters"]["by_name"][name]
            assert width["max_width"] == (upper - lower).max()
            assert width["mean_width"] == pytest.approx((upper - lower).mean(), rel=1e-12)


def test_not_proved_is_exit_code_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run, RUN + ACCURACY.format(0.0) + ACCURACY.format(1.0))
    for options, open_or_refuted in (((), "REFUTED"), (("--refute", "none"), "OPEN")):
        found = certified(run, *options, code=1)
        assert open_or_refuted in capsys.readouterr().out
        assert [p["status"] for p in found["properties"]] == ["PROVED", open_or_refuted]


def test_a_limit_before_the_proof_is_exit_code_4(run: Path) -> None:
    limited = RUN + "time_limit = 1e-9\n"
    write(run, limited + ACCURACY.format(1.0))
    result = certified(run, code=4)
    assert result["complete"] is True
    assert result["relaxation"]["limit_reached"] is True
    assert result["relaxation"]["used"] == ["interval"]
    assert result["relaxation"]["fallbacks"]
    # What a minute would have refined by default is not even begun.
    assert all("more than" in note for note in result["relaxation"]["notes"])
    assert result["resolved"]["selections"] == "joint"
    assert result["made"]["at"].endswith("+00:00")
    write(run, limited + ACCURACY.format(0.0))
    certified(run)


def test_quiet_prints_the_verdicts_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certified(run, "--quiet")
    assert capsys.readouterr().out == "No property was asked for.\n"
    write(run, RUN + ACCURACY.format(0.0))
    certified(run, "--quiet")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1].endswith("PROVED")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_shows_step_widths_relaxation_and_time_left(run: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    code = "import sys; from milp_agt.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "certify", str(run), "--out", str(run.parent / "out")]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    with subprocess.Popen(
        [*command, "--no-report"], stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux says so when the other side has closed
            while piece := os.read(ours, 65536):
                shown += piece
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "steps" in text
    assert "4/4" in text
    assert re.search(r"(linear|zonotope), width \S+ \(max \S+\), \S+ s/step", text)
    assert "left" in text


def test_options_of_the_command_line_win(run: Path) -> None:
    wide, interval = certified(run, "--window", "T"), certified(run, "--relaxation", "interval")
    assert wide["options"]["window"] == "T"
    assert interval["relaxation"]["asked"] == "interval"
    assert wide["parameters"]["mean_width"] < interval["parameters"]["mean_width"]


@pytest.mark.parametrize(
    ("lower", "upper", "at_least", "at_most", "status"),
    [
        (0.9, 1.0, 0.9, None, "PROVED"),
        (0.89, 1.0, 0.9, None, "OPEN"),
        (0.0, 0.5, None, 0.5, "PROVED"),
        (0.0, 0.51, None, 0.5, "OPEN"),
        (math.nan, math.nan, 0.0, None, "OPEN"),
        (math.nan, math.nan, None, 1.0, "OPEN"),
        (0.0, math.inf, None, 1e300, "OPEN"),
        (math.nan, math.nan, None, None, "REPORTED"),
    ],
)
def test_verdicts(
    lower: float, upper: float, at_least: float | None, at_most: float | None, status: str
) -> None:
    assert decide(lower, upper, at_least, at_most) == status


# Two of each kind of error: of the file itself, and of what it asks for. The others are Python's.
BAD_RUNS = {
    "unknown key": (
        RUN.replace("epochs", "epoch"),
        ("Read the run file", "[training] unknown key 'epoch'", "use 'epochs'"),
    ),
    "no such data": (
        RUN.replace("d.npz", "e.npz"),
        ("Load data set", "no file at", "check the path"),
    ),
    "budget above the samples": (
        RUN.replace("budget = 1", "budget = 99"),
        ("may poison 99 samples", "a data set of 12 samples", "at most 12"),
    ),
    "unknown solver": (
        RUN + 'solver = "abacus"\nprogram_window = 1\n',
        ("abacus", "Found: ", "What to do: "),
    ),
}


def test_bad_input_is_one_message_and_leaves_an_earlier_result_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = certified(run, "--quiet")
    for name, (text, pieces) in BAD_RUNS.items():
        write(run, text)
        capsys.readouterr()
        options = ("--relaxation", "lp") if name == "unknown solver" else ()
        assert certified(run, *options, code=2) == before
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("milp-agt: ")
        assert "Traceback" not in err
        for piece in ("Found: ", "What to do: ", *pieces):
            assert piece in err


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")
def test_a_run_file_may_be_a_pipe(run: Path) -> None:
    """As the shell makes one of ``<(...)``: its text is there once."""
    end, start = os.pipe()
    os.write(start, run.read_bytes().replace(b"d.npz", os.fsencode(run.parent / "d.npz")))
    os.close(start)
    out = str(run.parent / "out")
    assert main(["certify", f"/dev/fd/{end}", "--out", out, "--no-report", "--quiet"]) == 0
    os.close(end)


def test_help_is_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {code}  {meaning}" in out for code, meaning in EXIT_CODES.items())


def test_an_output_folder_that_cannot_be(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "out").write_text("a file")
    assert main(["certify", str(run), "--out", str(run.parent / "out")]) == 2
    assert "Write the result to" in capsys.readouterr().err


def test_interrupt_keeps_the_finished_steps(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = run.parent / "out" / "certificate" / "claim.json"
    old.parent.mkdir(parents=True)
    old.write_text("of an earlier run")

    def interrupted(self: ResultFolder, result: Any) -> None:
        assert old.exists() == (len(result.steps) == 1)
        self.save(result, (), complete=False)  # a run that is killed now leaves no claim of another
        if len(result.steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ResultFolder, "save_step", interrupted)
    result = certified(run, code=4)
    assert "interrupted after 2 of 4 steps" in capsys.readouterr().err
    assert result["complete"] is False
    assert len(result["steps"]) == 2
    assert result["properties"] == []
    with np.load(run.parent / "out" / "reachable.npz") as arrays:
        assert arrays["lower/0.weight"].shape == (3, 2)


@pytest.mark.filterwarnings("default")
def test_a_float32_model_is_converted_and_said_once(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.parent / "m.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Linear(2, 2))\n"
    )
    write(run, RUN.replace("layers = [2, 3, 2]", "factory = 'm.py:make'"))
    certified(run)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("milp-agt: note: ")
    assert "float64" in line


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_a_real_interrupt(run: Path) -> None:
    write(run, RUN.replace("epochs = 4", "epochs = 100000"))
    command = [sys.executable, "-c", "import sys; from milp_agt.cli import main; sys.exit(main())"]
    command += ["certify", str(run), "--out", str(run.parent / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        out = run.parent / "out"
        if (out / "result.json").exists() and document(out)["steps"]:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "Traceback" not in err
    result = document(out)
    assert result["complete"] is False
    assert f"interrupted after {len(result['steps'])} of 100000 steps" in err


def test_compare_prints_and_writes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "table"
    arguments = ["compare", str(run), "--relaxations", "interval,linear", "--windows", "1,T"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if "e" in line]
    assert [row[:2] for row in rows if row and row[0] in ("interval", "linear")] == [
        ["interval", "0"],
        ["linear", "1"],
        ["linear", "4"],
    ]
    table = json.loads((out / "compare.json").read_text())["rows"]
    assert table[0]["mean_width"] > table[1]["mean_width"] >= table[2]["mean_width"]
    assert all(row["measure"] == "accuracy" for row in table)
    lines = (out / "compare.csv").read_text().splitlines()
    assert lines[0].startswith(
        "relaxation,window,program_window,solver,used,mean_width,max_width,attack_ratio,measure"
    )
    assert len(lines) == 4
    assert (out / "compare.png").stat().st_size > 1000
    assert "linear, window 4" in (out / "compare.svg").read_text()


def test_compare_over_solvers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["compare", str(run), "--relaxations", "linear,lp", "--solvers", "highs"]
    assert main(asked) == 0
    assert "largest program" in capsys.readouterr().out
    assert main(["compare", str(run), "--solvers", "cplex"]) == 2
    assert "cplex" in capsys.readouterr().err


def test_solvers_lists_every_back_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solvers"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert {"highs", "gurobi", "scip", "cvxpy"} <= set(rows)
    assert "yes" in rows["highs"]


CHOICES = "choose from interval, zonotope, linear"


@pytest.mark.parametrize(
    ("command", "found", "remedy"),
    [
        ("certfy x", "argument COMMAND: 'certfy'", "did you mean 'certify'?"),
        ("certify a --out b --relaxation linaer", "'linaer'", "did you mean 'linear'?"),
        ("certify a --out b --relaxation crown", "'crown'", CHOICES),
        ("certify a --out b --relaxatoin lp", "--relaxatoin lp", "did you mean '--relaxation'?"),
        ("certify a --out b --window 0", "window = 0", "milp-agt certify --help"),
        ("certify a --out b --window 0", "greater than or equal to 1 or 'T'", "milp-agt certify"),
        ("certify a", "--out", "for example: milp-agt certify examples/"),
        ("certify absent.toml --out o", "No such file", "give the path of a RUN.toml"),
        ("compare a --relaxations lp,crown", "'crown' is not one of", "milp-agt compare"),
        ("compare a --windows 1,x", "'x' is neither a number of steps", "milp-agt compare"),
        ("attack a", "required: --out", "for example: milp-agt attack examples/"),
        (
            "certify a --out b --alpha-steps 3",
            "--alpha-steps 3",
            "the zonotope beside linear forms",
        ),
        ("bench --out o --case a.toml", "--case a.toml", "milp-agt compare RUN.toml measures"),
        ("bench --out o --selections=joint", "--selections=joint", "an option of other commands"),
        ("solvers x", "unrecognized arguments: x", "milp-agt COMMAND --help"),
        ("solvers ", "unrecognized arguments: ", "milp-agt COMMAND --help"),
    ],
)
def test_a_mistyped_command_is_told_in_three_parts(
    command: str,
    found: str,
    remedy: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split(" ")) == 2
    err = capsys.readouterr().err
    assert err.startswith("milp-agt: R")
    assert found in err.partition("Found: ")[2].partition("What to do: ")[0]
    assert remedy in err.partition("What to do: ")[2]


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "For example: milp-agt certify" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("milp_agt ")


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    kind = argparse._SubParsersAction
    (commands,) = [action for action in _parser()._actions if isinstance(action, kind)]
    assert len(commands.choices) == 9
    for name, command in commands.choices.items():
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert len(shown.split("\n\n")[1]) > 60
        assert name == "solvers" or f"For example: milp-agt {name} " in shown
        assert all(action.help for action in command._actions), name
