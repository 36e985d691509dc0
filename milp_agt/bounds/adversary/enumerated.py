"""Listed selections: every choice of poisoned samples is a case with its own box."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import Emptied, OnMoves, SampleSum, WorstCase
from milp_agt.bounds.adversary.sums import PlainSum
from milp_agt.bounds.adversary.worst_case import PerSampleWorstCase
from milp_agt.bounds.step import Step
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.threats.poison import Poison, Whole
from milp_agt.threats.sets import Vertices
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ListedSelections:
    """A list of selections that together cover everything the adversary may do.

    In case c at most the samples ``members[c]`` are poisoned. With separate budgets these may have
    poisoned features and ``label_members[c]`` poisoned labels. Where labels move to vertices, each of
    them takes exactly the move ``label_moves[c]``. Case 0 is the clean run: no sample is poisoned.

    Attributes:
        members: indices of samples, (cases, budget), -1 for none.
        label_moves: moves of their encoded labels, (cases, budget of the labels, width); None if
            labels are clean or move within a radius.
        label_members: the samples with poisoned labels, if labels have their own budget.
    """

    members: Tensor
    label_moves: Tensor | None
    label_members: Tensor | None = None

    @property
    def labelled(self) -> Tensor:
        """The samples whose labels are poisoned, (cases, budget of the labels)."""
        return self.members if self.label_members is None else self.label_members

    def __len__(self) -> int:
        return len(self.members)

    def part(self, chosen: slice) -> ListedSelections:
        """Case 0, the clean run, and some of the others."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else torch.cat([tensor[:1], tensor[1:][chosen]])

        members = of(self.members)
        assert members is not None
        return ListedSelections(members, of(self.label_moves), of(self.label_members))


def count_cases(poison: Poison, restriction: Restriction = UNRESTRICTED) -> float:
    """How many cases :func:`list_selections` lists; infinite if selections cannot be listed.

    With a budget per batch there is no single selection for the whole run.
    """
    if poison.is_clean or poison.per_batch:
        return math.inf
    if poison.label_quota is not None:
        x, y = (count_cases(part, _loosened(restriction)) for part in apart(poison))
        return 1 + (x - 1) * y
    inside, free = _samples(poison, restriction)
    left = min(poison.budget - len(inside), len(free))
    if left < 0:
        return math.inf
    exact = _exact(poison, inside)
    options = _options(poison, [*inside, *free], exact)[0].bincount(minlength=len(poison.open))
    own = math.prod(float(options[i]) for i in inside)
    chosen = [own * ways for ways in count_ways(options[free].tolist(), left)]
    return sum(chosen) if exact else 1 + chosen[left]


def count_ways(options: Iterable[float], most: int) -> list[float]:
    """How many ways there are to choose 0, 1, ..., ``most`` samples, each with one of its options.

    These are elementary symmetric polynomials.
    """
    chosen = [1.0] + [0.0] * most
    for count in options:
        for k in range(most, 0, -1):
            chosen[k] += count * chosen[k - 1]
    return chosen


def combined(
    owners: Index, inside: Iterable[int], left: int, largest: bool = False, optional: bool = False
) -> Index:
    """Rows of a table of what can happen to samples, ``owners`` in rising order, at most one for each.

    One for each sample ``inside`` (or none, if that is ``optional``), and of the others at most ``left``, or
    as many if only the ``largest`` choices count: (choices, ...), -1 for none.
    """
    known = sorted(inside)
    free = np.flatnonzero(~np.isin(owners, known))
    most = min(left, len(np.unique(owners[free])))
    pieces = []
    for size in range(most if largest else 0, most + 1):
        flat = itertools.chain.from_iterable(itertools.combinations(range(len(free)), size))
        rows = np.fromiter(flat, dtype=np.int64).reshape(math.comb(len(free), size), size)
        who = owners[free[rows]]
        rows = free[rows[(who[:, 1:] != who[:, :-1]).all(1)]]
        pieces.append(np.pad(rows, ((0, 0), (0, left - size)), constant_values=-1))
    others = np.concatenate(pieces)
    if not known:
        return others
    each = [[*([-1] if optional else []), *np.flatnonzero(owners == i).tolist()] for i in known]
    own = np.array(list(itertools.product(*each)), dtype=np.int64).reshape(-1, len(known))
    return crossed(own, others)


def crossed(first: Index, second: Index) -> Index:
    """Every row of the first beside every row of the second."""
    return np.concatenate([np.repeat(first, len(second), 0), np.tile(second, (len(first), 1))], 1)


