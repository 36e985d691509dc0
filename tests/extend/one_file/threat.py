"""A threat model: features of some samples fade towards zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from milp_agt.core.option_table import Key, NonNegative
from milp_agt.formulations.loss import LossFunction
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Box
from milp_agt.threats.threat_model import ChosenTable, Timed, threat_kind


@threat_kind("fading", "Features of some samples fade towards zero.", ChosenTable)
@dataclass(frozen=True)
class Fading(Timed):
    """Up to ``budget`` samples have each feature x replaced by anything from (1 - share) x to x."""

    share: Annotated[float, Key(NonNegative, "The largest share of a feature that is lost.")]

    @property
    def touches(self) -> tuple[str, ...]:
        return ("features",)

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        poison = self._poison(features, labels)
        move = -self.share * features.flatten(1)
        none = torch.zeros_like(move)
        moves = Box(torch.minimum(move, none), torch.maximum(move, none)).only(poison.open)
        return replace(poison, feature_moves=moves)

    def describe(self) -> str:
        return f"the features of {self._who} faded by at most {self.share:g} of each, {self._when}"
