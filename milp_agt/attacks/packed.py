"""Poisoned data as the samples that were changed: what is kept of the best runs of every aim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.unrolled import Poisoning, Unrolled


@dataclass(frozen=True)
class Packed:
    """Changed entries of many attacks, (attacks, places, ...); places that are not used have the index -1."""

    index: Tensor
    features: Tensor
    labels: Tensor

    @staticmethod
    def of(data: Poisoning, unrolled: Unrolled) -> Packed:
        """Keep what differs from the data as given."""
        in_x, in_y = unrolled.changed(data)
        moved = in_x | in_y
        places = int(moved.sum(1).max()) if len(moved) else 0
        order = (~moved).to(torch.int8).argsort(dim=1, stable=True)[:, :places]
        rows = torch.arange(len(data), device=order.device)[:, None]
        index = torch.where(moved.gather(1, order), order, -1)
        return Packed(index, data.features[rows, order], data.labels[rows, order])

    @staticmethod
    def cat(parts: Sequence[Packed]) -> Packed:
        """Some attacks after others."""
        places = max(part.index.shape[1] for part in parts)
        even = [part._padded(places) for part in parts]
        return Packed(
            torch.cat([part.index for part in even]),
            torch.cat([part.features for part in even]),
            torch.cat([part.labels for part in even]),
        )

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, rows: Tensor) -> Packed:
        """These attacks only."""
        return Packed(self.index[rows], self.features[rows], self.labels[rows])

    def _padded(self, places: int) -> Packed:
        missing = places - self.index.shape[1]

        def pad(tensor: Tensor, value: int) -> Tensor:
            shape = (tensor.shape[0], missing, *tensor.shape[2:])
            return torch.cat([tensor, tensor.new_full(shape, value)], 1)

        return Packed(pad(self.index, -1), pad(self.features, 0), pad(self.labels, 0))

    def replaced(self, where: Tensor, other: Packed) -> Packed:
        """The attacks in the mask ``where`` replaced by those of ``other``, in order."""
        places = max(self.index.shape[1], other.index.shape[1])
        mine, its = self._padded(places), other._padded(places)
        for name in ("index", "features", "labels"):
            getattr(mine, name)[where] = getattr(its, name)
        return mine

    def unpacked(self, unrolled: Unrolled) -> Poisoning:
        """The whole data."""
        given = unrolled.nominal(len(self))
        used = (self.index >= 0).nonzero(as_tuple=True)
        at = used[0], self.index[used]
        there = given.there
        return Poisoning(
            _changed(given.features, at, self.features[used]),
            _changed(given.labels, at, self.labels[used]),
            None if there is None else _changed(there, at, 1.0 - there[at]),
        )


def _changed(given: Tensor, at: tuple[Tensor, Tensor], values: Tensor) -> Tensor:
    """A copy with other values at some places; what is given, uncopied, where none differs."""
    if torch.equal(given[at], values):
        return given
    return given.clone().index_put_(at, values)


@dataclass(frozen=True)
class Aim:
    """Ends of quantities: ``sign * quantity`` is raised."""

    quantity: Tensor
    sign: Tensor

    def __len__(self) -> int:
        return len(self.quantity)


@dataclass
class Best:
    """The best run for every aim: ``value`` is sign * quantity, ``run`` its number, of ``runs``."""

    aim: Aim
    value: Tensor
    data: Packed
    run: Tensor
    runs: int = 0

    def offer(self, values: Tensor, data: Poisoning, unrolled: Unrolled) -> None:
        """Keep what is better; values (attacks, quantities). A number that is not finite never is."""
        before, self.runs = self.runs, self.runs + len(values)
        found = values[:, self.aim.quantity] * self.aim.sign
        found = torch.where(torch.isfinite(found), found, -torch.inf)
        best, row = found.max(0)
        better = best > self.value
        if bool(better.any()):
            self.value = torch.where(better, best, self.value)
            self.run = torch.where(better, before + row, self.run)
            # Many aims may share a run, whose data are large: each is packed once.
            kept, own = row[better].unique(return_inverse=True)
            self.data = self.data.replaced(better, Packed.of(data.rows(kept), unrolled).rows(own))

    def first_of_each_run(self, most: int | None = None) -> Tensor:
        """One aim for each distinct run, in the order of the aims: of the ``most`` that serve most aims."""
        group = self.run.unique(return_inverse=True)[1]
        first = first_of_each(group)
        if most is None or most >= len(first):
            return first
        aims = group.bincount()[group[first]]
        return first[aims.argsort(descending=True, stable=True)[:most]].sort().values


def first_of_each(group: Tensor) -> Tensor:
    """The first index of each number in ``group`` (n,), which counts from 0; in ascending order."""
    index = torch.arange(len(group), device=group.device)
    first = torch.full((int(group.max()) + 1,), len(group), device=group.device)
    return first.scatter_reduce(0, group, index, "amin").sort().values
