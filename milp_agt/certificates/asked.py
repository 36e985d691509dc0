"""What a certificate says of the models: the questions that the checker has rules for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from milp_agt.certification.result import Result
from milp_agt.certification.verdicts import Verdict
from milp_agt.core.rounding import FLOAT64
from milp_agt.errors import InvalidInputError
from milp_agt.properties.accuracy import AccuracyTable
from milp_agt.properties.mean_loss import LossTable
from milp_agt.properties.stable import StableTable
from milp_agt.properties.targeted import TargetedTable
from milp_agt.runfile.run_file import LoadedRun

Array = npt.NDArray[Any]

SHARES = ("accuracy", "stable", "targeted")


class Files:
    """The arrays of a claim, each under a name of its own."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def add(self, name: str, values: Any, kind: type[np.generic] = np.float64) -> str:
        file = f"{name}.npy"
        self.arrays[file] = np.ascontiguousarray(values, dtype=kind)
        return file


@dataclass(frozen=True)
class Asked:
    """A question about a result, with its answer.

    Attributes:
        kind: "accuracy", "stable" or "targeted" (bounds are shares of the points), or "loss".
        on: "test", or "train" for the data of the run.
        features, labels: the points; labels of "stable" are not read, those of "targeted" are unsafe.
        lower, upper: what was certified.
        at_least, at_most: thresholds that the verdict of a check tells of.
    """

    kind: str
    features: Any
    labels: Any
    lower: float
    upper: float
    on: str = "test"
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in (*SHARES, "loss") or self.on not in ("test", "train"):
            raise InvalidInputError(
                "A certificate states accuracy, stable or targeted predictions or a loss, on test or train",
                f"{self.kind!r:.40} on {self.on!r:.40}",
                "leave the question out, or name it in not_covered",
            )


def questions_of(
    run: LoadedRun, result: Result, verdicts: Sequence[Verdict]
) -> tuple[list[Asked], list[str]]:
    """The questions that the checker has rules for, and the names of the others."""
    found = []
    not_covered = [v.name for v in verdicts if v.group is not None]
    whole = [verdict for verdict in verdicts if verdict.group is None]
    for asked, verdict in zip(run.properties, whole, strict=True):
        points = _asked_for(asked, run)
        if points is None:
            not_covered.append(verdict.name)
            continue
        ends = verdict.lower, verdict.upper, verdict.on, verdict.at_least, verdict.at_most
        one = Asked(verdict.kind, points[0], points[1], *ends)
        if verdict.on == "train" and not _is_trained_on(result, one):
            not_covered.append(f"{verdict.name}, on other points than those of the run")
        else:
            found.append(one)
    return found, not_covered


def _asked_for(asked: Any, run: LoadedRun) -> tuple[Any, Any] | None:
    """Points and labels that a question is about; None where the checker has no rules for it."""
    if not isinstance(asked, (AccuracyTable, StableTable, LossTable, TargetedTable)):
        return None
    at = asked.pick(run.dataset)
    if not isinstance(asked, TargetedTable):
        return at.features, at.labels
    unsafe = asked.targets_of(len(at.features))
    if not isinstance(unsafe, list) or any(len(classes) != 1 for classes in unsafe):
        return None
    return at.features, np.array([classes[0] for classes in unsafe])


def _is_trained_on(result: Result, asked: Asked) -> bool:
    """Whether points and labels of a question are the data of the run, to the bit."""
    poison = result.models.poison
    points, labels = _points(result, asked), _labels(result, asked)
    own = poison.features.cpu().numpy().reshape(len(poison.features), -1)
    same = asked.kind in ("stable", "targeted") or np.array_equal(
        labels, poison.labels.cpu().numpy()
    )
    return same and np.array_equal(points.numpy().reshape(len(points), -1), own)


def _points(result: Result, asked: Asked) -> torch.Tensor:
    points = torch.as_tensor(np.asarray(asked.features), dtype=torch.float64)
    single = result.precision != FLOAT64.name
    return points.to(torch.float32).to(torch.float64) if single else points


def _labels(result: Result, asked: Asked) -> Array:
    graph, labels = result.models.step_graph, np.asarray(asked.labels)
    if asked.kind == "stable":
        points = _points(result, asked).to(result.models.poison.features.device)
        scores = result.models.outputs(points).cpu()
        labels = (scores.argmax(-1) if graph.outputs > 1 else scores[:, 0] > 0).numpy()
    encoded: Array = graph.loss.encode(torch.from_numpy(labels), graph.outputs).numpy()
    return encoded


def question(files: Files, number: int, result: Result, asked: Asked) -> dict[str, Any]:
    points = _points(result, asked).numpy()
    count = len(points)
    pair = asked.lower, asked.upper
    ends = [round(end * count) if asked.kind in SHARES else float(end).hex() for end in pair]
    at_least, at_most = asked.at_least, asked.at_most
    return {
        "kind": asked.kind,
        "on": asked.on,
        "features": files.add(f"points_{number}", points.reshape(count, -1)),
        "labels": files.add(f"classes_{number}", _labels(result, asked)),
        "least": ends[0],
        "most": ends[1],
        "at_least": None if at_least is None else float(at_least).hex(),
        "at_most": None if at_most is None else float(at_most).hex(),
    }
