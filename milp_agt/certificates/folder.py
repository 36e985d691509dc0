"""The folder ``certificate``: the claim of a result, with all that its check needs."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from milp_agt.certificates.covered import choices_of, layers_of, method_of, missing, undecayed
from milp_agt.certification.fingerprint import versions
from milp_agt.certification.result import Result
from milp_agt.checker.files import CLAIM, SEAL, Certificate, Table
from milp_agt.checker.reading import FORMAT, read
from milp_agt.checker.statement import ASSUMPTIONS, Statement
from milp_agt.core.interval import POISONED
from milp_agt.core.rounding import FLOAT64
from milp_agt.io.files import replace
from milp_agt.runfile.run_file import LoadedRun
from milp_agt.runfile.verdicts import Verdict

Array = npt.NDArray[Any]

# A claim is looser than the bounds that it comes from, so that it does not hang on how they were rounded:
# by a share of each width, and by a share of the size of each number.
SLACK = {"float64": (2.0**-20, 2.0**-38), "float32": (2.0**-9, 2.0**-26)}
SHARES = ("accuracy", "stable")


class _Files:
    """The arrays of a claim, each under a name of its own."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def add(self, name: str, values: Any, kind: type[np.generic] = np.float64) -> str:
        file = f"{name}.npy"
        self.arrays[file] = np.ascontiguousarray(values, dtype=kind)
        return file


def write(folder: Path, run: LoadedRun, result: Result, verdicts: Sequence[Verdict]) -> Path:
    """Write the certificate of a result, in place of one that is there.

    What the checker has no rules for stands in the claim as not covered.

    Args:
        folder: made if it is not there; arrays and claims of an earlier certificate in it are removed.

    Returns:
        The path of the claim.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    files = _Files()
    claim: dict[str, Any] = {"format": FORMAT, "versions": versions()}
    not_covered = missing(run, result)
    if not_covered:
        claim |= {"method": None, "not_covered": not_covered, "files": {}}
    else:
        claim |= _claim(files, run, result, verdicts)
        stated = read(Certificate(Table(claim, "claim"), files.arrays, "", 0))
        assert isinstance(stated, Statement)
        claim |= {"words": list(stated.words), "assumptions": list(ASSUMPTIONS), "files": {}}
    for name, values in files.arrays.items():
        data = _bytes(values)
        _put(folder / name, data)
        claim["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = (json.dumps(claim, indent=1, allow_nan=False) + "\n").encode()
    _put(folder / CLAIM, text)
    _put(folder / SEAL, f"{hashlib.sha256(text).hexdigest()}  {CLAIM}\n".encode())
    return folder / CLAIM


def clear(folder: Path) -> None:
    """Remove an earlier certificate, the seal first: half of one is none."""
    for old in [folder / SEAL, folder / CLAIM, *folder.glob("*.npy")]:
        old.unlink(missing_ok=True)


def _put(path: Path, data: bytes) -> None:
    replace(path, lambda stream: stream.write(data))


def _bytes(values: Array) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _claim(
    files: _Files, run: LoadedRun, result: Result, verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    graph, poison = result.models.step_graph, result.models.poison
    method = method_of(result, poison)
    questions, not_covered = _questions(files, run, result, verdicts, method)
    features = poison.features.cpu().numpy()
    return {
        "method": method,
        "not_covered": not_covered,
        "arithmetic": result.precision,
        "model": {"layers": layers_of(graph.model)[0], "parameters": _parameters(files, result)},
        "loss": graph.loss.key,
        "data": {
            "features": files.add("features", features.reshape(len(features), -1)),
            "labels": files.add("labels", poison.labels.cpu().numpy()),
        },
        "training": _training(files, run, graph.parameters),
        "threat": _threat(files, result, method),
        "questions": questions,
    }


def _parameters(files: _Files, result: Result) -> dict[str, dict[str, str]]:
    reachable, share = result.reachable, SLACK[result.precision]
    found = {}
    for number, (name, start) in enumerate(result.models.step_graph.initial.items()):
        low, high = reachable.lower[name], reachable.upper[name]
        spare = share[0] * (high - low) + share[1] * (1.0 + np.maximum(np.abs(low), np.abs(high)))
        found[name] = {
            "initial": files.add(f"initial_{number}", start.cpu().numpy()),
            "nominal": files.add(f"nominal_{number}", reachable.nominal[name]),
            "lower": files.add(f"lower_{number}", low - spare),
            "upper": files.add(f"upper_{number}", high + spare),
        }
    return found


def _training(files: _Files, run: LoadedRun, names: Sequence[str]) -> dict[str, Any]:
    batches = run.training.batch_order(len(run.data[0]))
    rules = run.training.update_rules(len(batches))
    first = rules[0]
    ends = first.projection
    return {
        "sizes": files.add("sizes", [len(batch) for batch in batches], np.int64),
        "order": files.add("order", np.concatenate(batches), np.int64),
        "rates": files.add("rates", [rule.rate for rule in rules]),
        "dampening": files.add("dampening", [rule.dampening for rule in rules]),
        "momentum": first.momentum.hex(),
        "weight_decay": first.weight_decay.hex(),
        "undecayed": undecayed(run, names),
        "nesterov": first.nesterov,
        "l1": first.l1.hex(),
        "projection": None if ends is None else {"low": ends[0].hex(), "high": ends[1].hex()},
    }


def _threat(files: _Files, result: Result, method: str | None) -> dict[str, Any]:
    poison = result.models.poison
    found: dict[str, Any] = {
        "budget": poison.budget,
        "counted": "in every batch" if poison.per_batch else "once for the run",
        "poisoned": "once" if poison.static else "anew in every step",
        "open": files.add("open", poison.open.cpu().numpy(), np.uint8),
    }
    if method == "listed":
        return found | {"choices": files.add("choices", choices_of(poison))}
    for what, moves, box in (
        ("features", poison.feature_moves, poison.feature_box()),
        ("labels", poison.label_moves, poison.label_box()),
    ):
        if moves is None or poison.is_clean:
            found[what] = None
            continue
        ends = {"lower": box.lower[POISONED], "upper": box.upper[POISONED]}
        found[what] = {
            side: files.add(f"{what}_{side}", end.cpu().numpy().reshape(len(poison.open), -1))
            for side, end in ends.items()
        }
    return found


def _questions(
    files: _Files,
    run: LoadedRun,
    result: Result,
    verdicts: Sequence[Verdict],
    method: str | None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The questions that the checker answers as tightly as the result does, and the names of the others."""
    layers = layers_of(result.models.step_graph.model)[0]
    shallow = sum(layer["kind"] == "dense" for layer in layers) <= 2
    found, not_covered = [], []
    whole = [verdict for verdict in verdicts if verdict.group is None]
    for number, (asked, verdict) in enumerate(zip(run.properties, whole, strict=True)):
        share = verdict.kind in SHARES
        if verdict.kind not in (*SHARES, "loss"):
            not_covered.append(verdict.name)
        elif method != "listed" and not (share and shallow):
            not_covered.append(f"{verdict.name}, which linear forms bound")
        else:
            at = asked.pick(run.dataset)  # type: ignore[union-attr]
            found.append(_question(files, number, result, verdict, at.features, at.labels))
    not_covered += [verdict.name for verdict in verdicts if verdict.group is not None]
    return found, not_covered


