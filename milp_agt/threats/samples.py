"""Threats that change features, labels, or both, with one budget or two, and threats to whole samples."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from milp_agt.core.option_table import KIND, Index, Key, table_of
from milp_agt.errors import InvalidThreatModelError
from milp_agt.formulations.loss import LossFunction
from milp_agt.threats.features import FeatureMoves
from milp_agt.threats.labels import LabelMoves, LabelNorm, LabelRadius, Target
from milp_agt.threats.poison import Poison, Quota, Whole
from milp_agt.threats.threat_model import (
    SCOPE,
    STATIC,
    THREATS,
    Budgeted,
    Chosen,
    ChosenTable,
    FeatureTable,
    ThreatTable,
    Timed,
    threat_kind,
)
from milp_agt.threats.units import RadiusIn, Units


@threat_kind("features", "Features of some samples are moved.", FeatureTable)
@dataclass(frozen=True)
class FeaturePoisoning(FeatureMoves, Timed):
    """Up to ``budget`` samples have their features moved.

    Samples of plain arrays are named by position, columns by position in the flattened sample. If
    features have different radii, the norms 1 and 2 are those of ``move / radius``. Categories change
    regardless of the radius; a missing value need not lie in the domain. ``rows`` is (A, b) with
    A (rows, size), b (rows,) or (N, rows), >= 0.
    """

    @property
    def touches(self) -> tuple[str, ...]:
        return ("features",)

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        poison = self._poison(features, labels)
        moves, domain = self._moves(features, poison.open)
        return replace(poison, feature_moves=moves, domain=domain)

    def describe(self) -> str:
        return f"the features of {self._who} {self._moved}, {self._when}"


@threat_kind("labels", "Labels of some samples flip, or targets move.", ChosenTable)
@dataclass(frozen=True)
class LabelPoisoning(Timed):
    """Up to ``budget`` samples have other labels."""

    radius: LabelRadius = None
    _: KW_ONLY
    radius_in: RadiusIn = "model"
    norm: LabelNorm = "inf"
    target: Target = None

    @property
    def touches(self) -> tuple[str, ...]:
        return ("targets",)

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        poison = self._poison(features, labels)
        return replace(poison, label_moves=self._changes.bind(labels, loss, poison.open))

    def describe(self) -> str:
        return f"the labels of {self._who} {self._changes.describe()}, {self._when}"

    @property
    def _changes(self) -> LabelMoves:
        units = Units(type(self).__name__, self.radius_in, self.origin, "targets")
        return LabelMoves(self.radius, self.norm, self.target, units)


@threat_kind("both", "Features and labels of the same samples are changed.", FeatureTable)
@dataclass(frozen=True)
class FeatureLabelPoisoning(FeatureMoves, Timed):
    """Up to ``budget`` samples have both their features and their labels changed.

    As in :class:`FeaturePoisoning` and :class:`LabelPoisoning`.
    """

    label_radius: LabelRadius = None
    _: KW_ONLY
    label_norm: LabelNorm = "inf"
    target: Target = None

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        poison = self._poison(features, labels)
        moves, domain = self._moves(features, poison.open)
        changes = self._changes.bind(labels, loss, poison.open)
        return replace(poison, feature_moves=moves, label_moves=changes, domain=domain)

    def describe(self) -> str:
        changes = self._changes.describe()
        return (
            f"the features of {self._who} {self._moved}, and their labels {changes}, {self._when}"
        )

    @property
    def _changes(self) -> LabelMoves:
        units = Units(type(self).__name__, self.radius_in, self.origin, "targets")
        return LabelMoves(self.label_radius, self.label_norm, self.target, units)


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
        return ("features",) * bool(self.features.budget) + ("targets",) * bool(self.labels.budget)

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
            moved, label_moves=flipped.label_moves, label_quota=Quota(flipped.open, flipped.budget)
        )

    def describe(self) -> str:
        x, y = self.features, self.labels
        return (
            f"the features of {x._who} {x._moved}, and, chosen apart from them, the labels "
            f"of {y._who} {y._changes.describe()}, {x._when}"
        )


_BOTH = ("static", "scope")
_Features = table_of(FeaturePoisoning, FeatureTable, "The moves of features.", without=_BOTH)
_Labels = table_of(
    LabelPoisoning,
    ChosenTable,
    "Flips of a class, or moves of the targets of a regression.",
    without=_BOTH,
)


@THREATS.register
class SeparateTable(ThreatTable):
    """Features of some samples and labels of others, or of the same ones, each with a budget."""

    made_of: ClassVar[Any] = SeparatePoisoning
    kind: Literal["separate"] = Field(description=KIND)
    features: _Features = Field(  # type: ignore[valid-type]
        description="What may be done to features, and to how many."
    )
    labels: _Labels = Field(  # type: ignore[valid-type]
        description="What may be done to labels, and to how many."
    )
    static: bool = Field(default=True, description=STATIC.means)
    scope: Literal["dataset", "batch"] = Field(default="dataset", description=SCOPE.means)

    def resolved(self, labels: npt.NDArray[Any]) -> Self:
        parts: dict[str, Any] = {"features": self.features, "labels": self.labels}
        return self.model_copy(update={n: part.resolved(labels) for n, part in parts.items()})

    def build(self) -> SeparatePoisoning:
        parts: tuple[Any, Any] = (self.features, self.labels)
        features, labels = (
            part.made_of(**part.arguments(), static=self.static, scope=self.scope) for part in parts
        )
        return SeparatePoisoning(features, labels)


@threat_kind(
    "substitution", "Samples give way to any others; needs `clip` in [training].", ChosenTable
)
@dataclass(frozen=True)
class Substitution(Timed):
    """Up to ``budget`` samples are replaced by others with any features and labels (unbounded adversary).

    Needs ``clip=`` in the training: new samples are only assumed to have finite gradients, which
    clipping bounds.
    """

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        return self._poison(features, labels, whole=Whole.SUBSTITUTED)

    def describe(self) -> str:
        return (
            f"{self._who} replaced by samples of any features and labels whose gradients are finite, "
            f"{self._when}"
        )


@threat_kind(
    "removal",
    "Training without some of the samples, taken out once, before it begins.",
    ChosenTable,
)
@dataclass(frozen=True)
class Removal(Chosen):
    """Up to ``budget`` samples are removed from the data set, once, before training.

    The result bounds how far the parameters can be from those trained without any j <= budget of
    the samples; with ``selections="enumerated"``, for each such run: a certificate for unlearning. The
    mean of the gradients is over the remaining samples, which stay in their batches; a batch that loses
    all its samples skips its step (no update, no momentum, no decay). Needs no clipping, but the
    gradient of every sample, n times the parameters.
    """

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        own, batch = self._mask(len(features)), self.scope == "batch"
        return Poison(features, labels, own, int(self.budget), True, batch, whole=Whole.REMOVED)

    def describe(self) -> str:
        return (
            f"{self._who} removed, once, before training; the mean is that over the samples left in a "
            "batch, the others keep their batches, and a batch without samples skips its step"
        )


@threat_kind(
    "insertion", "Further samples of any kind join every batch; needs `clip` in [training]."
)
@dataclass(frozen=True)
class Insertion(Budgeted):
    """Up to ``budget`` further samples, with any features and labels, join every batch.

    They may differ from step to step, so this covers ``budget`` samples added to the data set, in batches
    of the adversary's choice. The mean of the gradients is over the enlarged batch.
    Needs ``clip=`` in the training, as :class:`Substitution` does.

    Attributes:
        budget: samples that join every batch, at most.
    """

    budget: Annotated[int, Key(Index)]

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        none, budget = torch.zeros(len(features), dtype=torch.bool), self._check_budget()
        return Poison(features, labels, none, budget, False, True, whole=Whole.INSERTED)

    def describe(self) -> str:
        return (
            f"up to {self.budget} further sample{'s' if self.budget != 1 else ''} of any features and "
            "labels whose gradients are finite join each batch, anew in every step; the mean is that "
            "over the larger batch"
        )
