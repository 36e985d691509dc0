"""Some choices of a listed threat as the engines see them: every case is one data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import Emptied, SampleSum, WorstCase
from milp_agt.bounds.adversary.sums import PlainSum
from milp_agt.bounds.listed.choices import ListedChoices
from milp_agt.bounds.step import Step
from milp_agt.core.interval import Interval
from milp_agt.errors import UnsupportedOperationError
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION


@dataclass(frozen=True)
class ListedData:
    """The choices ``part`` of a list, one case and one state each."""

    choices: ListedChoices
    part: slice

    @property
    def poison(self) -> Poison:
        return self.choices.poison

    @property
    def cases(self) -> int:
        return len(self.choices.picked[self.part])

    @property
    def states(self) -> int:
        return self.cases

    def leaves(self, step: Step, part: slice | None = None) -> dict[str, Interval]:
        samples = step.samples if part is None else step.samples[part]
        features = self.choices.features(self.part, samples)
        box = Interval.point(features.expand(self.cases, *features.shape[-1 - self._rank :]))
        if self.choices.changes.features is not None:
            # The user's own data may be the rounded sum of the nominal value and the move, or what it rounds.
            nominal = self.poison.features[samples]
            error = torch.where(
                features == nominal, 0.0, 2.0**-50 * (features.abs() + nominal.abs())
            )
            box = box.widen(error)
        boxes = {FEATURES: box, LABELS: Interval.point(self.choices.labels(self.part, samples))}
        if self.choices.removes:
            gone = self.choices.masks(self.part, samples).to(torch.float64).unsqueeze(-1)
            boxes[SELECTION] = Interval.point(gone)
        return boxes

    @property
    def _rank(self) -> int:
        return self.poison.features.dim() - 1

    def nominal(self, step: Step) -> dict[str, Tensor]:
        features = self.choices.features(self.part, step.samples)
        shape = (self.cases, *features.shape[-1 - self._rank :])
        labels = self.choices.labels(self.part, step.samples)
        return {FEATURES: features.expand(shape), LABELS: labels}

    def total(self, step: Step) -> SampleSum:
        return PlainSum(self.cases)

    def emptied(self, step: Step) -> Emptied | None:
        if not self.choices.removes:
            return None
        lost = self.choices.masks(self.part, step.samples).all(1)
        return Emptied(lost, lost) if bool(lost.any()) else None

    def open_worst_case(self, rows: int) -> WorstCase:
        raise UnsupportedOperationError(
            "Linear forms were to be followed back through listed data sets",
            "boxes of single runs, which keep no forms",
            "ask for selections='joint'",
        )