def at_samples(members: Tensor, samples: Tensor, total: int, moves: Tensor | None = None) -> Tensor:
    """Which of some samples are ``members`` (cases, k), -1 for none, of ``total``: a mask (cases, n); or
    the sum of their ``moves`` (cases, k, width), (cases, n, width)."""
    count = len(samples)
    slots = torch.full((total + 1,), count, device=samples.device)
    slots[samples] = torch.arange(count, device=samples.device)
    at = slots[members]
    if moves is None:
        mask = torch.zeros(len(at), count + 1, dtype=torch.bool, device=samples.device)
        return mask.scatter_(1, at, True)[:, :count]
    found = moves.new_zeros(len(at), count + 1, moves.shape[2])
    return found.scatter_add_(1, at.unsqueeze(-1).expand(moves.shape), moves)[:, :count]


def list_selections(poison: Poison, restriction: Restriction = UNRESTRICTED) -> ListedSelections:
    """All selections within a budget for the whole data set, and all labels that they may take.

    If samples only move within sets that contain "no move", the largest selections suffice. If
    only labels flip, every selection up to the budget is listed with labels that differ, so that
    each case is one data set; the same holds for removed samples. With separate budgets for features
    and labels, every selection for features is paired with every one for labels.
    """
    if poison.label_quota is not None:
        return _paired(poison, restriction)
    inside, free = _samples(poison, restriction)
    left, exact = min(poison.budget - len(inside), len(free)), _exact(poison, inside)
    sample, moves = _options(poison, [*inside, *free], exact)
    rows = combined(sample.cpu().numpy(), inside, left, largest=not exact)
    rows = np.pad(rows, ((0, 0), (0, int(rows.shape[1] == 0))), constant_values=-1)
    # The clean run is listed once, first.
    rows = np.pad(rows[(rows >= 0).any(1)], ((1, 0), (0, 0)), constant_values=-1)
    index = torch.from_numpy(rows).to(sample.device)
    members = torch.cat([sample, sample.new_full((1,), -1)])[index]
    if moves is None:
        return ListedSelections(members, None)
    return ListedSelections(members, torch.cat([moves, torch.zeros_like(moves[:1])])[index])


def apart(poison: Poison) -> tuple[Poison, Poison]:
    """The threat to features and the threat to labels, each with its own budget."""
    quota = poison.label_quota
    assert quota is not None
    return (
        replace(poison, label_moves=None, label_quota=None),
        replace(poison, feature_moves=None, open=quota.open, budget=quota.budget, label_quota=None),
    )


def _loosened(restriction: Restriction) -> Restriction:
    """Without ``inside``: a sample known to be poisoned may be so in its features or in its label."""
    return Restriction(outside=restriction.outside)


def _paired(poison: Poison, restriction: Restriction) -> ListedSelections:
    """Every selection for features with every selection for labels; the first has neither."""
    x, y = (list_selections(part, _loosened(restriction)) for part in apart(poison))
    pairs = torch.cartesian_prod(torch.arange(1, len(x)), torch.arange(len(y)))
    first, second = torch.cat([pairs.new_zeros(1, 2), pairs]).to(x.members.device).unbind(1)
    moves = None if y.label_moves is None else y.label_moves[second]
    return ListedSelections(x.members[first], moves, y.members[second])


def _exact(poison: Poison, inside: tuple[int, ...]) -> bool:
    """Whether a case is one data set. A sample known to be poisoned may still keep its label."""
    if poison.whole is Whole.REMOVED:
        return True
    return _vertices(poison) is not None and poison.feature_moves is None and not inside


def _vertices(poison: Poison) -> Tensor | None:
    """The finite moves of encoded labels, (N, moves, width); None if there are not finitely many.

    None for an adaptive adversary, too: it has no single label for the whole run.
    """
    moves = poison.label_moves
    return moves.points if poison.static and isinstance(moves, Vertices) else None


def _samples(poison: Poison, restriction: Restriction) -> tuple[tuple[int, ...], list[int]]:
    """Samples known to be poisoned, and samples that may be."""
    inside = tuple(sorted(restriction.inside))
    known = restriction.inside | restriction.outside
    return inside, [i for i in poison.open.nonzero()[:, 0].tolist() if i not in known]


def _options(poison: Poison, chosen: list[int], exact: bool) -> tuple[Tensor, Tensor | None]:
    """What is listed of some samples: the sample of each option, in rising order, and its label's move.

    "No move" is an option unless each case is one data set.
    """
    device, vertices = poison.open.device, _vertices(poison)
    some = torch.tensor(sorted(chosen), dtype=torch.int64, device=device)
    if vertices is None:
        return some, None
    points = torch.cat([torch.zeros_like(vertices[:, :1]), vertices], 1)[some]
    listed = points.abs().amax(-1) > 0
    listed[:, 0] = not exact
    row, which = listed.nonzero().unbind(1)
    return some[row], points[row, which]


