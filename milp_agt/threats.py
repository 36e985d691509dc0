"""Threat models: what the adversary may change, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from milp_agt.errors import InvalidThreatModelError
from milp_agt.formulations.loss import Loss
from milp_agt.perturbation import FeatureMoves, LabelMoves, Numbers, Radius, Rows, is_whole
from milp_agt.poison import Poison, Quota, Whole

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
        if not is_whole(self.budget) or self.budget < 0:
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
        chosen = list(samples) if isinstance(samples, Iterable) else []
        bad = [s for s in chosen if not is_whole(s) or not 0 <= s < count]
        if not chosen or bad or len(set(chosen)) != len(chosen):
            raise InvalidThreatModelError(
                f"{name} needs distinct samples out of 0..{count - 1}",
                f"{len(chosen)} samples, no index of the data: {bad[:5]}",
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
    """Up to ``budget`` samples have their features moved.

    Columns are positions in the flattened sample.

    Attributes:
        budget: count of samples.
        radius: largest move: one number, one for each feature (*shape), for each sample (N,), or
            for both (N, *shape). Where features have radii of their own, the norms 1 and 2 are those
            of ``move / radius``, and at most 1. May be ``inf`` under a domain, in the norms inf and 0.
        norm: "inf" (each feature within its radius), 2, 1, or 0: at most ``coordinates`` features
            move, each within its radius.
        samples: indices of the samples that can be poisoned; None for all.
        static: True if the data are poisoned once, before training; False for a fresh perturbation
            in every step (adaptive).
        scope: "dataset", one poisoned set for the whole run, or "batch", up to ``budget`` of each
            batch (of a smaller batch all).
        coordinates: for the norm 0; a categorical group counts as one.
        domain: (lowest, highest) value, numbers or arrays (*shape); poisoned features stay inside.
        integer: columns that move by whole numbers. Linear bounds are exact for the norms inf and 0;
            for 1 and 2 they hold for the moves without this condition.
        categorical: groups of one-hot columns; each may change to any other category, whatever the
            radius (and the norms 1 and 2, which count the other columns).
        missing: the value that training sees where an entry is missing: the adversary may blank any
            entry, which then reads as this value (it need not lie in the domain). One value for all
            numeric columns, or a mapping from columns to their values. Norms inf and 0 only. NaN in
            the data themselves is refused.
        rows: (A, b) with further conditions ``A @ move <= b`` for each sample, A (rows, size), b
            (rows,) or (N, rows), >= 0. Kept by ``lp`` and ``milp``; the other relaxations bound the
            larger threat without them, and the result says so.
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

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        mask = self._check(self.samples, self.scope, len(features))
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
        who = _who(self.budget, self.samples, self.scope)
        return f"the features of {who} {self._moves().describe()}, {_when(self.static)}"

    def _moves(self) -> FeatureMoves:
        return FeatureMoves(
            type(self).__name__,
            self.radius,
            self.norm,
            self.coordinates,
            self.domain,
            self.integer,
            self.categorical,
            self.missing,
            self.rows,
        )


@dataclass(frozen=True)
class LabelPoisoning(_Budgeted):
    """Up to ``budget`` samples have other labels.

    Attributes:
        budget: count of samples.
        radius: None for classification; for regression the largest move of the targets: one number,
            one for each output, for each sample (N,), or for both (N, outputs).
        samples, static, scope: as in :class:`FeaturePoisoning`.
        norm: for regression, over the outputs of one sample: "inf", 2 or 1.
        target: for classification, the class or classes that labels may flip to; None for any.
    """

    radius: Radius | None = None
    samples: Sequence[int] | None = None
    static: bool = True
    scope: str = "dataset"
    norm: str | float = "inf"
    target: int | Sequence[int] | None = None

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        mask = self._check(self.samples, self.scope, len(features))
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
        who = _who(self.budget, self.samples, self.scope)
        return f"the labels of {who} {self._moves().describe()}, {_when(self.static)}"

    def _moves(self) -> LabelMoves:
        return LabelMoves(type(self).__name__, self.radius, self.norm, self.target)


