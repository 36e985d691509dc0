"""Threats that change samples: features, labels, or both, with one budget or with two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from milp_agt.errors import InvalidThreatModelError
from milp_agt.formulations.loss import LossFunction
from milp_agt.threats.checks import Numbers, Radius, Rows
from milp_agt.threats.features import FeatureMoves
from milp_agt.threats.labels import LabelMoves
from milp_agt.threats.poison import Poison, Quota
from milp_agt.threats.threat_model import Budgeted, times_in_words
from milp_agt.threats.units import Units


@dataclass(frozen=True)
class FeaturePoisoning(Budgeted):
    """Up to ``budget`` samples have their features moved.

    Columns are positions in the flattened sample.

    Attributes:
        budget: number of samples.
        radius: largest move: one number, one for each feature (*shape), for each sample (N,), or
            for both (N, *shape). If features have different radii, the norms 1 and 2 are those of
            ``move / radius``, at most 1. May be ``inf`` with a domain, in the norms inf and 0.
        norm: "inf" (each feature within its radius), 2, 1, or 0: at most ``coordinates`` features
            move, each within its radius.
        samples: the samples that can be poisoned, by position in the arrays; by row of the file where a
            data set is certified. None for all.
        static: True if the data are poisoned once, before training; False for a new perturbation
            in every step (adaptive).
        scope: "dataset", one poisoned set for the whole run, or "batch", up to ``budget`` samples of
            each batch (all of a smaller batch).
        coordinates: for the norm 0; a categorical group counts as one.
        domain: (lowest, highest) value, numbers or arrays (*shape); poisoned features stay inside.
        integer: columns that move by whole numbers. Linear bounds are exact for the norms inf and 0;
            for 1 and 2 they ignore this condition, which is sound.
        categorical: groups of one-hot columns; each may change to any other category, regardless of
            the radius (and of the norms 1 and 2, which count only the other columns).
        missing: the value that training sees for a missing entry: the adversary may blank any entry,
            which then has this value (it need not lie in the domain). One value for all numeric
            columns, or a mapping from columns to values. Norms inf and 0 only. NaN in the data
            themselves is refused.
        rows: (A, b) with further conditions ``A @ move <= b`` for each sample, A (rows, size), b
            (rows,) or (N, rows), >= 0. Kept by ``lp`` and ``milp``; the other relaxations bound the
            larger threat without them, and the result says so.
        radius_in: "model", the numbers that training sees, or "raw", those of the user's file: the radius,
            and with it domain and missing, goes through the scaler of the data set (only where certify
            is given one).
    """

    radius: Radius
    norm: str | float = "inf"
    samples: Sequence[int] | None = None
    static: bool = True
    scope: str = "dataset"
    coordinates: int | None = None
    domain: tuple[Numbers, Numbers] | None = None
    integer: Sequence[int] = ()
    categorical: Sequence[Sequence[int]] = ()
    missing: float | Mapping[int, float] | None = None
    rows: Rows | None = None
    radius_in: str = field(default="model", kw_only=True)

    @property
    def touches(self) -> tuple[str, ...]:
        return ("features",)

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        mask = self._mask(self.scope, len(features))
        moves, domain = self._moves().bind(features, mask)
        return Poison(
            features=features,
            labels=labels,
            open=mask,
            budget=int(self.budget),
            static=self.static,
            per_batch=self.scope == "batch",
            feature_moves=moves,
            domain=domain,
        )

    def describe(self) -> str:
        who = self._who(self.scope)
        return f"the features of {who} {self._moves().describe()}, {times_in_words(self.static)}"

    def _moves(self) -> FeatureMoves:
        return _feature_moves(self)


@dataclass(frozen=True)
class LabelPoisoning(Budgeted):
    """Up to ``budget`` samples have other labels.

    Attributes:
        budget: number of samples.
        radius: None for classification; for regression the largest move of the targets: one number,
            one for each output, for each sample (N,), or for both (N, outputs).
        samples, static, scope: as in :class:`FeaturePoisoning`.
        norm: for regression, over the outputs of one sample: "inf", 2 or 1.
        target: for classification, the class or classes that labels may flip to; None for any.
        radius_in: as in :class:`FeaturePoisoning`, of the targets of a regression.
    """

    radius: Radius | None = None
    samples: Sequence[int] | None = None
    static: bool = True
    scope: str = "dataset"
    norm: str | float = "inf"
    target: int | Sequence[int] | None = None
    radius_in: str = field(default="model", kw_only=True)

    @property
    def touches(self) -> tuple[str, ...]:
        return ("targets",)

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        mask = self._mask(self.scope, len(features))
        return Poison(
            features=features,
            labels=labels,
            open=mask,
            budget=int(self.budget),
            static=self.static,
            per_batch=self.scope == "batch",
            label_moves=self._moves().bind(labels, loss, mask),
        )

    def describe(self) -> str:
        who = self._who(self.scope)
        return f"the labels of {who} {self._moves().describe()}, {times_in_words(self.static)}"

    def _moves(self) -> LabelMoves:
        return _label_moves(self, self.radius, self.norm)


@dataclass(frozen=True)
class FeatureLabelPoisoning(Budgeted):
    """Up to ``budget`` samples have both their features and their labels changed.

    Attributes:
        budget: number of samples.
        radius, norm, coordinates, domain, integer, categorical, missing, rows: of feature moves, as in
            :class:`FeaturePoisoning`.
        label_radius, label_norm, target: of label changes: radius, norm and target of
            :class:`LabelPoisoning`.
        samples, static, scope: as in :class:`FeaturePoisoning`.
        radius_in: as in :class:`FeaturePoisoning`, of both radii.
    """

    radius: Radius
    label_radius: Radius | None = None
    norm: str | float = "inf"
    samples: Sequence[int] | None = None
    static: bool = True
    scope: str = "dataset"
    coordinates: int | None = None
    domain: tuple[Numbers, Numbers] | None = None
    integer: Sequence[int] = ()
    categorical: Sequence[Sequence[int]] = ()
    missing: float | Mapping[int, float] | None = None
    rows: Rows | None = None
    label_norm: str | float = "inf"
    target: int | Sequence[int] | None = None
    radius_in: str = field(default="model", kw_only=True)

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        mask = self._mask(self.scope, len(features))
        moves, domain = self._feature_moves().bind(features, mask)
        return Poison(
            features=features,
            labels=labels,
            open=mask,
            budget=int(self.budget),
            static=self.static,
            per_batch=self.scope == "batch",
            feature_moves=moves,
            label_moves=self._label_moves().bind(labels, loss, mask),
            domain=domain,
        )

    def describe(self) -> str:
        return (
            f"the features of {self._who(self.scope)} "
            f"{self._feature_moves().describe()}, and their labels "
            f"{self._label_moves().describe()}, {times_in_words(self.static)}"
        )

    def _feature_moves(self) -> FeatureMoves:
        return _feature_moves(self)

    def _label_moves(self) -> LabelMoves:
        return _label_moves(self, self.label_radius, self.label_norm)


def _feature_moves(threat: FeaturePoisoning | FeatureLabelPoisoning) -> FeatureMoves:
    return FeatureMoves(
        type(threat).__name__,
        threat.radius,
        threat.norm,
        threat.coordinates,
        threat.domain,
        threat.integer,
        threat.categorical,
        threat.missing,
        threat.rows,
        Units(type(threat).__name__, threat.radius_in, threat.origin, "features"),
    )


def _label_moves(
    threat: LabelPoisoning | FeatureLabelPoisoning, radius: Radius | None, norm: str | float
) -> LabelMoves:
    name = type(threat).__name__
    units = Units(name, threat.radius_in, threat.origin, "targets")
    return LabelMoves(name, radius, norm, threat.target, units)


@dataclass(frozen=True)
class SeparatePoisoning:
    """Features of some samples and labels of others, or of the same ones, with separate budgets.

    Up to ``features.budget`` samples have their features moved and up to ``labels.budget`` their labels
    changed. It includes :class:`FeatureLabelPoisoning` with the smaller of the two budgets, and each of
    its two parts; with one budget 0 it equals the other part.

    Attributes:
        features, labels: the two parts, each with its own ``samples``. ``static`` and ``scope`` must be
            the same.

    Raises:
        InvalidThreatModelError: parts of other types, or with different ``static`` or ``scope``.
    """

    features: FeaturePoisoning
    labels: LabelPoisoning

    def __post_init__(self) -> None:
        for name, kind in (("features", FeaturePoisoning), ("labels", LabelPoisoning)):
            if not isinstance(getattr(self, name), kind):
                raise InvalidThreatModelError(
                    f"SeparatePoisoning needs {kind.__name__} for its {name}",
                    f"{name} = {getattr(self, name)!r}",
                    f"give {name}={kind.__name__}(budget=...)",
                )
        for name in ("static", "scope"):
            x, y = getattr(self.features, name), getattr(self.labels, name)
            if x != y:
                raise InvalidThreatModelError(
                    f"SeparatePoisoning needs the same {name} for features and labels",
                    f"{name} = {x!r} for features and {y!r} for labels",
                    f"set {name} alike in both",
                )

    @property
    def touches(self) -> tuple[str, ...]:
        """What of the training data the adversary may change."""
        parts = {"features": self.features.budget, "targets": self.labels.budget}
        return tuple(name for name, budget in parts.items() if budget)

    @property
    def budget(self) -> int:
        """The most samples that can be poisoned in some way."""
        return self.features.budget + self.labels.budget

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        moved = self.features.bind(features, labels, loss)
        flipped = self.labels.bind(features, labels, loss)
        if flipped.is_clean:
            return moved
        if moved.is_clean:
            return flipped
        return replace(
            moved,
            label_moves=flipped.label_moves,
            label_quota=Quota(flipped.open, flipped.budget),
        )

    def describe(self) -> str:
        x, y = self.features, self.labels
        moved, flipped = (p._who(p.scope) for p in (x, y))
        return (
            f"the features of {moved} {x._moves().describe()}, and, chosen apart from them, the labels "
            f"of {flipped} {y._moves().describe()}, {times_in_words(x.static)}"
        )
