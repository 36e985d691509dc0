"""The interface of threat models, and the parts most share: a budget, the samples, the times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from milp_agt.errors import InvalidThreatModelError
from milp_agt.formulations.loss import LossFunction
from milp_agt.threats.checks import is_whole
from milp_agt.threats.poison import Poison

SCOPES = ("dataset", "batch")


class ThreatModel(Protocol):
    """Defines, for a data set, the admissible moves of each sample."""

    @property
    def budget(self) -> int: ...

    def bind(self, features: Tensor, labels: Tensor, loss: LossFunction) -> Poison:
        """Admissible moves for encoded data: features (N, *shape), labels (N, width), float64."""
        ...

    def describe(self) -> str:
        """What the adversary may do, as a part of the claim."""
        ...


@dataclass(frozen=True)
class Budgeted:
    """Common part: how many samples, which, and when."""

    budget: int

    def _mask(self, samples: Sequence[int] | None, scope: str, count: int) -> Tensor:
        """Mask of the samples that can be poisoned, (N,)."""
        name = type(self).__name__
        if not is_whole(self.budget) or self.budget < 0:
            raise InvalidThreatModelError(
                f"{name} needs a whole budget >= 0", f"budget = {self.budget}", "give a count"
            )
        static = getattr(self, "static", True)
        if static is not True and static is not False:
            raise InvalidThreatModelError(
                f"{name} is static or not", f"static = {static!r}", "give True or False"
            )
        if not isinstance(scope, str) or scope not in SCOPES:
            raise InvalidThreatModelError(
                f"{name} needs a scope out of {SCOPES}",
                f"scope = {scope!r:.60}",
                "choose one of them",
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


def samples_in_words(budget: int, samples: Sequence[int] | None, scope: str) -> str:
    of = "the training set" if samples is None else f"{len(samples)} named training samples"
    each = "" if scope == "dataset" else " in each batch"
    return f"up to {budget} sample{'s' if budget != 1 else ''} of {of}{each}"


def times_in_words(static: bool) -> str:
    return "once, before training" if static else "anew in every step"
