"""Selections one by one: every choice of poisoned samples is a case with a box of its own."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.engines.adversary import PerSampleDebt
from milp_agt.engines.exposure import Debt, Emptied, PlainSum, SampleSum
from milp_agt.engines.step import Step
from milp_agt.moves import Vertices
from milp_agt.poison import Poison, Whole
from milp_agt.tracing import FEATURES, LABELS, SELECTION


@dataclass(frozen=True)
class Cases:
    """A list of choices that together cover everything an adversary may do.

    In case c at most the samples ``members[c]`` are poisoned; where labels move to vertices, each of
    them takes exactly the move ``label_moves[c]``. Case 0 poisons nobody.

    Attributes:
        members: indices of samples, (cases, budget), -1 for none.
        label_moves: moves of their encoded labels, (cases, budget, width); None where labels are
            clean or move within a radius.
    """

    members: Tensor
    label_moves: Tensor | None

    def __len__(self) -> int:
        return len(self.members)

    def part(self, chosen: slice) -> Cases:
        """Case 0 and some of the others."""

        def of(tensor: Tensor) -> Tensor:
            return torch.cat([tensor[:1], tensor[1:][chosen]])

        return Cases(of(self.members), None if self.label_moves is None else of(self.label_moves))


def count_cases(poison: Poison, restriction: Restriction = UNRESTRICTED) -> float:
    """How many cases :func:`enumerate_cases` lists; infinite where selections cannot be listed.

    A selection made anew in every batch, or one for each batch, is not a choice for the whole run.
    """
    if poison.is_clean or poison.per_batch:
        return math.inf
    inside, free = _samples(poison, restriction)
    left = min(poison.budget - len(inside), len(free))
    if left < 0:
        return math.inf
    options = _label_options(poison, _exact(poison, inside))
    # Elementary symmetric polynomials: selections of k samples, each with one of its options.
    chosen = [math.prod(float(len(options[i])) for i in inside)] + [0.0] * left
    for sample in free:
        for k in range(left, 0, -1):
            chosen[k] += len(options[sample]) * chosen[k - 1]
    return sum(chosen) if _exact(poison, inside) else 1 + chosen[left]


def enumerate_cases(poison: Poison, restriction: Restriction = UNRESTRICTED) -> Cases:
    """All selections of a budget for the whole data set, and all labels that they may take.

    Where samples only move within sets that contain "no move", the largest selections suffice. Where
    only labels flip, every selection up to the budget is listed with labels that differ, so that
    each case is one data set; so it is with samples that are removed.
    """
    inside, free = _samples(poison, restriction)
    left = min(poison.budget - len(inside), len(free))
    exact = _exact(poison, inside)
    sizes = range(left + 1) if exact else (left,)
    options = _label_options(poison, exact)
    listed = [
        (picked, labels)
        for size in sizes
        for more in itertools.combinations(free, size)
        if (picked := (*inside, *more))
        for labels in itertools.product(*(options[i] for i in picked))
    ]
    width = max([len(picked) for picked, _ in listed], default=0) or 1
    members = torch.full((len(listed) + 1, width), -1, dtype=torch.int64)
    for row, (picked, _) in enumerate(listed):
        members[row + 1, : len(picked)] = torch.tensor(picked, dtype=torch.int64)
    members = members.to(poison.features.device)
    vertices = _vertices(poison)
    if vertices is None:
        return Cases(members, None)
    moves = vertices.new_zeros(len(members), width, vertices.shape[2])
    for row, (picked, labels) in enumerate(listed):
        for slot, (sample, label) in enumerate(zip(picked, labels, strict=True)):
            if label is not None:
                moves[row + 1, slot] = vertices[sample, label]
    return Cases(members, moves)


def _exact(poison: Poison, inside: tuple[int, ...]) -> bool:
    """A case is one data set. A sample that is surely poisoned may still keep its label."""
    if poison.whole is Whole.REMOVED:
        return True
    return _vertices(poison) is not None and poison.feature_moves is None and not inside


def _vertices(poison: Poison) -> Tensor | None:
    """The finite moves of encoded labels, (N, moves, width); None where they are not finite.

    An adaptive adversary has no one label for the whole run either.
    """
    moves = poison.label_moves
    return moves.points if poison.static and isinstance(moves, Vertices) else None


def _samples(poison: Poison, restriction: Restriction) -> tuple[tuple[int, ...], list[int]]:
    """Samples that are surely poisoned, and those that may be."""
    inside = tuple(sorted(restriction.inside))
    known = restriction.inside | restriction.outside
    return inside, [i for i in poison.open.nonzero()[:, 0].tolist() if i not in known]


def _label_options(poison: Poison, exact: bool) -> list[list[int | None]]:
    """For each sample, the moves of its label that are listed; None is "no move"."""
    vertices = _vertices(poison)
    if vertices is None:
        return [[None]] * len(poison.open)
    stay: list[int | None] = [] if exact else [None]
    moving = (vertices.abs().amax(-1) > 0).tolist()
    return [stay + [v for v, moves in enumerate(row) if moves] for row in moving]


@dataclass(frozen=True)
class Enumerated:
    """Each case with its own boxes, all with the slopes of case 0, the clean run.

    A linear bound may take any slope, so that one walk serves all cases: its coefficients are
    shared, and only constants differ, which costs one matrix product. In a case there is nothing to
    sort: the debt of its members is paid in full, no other sample has any.
    """

    poison: Poison
    listed: Cases

    @property
    def cases(self) -> int:
        return len(self.listed)

    @property
    def states(self) -> int:
        return len(self.listed)

    @cached_property
    def mask(self) -> Tensor:
        """Which samples are poisoned in which case, (cases, N)."""
        count = len(self.poison.features)
        mask = torch.zeros(
            self.cases, count + 1, dtype=torch.bool, device=self.poison.features.device
        )
        mask.scatter_(1, torch.where(self.listed.members < 0, count, self.listed.members), True)
        return mask[:, :count]

    @cached_property
    def movable(self) -> Poison:
        """What is left to the adversary within a case."""
        if self.listed.label_moves is None:
            return self.poison
        return replace(self.poison, label_moves=None)

    def leaves(self, step: Step, part: slice | None = None) -> dict[str, Interval]:
        samples = step.samples if part is None else step.samples[part]
        data = self.movable.take(samples)
        if self.listed.label_moves is None:
            labels = self._chosen(data.label_box(), samples)
        else:
            labels = Interval.point(self._labels(samples))
        boxes = {FEATURES: self._chosen(data.feature_box(), samples), LABELS: labels}
        if data.whole is not None:
            boxes[SELECTION] = data.selection_box(self.mask[:, samples], step.size)
        return boxes

    def _chosen(self, box: Interval, samples: Tensor) -> Interval:
        """The state of each sample in each case."""
        if len(box.lower) == 1:
            return box
        mask = self.mask[:, samples].reshape(self.cases, -1, *[1] * (box.lower.dim() - 2))
        return Interval(
            torch.where(mask, box.lower[POISONED], box.lower[CLEAN]),
            torch.where(mask, box.upper[POISONED], box.upper[CLEAN]),
        )

    def _labels(self, samples: Tensor) -> Tensor:
        """Labels of some samples in each case, (cases, n, width)."""
        moves, members = self.listed.label_moves, self.listed.members
        assert moves is not None
        nominal = self.poison.labels[samples]
        slots = torch.full((len(self.poison.labels) + 1,), len(samples), device=members.device)
        slots[samples] = torch.arange(len(samples), device=members.device)
        shift = moves.new_zeros(self.cases, len(samples) + 1, moves.shape[2])
        at = slots[members].unsqueeze(-1).expand(moves.shape)
        shift.scatter_add_(1, at, moves)
        return nominal + shift[:, : len(samples)]

    def emptied(self, step: Step) -> Emptied | None:
        if self.poison.whole is not Whole.REMOVED:
            return None
        lost = self.mask[:, step.samples].all(1)
        return Emptied(lost, lost) if bool(lost.any()) else None

    def nominal(self, step: Step) -> dict[str, Tensor]:
        labels = step.poison.labels.unsqueeze(0)
        if self.listed.label_moves is not None:
            labels = self._labels(step.samples)
        return {FEATURES: step.poison.features.unsqueeze(0), LABELS: labels}

    def total(self, step: Step) -> SampleSum:
        return PlainSum(self.cases)

    def open_debt(self, rows: int) -> Debt:
        return _CaseDebt(self, rows)


class _CaseDebt(PerSampleDebt):
    """What the members of each case can do; the moves of enumerated labels are no debt."""

    def __init__(self, exposure: Enumerated, rows: int) -> None:
        super().__init__(exposure.movable, rows, UNRESTRICTED)
        self._exposure = exposure

    def add(
        self, step: Step, features: Tensor | None, labels: Tensor | None, charges: Tensor | None
    ) -> None:
        if self._exposure.listed.label_moves is not None:
            labels = None
        if self._exposure.movable.feature_moves is None:
            features = None
        step = replace(step, poison=self._exposure.movable.take(step.samples))
        super().add(step, features, labels, None)

    def owed(self) -> Tensor:
        hurt, samples = self._hurt()
        return hurt @ self._exposure.mask[:, samples].to(hurt.dtype).T

    def owed_given(self, own: Tensor) -> Tensor:
        return self.owed()
