"""Threat models: what the adversary may change, and how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.errors import InvalidThreatModelError, UnsupportedOperationError
from milp_agt.formulations.loss import Loss
from milp_agt.poison import Poison

Radius = float | Sequence[float] | npt.NDArray[np.float64]
SCOPES = ("dataset", "batch")


class ThreatModel(Protocol):
    """Anything that can say, for a data set, which moves each sample admits."""

    @property
    def budget(self) -> int: ...

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        """Admissible moves for encoded data: features (N, *shape), labels (N, width), float64."""
        ...

    def describe(self) -> str:
        """What the adversary may do, as a sentence of the claim."""
        ...


@dataclass(frozen=True)
class _Budgeted:
    """Common part: how many samples, which ones, when."""

    budget: int

    def _check(self, samples: Sequence[int] | None, scope: str, count: int) -> Tensor:
        """Mask of the samples that can be poisoned, (N,)."""
        name = type(self).__name__
        if not _is_whole(self.budget) or self.budget < 0:
            raise InvalidThreatModelError(
                f"{name} needs a whole budget >= 0", f"budget = {self.budget}", "give a count"
            )
        if scope not in SCOPES:
            raise InvalidThreatModelError(
                f"{name} needs a scope out of {SCOPES}", f"scope = {scope!r}", "choose one of them"
            )
        if samples is None:
            if self.budget > count:
                raise InvalidThreatModelError(
                    f"{name} may poison {self.budget} samples",
                    f"a data set of {count} samples",
                    f"choose a budget of at most {count}",
                )
            return torch.ones(count, dtype=torch.bool)
        chosen = list(samples)
        bad = [s for s in chosen if not _is_whole(s) or not 0 <= s < count]
        if not chosen or bad or len(set(chosen)) != len(chosen):
            raise InvalidThreatModelError(
                f"{name} needs distinct samples out of 0..{count - 1}",
                f"{len(chosen)} samples, outside the data: {bad[:5]}",
                "correct samples=",
            )
        if self.budget > len(chosen):
            raise InvalidThreatModelError(
                f"{name} may poison {self.budget} samples",
                f"only {len(chosen)} samples are open to poison",
                f"choose a budget of at most {len(chosen)}",
            )
        mask = torch.zeros(count, dtype=torch.bool)
        mask[chosen] = True
        return mask


@dataclass(frozen=True)
class FeaturePoisoning(_Budgeted):
    """Up to ``budget`` samples have features moved by at most ``radius`` in each coordinate.

    Attributes:
        budget: count of samples.
        radius: l_inf radius, one number or one for each feature (shape of one sample).
        norm: "inf".
        samples: indices of the samples that can be poisoned; None for all.
        static: True if the data are poisoned once, before training; False for a fresh perturbation
            in every step (adaptive).
        scope: "dataset", one poisoned set for the whole run, or "batch", up to ``budget`` of each
            batch.
    """

    radius: Radius
    norm: str = "inf"
    samples: Sequence[int] | None = None
    static: bool = True
    scope: str = "dataset"

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        mask = self._check(self.samples, self.scope, len(features))
        if self.norm != "inf":
            raise UnsupportedOperationError(
                f"{type(self).__name__} in norm {self.norm!r}", "no rule for it", "use norm='inf'"
            )
        return Poison(
            features=features,
            labels=labels,
            open=mask,
            budget=int(self.budget),
            static=self.static,
            per_batch=self.scope == "batch",
            radius=_feature_radius(type(self).__name__, self.radius, features)
            * _column(mask, features),
        )

    def describe(self) -> str:
        return (
            f"the features of {_who(self.budget, self.samples, self.scope)} moved by at most "
            f"{_radius_text(self.radius)} in every coordinate, {_when(self.static)}"
        )


@dataclass(frozen=True)
class LabelPoisoning(_Budgeted):
    """Up to ``budget`` samples have other labels.

    Attributes:
        budget: count of samples.
        radius: None for classification (any other class); for regression the largest move of each
            target.
        samples, static, scope: as in :class:`FeaturePoisoning`.
    """

    radius: float | None = None
    samples: Sequence[int] | None = None
    static: bool = True
    scope: str = "dataset"

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        mask = self._check(self.samples, self.scope, len(features))
        vertices, radius = _label_moves(type(self).__name__, self.radius, labels, loss, mask)
        return Poison(
            features=features,
            labels=labels,
            open=mask,
            budget=int(self.budget),
            static=self.static,
            per_batch=self.scope == "batch",
            label_vertices=vertices,
            label_radius=radius,
        )

    def describe(self) -> str:
        how = "replaced by any class" if self.radius is None else f"moved by at most {self.radius}"
        who = _who(self.budget, self.samples, self.scope)
        return f"the labels of {who} {how}, {_when(self.static)}"


@dataclass(frozen=True)
class FeatureLabelPoisoning(_Budgeted):
    """Up to ``budget`` samples have both their features and their labels changed.

    ``radius`` and ``norm`` as in :class:`FeaturePoisoning`, ``label_radius`` as ``radius`` in
    :class:`LabelPoisoning`.
    """

    radius: Radius
    label_radius: float | None = None
    norm: str = "inf"
    samples: Sequence[int] | None = None
    static: bool = True
    scope: str = "dataset"

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        half = FeaturePoisoning(
            self.budget, self.radius, self.norm, self.samples, self.static, self.scope
        ).bind(features, labels, loss)
        name = type(self).__name__
        vertices, radius = _label_moves(name, self.label_radius, labels, loss, half.open)
        return half.with_labels(vertices, radius)

    def describe(self) -> str:
        label = "any class" if self.label_radius is None else f"within {self.label_radius}"
        return (
            f"the features of {_who(self.budget, self.samples, self.scope)} moved by at most "
            f"{_radius_text(self.radius)} in every coordinate and their labels to {label}, "
            f"{_when(self.static)}"
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _column(mask: Tensor, features: Tensor) -> Tensor:
    return mask.to(torch.float64).reshape(-1, *[1] * (features.dim() - 1))


def _feature_radius(name: str, radius: Radius, features: Tensor) -> Tensor:
    try:
        values = torch.as_tensor(np.asarray(radius, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InvalidThreatModelError(
            f"{name} needs a radius in numbers", str(error), "give one number, or one per feature"
        ) from None
    shape = tuple(features.shape[1:])
    if values.dim() and tuple(values.shape) != shape:
        raise InvalidThreatModelError(
            f"{name} needs one radius, or one for each feature {shape}",
            f"shape {tuple(values.shape)}",
            "match the shape of one sample",
        )
    if not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise InvalidThreatModelError(
            f"{name} needs finite radii >= 0", f"radius = {radius}", "give numbers >= 0"
        )
    return values.expand(features.shape).clone()


def _label_moves(
    name: str, radius: float | None, labels: Tensor, loss: Loss, mask: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Moves to every class, (N, classes, width), or radii, (N, width)."""
    if loss.is_classification:
        if radius is not None:
            raise InvalidThreatModelError(
                f"{name} with a label radius is for regression",
                f"loss '{loss.key}' with radius {radius}",
                "leave the radius out: labels flip to any class",
            )
        vertices = loss.vertices(labels.shape[1]).to(labels)
        return (vertices[None] - labels[:, None]) * mask[:, None, None], None
    real = isinstance(radius, (int, float, np.number)) and not isinstance(radius, bool)
    if not real or radius is None or not (math.isfinite(radius) and radius >= 0):
        raise InvalidThreatModelError(
            f"{name} needs a finite label radius >= 0 for loss '{loss.key}'",
            f"radius = {radius}",
            "give the largest move of a target",
        )
    return None, radius * mask[:, None].to(torch.float64).expand(labels.shape)


def _who(budget: int, samples: Sequence[int] | None, scope: str) -> str:
    of = "the training set" if samples is None else f"{len(samples)} named training samples"
    each = "" if scope == "dataset" else " in each batch"
    return f"up to {budget} sample{'s' if budget != 1 else ''} of {of}{each}"


def _when(static: bool) -> str:
    return "once, before training" if static else "anew in every step"


def _radius_text(radius: Radius) -> str:
    if isinstance(radius, (int, float)):
        return f"{radius:g}"
    values = np.asarray(radius)
    return f"a radius between {values.min():g} and {values.max():g}"


THREATS = (FeaturePoisoning, LabelPoisoning, FeatureLabelPoisoning)
