"""Threats to whole samples: replaced, removed, or added, with any features and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.errors import InvalidThreatModelError
from milp_agt.formulations.loss import LossFunction
from milp_agt.threats.checks import is_whole
from milp_agt.threats.poison import Poison, Whole
from milp_agt.threats.threat_model import Budgeted, times_in_words


@dataclass(frozen=True)
class Substitution(Budgeted):
    """Up to ``budget`` samples are replaced by others with any features and labels (unbounded adversary).

    Needs ``clip=`` in the training: new samples are only assumed to have finite gradients, which
    clipping bounds.

    Attributes:
        budget: number of samples.
        samples, static, scope: as in :class:`FeaturePoisoning`.
    """

    samples: Sequence[int] | None = None
    static: bool = True
    scope: str = "dataset"

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        return Poison(
            features=features,
            labels=labels,
            open=self._mask(self.scope, len(features)),
            budget=int(self.budget),
            static=self.static,
            per_batch=self.scope == "batch",
            whole=Whole.SUBSTITUTED,
        )

    def describe(self) -> str:
        who = self._who(self.scope)
        return (
            f"{who} replaced by samples of any features and labels whose gradients are finite, "
            f"{times_in_words(self.static)}"
        )


@dataclass(frozen=True)
class Removal(Budgeted):
    """Up to ``budget`` samples are removed from the data set, once, before training.

    The result bounds how far the parameters can be from those trained without any j <= budget of
    the samples; with ``selections="enumerated"``, for each such run: a certificate for unlearning. The
    mean of the gradients is over the remaining samples, which stay in their batches; a batch that loses
    all its samples skips its step (no update, no momentum, no decay). Needs no clipping, but the
    gradient of every sample, n times the parameters.

    Attributes:
        budget: number of samples.
        samples: indices of the samples that can be removed; None for all.
        scope: "dataset", one removed set for the whole run, or "batch", up to ``budget`` of each batch.
    """

    samples: Sequence[int] | None = None
    scope: str = "dataset"

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        return Poison(
            features=features,
            labels=labels,
            open=self._mask(self.scope, len(features)),
            budget=int(self.budget),
            static=True,
            per_batch=self.scope == "batch",
            whole=Whole.REMOVED,
        )

    def describe(self) -> str:
        who = self._who(self.scope)
        return (
            f"{who} removed, once, before training; the mean is that over the samples left in a batch, "
            "the others keep their batches, and a batch without samples skips its step"
        )


@dataclass(frozen=True)
class Insertion(Budgeted):
    """Up to ``budget`` further samples, with any features and labels, join every batch.

    They may differ from step to step, so this covers ``budget`` samples added to the data set, in batches
    of the adversary's choice. The mean of the gradients is over the enlarged batch.
    Needs ``clip=`` in the training, as :class:`Substitution` does.
    """

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        if not is_whole(self.budget) or self.budget < 0:
            raise InvalidThreatModelError(
                "Insertion needs a whole budget >= 0", f"budget = {self.budget}", "give a count"
            )
        if self.ids is not None or self.positions is not None:
            raise InvalidThreatModelError(
                "Insertion adds samples and touches none of the data",
                "ids=" if self.ids is not None else "positions=",
                "leave it out, or use Substitution",
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
