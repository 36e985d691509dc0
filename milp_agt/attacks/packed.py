"""Poisoned data as the samples that were changed: what is kept of the best runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.unrolled import Poisoning, Unrolled


@dataclass(frozen=True)
class PackedLeaf:
    """Changed samples of one leaf, those that came or went among them; unused places have the index -1.

    Attributes:
        index: positions in the leaf, (attacks, places).
        features: (attacks, places, *shape).
        labels: (attacks, places, width).
    """

    index: Tensor
    features: Tensor
    labels: Tensor

    def rows(self, rows: Tensor) -> PackedLeaf:
        return PackedLeaf(self.index[rows], self.features[rows], self.labels[rows])

    def padded(self, places: int) -> PackedLeaf:
        """The same with more unused places."""
        missing = places - self.index.shape[1]

        def pad(tensor: Tensor, value: int) -> Tensor:
            shape = (tensor.shape[0], missing, *tensor.shape[2:])
            return torch.cat([tensor, tensor.new_full(shape, value)], 1)

        return PackedLeaf(pad(self.index, -1), pad(self.features, 0), pad(self.labels, 0))


@dataclass(frozen=True)
class Packed:
    """One :class:`PackedLeaf` for each leaf."""

    leaves: tuple[PackedLeaf, ...]

    @staticmethod
    def of(poisoning: Poisoning, unrolled: Unrolled) -> Packed:
        """Keep what differs from the data as given."""
        leaves = []
        changed = unrolled.changed(poisoning)
        for x, y, (in_x, in_y) in zip(poisoning.features, poisoning.labels, changed, strict=True):
            moved = in_x | in_y
            places = int(moved.sum(1).max()) if len(moved) else 0
            order = (~moved).to(torch.int8).argsort(dim=1, stable=True)[:, :places]
            rows = torch.arange(len(x), device=x.device)[:, None]
            index = torch.where(moved.gather(1, order), order, -1)
            leaves.append(PackedLeaf(index, x[rows, order], y[rows, order]))
        return Packed(tuple(leaves))

    @staticmethod
    def cat(parts: Sequence[Packed]) -> Packed:
        """Some attacks after others."""
        leaves = []
        for own in zip(*(part.leaves for part in parts), strict=True):
            places = max(leaf.index.shape[1] for leaf in own)
            even = [leaf.padded(places) for leaf in own]
            leaves.append(
                PackedLeaf(
                    torch.cat([leaf.index for leaf in even]),
                    torch.cat([leaf.features for leaf in even]),
                    torch.cat([leaf.labels for leaf in even]),
                )
            )
        return Packed(tuple(leaves))

    def __len__(self) -> int:
        return len(self.leaves[0].index)

    def rows(self, rows: Tensor) -> Packed:
        """These attacks only."""
        return Packed(tuple(leaf.rows(rows) for leaf in self.leaves))

    def replaced(self, where: Tensor, other: Packed) -> Packed:
        """The attacks in the mask ``where`` replaced by those of ``other``, in order."""
        leaves = []
        for mine, its in zip(self.leaves, other.leaves, strict=True):
            places = max(mine.index.shape[1], its.index.shape[1])
            mine, its = mine.padded(places), its.padded(places)
            for name in ("index", "features", "labels"):
                getattr(mine, name)[where] = getattr(its, name)
            leaves.append(mine)
        return Packed(tuple(leaves))

    def unpacked(self, unrolled: Unrolled) -> Poisoning:
        """The whole data."""
        given = unrolled.nominal(len(self))
        features, labels, there = [], [], []
        for number, leaf in enumerate(self.leaves):
            row, place = (leaf.index >= 0).nonzero(as_tuple=True)
            at = row, leaf.index[row, place]
            features.append(_changed(given.features[number], at, leaf.features[row, place]))
            labels.append(_changed(given.labels[number], at, leaf.labels[row, place]))
            if given.there:
                turned = 1.0 - given.there[number][at]
                there.append(_changed(given.there[number], at, turned))
        return Poisoning(tuple(features), tuple(labels), tuple(there))


def _changed(given: Tensor, at: tuple[Tensor, Tensor], values: Tensor) -> Tensor:
    """A copy with other values at some places; what is given, uncopied, where none differs."""
    if torch.equal(given[at], values):
        return given
    return given.clone().index_put_(at, values)
