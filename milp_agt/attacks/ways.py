"""All poisonings of a finite threat."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.selection import Selector
from milp_agt.attacks.unrolled import Poisoning, Unrolled
from milp_agt.threats.sets import MoveSet, Vertices


@dataclass(frozen=True)
class Ways:
    """Every admissible poisoning of a finite threat.

    Attributes:
        feature_moves, label_moves: the options of each sample, (N, options, size).
        goes: whether an option takes the sample away, (N, options).
        option: what each sample does in each way, (ways, N).
    """

    feature_moves: Tensor
    label_moves: Tensor
    goes: Tensor
    option: Tensor

    def __len__(self) -> int:
        return len(self.option)

    def poisoning(self, unrolled: Unrolled, part: Tensor) -> Poisoning:
        """The data of some of the ways."""
        own, option = unrolled.moves, self.option[part]
        samples = torch.arange(option.shape[1], device=option.device)
        moves = self.feature_moves[samples, option].reshape(-1, *own.features.shape)
        x, y = own.project(own.features + moves, own.labels + self.label_moves[samples, option])
        there = unrolled.given_there
        if there is not None:
            there = torch.where(self.goes[samples, option], 1.0 - there, there)
        return Poisoning(x, y, there)


def all_ways(selector: Selector, largest: int) -> Ways | None:
    """Every admissible poisoning, where they are finitely many: labels that flip, categories, removals.

    None where some move is not out of a finite set, where the adversary is adaptive or has a budget
    for each batch or one for labels alone, or where there are more than ``largest`` ways.
    """
    poison, rest = selector.unrolled.poison, selector.restriction
    if not poison.static or poison.per_batch or poison.label_quota is not None:
        return None
    x = _options(poison.feature_moves, poison.features)
    y = _options(poison.label_moves, poison.labels)
    if x is None or y is None:
        return None
    x, y = x.repeat_interleave(y.shape[1], 1), y.repeat(1, x.shape[1], 1)
    goes = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    if selector.unrolled.present is not None:
        x, y = x.repeat(1, 2, 1), y.repeat(1, 2, 1)
        goes = torch.stack([torch.zeros_like(poison.open), poison.open], 1)
    moves = goes | (x != 0).any(-1) | (y != 0).any(-1)
    change = {i: row.nonzero()[:, 0].tolist() for i, row in enumerate(moves)}
    inside = sorted(rest.inside)
    free = [i for i in change if change[i] and i not in rest.inside | rest.outside]
    left = min(poison.budget - len(inside), len(free))
    first = math.prod(len(change[i]) for i in inside)
    if first * _count([len(change[i]) for i in free], left) > largest:
        return None
    stay = (~moves).to(torch.int8).argmax(1)
    found = []
    for count in range(left + 1):
        for chosen in itertools.combinations(free, count):
            moved = [*inside, *chosen]
            for options in itertools.product(*(change[i] for i in moved)):
                way = stay.clone()
                way[moved] = torch.tensor(options, dtype=way.dtype, device=way.device)
                found.append(way)
    return Ways(x, y, goes, torch.stack(found))


def _options(moves: MoveSet | None, nominal: Tensor) -> Tensor | None:
    """The moves of each sample, "no move" among them, (N, options, size); None if not finite."""
    nothing = torch.zeros_like(nominal.flatten(1)[:, None])
    if moves is None:
        return nothing
    if not isinstance(moves, Vertices):
        return None
    if bool((moves.points == 0).all(-1).any(1).all()):
        return moves.points
    return torch.cat([nothing, moves.points], 1)


def _count(options: list[int], budget: int) -> int:
    """Ways to move at most ``budget`` samples: the elementary symmetric sums up to that degree."""
    ways = [1] + [0] * budget
    for count in options:
        for degree in range(budget, 0, -1):
            ways[degree] += count * ways[degree - 1]
    return sum(ways)
