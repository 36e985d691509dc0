"""A listed threat: all choices of an adversary who has finitely many, each of them one data set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.bounds.adversary.enumerated import apart, at_samples, combined, count_ways, crossed
from milp_agt.bounds.adversary.model import Emptied, SampleSum, WorstCase
from milp_agt.bounds.adversary.sums import PlainSum
from milp_agt.bounds.step import Step
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.errors import UnsupportedOperationError
from milp_agt.threats.poison import Poison, Whole
from milp_agt.threats.sets import MoveSet, Product, Vertices
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION

# Most joint moves of the categories of one sample that are listed.
MOST_MOVES = 4096


@dataclass(frozen=True)
class Changes:
    """All changes of single samples: row m moves one sample by a feature and a label move, or removes it.

    Attributes:
        sample: the sample that is changed, (changes,), in rising order.
        features: the move of its flat features, (changes, size); None if no features move.
        labels: the move of its encoded label, (changes, width); None if no labels move.
    """

    sample: Tensor
    features: Tensor | None
    labels: Tensor | None


@dataclass(frozen=True)
class Poisoned:
    """One data set: what the adversary made of the data.

    Attributes:
        features: (N, *shape), labels: (N, width), encoded; of removed samples they are the nominal ones.
        kept: mask of the samples that are not removed, (N,).
        changed: the samples that were changed or removed.
    """

    features: Tensor
    labels: Tensor
    kept: Tensor
    changed: tuple[int, ...]


@dataclass(frozen=True)
class ListedChoices:
    """Everything that the adversary can do: choice c makes the changes ``picked[c]`` and no others.

    Choice 0 is the clean run.

    Attributes:
        poison: the threat.
        changes: what can happen to single samples.
        picked: (choices, most changes), -1 for none.
    """

    poison: Poison
    changes: Changes
    picked: Tensor

    def __len__(self) -> int:
        return len(self.picked)

    @property
    def removes(self) -> bool:
        """Whether changed samples are removed."""
        return self.poison.whole is Whole.REMOVED

    def masks(self, part: slice, samples: Tensor) -> Tensor:
        """Which of some samples are changed, (choices of the part, n)."""
        return at_samples(self._changed(part), samples, len(self.poison.features))

    def _changed(self, part: slice) -> Tensor:
        """The samples that choices change, (choices of the part, most changes), -1 for none."""
        sample = self.changes.sample
        return torch.cat([sample, sample.new_full((1,), -1)])[self.picked[part]]

    def features(self, part: slice, samples: Tensor) -> Tensor:
        """Features of a batch, (choices of the part, n, *shape), or (n, *shape) where they never move."""
        nominal = self.poison.features[samples]
        if self.changes.features is None:
            return nominal
        shift = self._shifted(self.changes.features, part, samples)
        return nominal + shift.reshape(-1, *nominal.shape)

    def labels(self, part: slice, samples: Tensor) -> Tensor:
        """Encoded labels of a batch, (choices of the part, n, width)."""
        nominal = self.poison.labels[samples]
        if self.changes.labels is None:
            return nominal.expand(len(self.picked[part]), *nominal.shape)
        return nominal + self._shifted(self.changes.labels, part, samples)

    def present(self, part: slice, samples: Tensor) -> Tensor | None:
        """1 for the samples of a batch that are left, 0 for removed ones; None if none are removed."""
        return 1.0 - self.masks(part, samples).to(torch.float64) if self.removes else None

    def poisoned(self, choice: int) -> Poisoned:
        """The data set of a choice.

        Raises:
            IndexError: no such choice.
        """
        everything = torch.arange(len(self.poison.features), device=self.picked.device)
        part = slice(range(len(self))[choice], range(len(self))[choice] + 1)
        features = self.features(part, everything)
        mask = self.masks(part, everything)[0]
        return Poisoned(
            features.reshape(self.poison.features.shape),
            self.labels(part, everything)[0],
            ~mask if self.removes else torch.ones_like(mask),
            tuple(mask.nonzero()[:, 0].tolist()),
        )

    def _shifted(self, moves: Tensor, part: slice, samples: Tensor) -> Tensor:
        """Moves (changes, width) by choice and sample of a batch, (choices of the part, n, width)."""
        # -1 is the last row: no move. Nothing at all may be there to be picked.
        own = torch.cat([moves, moves.new_zeros(1, moves.shape[1])])[self.picked[part]]
        return at_samples(self._changed(part), samples, len(self.poison.features), own)


def count_choices(poison: Poison, restriction: Restriction = UNRESTRICTED) -> float:
    """How many choices :func:`list_choices` lists; infinite for a threat that is not finite.

    Finite: changes that hold for the whole run, within a budget for the data set, of samples that move to
    listed points only (classes, categories) or are removed.
    """
    quotas = _quotas(poison, restriction)
    if quotas is None:
        return math.inf
    total = 1.0
    for changes, inside, left in quotas:
        counts = np.bincount(changes.sample.cpu().numpy(), minlength=len(poison.features))
        forced = poison.whole is Whole.REMOVED
        own = math.prod(float(counts[i] + (not forced)) for i in sorted(inside))
        free = [float(counts[i]) for i in np.flatnonzero(counts) if i not in inside]
        total *= own * sum(count_ways(free, left))
    return total


def list_choices(poison: Poison, restriction: Restriction = UNRESTRICTED) -> ListedChoices:
    """All choices of a finite threat, the clean run first.

    A sample that a restriction knows to be poisoned may still keep its data, unless it is removed.
    """
    quotas = _quotas(poison, restriction)
    assert quotas is not None, "a threat without a list; count_choices tells"
    forced = poison.whole is Whole.REMOVED
    lists = [
        combined(changes.sample.cpu().numpy(), inside, left, optional=not forced)
        for changes, inside, left in quotas
    ]
    joined, picked = quotas[0][0], lists[0]
    if len(quotas) == 2:
        joined = _side_by_side(quotas[0][0], quotas[1][0])
        other = np.where(lists[1] >= 0, lists[1] + len(quotas[0][0].sample), -1)
        picked = crossed(picked, other)
    if picked.shape[1] == 0:
        picked = np.full((len(picked), 1), -1)
    if (picked[0] >= 0).any():
        picked = np.concatenate([np.full((1, picked.shape[1]), -1), picked])
    device = poison.features.device
    return ListedChoices(poison, joined, torch.from_numpy(picked).to(device))


def _quotas(
    poison: Poison, restriction: Restriction
) -> list[tuple[Changes, frozenset[int], int]] | None:
    """For each budget its changes, the samples known to be changed, and how many others may be."""
    if poison.is_clean or poison.per_batch or not poison.static:
        return None
    if poison.label_quota is None:
        parts = [(poison, restriction)]
    else:  # a sample known to be poisoned may be so in its features or in its label
        loose = Restriction(outside=restriction.outside)
        parts = [(part, loose) for part in apart(poison)]
    found = []
    for part, known in parts:
        changes = _changes(part, known.outside)
        if changes is None or len(known.inside) > part.budget:
            return None
        found.append((changes, known.inside, part.budget - len(known.inside)))
    return found


def _changes(poison: Poison, outside: frozenset[int]) -> Changes | None:
    """What can happen to each open sample; None where that is no list."""
    open_ = poison.open.clone()
    open_[sorted(outside)] = False
    if poison.whole is not None:
        one = open_.nonzero()[:, 0]
        return Changes(one, None, None) if poison.whole is Whole.REMOVED else None
    features, labels = points_of(poison.feature_moves), points_of(poison.label_moves)
    if (features is None and poison.feature_moves is not None) or (
        labels is None and poison.label_moves is not None
    ):
        return None
    if features is None and labels is None:
        return None
    count = len(poison.features)
    x = poison.features.new_zeros(count, 1, 0) if features is None else features
    y = poison.labels.new_zeros(count, 1, 0) if labels is None else labels
    first, second = (
        torch.cartesian_prod(torch.arange(x.shape[1]), torch.arange(y.shape[1])).to(x.device).T
    )
    if len(first) > MOST_MOVES:
        return None
    joint = torch.cat([x[:, first], y[:, second]], 2)
    real = open_[:, None] & (joint != 0).any(2)
    real &= ~_repeated(joint)
    sample, which = real.nonzero().unbind(1)
    chosen = joint[sample, which]
    return Changes(
        sample,
        None if features is None else chosen[:, : x.shape[2]],
        None if labels is None else chosen[:, x.shape[2] :],
    )


def points_of(moves: MoveSet | None) -> Tensor | None:
    """All moves of a finite set, "no move" first, (N, moves, size); None if there are not finitely many."""
    if isinstance(moves, Vertices):
        return torch.cat([torch.zeros_like(moves.points[:, :1]), moves.points], 1)
    if moves is not None and not bool(((moves.lower != 0) | (moves.upper != 0)).any()):
        return torch.zeros_like(moves.lower).unsqueeze(1)
    if not isinstance(moves, Product):
        return None
    parts = [points_of(part) for part in moves.parts]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or math.prod(part.shape[1] for part in known) > MOST_MOVES:
        return None
    size = sum(len(columns) for columns in moves.columns)
    table = torch.cartesian_prod(*(torch.arange(p.shape[1]) for p in known)).reshape(-1, len(known))
    found = known[0].new_zeros(len(known[0]), len(table), size)
    for number, (part, columns) in enumerate(zip(known, moves.columns, strict=True)):
        found[:, :, list(columns)] = part[:, table[:, number].to(part.device)]
    return found


def _repeated(moves: Tensor) -> Tensor:
    """Mask of the moves of a sample that are the same as an earlier one, (N, moves)."""
    found = torch.zeros(moves.shape[:2], dtype=torch.bool, device=moves.device)
    for later in range(1, moves.shape[1]):
        same = (moves[:, :later] == moves[:, later : later + 1]).all(2)
        found[:, later] = same.any(1)
    return found


def _side_by_side(first: Changes, second: Changes) -> Changes:
    """Changes of features, then changes of labels, in one table."""
    sizes = (len(first.sample), len(second.sample))

    def both(*moves: Tensor | None) -> Tensor | None:
        known = next((each for each in moves if each is not None), None)
        if known is None:
            return None
        rows = [
            known.new_zeros(size, known.shape[1]) if each is None else each
            for each, size in zip(moves, sizes, strict=True)
        ]
        return torch.cat(rows)

    return Changes(
        torch.cat([first.sample, second.sample]),
        both(first.features, second.features),
        both(first.labels, second.labels),
    )


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
