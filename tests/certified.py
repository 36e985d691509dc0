"""Small runs with their certificates, ways to change a certificate on disk, and runs of the checker alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from attacks import Problem, Replay

from milp_agt import certificates
from milp_agt.certification.verdicts import judge
from milp_agt.checker import steps, training
from milp_agt.checker.boxes import Box
from milp_agt.checker.files import CLAIM, SEAL, Table
from milp_agt.checker.layers import ARITHMETICS, Layer, Poisoned, Rule, Samples
from milp_agt.checker.layers import Problem as Run
from milp_agt.checker.statement import Statement, read
from milp_agt.runfile.run_file import load_config
from milp_agt.threats.sets import Ball

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


Claim = dict[str, Any]
Arrays = dict[str, np.ndarray]
Change = Callable[[Claim, Arrays], object]
MISSING = object()


def put(path: str, value: Any) -> Change:
    """Set a value of the claim by its keys and positions; a function is given the old one."""

    def change(claim: Any, arrays: Arrays) -> None:
        *outer, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in outer:
            claim = claim[key]
        if value is MISSING:
            claim.pop(last)
        else:
            claim[last] = value(claim[last]) if callable(value) else value

    return change


def arr(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change an array of the certificate."""
    return lambda claim, arrays: arrays.__setitem__(name, change(arrays[name].copy()))


def at(name: str, place: Any, change: Callable[[Any], Any]) -> Change:
    """Change one entry of an array."""

    def changed(values: np.ndarray) -> np.ndarray:
        values[place] = change(values[place])
        return values

    return arr(name, changed)


def inward(side: str, share: float = 0.01) -> Change:
    """One side of the box of one parameter moved inwards."""

    def change(claim: Claim, arrays: Arrays) -> None:
        low, high = arrays["lower_0.npy"], arrays["upper_0.npy"]
        moved = share * (high - low)
        arrays[f"{side}_0.npy"] = low + moved if side == "lower" else high - moved

    return change


def copied(certificate: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(certificate, folder, symlinks=True))


def forged(certificate: Path, folder: Path, *changes: Change, words: bool = True) -> Path:
    """A copy that was changed by somebody who knows the format: hashes, seal and words are made anew.

    Words stay as they were where the forger can make none that fit, or without ``words``.
    """
    copy = copied(certificate, folder)
    claim = json.loads((copy / CLAIM).read_bytes())
    arrays = {name: np.load(copy / name) for name in claim["files"]}
    for change in changes:
        change(claim, arrays)
    if words:
        with suppress(Exception):
            claim["words"] = list(stated(claim, arrays).words)
    for name, values in arrays.items():
        np.save(copy / name, values)
        claim["files"][name] = entry((copy / name).read_bytes())
    seal(copy, json.dumps(claim).encode())
    return copy


def entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def seal(folder: Path, text: bytes) -> None:
    """Write a claim with its seal."""
    (folder / CLAIM).write_bytes(text)
    (folder / SEAL).write_text(f"{entry(text)['sha256']}  {CLAIM}\n", encoding="utf-8")


def stated(claim: Claim, arrays: Arrays) -> Statement:
    found = read(Table(claim, "claim", arrays))
    assert isinstance(found, Statement)
    return found


def statement_in(certificate: Path) -> Statement:
    claim = json.loads((certificate / CLAIM).read_bytes())
    return stated(claim, {name: np.load(certificate / name) for name in claim["files"]})


def run_of(
    loss: str,
    *own: Layer,
    batches: Sequence[Sequence[int]],
    rules: Sequence[Rule] = (Rule(0.1),),
    numbers: str = "float64",
) -> Run:
    """A run of the checker; one rule serves all steps."""
    order = tuple(map(np.array, batches))
    every = tuple(rules) * (len(order) // len(rules))
    return Run(tuple(own), loss, order, every, ARITHMETICS[numbers])


def data_of(
    x: np.ndarray,
    y: np.ndarray,
    budget: int,
    moved_x: Any = 0.0,
    moved_y: Any = 0.0,
    open_: Any = True,
) -> tuple[Samples, Poisoned]:
    """Samples, and their ranges: moves up to a radius, or between two ends."""

    def ends(values: np.ndarray, moved: Any) -> Box:
        low, high = moved if isinstance(moved, tuple) else (values - moved, values + moved)
        return Box(
            np.broadcast_to(low, values.shape)[None], np.broadcast_to(high, values.shape)[None]
        )

    ranges = Samples(ends(x, moved_x), ends(y, moved_y))
    mask = np.broadcast_to(np.asarray(open_), len(x))
    return Samples(Box.point(x[None]), Box.point(y[None])), Poisoned(ranges, mask, budget)


def boxes_of(given: Problem, activation: str, method: str) -> dict[str, Box]:
    """The checker's boxes of a problem of the test suite with one hidden layer."""
    replay = Replay(given)
    poison, order = replay.poison, given.training.batch_order(len(given.features))
    rules = given.training.update_rules(len(order))
    own = run_of(
        given.training.loss,
        Layer("dense", "0.weight", "0.bias"),
        Layer(activation),
        Layer("dense", "2.weight", "2.bias"),
        batches=order,
        rules=[Rule(r.rate, r.momentum, r.weight_decay, nesterov=r.nesterov) for r in rules],
    )
    ends = [box.expand_states(2) for box in (poison.feature_box(), poison.label_box())]
    moved = [(box.lower[1].numpy(), box.upper[1].numpy()) for box in ends]
    data = poison.features.numpy(), poison.labels.numpy()
    samples, poisoned = data_of(*data, poison.budget, *moved, open_=poison.open.numpy())
    if isinstance(moves := poison.feature_moves, Ball):
        poisoned = replace(poisoned, norm=moves.order, radius=moves.radius.numpy())
    initial = {n: v.numpy() for n, v in replay.step_graph.initial.items()}
    if method == "interval":
        return dict(training.train(own, initial, samples, poisoned))
    anew = not poison.static or poison.per_batch
    parts = 2 if method == "parts" else 0
    return forms_of(own, initial, samples, poisoned, anew, at_once=parts).boxes()


def forms_of(
    run: Run,
    initial: Mapping[str, np.ndarray],
    samples: Samples,
    poisoned: Poisoned,
    anew: bool,
    at_once: int = 0,
) -> steps.Final:
    """What a run of the checker ends with by forms."""
    what = Statement(run, samples, poisoned, "affine", initial, anew=anew, at_once=at_once)
    return steps.train(what, steps.stored(what))
