"""The folder ``certificate``: the claim of a result, with all that its check needs."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from milp_agt.certificates.covered import affordable, layers_of, listed, missing, undecayed
from milp_agt.certification.fingerprint import versions
from milp_agt.certification.result import Result
from milp_agt.checker.boxes import Unbounded
from milp_agt.checker.files import CLAIM, SEAL, Certificate, Rejected, Table
from milp_agt.checker.proof import answer, reached
from milp_agt.checker.reading import FORMAT, read
from milp_agt.checker.statement import ASSUMPTIONS, Statement
from milp_agt.core.interval import POISONED
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.rounding import FLOAT64
from milp_agt.io.files import replace
from milp_agt.properties.accuracy import AccuracyTable
from milp_agt.properties.mean_loss import LossTable
from milp_agt.properties.stable import StableTable
from milp_agt.runfile.run_file import LoadedRun
from milp_agt.runfile.verdicts import Verdict

Array = npt.NDArray[Any]

# A claim is looser than the bounds that it comes from, so that it does not hang on how they were rounded:
# by a share of each width, and by a share of the size of each number.
SLACK = {"float64": (2.0**-20, 2.0**-38), "float32": (2.0**-9, 2.0**-26)}
SHARES = ("accuracy", "stable")
ROUNDING = (2.0**-8, 2.0**-30)  # by which the checker may go beyond a result, as shares of the same
WIDEST = 4.0  # times the width of a result that a certificate may claim


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

    The claim is that of the result where the checker proves it. Where the result is tighter, by a
    relaxation that the checker has no rules for, the claim is what the checker proves; where that is more
    than ``WIDEST`` times as wide, the relaxation stands in the claim as not covered.

    Args:
        folder: made if it is not there; arrays and claims of an earlier certificate in it are removed.

    Returns:
        The path of the claim.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    not_covered = missing(run, result)
    drafts = [] if not_covered else _drafts(run, result, verdicts)
    if drafts:
        best = min(drafts, key=lambda draft: draft.width)
        claim, arrays = best.claim, best.files.arrays
    else:
        claim, arrays = {"method": None}, {}
        claim["not_covered"] = not_covered or [f"relaxation {result.relaxation}"]
    claim |= {"format": FORMAT, "versions": versions(), "files": {}}
    for name, values in arrays.items():
        data = _bytes(values)
        _put(folder / name, data)
        claim["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = (json.dumps(claim, indent=1, allow_nan=False) + "\n").encode()
    _put(folder / CLAIM, text)
    _put(folder / SEAL, f"{hashlib.sha256(text).hexdigest()}  {CLAIM}\n".encode())
    return folder / CLAIM


@dataclass
class _Draft:
    """A certificate by one method, and the mean width of its box."""

    claim: dict[str, Any]
    files: _Files
    width: float


def _drafts(run: LoadedRun, result: Result, verdicts: Sequence[Verdict]) -> list[_Draft]:
    """By each method that proves a box of a useful width."""
    trust = {step.relaxation for step in result.steps} == {Relaxation.INTERVAL.value}
    finite = listed(result.models.poison) is not None
    # Where rounding is most of a width, as it may be in float32, the checker may grant more of it.
    trust = trust and result.models.poison.whole is None and result.precision == FLOAT64.name
    methods = ["interval"] if trust else ["listed"] if finite else ["interval", "affine"]
    found = []
    for method in methods:
        try:
            draft = _draft(run, result, verdicts, method, trust=trust)
        except (Unbounded, Rejected):  # the checker proves nothing by this method
            continue
        if draft.width <= WIDEST * result.reachable.mean_width:
            found.append(draft)
    return found


def _draft(
    run: LoadedRun, result: Result, verdicts: Sequence[Verdict], method: str, *, trust: bool
) -> _Draft:
    """``trust``: the box of the result is the claim, but for rounding, for the checker to judge."""
    files = _Files()
    claim = _claim(files, run, result, verdicts, method)
    stated = _stated(claim, files)
    if not affordable(stated, method):
        raise Unbounded("a check that would take long")
    cases = reached(stated)
    for number, name in enumerate(claim["model"]["parameters"]):
        low, high = (result.reachable.lower[name], result.reachable.upper[name])
        least = np.min([case.boxes[name].lo.min(0) for case in cases], 0)
        most = np.max([case.boxes[name].hi.max(0) for case in cases], 0)
        near = ROUNDING[0] * (high - low) + ROUNDING[1] * (1.0 + np.maximum(-low, high))
        near = near if trust else np.full_like(low, np.inf)
        low = np.where(least >= low - near, np.minimum(low, least), low)
        high = np.where(most <= high + near, np.maximum(high, most), high)
        low, high = _loosened(result.precision, low, high)
        files.add(f"lower_{number}", low)
        files.add(f"upper_{number}", high)
    for table, asked in zip(claim["questions"], stated.questions, strict=True):
        least, most = answer(asked, cases)
        least, most = min(least, asked.least), max(most, asked.most)
        if asked.kind == "loss":
            ends = _loosened(result.precision, np.array(least), np.array(most))
            table |= {"least": float(ends[0]).hex(), "most": float(ends[1]).hex()}
        else:
            table |= {"least": int(least), "most": int(most)}
    stated = _stated(claim, files)
    claim |= {"words": list(stated.words), "assumptions": list(ASSUMPTIONS)}
    widths = [(stated.upper[n] - stated.lower[n]).reshape(-1) for n in stated.lower]
    return _Draft(claim, files, float(np.concatenate(widths).mean()))


def _stated(claim: Mapping[str, Any], files: _Files) -> Statement:
    values = {"format": FORMAT, "versions": {}, **claim}
    found = read(Certificate(Table(values, "claim"), files.arrays, "", 0))
    assert isinstance(found, Statement)
    return found


def _loosened(precision: str, low: Array, high: Array) -> tuple[Array, Array]:
    share = SLACK[precision]
    spare = share[0] * (high - low) + share[1] * (1.0 + np.maximum(np.abs(low), np.abs(high)))
    return low - spare, high + spare


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
    files: _Files, run: LoadedRun, result: Result, verdicts: Sequence[Verdict], method: str
) -> dict[str, Any]:
    """The claim with the bounds of the result."""
    graph, poison = result.models.step_graph, result.models.poison
    questions, not_covered = _questions(files, run, result, verdicts)
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
    reachable = result.reachable
    found = {}
    for number, (name, start) in enumerate(result.models.step_graph.initial.items()):
        found[name] = {
            "initial": files.add(f"initial_{number}", start.cpu().numpy()),
            "nominal": files.add(f"nominal_{number}", reachable.nominal[name]),
            "lower": files.add(f"lower_{number}", reachable.lower[name]),
            "upper": files.add(f"upper_{number}", reachable.upper[name]),
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


def _threat(files: _Files, result: Result, method: str) -> dict[str, Any]:
    poison = result.models.poison
    found: dict[str, Any] = {
        "budget": poison.budget,
        "counted": "in every batch" if poison.per_batch else "once for the run",
        "poisoned": "once" if poison.static else "anew in every step",
        "open": files.add("open", poison.open.cpu().numpy(), np.uint8),
    }
    if method == "listed":
        ways = listed(poison)
        assert ways is not None
        removed, choices = ways
        return found | {
            "removed": removed,
            **({} if removed else {"choices": files.add("choices", choices)}),
        }
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
    files: _Files, run: LoadedRun, result: Result, verdicts: Sequence[Verdict]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The questions that the checker has rules for, and the names of the others."""
    found = []
    not_covered = [v.name for v in verdicts if v.group is not None]
    whole = [verdict for verdict in verdicts if verdict.group is None]
    for number, (asked, verdict) in enumerate(zip(run.properties, whole, strict=True)):
        if isinstance(asked, (AccuracyTable, StableTable, LossTable)):
            at = asked.pick(run.dataset)
            stated = _question(files, number, result, verdict, at.features, at.labels)
            if verdict.on == "train" and not _is_trained_on(files, stated, result):
                not_covered.append(f"{verdict.name}, on other points than those of the run")
                del files.arrays[stated["features"]], files.arrays[stated["labels"]]
            else:
                found.append(stated)
        else:
            not_covered.append(verdict.name)
    return found, not_covered


def _is_trained_on(files: _Files, stated: Mapping[str, Any], result: Result) -> bool:
    """Whether points and labels of a question are the data of the run, to the bit."""
    poison = result.models.poison
    x, y = (files.arrays[stated[what]] for what in ("features", "labels"))
    same = np.array_equal(x, poison.features.cpu().numpy().reshape(len(poison.features), -1))
    own = stated["kind"] == "stable" or np.array_equal(y, poison.labels.cpu().numpy())
    return same and own


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
        ends = {"least": float(verdict.lower).hex(), "most": float(verdict.upper).hex()}
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
