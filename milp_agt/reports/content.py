"""A result folder as typed values: what the figures, the tables and the words are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE
from milp_agt.properties.property_table import PROPERTIES, PropertyTable
from milp_agt.reports import evidence

Array = npt.NDArray[Any]

STATES = ("surely right", "surely wrong", "refuted", "open")


@dataclass(frozen=True)
class Property:
    """One property of the result.

    ``reached`` are the ends that real attacks reached and ``ratio`` the certified width over theirs; None
    where nothing was attacked. ``worst`` is the worst value that one checked run shows, ``counts`` says how
    many points are PROVED, REFUTED and OPEN, and ``witnesses`` names the files of poisoned data.
    """

    kind: str
    name: str
    on: str
    group: str | None
    lower: float
    nominal: float
    upper: float
    at_least: float | None
    at_most: float | None
    status: str
    reached: tuple[float, float] | None = None
    ratio: float | None = None
    detail: str = ""
    worst: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    witnesses: Sequence[Mapping[str, Any]] = ()

    @property
    def table(self) -> type[PropertyTable]:
        """Its kind."""
        return PROPERTIES.all()[self.kind]

    @property
    def is_share(self) -> bool:
        return self.table.is_share

    @property
    def threshold(self) -> float | None:
        return self.at_least if self.at_least is not None else self.at_most


@dataclass(frozen=True)
class PointTable:
    """Bounds of each test point, most at risk first: of the margin of the true class, (n,) each.

    Above 0 is right, below 0 is wrong. ``reached`` are the ends that attacks reached; None where nothing
    was attacked. ``total`` counts the points of this part of the data, bounded or not. ``name`` is the row
    of each in the file, with its id; ``index`` its position in the part. ``refuted`` says which a real
    poisoned run gets wrong.
    """

    on: str
    total: int
    index: Array
    name: Array
    label: Array
    predicted: Array
    lower: Array
    nominal: Array
    upper: Array
    reached: tuple[Array, Array] | None = None
    refuted: Array | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def status(self) -> list[str]:
        """What is known of each point."""
        refuted = np.zeros(len(self), dtype=bool) if self.refuted is None else self.refuted
        known = [self.lower > 0, self.upper < 0, refuted]
        found: list[str] = np.select(known, STATES[:3], STATES[3]).tolist()
        return found


@dataclass(frozen=True)
class PredictionMap:
    """Certified intervals of the predictions of a regression, widest first, (n,) each.

    A row for each test point and output. ``loss`` is the largest loss of the point that any admissible
    poisoning can cause, over all outputs. ``reached`` and ``total`` are as in :class:`PointTable`.
    """

    on: str
    total: int
    outputs: int
    index: Array
    name: Array
    output: Array
    target: Array
    lower: Array
    nominal: Array
    upper: Array
    loss: Array
    reached: tuple[Array, Array] | None = None

    def __len__(self) -> int:
        """Test points, with all their outputs."""
        return len(self.index) // self.outputs

    @property
    def width(self) -> Array:
        found: Array = self.upper - self.lower
        return found


@dataclass(frozen=True)
class ClassRow:
    """Shares of the points of one class that are surely, nominally and possibly right."""

    name: str
    count: int
    lower: float
    nominal: float
    upper: float


@dataclass(frozen=True)
class Map:
    """A grid over two features: scores of the classes, and their leads over the others.

    Where ``lead[..., k] > 0``, every reachable model predicts class k.
    """

    names: tuple[str, str]
    x: Array
    y: Array
    scores: Array
    lead: Array
    train: tuple[Array, Array]
    test: tuple[Array, Array]


@dataclass(frozen=True)
class PlottedCurve:
    """Bounds of one question over the size of the threat, for one budget; (m,) each.

    ``size`` is the radius; the budget where no radius was swept, and then ``budget`` is None.
    """

    question: str
    budget: int | None
    size: Array
    lower: Array
    nominal: Array
    upper: Array


@dataclass(frozen=True)
class Content:
    """Everything in a result folder that a report shows."""

    folder: Path
    document: Mapping[str, Any]
    arrays: Mapping[str, Array]
    sweep: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def properties(self) -> tuple[Property, ...]:
        names = [each.name for each in fields(Property)]
        found = []
        for told in self.document["properties"]:
            given = {name: told[name] for name in names if name in told}
            # Numbers that JSON cannot hold are texts.
            for name in ("lower", "nominal", "upper", "ratio", "worst"):
                given[name] = None if given.get(name) is None else float(given[name])
            found.append(Property(**given | {"reached": _ends(given.get("reached"))}))
        return tuple(found)

    @property
    def wholes(self) -> tuple[Property, ...]:
        """The properties of all their points, without those of subgroups."""
        return tuple(p for p in self.properties if p.group is None)

    @cached_property
    def steps(self) -> Sequence[Mapping[str, Any]]:
        steps: Sequence[Mapping[str, Any]] = self.document["steps"]
        return steps

    @cached_property
    def chains(self) -> dict[str, Array]:
        """Mean width after each step, by relaxation, loosest first; NaN where it was left out."""
        names = dict.fromkeys(name for step in self.steps for name in step["chains"])
        return {
            name: np.array([float(step["chains"].get(name, "nan")) for step in self.steps])
            for name in names
        }

    @property
    def attack(self) -> Mapping[str, Any] | None:
        """What attacks on the parameters reached; None where nothing was attacked."""
        found: Mapping[str, Any] | None = self.document.get("attack")
        return found

    @property
    def suspects(self) -> Mapping[str, Any] | None:
        """The samples that carry the bound, and its width by cause; None where that was not asked."""
        found: Mapping[str, Any] | None = self.document.get("suspects")
        return found

    @cached_property
    def points(self) -> PointTable | None:
        """Margins of each point; None for a regression."""
        if "points/predicted" not in self.arrays or "outputs/lower" in self.arrays:
            return None
        order = np.argsort(self.arrays["points/lower"], kind="stable")
        columns = {
            name: self.arrays[f"points/{name}"][order]
            for name in ("index", "label", "predicted", "lower", "nominal", "upper")
        }
        return PointTable(
            on=str(self.arrays["points/on"]),
            total=int(self.arrays["points/total"]),
            name=self._names[order],
            **columns,
            reached=self._reached("points", order),
            refuted=self.arrays["points/refuted"][order]
            if "points/refuted" in self.arrays
            else None,
        )

    @cached_property
    def predictions(self) -> PredictionMap | None:
        """Predictions at each point; None for a classifier."""
        if "outputs/lower" not in self.arrays:
            return None
        ends = {n: self.arrays[f"outputs/{n}"].ravel() for n in ("lower", "nominal", "upper")}
        count, outputs = self.arrays["outputs/lower"].shape
        order = np.argsort(ends["lower"] - ends["upper"], kind="stable")
        return PredictionMap(
            on=str(self.arrays["points/on"]),
            total=int(self.arrays["points/total"]),
            outputs=outputs,
            index=np.repeat(self.arrays["points/index"], outputs)[order],
            name=np.repeat(self._names, outputs)[order],
            output=np.tile(np.arange(outputs), count)[order],
            target=self.arrays["points/label"].ravel()[order],
            lower=ends["lower"][order],
            nominal=ends["nominal"][order],
            upper=ends["upper"][order],
            loss=np.repeat(self.arrays["points/upper"], outputs)[order],
            reached=self._reached("outputs", order),
        )

    @property
    def _names(self) -> Array:
        """What each point is called: its row, and its id where it has one."""
        rows = self.arrays.get("points/row", self.arrays["points/index"])
        ids = self.arrays.get("points/id", np.full(len(rows), ""))
        return np.array([f"{r} ({i})" if i else f"{r}" for r, i in zip(rows, ids, strict=True)])

    def _reached(self, of: str, order: Array) -> tuple[Array, Array] | None:
        if f"{of}/reached_lower" not in self.arrays:
            return None
        low, high = (self.arrays[f"{of}/reached_{end}"] for end in ("lower", "upper"))
        return low.ravel()[order], high.ravel()[order]

    @cached_property
    def classes(self) -> tuple[ClassRow, ...]:
        points = self.points
        if points is None:
            return ()
        rows = []
        for label in np.unique(points.label):
            own = points.label == label
            rows.append(
                ClassRow(
                    name=str(label),
                    count=int(own.sum()),
                    lower=float((points.lower[own] > 0).mean()),
                    nominal=float((points.nominal[own] > 0).mean()),
                    upper=float((~(points.upper[own] < 0)).mean()),
                )
            )
        return tuple(rows)

    @cached_property
    def map(self) -> Map | None:
        if "map/x" not in self.arrays:
            return None
        first, second = self.arrays["map/names"].tolist()
        return Map(
            names=(first, second),
            x=self.arrays["map/x"],
            y=self.arrays["map/y"],
            scores=self.arrays["map/scores"],
            lead=self.arrays["map/lower"],
            train=(self.arrays["train/x"], self.arrays["train/label"]),
            test=(self.arrays["test/x"], self.arrays["test/label"]),
        )

    @cached_property
    def curves(self) -> tuple[PlottedCurve, ...]:
        """The rows of the sweep, by question and budget."""
        groups: dict[tuple[str, int | None], list[tuple[float, ...]]] = {}
        for row in self.sweep:
            by_radius = row["radius"] is not None
            size = float(row["radius"] if by_radius else row["budget"])
            key = (row["question"], row["budget"] if by_radius else None)
            ends = (float(row[end]) for end in ("lower", "nominal", "upper"))
            groups.setdefault(key, []).append((size, *ends))
        return tuple(
            PlottedCurve(question, budget, *np.array(sorted(rows)).T)
            for (question, budget), rows in groups.items()
        )

    @property
    def pictures(self) -> Array | None:
        return self.arrays.get("pictures")


def _sweep(asked: str, path: Path, result: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The rows of a sweep of curves; none where there is no such file, or one of another kind.

    Raises:
        InvalidInputError: a sweep of another run file, or of other data, than the result.
    """
    if not path.exists():
        return ()
    document = json.loads(path.read_bytes())
    known = result.get("sha256", {})
    for part, digest in document.get("sha256", {}).items():
        if known.get(part, digest) != digest:
            raise InvalidInputError(
                asked,
                f"{path.name} of another run than result.json: the hash of its {part} differs",
                f"certify and sweep the same run file, or move {path.name} elsewhere",
            )
    rows = document["rows"]
    return [row for row in rows if {"question", "budget", "radius", "lower", "upper"} <= set(row)]


def _ends(found: Sequence[float] | None) -> tuple[float, float] | None:
    return None if found is None else (float(found[0]), float(found[1]))


def read(folder: Path) -> Content:
    """The content of a result folder.

    Raises:
        InvalidInputError: no result.json, or files that cannot be read.
    """
    asked = f"Make a report of {folder}"
    path = folder / "result.json"
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or not {"steps", "properties"} <= set(document):
            raise ValueError("not a result of milp-agt certify")
        sweep = _sweep(asked, folder / "sweep.json", document)
        return Content(folder, document, evidence.load(folder), sweep)
    except InvalidInputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInputError(
            asked, f"no {path.name} there", "run milp-agt certify RUN.toml --out DIR first"
        ) from None
    except DAMAGE as error:
        raise InvalidInputError(
            asked, f"files that cannot be read ({error})", "certify the run again"
        ) from None
