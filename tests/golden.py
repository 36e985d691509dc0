"""Small certified runs whose bounds are kept to the last bit: ``python tests/golden.py [--write]``.

Without an option the runs are compared with ``golden.json``; ``--write`` makes that file anew. Only a
change that is meant to alter certified numbers may do so.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from golden_runs import RUNS, Run
from torch import nn

import milp_agt as agt
from milp_agt.certification import planning

FILE = Path(__file__).with_name("golden.json")
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """All numbers of one run, float64, by name: the box, the widths of the steps, the answers."""

    mean_width: float
    arrays: Mapping[str, Array]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for name, array in self.arrays.items():
            digest.update(f"{name} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()


def measure(run: Run) -> Outcome:
    """Certify on one thread."""
    with single_thread(), nullcontext() if run.zonotope else linear_alone():
        case, test, labels = run.problem()
        result, _ = case.certify(**({"carried": "zonotope"} | run.options))
        assert not result.limit_reached
        box = result.reachable
        arrays: dict[str, Any] = {}
        for name in box.lower:
            arrays |= {f"{name}.lower": box.lower[name], f"{name}.upper": box.upper[name]}
        arrays["steps.mean_width"] = [step.mean_width for step in result.steps]
        arrays["steps.max_width"] = [step.max_width for step in result.steps]
        arrays["steps.chains"] = [w for step in result.steps for w in step.chains.values()]
        for question in run.asks:
            arrays |= ask(result, question, test, labels)
    return Outcome(box.mean_width, {n: np.array(a, dtype=np.float64) for n, a in arrays.items()})


def ask(
    result: agt.Result, question: str, test: torch.Tensor, labels: torch.Tensor
) -> dict[str, Any]:
    """The bounds of an answer, and those of its points."""
    if question == "functional":
        lines = {
            name: np.resize([1.0, -2.0, 0.5, 0.25, 3.0], (2, *result.reachable.lower[name].shape))
            for name in result.reachable.trainable
        }
        found = result.functional(lines)
        return {question: [(b.lower, b.nominal, b.upper) for b in found]}
    answer = getattr(result, question)(test, labels)
    columns = answer.points.columns()
    names = ("lower", "upper", "score_lower", "score_upper")
    points = {f"{question}.points.{name}": columns[name] for name in names}
    return {question: [answer.lower, answer.nominal, answer.upper]} | points


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch: with more, sums are cut into other pieces. What was set comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def linear_alone() -> Iterator[None]:
    """No zonotope beside linear forms and programs, whose own bits are kept then."""
    with patch.object(planning, "refusal", lambda *_: "tests of linear forms alone"):
        yield


@cache
def fingerprint() -> str:
    """SHA-256 of what this machine makes of some primitives; with another one, bits differ by right."""
    digest = hashlib.sha256()
    for package in ("torch", "numpy", "scipy", "highspy"):
        digest.update(f"{package} {version(package)} ".encode())
    with single_thread():
        for value in _primitives():
            digest.update(np.ascontiguousarray(value, dtype="<f8").tobytes())
    return digest.hexdigest()


def _numbers(*shape: int) -> torch.Tensor:
    """Numbers in [-0.5, 0.5) that are the same everywhere."""
    count = torch.arange(math.prod(shape), dtype=torch.int64)
    return ((count * 7919 % 10007).double() / 10007.0 - 0.5).reshape(shape)


def _primitives() -> Iterator[Any]:
    for rows, inner, columns in ((1, 2, 3), (3, 6, 2), (8, 3, 17), (33, 21, 9), (64, 100, 32)):
        first, second = _numbers(rows, inner), _numbers(inner, columns)
        yield first @ second
        yield second.T @ first.T
        yield torch.einsum("bri,ic->brc", _numbers(4, rows, inner), second)
        yield torch.einsum("bri,bic->brc", _numbers(4, rows, inner), _numbers(4, inner, columns))
        yield torch.einsum("ni,nc->nic", _numbers(rows, inner), _numbers(rows, columns))
        yield first.numpy() @ second.numpy()
    for length in (3, 13, 100, 3000):
        x = 8.0 * _numbers(length)
        for function in (torch.exp, torch.tanh, torch.sigmoid, torch.sin):
            yield function(x)
        positive = x.abs() + 0.1
        yield from (torch.log(positive), torch.log1p(positive), positive.sqrt(), positive**1.7)
        yield from (x.sum(), x.cumsum(0), torch.linalg.vector_norm(x), x.numpy().sum())
        yield from (torch.softmax(x, 0), torch.logsumexp(x, 0), x.numpy() @ x.numpy())
        yield [f(v) for v in positive.tolist() for f in (math.exp, math.log, math.sin, math.tanh)]
        table = _numbers(length, 5)
        yield from (table.sum(0), table.sum(1), table.mean(0), table.abs().amax(0))
    yield nn.functional.conv2d(_numbers(5, 1, 3, 3), _numbers(2, 1, 2, 2), _numbers(2))
    generator = torch.Generator().manual_seed(0)
    for length in (3, 40):
        yield torch.randn(length, generator=generator, dtype=torch.float64)
        yield torch.rand(length, generator=generator, dtype=torch.float64)


def difference(
    name: str, before: Outcome, now: Outcome, tolerance: float | None = None
) -> str | None:
    """What differs first between two outcomes of a run, in words; None if nothing does.

    Without a tolerance every bit counts. With one, numbers may differ by that share of the largest
    number of their array, and the mean width by that share of itself.
    """
    if list(before.arrays) != list(now.arrays):
        changed = sorted(before.arrays.keys() ^ now.arrays.keys()) or "the same in another order"
        return f"run '{name}' gives other arrays than before: {changed}"
    differing = [n for n in before.arrays if not _agree(before.arrays[n], now.arrays[n], tolerance)]
    widths = f"mean width {before.mean_width!r} before, {now.mean_width!r} now"
    if differing:
        first = differing[0]
        old, new = before.arrays[first], now.arrays[first]
        start = f"run '{name}': '{first}' is the first of {len(differing)} arrays that differ: "
        if old.shape != new.shape:
            return f"{start}shape {old.shape} before, {new.shape} now; {widths}"
        at = np.unravel_index(int(np.argmax(np.abs(new - old))), old.shape)
        place = [int(i) for i in at]
        return (
            f"{start}by {float(abs(new[at] - old[at])):.3g} at {place}, {float(old[at])!r} before, "
            f"{float(new[at])!r} now; {widths}"
        )
    allowed = 0.0 if tolerance is None else tolerance * abs(before.mean_width)
    if not abs(now.mean_width - before.mean_width) <= allowed:
        return f"run '{name}': {widths}"
    return None


def _agree(old: Array, new: Array, tolerance: float | None) -> bool:
    if old.shape != new.shape:
        return False
    if tolerance is None:
        return old.tobytes() == new.tobytes()
    allowed = tolerance * float(np.abs(old).max(initial=0.0))
    return bool((np.abs(new - old) <= allowed).all())


@dataclass(frozen=True)
class Kept:
    """What ``golden.json`` holds: outcomes with their hashes, and the machine that they are from."""

    fingerprint: str
    outcomes: Mapping[str, Outcome]
    hashes: Mapping[str, str]


def load(text: str) -> Kept:
    """The decimals of the file are exact: ``repr`` of a float64 reads back as the same float64."""
    found = json.loads(text)
    outcomes, hashes = {}, {}
    for name, run in found["runs"].items():
        arrays = {
            n: np.array(values, dtype=np.float64).reshape(shape)
            for n, (shape, values) in run["arrays"].items()
        }
        outcomes[name], hashes[name] = Outcome(run["mean_width"], arrays), run["sha256"]
    return Kept(found["fingerprint"], outcomes, hashes)


def dump(outcomes: Mapping[str, Outcome]) -> str:
    """The text of the file, one line for each array: its shape and its numbers."""
    runs = []
    for name, outcome in outcomes.items():
        rows = [
            f"{json.dumps(n)}: {json.dumps([list(a.shape), a.ravel().tolist()], allow_nan=False)}"
            for n, a in outcome.arrays.items()
        ]
        arrays = ",\n    ".join(rows)
        runs.append(
            f' {json.dumps(name)}: {{\n  "sha256": "{outcome.sha256}",\n'
            f'  "mean_width": {outcome.mean_width!r},\n  "arrays": {{\n    {arrays}\n  }}\n }}'
        )
    listed = ",\n".join(runs)
    return f'{{\n"fingerprint": "{fingerprint()}",\n"runs": {{\n{listed}\n}}\n}}\n'


def compare(name: str, kept: Kept, found: Outcome) -> str | None:
    """What differs from the file, in words; None if nothing does.

    On a machine with the fingerprint of the file every bit has to be the same. On any other (kernels of
    the linear algebra, vector instructions, versions) rounding differs, and the decimals are compared to
    a tolerance, so that the runs are held against the file there as well.
    """
    if fingerprint() == kept.fingerprint:
        return difference(name, kept.outcomes[name], found)
    return difference(name, kept.outcomes[name], found, RUNS[name].tolerance)


def main(arguments: Sequence[str]) -> int:
    if set(arguments) - {"--write"}:
        print(__doc__)
        return 2
    write = "--write" in arguments
    kept = None if write else load(FILE.read_text(encoding="utf-8"))
    outcomes: dict[str, Outcome] = {}
    failed = False
    for name, run in RUNS.items():
        begun = time.perf_counter()
        outcomes[name] = measure(run)
        seconds = time.perf_counter() - begun
        said = None if kept is None else compare(name, kept, outcomes[name])
        failed |= said is not None
        print(f"{seconds:6.2f} s  {name}: {said or outcomes[name].sha256[:16]}", flush=True)
    if write:
        FILE.write_text(dump(outcomes), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
