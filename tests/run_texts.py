"""Run files of small runs, and the data that most of them read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from milp_agt.cli import main

# What a search for smaller threats finds depends on the time that it has.
TIMED = ("seconds", "made", "still_proved", "helps", "words")
DATA: dict[str, Any] = {"path": "d.npz", "test_fraction": 0.25, "seed": 1}
MODEL: dict[str, Any] = {"layers": [2, 2]}
TRAINING: dict[str, Any] = {"loss": "cross_entropy", "learning_rate": 0.5, "epochs": 2}
THREAT: dict[str, Any] = {"kind": "features", "budget": 1, "radius": 0.001}


def run_text(
    properties: Iterable[dict[str, Any]] = (),
    *,
    data: dict[str, Any] = DATA,
    model: dict[str, Any] = MODEL,
    training: dict[str, Any] | None = None,
    threat: dict[str, Any] = THREAT,
    **tables: dict[str, Any],
) -> str:
    """A run file; ``training`` adds to the usual one, every other table that is given replaces it."""
    run = {"data": data, "model": model, "training": TRAINING | (training or {}), "threat": threat}
    lines = []
    for name, table in (run | tables).items():
        lines += [f"[{name}]", *_keys(table)]
    for each in properties:
        lines += ["[[property]]", *_keys(each)]
    return "\n".join(lines) + "\n"


def _keys(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]


def write_run(folder: Path, text: str, count: int = 16) -> Path:
    """The file, beside two clouds of ``count`` samples in ``d.npz``."""
    y = np.arange(count) % 2
    x = np.random.default_rng(0).normal(size=(count, 2)) + 3 * y[:, None]
    np.savez(folder / "d.npz", X=x, y=y)
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def certified(run: Path, *options: str, code: int | None = 0) -> dict[str, Any]:
    """``result.json`` of ``milp-agt certify`` on a run file, in ``out`` beside it, without a page."""
    out = run.parent / "out"
    call = ["certify", str(run), "--out", str(out), "--no-report", "--force", *options]
    found = main(call)
    assert code is None or found == code
    return document(out)


def document(folder: Path) -> dict[str, Any]:
    """``result.json`` of a folder."""
    loaded: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
    return loaded


def without_time(value: Any) -> Any:
    """The numbers of a result that two runs of the same file share."""
    if isinstance(value, dict):
        kept = (k for k in value if k not in TIMED)
        return {k: without_time(value[k]) for k in kept}
    return [without_time(item) for item in value] if isinstance(value, list) else value


def same_result(folder: Path, other: Path) -> None:
    """Every number of result.json but seconds, and every bit of the arrays."""
    first, second = document(folder), document(other)
    assert without_time(first) == without_time(second)
    with np.load(folder / "reachable.npz") as a, np.load(other / "reachable.npz") as b:
        assert a.files == b.files
        assert all(a[name].tobytes() == b[name].tobytes() for name in a.files)
    assert not (folder / "checkpoint").exists()
