"""[threat] of a RUN.toml: what the adversary may change, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from milp_agt.config_table import Count, Index, NonNegative, Table, problem

if TYPE_CHECKING:
    from milp_agt.perturbation import Numbers, Rows
    from milp_agt.threats import FeaturePoisoning, LabelPoisoning, ThreatModel

# Infinite only under a domain, which the threat model checks.
Length = Annotated[float, Field(ge=0, allow_inf_nan=True)]
Radius = Length | list[Length] | list[list[Length]]
Ends = float | list[float]
AnyNorm = Literal["inf", "2", "1", "0", 2, 1, 0]
LabelNorm = Literal["inf", "2", "1", 2, 1]
Target = Index | Annotated[list[Index], Field(min_length=1)]


Scope = Literal["dataset", "batch"]


class _Budgeted(Table):
    budget: Index
    samples: Annotated[list[Index], Field(min_length=1)] | None = None


class _ThreatTable(_Budgeted):
    static: bool = True
    scope: Scope = "dataset"


class _FeatureTable(_Budgeted):
    """The moves of features: ``rows`` and ``row_limits`` are A and b of ``A @ move <= b``."""

    radius: Radius
    norm: AnyNorm = "inf"
    coordinates: Count | None = None
    domain: Annotated[list[Ends], Field(min_length=2, max_length=2)] | None = None
    integer: list[Index] | None = None
    categorical: list[list[Index]] | None = None
    missing: float | dict[str, float] | None = None
    rows: Annotated[list[list[float]], Field(min_length=1)] | None = None
    row_limits: list[NonNegative] | list[list[NonNegative]] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.rows is None) != (self.row_limits is None):
            lone = "rows" if self.row_limits is None else "row_limits"
            raise problem(
                f"'{lone}' alone", "give rows = [[...], ...] and row_limits = [...] together"
            )
        if (self.norm in ("0", 0)) != (self.coordinates is not None):
            raise problem(
                f"norm = {self.norm!r} with coordinates = {self.coordinates}",
                "norm = 0 needs coordinates, the count of features that may move; others have none",
            )
        if isinstance(self.missing, dict) and not all(key.isdecimal() for key in self.missing):
            raise problem(
                f"missing = {self.missing}", "missing should be a value, or { column = value }"
            )
        return self

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
            samples=self.samples,
            static=static,
            scope=scope,
            coordinates=self.coordinates,
            domain=self.ends,
            integer=self.integer or (),
            categorical=self.categorical or (),
            missing=self.fills,
            rows=self.halfspaces,
        )


class _LabelTable(_Budgeted):
    """Flips of a class, or moves of at most ``radius``."""

    radius: Radius | None = None
    norm: LabelNorm = "inf"
    target: Target | None = None

    def of_labels(self, static: bool, scope: Scope) -> LabelPoisoning:
        from milp_agt.threats import LabelPoisoning

        return LabelPoisoning(
            budget=self.budget,
            radius=self.radius,
            samples=self.samples,
            static=static,
            scope=scope,
            norm=self.norm,
            target=self.target,
        )


class FeatureThreatTable(_FeatureTable, _ThreatTable):
    """[threat] kind = "features"."""

    kind: Literal["features"]

    def build(self) -> ThreatModel:
        return self.of_features(self.static, self.scope)


class LabelThreatTable(_LabelTable, _ThreatTable):
    """[threat] kind = "labels"."""

    kind: Literal["labels"]

    def build(self) -> ThreatModel:
        return self.of_labels(self.static, self.scope)


class SeparateThreatTable(Table):
    """[threat] kind = "separate": [threat.features] and [threat.labels], each with its own budget."""

    kind: Literal["separate"]
    features: _FeatureTable
    labels: _LabelTable
    static: bool = True
    scope: Scope = "dataset"

    def build(self) -> ThreatModel:
        from milp_agt.threats import SeparatePoisoning

        return SeparatePoisoning(
            self.features.of_features(self.static, self.scope),
            self.labels.of_labels(self.static, self.scope),
        )


class FeatureLabelThreatTable(_FeatureTable, _ThreatTable):
    """[threat] kind = "both": features and labels of the same samples."""

    kind: Literal["both"]
    label_radius: Radius | None = None
    label_norm: LabelNorm = "inf"
    target: Target | None = None

    def build(self) -> ThreatModel:
        from milp_agt.threats import FeatureLabelPoisoning

        return FeatureLabelPoisoning(
            budget=self.budget,
            radius=self.radius,
            label_radius=self.label_radius,
            norm=self.norm,
            samples=self.samples,
            static=self.static,
            scope=self.scope,
            coordinates=self.coordinates,
            domain=self.ends,
            integer=self.integer or (),
            categorical=self.categorical or (),
            missing=self.fills,
            rows=self.halfspaces,
            label_norm=self.label_norm,
            target=self.target,
        )


class SubstitutionTable(_ThreatTable):
    """[threat] kind = "substitution": samples give way to any others; needs clipping."""

    kind: Literal["substitution"]

    def build(self) -> ThreatModel:
        from milp_agt.threats import Substitution

        return Substitution(self.budget, self.samples, self.static, self.scope)


class RemovalTable(Table):
    """[threat] kind = "removal": training without some of the samples."""

    kind: Literal["removal"]
    budget: Index
    samples: Annotated[list[Index], Field(min_length=1)] | None = None
    scope: Scope = "dataset"

    def build(self) -> ThreatModel:
        from milp_agt.threats import Removal

        return Removal(self.budget, self.samples, self.scope)


class InsertionTable(Table):
    """[threat] kind = "insertion": further samples in every batch; needs clipping."""

    kind: Literal["insertion"]
    budget: Index

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