def _question(
    files: _Files, number: int, result: Result, verdict: Verdict, features: Array, labels: Array
) -> dict[str, Any]:
    graph = result.models.step_graph
    points = torch.from_numpy(np.asarray(features, dtype=np.float64))
    if result.precision != FLOAT64.name:
        points = points.to(torch.float32).to(torch.float64)
    if verdict.kind == "stable":
        scores = result.models.outputs(points.to(result.models.poison.features.device)).cpu()
        labels = (scores.argmax(-1) if graph.outputs > 1 else scores[:, 0] > 0).numpy()
    encoded = graph.loss.encode(torch.from_numpy(np.asarray(labels)), graph.outputs)
    count = len(points)
    if verdict.kind in SHARES:
        ends: dict[str, Any] = {
            "least": round(verdict.lower * count),
            "most": round(verdict.upper * count),
        }
    else:
        share = SLACK[result.precision]
        spare = share[0] * (verdict.upper - verdict.lower) + share[1] * (1.0 + abs(verdict.upper))
        ends = {"least": (verdict.lower - spare).hex(), "most": (verdict.upper + spare).hex()}
    at_least, at_most = verdict.at_least, verdict.at_most
    return {
        "kind": verdict.kind,
        "on": verdict.on,
        "features": files.add(f"points_{number}", points.numpy().reshape(count, -1)),
        "labels": files.add(f"classes_{number}", encoded.numpy()),
        **ends,
        "at_least": None if at_least is None else float(at_least).hex(),
        "at_most": None if at_most is None else float(at_most).hex(),
    }
