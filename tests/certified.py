"""Small runs with their certificates, and ways to change a certificate on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from milp_agt import certificates
from milp_agt.checker.files import CLAIM, SEAL, Certificate, Table
from milp_agt.checker.reading import read
from milp_agt.checker.statement import Statement
from milp_agt.runfile.run_file import load_config
from milp_agt.runfile.verdicts import judge

RUN = """
[data]
name = "{data}"
{more_data}
test_fraction = 0.25
seed = 1
standardise = true

[model]
layers = {layers}
activation = "{activation}"
seed = 1

[training]
loss = "{loss}"
learning_rate = {rate}
epochs = {epochs}
{training}

[threat]
{threat}

[certify]
relaxation = "{relaxation}"
{certify}

{properties}
"""
SHARES = """
[[property]]
kind = "accuracy"
at_least = 0.5

[[property]]
kind = "stable"
at_least = 0.5
"""
DEFAULTS = {
    "data": "moons",
    "more_data": "samples = 40\nnoise = 0.1",
    "layers": [2, 4, 1],
    "activation": "relu",
    "loss": "bce",
    "rate": 0.5,
    "epochs": 4,
    "training": "",
    "threat": 'kind = "features"\nbudget = 1\nradius = 0.02',
    "relaxation": "interval",
    "certify": "",
    "properties": SHARES,
}


def certified(folder: Path, **changes: Any) -> Path:
    """Certify a small run into a folder; returns the folder of its certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.toml"
    path.write_text(RUN.format(**{**DEFAULTS, **changes}), encoding="utf-8")
    run = load_config(path).build()
    result = run.certify()
    verdicts = [v for asked in run.properties for v in judge(result, run.dataset, asked)]
    certificates.write(folder / "certificate", run, result, verdicts)
    return folder / "certificate"


def copied(certificate: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(certificate, folder, symlinks=True))


def forged(
    certificate: Path,
    folder: Path,
    change: Callable[[dict[str, Any], dict[str, np.ndarray]], object],
    words: bool = True,
) -> Path:
    """A copy that was changed by somebody who knows the format: hashes, seal and words are made anew."""
    copy = copied(certificate, folder)
    claim = json.loads((copy / CLAIM).read_bytes())
    arrays = {name: np.load(copy / name) for name in claim["files"]}
    change(claim, arrays)
    if words:
        claim["words"] = list(stated(claim, arrays).words)
    for name, values in arrays.items():
        np.save(copy / name, values)
        data = (copy / name).read_bytes()
        claim["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(copy, json.dumps(claim).encode())
    return copy


def seal(folder: Path, text: bytes) -> None:
    """Write a claim with its seal."""
    (folder / CLAIM).write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    (folder / SEAL).write_text(f"{digest}  {CLAIM}\n", encoding="utf-8")


def stated(claim: dict[str, Any], arrays: dict[str, np.ndarray]) -> Statement:
    found = read(Certificate(Table(claim, "claim"), arrays, "", 0))
    assert isinstance(found, Statement)
    return found


def statement_in(certificate: Path) -> Statement:
    claim = json.loads((certificate / CLAIM).read_bytes())
    return stated(claim, {name: np.load(certificate / name) for name in claim["files"]})