@dataclass(frozen=True)
class Enumerated:
    """Each case has its own boxes; all share the slopes of case 0, the clean run.

    A linear bound may take any slope, so one backward pass serves all cases: its coefficients are
    shared, and only constants differ, which costs one matrix product. Nothing is sorted within a
    case: all its members count in full, no other sample counts.
    """

    poison: Poison
    listed: ListedSelections

    @property
    def cases(self) -> int:
        return len(self.listed)

    @property
    def states(self) -> int:
        return len(self.listed)

    @cached_property
    def mask(self) -> Tensor:
        """Which samples are poisoned in which case, (cases, N); with separate budgets, their features."""
        return self._placed(self.listed.members)

    @cached_property
    def label_mask(self) -> Tensor:
        """Which samples have poisoned labels in which case, (cases, N)."""
        return self._placed(self.listed.labelled)

    def _placed(self, members: Tensor) -> Tensor:
        count = len(self.poison.features)
        return at_samples(members, torch.arange(count, device=members.device), count)

    @cached_property
    def movable(self) -> Poison:
        """The moves that are still open within a case."""
        if self.listed.label_moves is None:
            return self.poison
        return replace(self.poison, label_moves=None, label_quota=None)

    def leaves(self, step: Step, part: slice | None = None) -> dict[str, Interval]:
        samples = step.samples if part is None else step.samples[part]
        data = self.movable.take(samples)
        if self.listed.label_moves is None:
            labels = self._chosen(data.label_box(), self.label_mask[:, samples])
        else:
            labels = Interval.point(self.labels(samples))
        boxes = {FEATURES: self._chosen(data.feature_box(), self.mask[:, samples]), LABELS: labels}
        if data.whole is not None:
            boxes[SELECTION] = data.selection_box(self.mask[:, samples], step.size)
        return boxes

    def _chosen(self, box: Interval, mask: Tensor) -> Interval:
        """The box of each sample in each case: that of its last state (all moves) if it is poisoned."""
        if len(box.lower) == 1:
            return box
        mask = mask.reshape(self.cases, -1, *[1] * (box.lower.dim() - 2))
        return Interval(
            torch.where(mask, box.lower[-1], box.lower[CLEAN]),
            torch.where(mask, box.upper[-1], box.upper[CLEAN]),
        )

    def labels(self, samples: Tensor) -> Tensor:
        """Labels of some samples in each case, (cases, n, width)."""
        listed, nominal = self.listed, self.poison.labels
        assert listed.label_moves is not None
        return nominal[samples] + at_samples(
            listed.labelled, samples, len(nominal), listed.label_moves
        )

    def emptied(self, step: Step) -> Emptied | None:
        if self.poison.whole is not Whole.REMOVED:
            return None
        lost = self.mask[:, step.samples].all(1)
        return Emptied(lost, lost) if bool(lost.any()) else None

    def nominal(self, step: Step) -> dict[str, Tensor]:
        labels = step.poison.labels.unsqueeze(0)
        if self.listed.label_moves is not None:
            labels = self.labels(step.samples)
        return {FEATURES: step.poison.features.unsqueeze(0), LABELS: labels}

    def total(self, step: Step) -> SampleSum:
        return PlainSum(self.cases)

    def open_worst_case(self, rows: int) -> WorstCase:
        return _SelectionWorstCase(self, rows)


class _SelectionWorstCase(PerSampleWorstCase):
    """Worst cases over the members of each case; listed label moves are in the boxes instead."""

    def __init__(self, adversary: Enumerated, rows: int) -> None:
        super().__init__(adversary.movable, rows, UNRESTRICTED)
        self._adversary = adversary

    def add(self, step: Step, on: OnMoves) -> None:
        movable = self._adversary.movable
        listed = self._adversary.listed.label_moves is not None
        features = None if movable.feature_moves is None else on.features
        step = replace(step, poison=movable.take(step.samples))
        super().add(step, OnMoves(features, None if listed else on.labels))

    def worst_case(self) -> Tensor:
        hurt, samples = self._hurt()
        masks = (self._adversary.mask, self._adversary.label_mask)[: len(self._poison.quotas)]
        # Within a case, features and labels add up: states 1 and 2 of separate budgets.
        worst_case = [hurt[..., p] @ m[:, samples].to(hurt.dtype).T for p, m in enumerate(masks)]
        return sum(worst_case[1:], worst_case[0])

    def worst_case_given(self, own: Tensor) -> Tensor:
        return self.worst_case()
