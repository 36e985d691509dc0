"""Whatever stops a command, what was finished is there, and its exit code says what happened."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_texts import run_text, same_result, write_run

from milp_agt.certification.checkpoint import Checkpoint, Snapshot
from milp_agt.cli import main
from milp_agt.io import files
from milp_agt.runfile.run_file import LoadedRun

ROOT = Path(__file__).resolve().parent.parent
RUN = run_text(
    [{"kind": "accuracy"}],
    model={"layers": [2, 3, 2]},
    threat={"kind": "features", "budget": 1, "radius": 0.005},
    training={"learning_rate": 0.3, "epochs": 30, "momentum": 0.5},
    certify={"window": 2},
)
ATTACK = "[attack]\npool = 4\nrestarts = 1\nrounds = 0\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, RUN, 12)


def call(run: Path, out: Path, *more: str) -> list[str]:
    return ["certify", str(run), "--out", str(out), "--quiet", "--no-report", *more]


def _command(arguments: list[str]) -> None:
    os._exit(main(arguments))


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], Any]]:
    """Starts a command in a process of its own, a copy of one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["milp_agt.cli.certify", "milp_agt.runfile.run_file", __name__])
    begun = []

    def started(arguments: list[str]) -> Any:
        process = context.Process(target=_command, args=(arguments,))
        process.start()
        begun.append(process)
        return process

    yield started
    for process in begun:
        process.kill()
        process.join()


def readable(folder: Path) -> int:
    """Reads every file that is there under its own name; the steps that a resumed run starts from."""
    document = folder / "result.json"
    if document.exists():
        assert len(json.loads(document.read_bytes())["steps"]) >= 1
    if (folder / "reachable.npz").exists():
        with np.load(folder / "reachable.npz") as arrays:
            assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
    manifest = Checkpoint(folder / "checkpoint").manifest
    return 0 if manifest is None else int(manifest["step"])


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(run: Path, start: Callable[[list[str]], Any], kills: int) -> None:
    """No file is ever half written, no finished step is lost, and the end is the same to the last bit."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    whole, out = run.parent / "whole", run.parent / "out"
    assert main(call(run, whole)) == 0
    reached = longest = finished = 0
    for _ in range(kills):
        begun = time.monotonic()
        process = start(call(run, out))
        process.join(moments.uniform(0.0, max(0.3, longest)))
        process.kill()
        process.join()
        longest = max(longest, time.monotonic() - begun)
        if process.exitcode == 0:  # it was over first, so the next one begins anew
            finished, reached = finished + 1, 0
            assert not (out / "checkpoint").exists()
            continue
        assert process.exitcode == -signal.SIGKILL
        before, reached = reached, readable(out)
        done = (out / "result.json").exists() and json.loads((out / "result.json").read_bytes())
        assert reached >= before or (done and done["complete"]), f"seed {seed}"
    assert main(call(run, out)) == 0
    for folder in (out, whole):
        assert readable(folder) == 0
    same_result(out, whole)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM")
def test_a_batch_system_that_ends_a_run(run: Path, start: Callable[[list[str]], Any]) -> None:
    run.write_text(RUN.replace("epochs = 30", "epochs = 3000"), encoding="utf-8")
    out = run.parent / "out"
    process = start(call(run, out))
    deadline = time.monotonic() + 60
    while not (out / "result.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    process.join(60)
    assert process.exitcode == 4
    document = json.loads((out / "result.json").read_bytes())
    assert not document["complete"]
    assert 1 <= len(document["steps"]) < 3000
    assert readable(out) == len(document["steps"])


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("certify", errno.ENOSPC, "No space left on device"),
        ("attack", errno.EROFS, "Read-only file system"),
        ("compare", errno.EROFS, "Read-only file system"),
        ("sweep", errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_error(
    run: Path,
    command: str,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run.write_text(RUN.replace("epochs = 30", "epochs = 2") + ATTACK, encoding="utf-8")
    more = {
        "compare": ["--relaxations", "interval"],
        "sweep": ["--budgets", "1", "--relaxation", "interval"],
    }
    out = run.parent / "out"
    out.mkdir()
    (out / f"{command}.json").write_text("{}", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", full)
    force = ["--force"] if command in ("certify", "attack") else []
    assert main([command, str(run), "--out", str(out), *more.get(command, []), *force]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("What to do: ") == 1
    assert "Traceback" not in err
    assert [p.name for p in out.rglob("*") if p.is_file()] == [f"{command}.json"]
    assert (out / f"{command}.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("command", "raised", "code", "said"),
    [
        ("certify", MemoryError(), 4, "MemoryError"),
        ("certify", RuntimeError("a case nobody thought of"), 2, "please report"),
        ("certify", KeyboardInterrupt(), 4, "nothing was written"),
        ("certify --resume", KeyboardInterrupt(), 4, "were finished before are kept in"),
        ("compare", RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 EiB"), 4, "8 EiB"),
        ("compare", KeyboardInterrupt(), 4, "nothing was written"),
        ("sweep", RuntimeError("a case nobody thought of"), 2, "please report"),
        ("sweep", KeyboardInterrupt(), 4, "nothing was written"),
    ],
)
def test_what_ends_a_command_has_its_code(
    run: Path,
    command: str,
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(LoadedRun, "certify", ended)
    monkeypatch.setattr("milp_agt.experiments.compare.certify", ended)
    more = {"sweep": ["--budgets", "1"]}.get(command, [])
    name, _, resume = command.partition(" ")
    out = run.parent / "out"
    if resume:
        kept = Checkpoint(out / "checkpoint", {"run": str(run), "options": {}})
        kept.step(Snapshot(1, {"records": []}))
        kept.flush()
    assert main([name, str(run), resume or "--out", str(out), *more]) == code
    assert said in capsys.readouterr().err


def test_every_file_is_written_whole_or_not_at_all() -> None:
    """Writers that leave half a file behind when they are cut off are used nowhere."""
    allowed = {"milp_agt/io/files.py"}
    direct = re.compile(
        r"\.write_text\(|\.write_bytes\(|np\.savez\w*\(path|open\([^)]*[\"'][wax]b?[\"']"
    )
    for folder in ("milp_agt", "formulations", "solvers"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if name not in allowed:
                assert not direct.search(path.read_text(encoding="utf-8")), name