@dataclass(frozen=True)
class FeatureLabelPoisoning(_Budgeted):
    """Up to ``budget`` samples have both their features and their labels changed.

    ``label_radius``, ``label_norm`` and ``target`` are ``radius``, ``norm`` and ``target`` of
    :class:`LabelPoisoning`, all else as in :class:`FeaturePoisoning`.
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

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        mask = self._check(self.samples, self.scope, len(features))
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
            f"the features of {_who(self.budget, self.samples, self.scope)} "
            f"{self._feature_moves().describe()}, and their labels "
            f"{self._label_moves().describe()}, {_when(self.static)}"
        )

    def _feature_moves(self) -> FeatureMoves:
        return FeatureMoves(
            type(self).__name__,
            self.radius,
            self.norm,
            self.coordinates,
            self.domain,
            self.integer,
            self.categorical,
            self.missing,
            self.rows,
        )

    def _label_moves(self) -> LabelMoves:
        return LabelMoves(type(self).__name__, self.label_radius, self.label_norm, self.target)


@dataclass(frozen=True)
class SeparatePoisoning:
    """Features of some samples and labels of others, or of the same ones: two budgets, spent apart.

    Up to ``features.budget`` samples have their features moved and up to ``labels.budget`` their labels
    changed. It holds the threat of :class:`FeatureLabelPoisoning` with the smaller of the two
    budgets, and both threats that it is made of; with one budget 0 it is the other one.

    Attributes:
        features, labels: what either may do, each with its own ``samples``. ``static`` and ``scope`` must
            be the same.

    Raises:
        InvalidThreatModelError: parts of other kinds, or that disagree on ``static`` or ``scope``.
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
    def budget(self) -> int:
        """How many samples can be poisoned in one way or the other."""
        return self.features.budget + self.labels.budget

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
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
        return (
            f"the features of {_who(x.budget, x.samples, x.scope)} {x._moves().describe()}, and, chosen "
            f"apart from them, the labels of {_who(y.budget, y.samples, y.scope)} "
            f"{y._moves().describe()}, {_when(x.static)}"
        )


@dataclass(frozen=True)
class Substitution(_Budgeted):
    """Up to ``budget`` samples give way to others of any features and labels (unbounded adversary).

    Needs ``clip=`` in the training: all that is known of the new samples is that their gradients are
    finite, so that clipping bounds them.

    Attributes:
        budget: count of samples.
        samples, static, scope: as in :class:`FeaturePoisoning`.
    """

    samples: Sequence[int] | None = None
    static: bool = True
    scope: str = "dataset"

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        return Poison(
            features=features,
            labels=labels,
            open=self._check(self.samples, self.scope, len(features)),
            budget=int(self.budget),
            static=self.static,
            per_batch=self.scope == "batch",
            whole=Whole.SUBSTITUTED,
        )

    def describe(self) -> str:
        who = _who(self.budget, self.samples, self.scope)
        return (
            f"{who} replaced by samples of any features and labels whose gradients are finite, "
            f"{_when(self.static)}"
        )


@dataclass(frozen=True)
class Removal(_Budgeted):
    """Up to ``budget`` samples are taken out of the data set, once, before training.

    The result bounds how far the parameters can be from those trained without any j <= budget of
    the samples: with ``selections="enumerated"``, run by run, a certificate for unlearning. The mean
    of the gradients is that over the samples that are left; the others keep their batches, and a batch
    that loses all its samples skips its step (no update, no momentum, no decay). Needs no clipping, but
    the gradient of every sample, n times the parameters.

    Attributes:
        budget: count of samples.
        samples: indices of the samples that can be removed; None for all.
        scope: "dataset", one removed set for the whole run, or "batch", up to ``budget`` of each batch.
    """

    samples: Sequence[int] | None = None
    scope: str = "dataset"

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        return Poison(
            features=features,
            labels=labels,
            open=self._check(self.samples, self.scope, len(features)),
            budget=int(self.budget),
            static=True,
            per_batch=self.scope == "batch",
            whole=Whole.REMOVED,
        )

    def describe(self) -> str:
        return (
            f"{_who(self.budget, self.samples, self.scope)} removed, once, before training; the mean "
            "is that over the samples left in a batch, the others keep their batches, and a batch "
            "without samples skips its step"
        )


@dataclass(frozen=True)
class Insertion(_Budgeted):
    """Up to ``budget`` further samples, of any features and labels, join every batch.

    They may differ from step to step, so that ``budget`` samples added to the data set, in batches of
    the adversary's choice, are covered. The mean of the gradients is that over the larger batch.
    Needs ``clip=`` in the training, as :class:`Substitution` does.
    """

    def bind(self, features: Tensor, labels: Tensor, loss: Loss) -> Poison:
        if not is_whole(self.budget) or self.budget < 0:
            raise InvalidThreatModelError(
                "Insertion needs a whole budget >= 0", f"budget = {self.budget}", "give a count"
            )
        return Poison(
            features=features,
            labels=labels,
            open=torch.zeros(len(features), dtype=torch.bool),
            budget=int(self.budget),
            static=False,
            per_batch=True,
            whole=Whole.INSERTED,
        )

    def describe(self) -> str:
        return (
            f"up to {self.budget} further sample{'s' if self.budget != 1 else ''} of any features and "
            "labels whose gradients are finite join each batch, anew in every step; the mean is that "
            "over the larger batch"
        )


def _who(budget: int, samples: Sequence[int] | None, scope: str) -> str:
    of = "the training set" if samples is None else f"{len(samples)} named training samples"
    each = "" if scope == "dataset" else " in each batch"
    return f"up to {budget} sample{'s' if budget != 1 else ''} of {of}{each}"


def _when(static: bool) -> str:
    return "once, before training" if static else "anew in every step"


THREATS = (
    FeaturePoisoning,
    LabelPoisoning,
    FeatureLabelPoisoning,
    SeparatePoisoning,
    Substitution,
    Removal,
    Insertion,
)
