"""A result folder as typed values: what the figures, the tables and the words are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from milp_agt.certification.verdicts import Verdict
from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE
from milp_agt.properties.property_table import PROPERTIES, PropertyTable
from milp_agt.reports import evidence

Array = npt.NDArray[Any]

STATES = ("surely right", "surely wrong", "refuted", "open")


@checked(frozen=True)
class Property(Verdict):
    """A verdict as ``result.json`` has it: ``witnesses`` name the files of poisoned data, and say what is in
    them."""

    witnesses: Sequence[Mapping[str, Any]] = ()  # type: ignore[assignment]
    shown: None = None

    @property
    def table(self) -> type[PropertyTable]:
        """Its kind."""
        return PROPERTIES.all()[self.kind]

    @property
    def is_share(self) -> bool:
        return self.table.is_share


@dataclass(frozen=True)
class PointTable:
    """What is certified at each test point, (n,) each; ``nominal`` is on the data as given.

    Of a classifier ``lower`` and ``upper`` bound the margin of the true class ``label``, most at risk first:
    above 0 is right, below 0 is wrong; ``refuted`` says which a real poisoned run gets wrong. Of a
    regression they bound the prediction, in a row for each output, widest first; ``label`` is the target and
    ``loss`` the largest loss of the point, over all ``outputs``, that any admissible poisoning can cause.

    ``reached`` are the ends that attacks reached; None where nothing was attacked. ``total`` counts the
    points of this part of the data, bounded or not. ``name`` is the row of each in the file, with its id;
    ``index`` its position in the part.
    """

    on: str
    total: int
    index: Array
    name: Array
    label: Array
    lower: Array
    nominal: Array
    upper: Array
    reached: tuple[Array, Array] | None
    predicted: Array | None = None
    refuted: Array | None = None
    outputs: int = 1
    output: Array | None = None
    loss: Array | None = None

    def __len__(self) -> int:
        """Test points, with all their outputs."""
        return len(self.index) // self.outputs

    @property
    def width(self) -> Array:
        found: Array = self.upper - self.lower
        return found

    @property
    def status(self) -> list[str]:
        """What is known of each point of a classifier."""
        refuted = np.zeros(len(self), dtype=bool) if self.refuted is None else self.refuted
        known = [self.lower > 0, self.upper < 0, refuted]
        found: list[str] = np.select(known, STATES[:3], STATES[3]).tolist()
        return found


class ClassRow(NamedTuple):
    """Shares of the points of one class that are surely, nominally and possibly right."""

    name: str
    points: int
    lower: float
    nominal: float
    upper: float


class Map(NamedTuple):
    """Cells over two features: scores of the classes at their centres, and leads over the others.

    ``x`` and ``y`` are the edges of the cells. Where ``lead[..., k] > 0``, every reachable model predicts
    class k everywhere in the cell.
    """

    names: Sequence[str]
    x: Array
    y: Array
    scores: Array
    lead: Array
    train: tuple[Array, Array]
    test: tuple[Array, Array]


@dataclass(frozen=True)
class Content:
    """Everything in a result folder that a report shows."""

    folder: Path
    document: Mapping[str, Any]
    arrays: Mapping[str, Array]

    @cached_property
    def properties(self) -> tuple[Property, ...]:
        """Numbers that JSON cannot hold are texts in the file."""
        known = TypeAdapter(tuple[Property, ...])
        return known.validate_python(self.document["properties"])

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
        columns: dict[str, Any] = {
            name: self.arrays[f"points/{name}"][order] for name in ("label", "predicted")
        }
        if "points/refuted" in self.arrays:
            columns["refuted"] = self.arrays["points/refuted"][order]
        return self._table("points", order, order, **columns)

    @cached_property
    def predictions(self) -> PointTable | None:
        """Predictions at each point; None for a classifier."""
        if "outputs/lower" not in self.arrays:
            return None
        lower, upper = self.arrays["outputs/lower"], self.arrays["outputs/upper"]
        order = np.argsort((lower - upper).ravel(), kind="stable")
        point, output = order // lower.shape[1], order % lower.shape[1]
        target = self.arrays["points/label"].ravel()[order]
        loss = self.arrays["points/upper"][point]
        columns = {"label": target, "outputs": lower.shape[1], "output": output, "loss": loss}
        return self._table("outputs", order, point, **columns)

    def _table(self, of: str, order: Array, point: Array, **columns: Any) -> PointTable:
        """Margins or predictions in an order; ``point`` says whose each of them is."""
        rows = self.arrays.get("points/row", self.arrays["points/index"])
        ids = self.arrays.get("points/id", np.full(len(rows), ""))
        names = [f"{r} ({i})" if i else f"{r}" for r, i in zip(rows, ids, strict=True)]
        for name in ("lower", "nominal", "upper"):
            columns[name] = self.arrays[f"{of}/{name}"].ravel()[order]
        low, high = (self.arrays.get(f"{of}/reached_{end}") for end in ("lower", "upper"))
        return PointTable(
            on=str(self.arrays["points/on"]),
            total=int(self.arrays["points/total"]),
            index=self.arrays["points/index"][point],
            name=np.array(names)[point],
            reached=None
            if low is None or high is None
            else (low.ravel()[order], high.ravel()[order]),
            **columns,
        )

    @cached_property
    def classes(self) -> tuple[ClassRow, ...]:
        points = self.points
        if points is None:
            return ()
        rows = []
        for label in np.unique(points.label):
            own = points.label == label
            right = points.lower > 0, points.nominal > 0, ~(points.upper < 0)
            shares = (float(each[own].mean()) for each in right)
            rows.append(ClassRow(str(label), int(own.sum()), *shares))
        return tuple(rows)

    @cached_property
    def map(self) -> Map | None:
        """None without one, or with bounds at points alone, as earlier versions wrote them."""
        if "map/x" not in self.arrays:
            return None
        x, y, scores, lead = (self.arrays[f"map/{n}"] for n in ("x", "y", "scores", "lower"))
        if len(x) != scores.shape[1] + 1:
            return None
        train, test = (
            (self.arrays[f"{part}/x"], self.arrays[f"{part}/label"]) for part in ("train", "test")
        )
        return Map(self.arrays["map/names"].tolist(), x, y, scores, lead, train, test)


def read(folder: Path) -> Content:
    """The content of a result folder.

    Raises:
        InvalidInputError: no result.json, or files that cannot be read.
    """
    asked = f"Make a report of {folder}"
    path = folder / "result.json"
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or not {"steps", "properties", "parameters"} <= set(
            document
        ):
            raise ValueError("not a result of milp-agt certify")
        content = Content(folder, document, evidence.load(folder))
        content.properties  # noqa: B018  (what is wrong with one is said below)
        return content
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInputError(
            asked, f"no {path.name} there", "run milp-agt certify RUN.toml --out DIR first"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(map(str, first["loc"]))
        found = f"files that cannot be read (properties {place}: {first['msg']})"
        raise InvalidInputError(asked, found, "certify the run again") from None
    except DAMAGE as error:
        raise InvalidInputError(
            asked, f"files that cannot be read ({error})", "certify the run again"
        ) from None
