"""Checkpoints: the resumed run is the same run, and whatever breaks leaves the last one good."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

import milp_agt as agt
from milp_agt.certification import checkpoint, planning
from milp_agt.certification.checkpoint import MANIFEST, Checkpoint
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.certification.result import Result

STEPS = 6
TRAINING = agt.Training(
    loss="cross_entropy", learning_rate=0.3, epochs=3, batch_size=6, shuffle_seed=0, momentum=0.5
)
THREAT = agt.FeaturePoisoning(budget=1, radius=0.005)
# Linear forms by themselves: a tighter zonotope beside them would end them.
WINDOW: dict[str, Any] = {"window": 2, "carried": "none"}


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """These steps take less time than a checkpoint; write one after each all the same."""
    monkeypatch.setattr(checkpoint, "WRITING_SHARE", float("inf"))


class Stopped(Exception):
    """The run is cut off after a step."""


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(12) % 2
    x = torch.randn(12, 2, generator=generator, dtype=torch.float64) + 3.0 * y[:, None]
    return x, y


def model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 2)
    return torch.nn.Sequential(*layers).double()


def certify(folder: Path | Checkpoint | None, stop: int = STEPS, **options: Any) -> Result:
    """The same small run each time, cut off after ``stop`` steps."""

    def on_step(result: Result, step: int, steps: int) -> None:
        assert steps == STEPS
        if step == stop < steps:
            raise Stopped

    given = {"model": model(), "data": data(), "training": TRAINING, "threat": THREAT} | options
    return agt.certify(**given, checkpoint=folder, on_step=on_step)


def cut_off(folder: Path | Checkpoint, stop: int, **options: Any) -> None:
    with pytest.raises(Stopped):
        certify(folder, stop, **options)


@functools.cache
def whole() -> Result:
    """The run over a window of two steps, never cut off."""
    return certify(None, **WINDOW)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of that run after four of its steps."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "WRITING_SHARE", float("inf"))
        cut_off(folder, 4, **WINDOW)
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def same(a: Result, b: Result) -> None:
    """Equal bit for bit: boxes, nominal run, records, and properties walked through the window."""
    for name in a.reachable.lower:
        for end in ("lower", "upper", "nominal"):
            one, other = getattr(a.reachable, end)[name], getattr(b.reachable, end)[name]
            assert one.tobytes() == other.tobytes(), (end, name)
    timeless = [replace(record, seconds=0.0) for record in a.steps]
    assert timeless == [replace(record, seconds=0.0) for record in b.steps]
    assert (a.notes, a.fallbacks, a.claim) == (b.notes, b.fallbacks, b.claim)
    x, y = data(seed=5)
    for one, other in zip(a.margins(x, y), b.margins(x, y), strict=True):
        assert one.tobytes() == other.tobytes()


LINEAR: dict[str, Any] = {"relaxation": "linear"}
RESUMED: dict[str, dict[str, Any]] = {
    "interval": {"relaxation": "interval"},
    "joint": LINEAR | {"window": 2, "selections": "joint"},
    "enumerated": LINEAR | {"window": 2, "selections": "enumerated", "carried": "none"},
    "inner-interval": LINEAR | {"inner_bounds": "interval", "carried": "none"},
    "inner-linear": LINEAR | {"inner_bounds": "linear"},
    "lp": {"relaxation": "lp", "window": 1, "model": torch.nn.Linear(2, 2).double()},
    "adaptive-labels": {
        "threat": agt.LabelPoisoning(budget=1, static=False, scope="batch"),
        "window": 3,
    },
}


def test_a_machine_that_is_slower_now_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run is predicted to take under a time limit is no part of what it is."""
    cut_off(tmp_path, 2, time_limit=1e6, **WINDOW)
    monkeypatch.setattr(planning, "slowness", lambda: 64.0)
    same(certify(tmp_path, time_limit=1e6, **WINDOW), certify(None, time_limit=1e6, **WINDOW))


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path, name: str) -> None:
    """After its first step, or in the middle."""
    stop = 1 if list(RESUMED).index(name) % 2 else 4
    cut_off(tmp_path, stop, **RESUMED[name])
    same(certify(tmp_path, **RESUMED[name]), certify(None, **RESUMED[name]))


def test_a_run_may_be_cut_off_at_every_step(tmp_path: Path) -> None:
    for stop in range(1, STEPS):
        cut_off(tmp_path, stop, **WINDOW)
    same(certify(tmp_path, **WINDOW), whole())


