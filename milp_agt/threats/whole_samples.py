"""Threats to whole samples: replaced, removed, or added, with any features and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from milp_agt.core.option_table import Index, Key
from milp_agt.formulations.loss import LossFunction
from milp_agt.threats.poison import Poison, Whole
from milp_agt.threats.threat_model import Budgeted, Chosen, Timed
from milp_agt.threats.threat_table import ChosenTable, threat_kind


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
