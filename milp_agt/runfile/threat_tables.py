"""[threat] of a RUN.toml: what the adversary may change, and how often."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from milp_agt.core.option_table import KIND, WRONG, Count, Index, NonNegative, Table
from milp_agt.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from milp_agt.threats import FeaturePoisoning, LabelPoisoning, ThreatModel
    from milp_agt.threats.checks import Numbers, Rows

# Infinite only under a domain, which the threat model checks.
Length = Annotated[float, Field(ge=0, allow_inf_nan=True)]
Radius = Length | list[Length] | list[list[Length]]
Ends = float | list[float]
AnyNorm = Literal["inf", "2", "1", "0", 2, 1, 0]
LabelRadius = Annotated[
    Radius | None,
    Field(
        description="For a regression, the largest move of the targets: one number, one for each output, "
        "for each sample, or for both; leave it out for classes, whose labels flip."
    ),
]
RadiusIn = Annotated[
    Literal["model", "raw"],
    Field(
        description="The units of every radius, and of `domain` and `missing`: those that training sees "
        "(standard deviations, if [data] standardises), or `raw`, those of the file."
    ),
]
LabelNorm = Annotated[
    Literal["inf", "2", "1", 2, 1],
    Field(description="For a regression, the norm of a move over the outputs of one sample."),
]
Target = Annotated[
    Index | Annotated[list[Index], Field(min_length=1)] | None,
    Field(description="Class, or classes, that labels may flip to; any unless given."),
]

Static = Annotated[
    bool,
    Field(
        description="`true`: the data are poisoned once, before training; `false`: anew in every step."
    ),
]
Scope = Annotated[
    Literal["dataset", "batch"],
    Field(
        description="`dataset`: one choice of samples for the whole run; `batch`: one for every batch, "
        "each within the budget."
    ),
]


class _Budgeted(Table):
    """``samples``, ``ids``, ``positions`` or ``classes`` are those not trusted (default: all)."""

    budget: Index = Field(description="Training samples that the adversary may choose, at most.")
    samples: Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None,
        description="The training samples that may be chosen, by their rows in the file: from 0, below the "
        "header; all unless given.",
    )
    ids: Annotated[list[str | int], Field(min_length=1)] | None = Field(
        default=None,
        description="The same by who they are, in place of `samples`: what stands in the column `id` of "
        "[data].",
    )
    positions: Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None,
        description="The same by position in the training part after the split, in place of `samples`.",
    )
    classes: Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None,
        description="The classes whose training samples may be chosen, in place of `samples`.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        ways = ("samples", "ids", "positions", "classes")
        named = [f"'{way}'" for way in ways if given.get(way) is not None]
        if len(named) > 1:
            yield " and ".join(named), "name the untrusted ones by one of them"

    def chosen(self) -> dict[str, Any]:
        """The arguments of a threat that say which samples may be chosen."""
        return {"samples": self.samples, "ids": self.ids, "positions": self.positions}

    def resolved(self, labels: npt.NDArray[Any]) -> Self:
        """The same table with the samples of its ``classes`` by their positions.

        Raises:
            ConfigurationError: a class without samples, or targets that are no classes.
        """
        if self.classes is None:
            return self
        known = np.unique(labels).tolist() if labels.dtype == np.int64 else []
        absent = [c for c in self.classes if c not in known]
        if absent:
            raise ConfigurationError(
                f"Threat with classes = {self.classes}",
                f"no training sample of class {absent[0]}"
                if known
                else "targets that are real numbers",
                f"name classes among {known}" if known else "give samples = [...] instead",
            )
        chosen = np.flatnonzero(np.isin(labels, self.classes)).tolist()
        return self.model_copy(update={"positions": chosen, "classes": None})


class _ThreatTable(_Budgeted):
    static: Static = True
    scope: Scope = "dataset"


class _FeatureTable(_Budgeted):
    """The moves of features."""

    radius: Radius = Field(
        description="Largest move: one number, one for each feature, for each sample, or for both; `inf` "
        "only with a `domain` and the norms inf and 0."
    )
    radius_in: RadiusIn = "model"
    norm: AnyNorm = Field(
        default="inf",
        description="Each feature within its radius (inf), `move / radius` at most 1 in the norm 1 or 2, "
        "or at most `coordinates` features that move (0).",
    )
    coordinates: Count | None = Field(
        default=None,
        description="Features of a sample that may move, for the norm 0 alone, which needs it; a "
        "categorical group counts as one.",
    )
    domain: Annotated[list[Ends], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="Lowest and highest value, each one number or one for each feature, inside which "
        "poisoned features stay.",
    )
    integer: list[Index] | None = Field(
        default=None, description="Columns that move by whole numbers only."
    )
    categorical: list[list[Index]] | None = Field(
        default=None,
        description="Groups of one-hot columns, each of which may change to any other category.",
    )
    missing: float | dict[str, float] | None = Field(
        default=None,
        description="The value that training reads where an entry is missing, or `{ column = value }`: "
        "the adversary may blank entries (norms inf and 0).",
    )
    rows: Annotated[list[list[float]], Field(min_length=1)] | None = Field(
        default=None,
        description="The matrix A of further conditions `A @ move <= b`, with `row_limits`; kept by `lp` "
        "and above, left out by the others, as the result then says.",
    )
    row_limits: list[NonNegative] | list[list[NonNegative]] | None = Field(
        default=None,
        description="The limits b of `rows`: one for each row, or for each sample and row.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        if ("rows" in given) != ("row_limits" in given):
            lone = "rows" if "rows" in given else "row_limits"
            yield f"'{lone}' alone", "give rows = [[...], ...] and row_limits = [...] together"
        norm, coordinates = given.get("norm", "inf"), given.get("coordinates")
        if WRONG not in (norm, coordinates) and (norm in ("0", 0)) != (coordinates is not None):
            yield (
                f"norm = {norm!r} with coordinates = {coordinates}",
                "norm = 0 needs coordinates, the count of features that may move; others have none",
            )
        missing = given.get("missing")
        if isinstance(missing, dict) and not all(key.isdecimal() for key in missing):
            yield f"missing = {missing}", "missing should be a value, or { column = value }"

    @property
    def ends(self) -> tuple[Numbers, Numbers] | None:
        return None if self.domain is None else (self.domain[0], self.domain[1])

    @property
    def fills(self) -> float | dict[int, float] | None:
        if isinstance(self.missing, dict):
            return {int(column): value for column, value in self.missing.items()}
        return self.missing

    @property
    def halfspaces(self) -> Rows | None:
        if self.rows is None or self.row_limits is None:
            return None
        return self.rows, self.row_limits  # type: ignore[return-value]

    def of_features(self, static: bool, scope: Scope) -> FeaturePoisoning:
        from milp_agt.threats import FeaturePoisoning

        return FeaturePoisoning(
            budget=self.budget,
            radius=self.radius,
            norm=self.norm,
            **self.chosen(),
            static=static,
            scope=scope,
            coordinates=self.coordinates,
            domain=self.ends,
            integer=self.integer or (),
            categorical=self.categorical or (),
            missing=self.fills,
            rows=self.halfspaces,
            radius_in=self.radius_in,
        )


class _LabelTable(_Budgeted):
    """Flips of a class, or moves of the targets of a regression."""

    radius: LabelRadius = None
    radius_in: RadiusIn = "model"
    norm: LabelNorm = "inf"
    target: Target = None

    def of_labels(self, static: bool, scope: Scope) -> LabelPoisoning:
        from milp_agt.threats import LabelPoisoning

        return LabelPoisoning(
            budget=self.budget,
            radius=self.radius,
            **self.chosen(),
            static=static,
            scope=scope,
            norm=self.norm,
            target=self.target,
            radius_in=self.radius_in,
        )


class FeatureThreatTable(_FeatureTable, _ThreatTable):
    """Features of some samples are moved."""

    kind: Literal["features"] = Field(description=KIND)

    def build(self) -> ThreatModel:
        return self.of_features(self.static, self.scope)


class LabelThreatTable(_LabelTable, _ThreatTable):
    """Labels of some samples flip, or targets move."""

    kind: Literal["labels"] = Field(description=KIND)

    def build(self) -> ThreatModel:
        return self.of_labels(self.static, self.scope)


class SeparateThreatTable(Table):
    """Features of some samples and labels of others, or of the same ones, each with a budget."""

    kind: Literal["separate"] = Field(description=KIND)
    features: _FeatureTable = Field(description="What may be done to features, and to how many.")
    labels: _LabelTable = Field(description="What may be done to labels, and to how many.")
    static: Static = True
    scope: Scope = "dataset"

    def resolved(self, labels: npt.NDArray[Any]) -> Self:
        parts = {"features": self.features.resolved(labels), "labels": self.labels.resolved(labels)}
        return self.model_copy(update=parts)

    def build(self) -> ThreatModel:
        from milp_agt.threats import SeparatePoisoning

        return SeparatePoisoning(
            self.features.of_features(self.static, self.scope),
            self.labels.of_labels(self.static, self.scope),
        )


class FeatureLabelThreatTable(_FeatureTable, _ThreatTable):
    """Features and labels of the same samples are changed."""

    kind: Literal["both"] = Field(description=KIND)
    label_radius: LabelRadius = None
    label_norm: LabelNorm = "inf"
    target: Target = None

    def build(self) -> ThreatModel:
        from milp_agt.threats import FeatureLabelPoisoning

        return FeatureLabelPoisoning(
            budget=self.budget,
            radius=self.radius,
            label_radius=self.label_radius,
            norm=self.norm,
            **self.chosen(),
            static=self.static,
            scope=self.scope,
            coordinates=self.coordinates,
            domain=self.ends,
            integer=self.integer or (),
            categorical=self.categorical or (),
            missing=self.fills,
            rows=self.halfspaces,
            radius_in=self.radius_in,
            label_norm=self.label_norm,
            target=self.target,
        )


class SubstitutionTable(_ThreatTable):
    """Samples give way to any others; needs `clip` in [training]."""

    kind: Literal["substitution"] = Field(description=KIND)

    def build(self) -> ThreatModel:
        from milp_agt.threats import Substitution

        return Substitution(self.budget, static=self.static, scope=self.scope, **self.chosen())


class RemovalTable(_Budgeted):
    """Training without some of the samples, taken out once, before it begins."""

    kind: Literal["removal"] = Field(description=KIND)
    scope: Scope = "dataset"

    def build(self) -> ThreatModel:
        from milp_agt.threats import Removal

        return Removal(self.budget, scope=self.scope, **self.chosen())


class InsertionTable(Table):
    """Further samples of any kind join every batch; needs `clip` in [training]."""

    kind: Literal["insertion"] = Field(description=KIND)
    budget: Index = Field(description="Samples that join every batch, at most.")

    def resolved(self, labels: npt.NDArray[Any]) -> Self:
        return self  # whoever inserts samples touches none of the data set

    def build(self) -> ThreatModel:
        from milp_agt.threats import Insertion

        return Insertion(self.budget)


ThreatTable = Annotated[
    FeatureThreatTable
    | LabelThreatTable
    | FeatureLabelThreatTable
    | SeparateThreatTable
    | SubstitutionTable
    | RemovalTable
    | InsertionTable,
    Field(discriminator="kind"),
]
THREAT_TABLES: dict[str, type[Table]] = {
    "features": FeatureThreatTable,
    "labels": LabelThreatTable,
    "both": FeatureLabelThreatTable,
    "separate": SeparateThreatTable,
    "separate.features": _FeatureTable,
    "separate.labels": _LabelTable,
    "substitution": SubstitutionTable,
    "removal": RemovalTable,
    "insertion": InsertionTable,
}
