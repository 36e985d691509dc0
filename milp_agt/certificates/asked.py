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
from milp_agt.core.interval import CLEAN
from milp_agt.core.rounding import FLOAT64
from milp_agt.errors import InvalidInputError
from milp_agt.properties.accuracy import AccuracyTable
from milp_agt.properties.backdoor import BackdoorTable
from milp_agt.properties.collective import CollectiveTable
from milp_agt.properties.mean_loss import LossTable
from milp_agt.properties.stable import StableTable
from milp_agt.properties.targeted import TargetedTable
from milp_agt.runfile.run_file import LoadedRun

Array = npt.NDArray[Any]

SHARES = ("accuracy", "stable", "targeted", "backdoor")


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
        kind: "accuracy", "stable", "targeted" (bounds are shares of the points that get ``labels``),
            "backdoor" (that get another class), or "loss".
        on: "test", or "train" for the data of the run.
        features, labels: the points; labels of "stable" are not read, those of "targeted" are unsafe.
        upper_features: of "targeted" and "backdoor" what a trigger makes of the points is a range from
            ``features`` to this: those count where some features in it get such a class.
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
    upper_features: Any = None

    def __post_init__(self) -> None:
        if self.kind not in (*SHARES, "loss") or self.on not in ("test", "train"):
            raise InvalidInputError(
                f"A certificate states {', '.join(SHARES)} or a loss, on test or train",
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
        found_as = _asked_for(asked, run)
        if found_as is None:
            not_covered.append(verdict.name)
            continue
        kind, points, labels, upper = found_as
        ends = verdict.lower, verdict.upper, verdict.on, verdict.at_least, verdict.at_most
        one = Asked(kind, points, labels, *ends, upper_features=upper)
        if verdict.on == "train" and not _is_trained_on(result, one):
            not_covered.append(f"{verdict.name}, on other points than those of the run")
        else:
            found.append(one)
    return found, not_covered


def _asked_for(asked: Any, run: LoadedRun) -> tuple[str, Any, Any, Any] | None:
    """What a question counts, the points and labels that it is about, and the upper ends of points that are
    ranges; None where the checker has no rules for it.
    """
    known = AccuracyTable, StableTable, LossTable, TargetedTable, CollectiveTable, BackdoorTable
    if not isinstance(asked, known):
        return None
    at = asked.pick(run.dataset)
    if isinstance(asked, TargetedTable):
        unsafe = asked.targets_of(len(at.features))
        if not isinstance(unsafe, list) or any(len(classes) != 1 for classes in unsafe):
            return None
        return asked.kind, at.features, np.array([classes[0] for classes in unsafe]), None
    if not isinstance(asked, BackdoorTable):
        # Points that are asked together are bounded one by one.
        together = isinstance(asked, CollectiveTable)
        return "accuracy" if together else asked.kind, at.features, at.labels, None
    features, labels, kind = torch.as_tensor(at.features), np.asarray(at.labels), str(asked.kind)
    if asked.target is not None:
        features, kind = features[torch.from_numpy(labels != asked.target)], "targeted"
        labels = np.full(len(features), asked.target)
    ranges = asked.trigger.inputs(features)
    return kind, ranges.lower[CLEAN], labels, ranges.upper[CLEAN]


def _is_trained_on(result: Result, asked: Asked) -> bool:
    """Whether points and labels of a question are the data of the run, to the bit."""
    poison = result.models.poison
    points, labels = _points(result, asked.features), _labels(result, asked)
    own = poison.features.cpu().numpy().reshape(len(poison.features), -1)
    same = asked.kind in ("stable", "targeted") or np.array_equal(
        labels, poison.labels.cpu().numpy()
    )
    same = same and asked.upper_features is None
    return same and np.array_equal(points.numpy().reshape(len(points), -1), own)


def _points(result: Result, features: Any) -> torch.Tensor:
    points = torch.as_tensor(np.asarray(features), dtype=torch.float64)
    single = result.precision != FLOAT64.name
    return points.to(torch.float32).to(torch.float64) if single else points


def _labels(result: Result, asked: Asked) -> Array:
    graph, labels = result.models.step_graph, np.asarray(asked.labels)
    if asked.kind == "stable":
        points = _points(result, asked.features).to(result.models.poison.features.device)
        scores = result.models.outputs(points).cpu()
        labels = (scores.argmax(-1) if graph.outputs > 1 else scores[:, 0] > 0).numpy()
    encoded: Array = graph.loss.encode(torch.from_numpy(labels), graph.outputs).numpy()
    return encoded


def question(files: Files, number: int, result: Result, asked: Asked) -> dict[str, Any]:
    points = _points(result, asked.features).numpy()
    count, upper = len(points), None
    if asked.upper_features is not None:
        ends = _points(result, asked.upper_features).numpy()
        upper = files.add(f"upper_points_{number}", ends.reshape(count, -1))
    pair = asked.lower, asked.upper
    counts = [round(end * count) if asked.kind in SHARES else float(end).hex() for end in pair]
    at_least, at_most = asked.at_least, asked.at_most
    return {
        "kind": asked.kind,
        "on": asked.on,
        "features": files.add(f"points_{number}", points.reshape(count, -1)),
        "labels": files.add(f"classes_{number}", _labels(result, asked)),
        "upper": upper,
        "least": counts[0],
        "most": counts[1],
        "at_least": None if at_least is None else float(at_least).hex(),
        "at_most": None if at_most is None else float(at_most).hex(),
    }
