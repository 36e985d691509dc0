"""The generators of poisoned samples: who may move, how far a direction follows, and what a budget buys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from milp_agt.bounds.step import Step
from milp_agt.bounds.zonotope.numbering import (
    behind,
    if_clean,
    if_poisoned,
    largest,
    mask_of_largest,
    members_of,
    moving,
    numbered_part,
)
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.errors import EncodingError
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Vertices
from milp_agt.training.training import Batch


@dataclass(frozen=True)
class SampleGenerators:
    """Generators ``e_j`` of the moves of samples that can be poisoned, each of one sample: its move, or 0.

    ``e_j`` lies in ``s_u(j) E_j`` with the set of moves ``E_j`` of features and labels together and one
    ``s_u`` in {0, 1} for each *unit* u that is chosen or not:

        data poisoned once, one set for the run    a generator and a unit for each sample
        anew in every step, one set for the run    a generator for each sample of each step, a unit for
                                                   each sample
        once, a budget in each batch               a generator and a unit for each sample; a group of
                                                   those that meet first in the same batch
        anew in every step, a budget in each       a generator and a unit for each sample of each step; a
                                                   group of those of one step

    The constraints are ``sum_u s_u <= budget`` over each group of units, and ``s_u = 1`` for those that are
    known to be poisoned. Where features and labels have budgets of their own, all of this is there twice:
    first generators of moves of features, then those of labels, each *part* with groups and a budget of
    its own. A sample then has four states instead of two: bit p says whether its unit of part p is chosen.

    Attributes:
        poison: the moves of the generators, in their order.
        columns: their samples of the data set, (m,), in the order of the steps that first meet them.
        numbers: the generator of each sample of the data set in each step, (parts, steps or 1, N), -1 for
            samples that stay clean.
        unit: of each generator, (m,).
        members: units of each group, (groups, largest), padded with the number of units.
        known: mask of the units that are known to be poisoned, (units,).
        quotas: of each part how many groups it has, and how many units of a group are poisoned at most,
            the known ones among them.
        met: how many generators the first steps meet together, for each step; empty if batches are not
            known, and for two parts.
    """

    poison: Poison
    columns: Tensor
    numbers: Tensor
    unit: Tensor
    members: Tensor
    known: Tensor
    quotas: tuple[tuple[int, int], ...]
    met: Sequence[int] = ()

    @staticmethod
    def of(
        poison: Poison, batches: Sequence[Batch] = (), restriction: Restriction = UNRESTRICTED
    ) -> SampleGenerators:
        """The generators of a threat; ``batches`` are those of all steps, needed by all threats but those
        that are static with one budget for the data set."""
        if not batches and (poison.per_batch or not poison.static):
            raise EncodingError("Generators of moves step by step", "no batches")
        device = poison.open.device
        steps = [torch.as_tensor(batch, device=device) for batch in batches]
        outside = torch.tensor(sorted(restriction.outside), dtype=torch.int64, device=device)
        parts, quotas = [], []
        for quota in poison.quotas:
            open_ = (poison.exposed if len(poison.quotas) == 1 else quota.open.clone()) & (
                quota.budget > 0
            )
            open_[outside] = False
            parts.append(numbered_part(open_, poison, steps))
            quotas.append((len(parts[-1][3].unique()), quota.budget))
        every = tuple(zip(*parts, strict=True))
        columns = torch.cat(every[0])
        numbers = torch.stack(behind(every[1], [len(c) for c in every[0]]))
        unit = torch.cat(behind(every[2], [len(g) for g in every[3]]))
        groups = torch.cat(behind(every[3], [count for count, _ in quotas]))
        known = torch.zeros_like(poison.open)
        # Of two parts, which one a sample is known to be poisoned in is not known.
        if restriction.inside and len(parts) == 1:
            known[torch.tensor(sorted(restriction.inside), device=device)] = True
        sample_of = columns.new_zeros(len(groups)).scatter_(0, unit, columns)
        moves = moving(poison.take(columns))
        if len(parts) > 1:
            first = torch.arange(len(columns), device=device) < len(every[0][0])
            x, y = moves.feature_moves, moves.label_moves
            moves = replace(
                moves, feature_moves=x and x.only(first), label_moves=y and y.only(~first)
            )
        return SampleGenerators(
            moves,
            columns,
            numbers,
            unit,
            members_of(groups),
            known[sample_of],
            tuple(quotas),
            every[4][0] if len(parts) == 1 else (),
        )

    def until(self, index: int) -> SampleGenerators:
        """The generators that the steps up to this one meet: no other is in any form of these steps, so
        the states after them are the same. All, where it is not known, or units are known to be poisoned.
        """
        known = not self.met or bool(self.known.any())
        return self if known else self.first(self.met[min(index, len(self.met) - 1)])

    def first(self, count: int) -> SampleGenerators:
        """The first of them alone, of one part."""
        if count == self.count:
            return self
        units, unit = self.unit[:count].unique(return_inverse=True)
        groups = self._group[units]
        return SampleGenerators(
            self.poison.take(torch.arange(count, device=unit.device)),
            self.columns[:count],
            torch.where(self.numbers < count, self.numbers, -1),
            unit,
            members_of(groups),
            self.known[units],
            ((len(groups.unique()), self.quotas[0][1]),),
        )

    def at(self, step: Step) -> Tensor:
        """The generators of the samples of a batch in its step, (n, parts), -1 for those that stay clean."""
        return self.numbers[:, min(step.index, self.numbers.shape[1] - 1), step.samples].T

    @property
    def parts(self) -> int:
        return len(self.quotas)

    @property
    def states(self) -> int:
        """Of a sample: bit p says whether it is poisoned in part p."""
        return 1 << self.parts

    @property
    def part(self) -> Tensor:
        """The part of each generator, (m,)."""
        part = torch.zeros_like(self.columns)
        for number in range(1, self.parts):
            part[self.numbers[number][self.numbers[number] >= 0]] = number
        return part

    @property
    def samples(self) -> int:
        """Samples of the data set."""
        return self.numbers.shape[-1]

    @property
    def terms(self) -> int:
        """Terms of the longest sum of a worst case."""
        largest, steps = self.members.shape[1], self.numbers.shape[1]
        taken = sum(groups * min(largest, max(most, 1)) for groups, most in self.quotas)
        return taken + steps + int(self.known.sum())

    @property
    def count(self) -> int:
        return len(self.columns)

    @property
    def on_features(self) -> int:
        """How many coordinates of a move are those of features; they come first."""
        moves = self.poison.feature_moves
        return 0 if moves is None else moves.size

    @property
    def width(self) -> int:
        """Coordinates of one move."""
        moves = self.poison.label_moves
        return self.on_features + (0 if moves is None else moves.size)

    @cached_property
    def reach(self) -> Tensor:
        """The largest size of each coordinate of a move, (m, width)."""
        poison = self.poison
        parts = [m.reach for m in (poison.feature_moves, poison.label_moves) if m is not None]
        return torch.cat(parts, -1) if parts else poison.features.new_zeros(self.count, 0)

    def support(self, coefficients: Tensor, poison: Poison | None = None) -> Tensor:
        """``max over moves of c_i . e_i``, (rows, m), from coefficients (rows, m, width); of the samples of
        ``poison`` in place of all generators, if it is given."""
        if poison is None and self.moved is not None:
            return self.moved.furthest(coefficients)
        poison = poison or self.poison
        total = coefficients.new_zeros(coefficients.shape[:2])
        features, labels = self._split(coefficients)
        if poison.feature_moves is not None:
            total = total + poison.feature_moves.support(features)
        if poison.label_moves is not None:
            total = total + poison.label_moves.support(labels)
        return total

    @cached_property
    def single(self) -> SampleGenerators:
        """The same moves in float32, up to rounding: for searches, which prove nothing."""
        sets = (self.poison.feature_moves, self.poison.label_moves)
        features, labels = (s and s.on(lambda part: part.to(torch.float32)) for s in sets)
        poison = replace(self.poison, feature_moves=features, label_moves=labels)
        return replace(self, poison=poison)

    @cached_property
    def moved(self) -> Vertices | None:
        """Moves of labels where units are chosen because these change: none that is chosen stays put.

        Never of data poisoned anew with one set for the run: a unit that is chosen may stay put in some of
        the steps, also where the steps so far meet each unit once.
        """
        poison, moves = self.poison, self.poison.label_moves
        once = poison.static or poison.per_batch
        alone = once and len(self.known) == self.count > 0
        plain = alone and not self.known.any() and self.parts == 1 and poison.whole is None
        return moves if plain and not self.on_features and isinstance(moves, Vertices) else None

    @cached_property
    def is_mirrored(self) -> bool:
        """Whether the opposite of every move is a move in a box."""
        parts = [m for m in (self.poison.feature_moves, self.poison.label_moves) if m is not None]
        return all(m.is_box and torch.equal(m.lower, -m.upper) for m in parts)

    def both_supports(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`support` of coefficients (rows, m, width) and of their opposites."""
        if self.is_mirrored:
            found = torch.einsum("rmw,mw->rm", coefficients.abs(), self.reach)
            return found, found
        return self.support(coefficients), self.support(-coefficients)

    def maximise(self, coefficients: Tensor) -> Tensor:
        """Moves that attain the support function, (rows, m, width)."""
        if self.moved is not None:
            return self.moved.furthest_move(coefficients)
        features, labels = self._split(coefficients)
        parts = []
        if self.poison.feature_moves is not None:
            parts.append(self.poison.feature_moves.maximise(features))
        if self.poison.label_moves is not None:
            parts.append(self.poison.label_moves.maximise(labels))
        return torch.cat(parts, -1) if parts else torch.zeros_like(coefficients)

    def _split(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return coefficients[..., : self.on_features], coefficients[..., self.on_features :]

    def worst(self, reach: Tensor, own: Tensor | None = None) -> Tensor:
        """The most that ``reach`` >= 0, (..., m), adds up to over the admissible choices of units.

        With ``own`` (..., parts), numbers of generators or -1, their units are poisoned and paid elsewhere:
        one less is left for the others of their group.
        """
        if not self.count:
            return reach.sum(-1)
        grouped, paid = self._grouped(reach)
        full = self._by_part(grouped, largest)
        if own is not None:
            unit = self._unit_of(own)
            spends = (own >= 0) & ~self.known[unit]
            mine = (self.members == unit[..., None, None]).any(-1) & spends[..., None]
            less = self._by_part(grouped, lambda reach, count: largest(reach, count - 1))
            full = torch.where(mine.any(-2), less, full)
        return full.sum(-1) + paid

    def others(self, reach: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """``reach`` without the units of the generators ``own`` (..., parts), -1 for none, and what these
        units have, (..., parts)."""
        if not self.count:
            return reach, torch.zeros_like(own).to(reach)
        mine = (self.unit == self._unit_of(own)[..., None]) & (own >= 0)[..., None]
        paid = torch.where(mine, reach.unsqueeze(-2), 0.0).sum(-1)
        return torch.where(mine.any(-2), 0.0, reach), paid

    def conditional(self, reach: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`worst` if the unit of each generator is clean, and if it is poisoned, (..., m) each.

        A unit among the largest of its group leaves the next one in its place if it is clean; one that
        is not takes the place of the smallest of them if it is poisoned.
        """
        total = self.worst(reach)[..., None]
        if not self.count or not any(self._free):
            return total.expand_as(reach), total.expand_as(reach)
        grouped, _ = self._grouped(reach)
        total = total[..., None]
        clean, poisoned = (
            self._by_part(grouped, partial(of, total)) for of in (if_clean, if_poisoned)
        )
        if self._plain:
            return clean.squeeze(-2), poisoned.squeeze(-2)
        at = self._place[self.unit]
        found = tuple(part.flatten(-2)[..., at] for part in (clean, poisoned))
        known = self.known[self.unit]
        clean, poisoned = (torch.where(known, total[..., 0], part) for part in found)
        return clean, poisoned

    def chosen(self, reach: Tensor) -> Tensor:
        """Mask, as numbers, of the generators whose reach :meth:`worst` adds up, (..., m)."""
        grouped, _ = self._grouped(reach)
        mask = self._by_part(grouped, mask_of_largest)
        if self._plain:
            return mask.squeeze(-2)
        found = mask.flatten(-2)[..., self._place[self.unit]]
        return torch.where(self.known[self.unit], 1.0, found)

    def by_unit(self, reach: Tensor) -> Tensor:
        """Sums over the generators of each unit, (..., m) to (..., units)."""
        if len(self.known) == self.count:
            return reach
        total = reach.new_zeros(*reach.shape[:-1], len(self.known))
        return total.index_add_(-1, self.unit, reach)

    def left(self, poisoned: Tensor) -> Tensor:
        """How many more units of the group of each unit may be poisoned, (..., units), from a mask."""
        spent = self._members_of(poisoned.to(torch.int64)).sum(-1)
        return (self.budgets - spent)[..., self._group]

    def largest_units(self, reach: Tensor, left: Tensor) -> Tensor:
        """Mask, as numbers, of the ``left`` (..., units) largest of ``reach`` in each group of units."""
        if not self.count:
            return torch.zeros_like(reach)
        grouped = self._members_of(reach)
        count = min(max(most for _, most in self.quotas), grouped.shape[-1])
        index = grouped.topk(count, -1).indices
        room = torch.zeros_like(grouped[..., 0]).to(left)
        room = room.scatter_(-1, self._group.expand_as(left), left)
        taken = torch.arange(count, device=index.device) < room[..., None]
        mask = torch.zeros_like(grouped).scatter_(-1, index, taken.to(grouped))
        return mask.flatten(-2)[..., self._place]

    def _members_of(self, values: Tensor) -> Tensor:
        """Of units, (..., units), by group, (..., groups, largest), zeros where it is smaller."""
        padded = torch.cat([values, torch.zeros_like(values[..., :1])], -1)
        return padded[..., self.members]

    @cached_property
    def _group(self) -> Tensor:
        """The group of each unit, (units,)."""
        return self._place // max(1, self.members.shape[1])

    @cached_property
    def _plain(self) -> bool:
        """Whether each generator is a unit of its own, all in one group of which none is known."""
        alone = len(self.known) == self.count and len(self.members) == 1 and self.parts == 1
        return alone and not bool(self.known.any())

    @cached_property
    def _free(self) -> tuple[int, ...]:
        """How many units of a group of each part may be poisoned besides the known ones."""
        return tuple(max(0, most - int(self.known.sum())) for _, most in self.quotas)

    @cached_property
    def budgets(self) -> Tensor:
        """Of each group, (groups,)."""
        found = [most for count, most in self.quotas for _ in range(count)]
        return torch.tensor(found or [0], device=self.columns.device)

    def _by_part(self, grouped: Tensor, of: Callable[[Tensor, int], Tensor]) -> Tensor:
        """``of`` the groups of each part, (..., groups, largest), and what is free of its budget."""
        if self.parts == 1:
            return of(grouped, self._free[0])
        sizes = [count for count, _ in self.quotas]
        pieces = grouped.split(sizes, -2)
        found = [of(piece, free) for piece, free in zip(pieces, self._free, strict=True)]
        return torch.cat(found, -1 if found[0].dim() < grouped.dim() else -2)

    @cached_property
    def _place(self) -> Tensor:
        """Where each unit stands in the flat table of members, (units,)."""
        flat = self.members.flatten()
        place = torch.zeros_like(flat).new_zeros(len(self.known) + 1)
        place[flat] = torch.arange(len(flat), device=flat.device)
        return place[:-1]

    def _unit_of(self, own: Tensor) -> Tensor:
        return self.unit[own.clamp(min=0)]

    def _grouped(self, reach: Tensor) -> tuple[Tensor, Tensor]:
        """What units that are not known to be poisoned reach, (..., groups, largest), and the sum of those
        that are."""
        if self._plain:
            return reach.unsqueeze(-2), reach.new_zeros(())
        units = len(self.known)
        if units != self.count:
            total = reach.new_zeros(*reach.shape[:-1], units)
            reach = total.index_add_(-1, self.unit, reach)
        paid = torch.where(self.known, reach, 0.0).sum(-1)
        reach = torch.where(self.known, 0.0, reach)
        if len(self.members) == 1:
            return reach.unsqueeze(-2), paid
        padded = torch.cat([reach, torch.zeros_like(reach[..., :1])], -1)
        return padded[..., self.members], paid