def test_a_finished_run_is_only_read_again(tmp_path: Path) -> None:
    first = certify(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    same(certify(tmp_path), first)
    assert (tmp_path / MANIFEST).read_bytes() == before
    Checkpoint(tmp_path).clear()
    assert not tmp_path.exists()


def test_parts_are_written_once_and_dropped_with_the_window(tmp_path: Path) -> None:
    options = {"window": 2, "selections": "enumerated"}
    cut_off(tmp_path, 3, **options)
    kept = tmp_path / "linear-000003.pt"
    stamp = kept.stat().st_mtime_ns
    cut_off(tmp_path, 4, **options)
    assert kept.stat().st_mtime_ns == stamp
    found = {path.name for path in tmp_path.iterdir()}
    names = ("linear", "selections-0")
    windows = {f"{part}-{step:06d}.pt" for part in names for step in (3, 4)}
    past = {f"{part}-past-{step:06d}.pt" for part in names for step in (1, 2, 3, 4)}
    assert found == {MANIFEST, "state-000004.pt", *windows, *past}


OTHER_RUNS = {
    "data": {"data": data(seed=1)},
    "model": {"model": model(seed=1)},
    "training": {"training": replace(TRAINING, learning_rate=0.2)},
    "threat": {"threat": replace(THREAT, radius=0.006)},
    "window": {"window": 3},
    "relaxation": {"relaxation": "interval"},
    "initial box": {"initial": {"2.bias": (model()[2].bias - 0.1, model()[2].bias + 0.1)}},  # type: ignore[index]
}


@pytest.mark.parametrize("what", OTHER_RUNS)
def test_another_run_is_refused_by_name(folder: Path, what: str) -> None:
    before = contents(folder)
    with refused(str(folder), f"{what} was ", "begin anew in another folder"):
        certify(folder, **(WINDOW | OTHER_RUNS[what]))
    assert contents(folder) == before


def test_another_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = json.loads((folder / MANIFEST).read_text())
    edited["identity"]["torch"] = "1.0"
    (folder / MANIFEST).write_text(json.dumps(edited))
    with refused(found="torch was 1.0 and is"):
        certify(folder, **WINDOW)
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)
    with refused(f"a checkpoint of version {checkpoint.VERSION}"):
        certify(folder, **WINDOW)


def _flip(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


DAMAGE = {"cut": lambda raw: raw[: len(raw) // 2], "empty": lambda raw: b"", "bit": _flip}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[("state-000004.pt", damage) for damage in DAMAGE],
        *[("linear-000004.pt", damage) for damage in DAMAGE],
        (MANIFEST, "cut"),
        (MANIFEST, "empty"),
    ],
)
def test_a_damaged_checkpoint_is_said_and_left(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = contents(folder)
    with refused(name, remedy="begin anew"):
        certify(folder, **WINDOW)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["linear-000004.pt", "state-000004.pt", MANIFEST])
def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == MANIFEST:
        cut_off(tmp_path, 3, **WINDOW)

    real = os.fsync

    def full(handle: int) -> None:
        if (tmp_path / f".{name}.partial").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with refused("checkpoint of step 4", "No space left", "make room"):
        certify(tmp_path, **WINDOW)
    monkeypatch.setattr(os, "fsync", real)
    assert not list(tmp_path.glob("*.partial"))
    assert Checkpoint(tmp_path).manifest["step"] == 3  # type: ignore[index]
    same(certify(tmp_path, **WINDOW), whole())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with refused(str(tmp_path / "file" / "inside")):
        certify(tmp_path / "file" / "inside")


def test_short_steps_share_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "WRITING_SHARE", 0.0)
    cut_off(tmp_path, 3)  # the first is written; the others are put off, and written at the end
    assert {p.name for p in tmp_path.glob("state*")} == {"state-000003.pt"}
    same(certify(tmp_path), certify(None))


def test_evidence_cannot_be_resumed(folder: Path) -> None:
    with refused("recorder"):
        certify(folder, **WINDOW, recorder=MemoryRecorder())


def test_the_time_limit_counts_what_was_spent(tmp_path: Path) -> None:
    cut_off(tmp_path, 2, time_limit=1e6)
    stored = np.array([r.seconds for r in certify(tmp_path, time_limit=1e6).steps])
    assert (stored > 0).all()
