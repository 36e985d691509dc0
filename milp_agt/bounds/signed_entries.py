"""Signed entries of a state: every entry, then the negative of every entry.

A lower bound of the negative is an upper bound of the entry. Signed entries ("ends") are numbered over
(2 signs, entries of all tensors), in the order of the state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from milp_agt.bounds.forms import Forms
from milp_agt.bounds.step import State
from milp_agt.core.interval import Interval


def count_of(state: State) -> int:
    """The number of signed entries."""
    return 2 * sum(_shapes(state)[1])


def entry_boxes(state: State, bounds: Tensor) -> State:
    """The inverse of :func:`entry_bounds`: boxes shaped as in ``state``."""
    shapes, sizes = _shapes(state)
    total = sum(sizes)
    lower, upper = bounds[:, :total].split(sizes, 1), (-bounds[:, total:]).split(sizes, 1)
    return {
        name: Interval(low.reshape(-1, *shape), high.reshape(-1, *shape))
        for name, low, high, shape in zip(state, lower, upper, shapes, strict=True)
    }


def forms_of_entries(state: State, ends: Tensor) -> Forms:
    """Forms of the signed entries with these numbers."""
    shapes, sizes = _shapes(state)
    total = sum(sizes)
    one_hot = torch.zeros(len(ends), total, dtype=torch.float64, device=ends.device)
    one_hot[torch.arange(len(ends)), ends % total] = torch.where(ends < total, 1.0, -1.0).to(
        one_hot
    )
    parts = one_hot.split(sizes, dim=1)
    return Forms.start(
        {
            name: part.reshape(len(ends), *shape)
            for name, part, shape in zip(state, parts, shapes, strict=True)
        }
    )


def forms_in_pieces(state: State, chunk: int) -> Iterator[tuple[Tensor, Forms]]:
    """Forms of all signed entries of a state with their numbers, at most ``chunk`` at once.

    Entries of one unit come together.
    """
    device = next(iter(state.values())).lower.device
    for rows in _packed(_units(_shapes(state)[0]), chunk):
        ends = rows.to(device)
        yield ends, forms_of_entries(state, ends)


def _shapes(state: State) -> tuple[list[torch.Size], list[int]]:
    """Shapes and sizes of the tensors, without the axis of cases."""
    shapes = [box.lower.shape[1:] for box in state.values()]
    return shapes, [shape.numel() for shape in shapes]


def _units(shapes: Sequence[torch.Size]) -> Iterator[Tensor]:
    """Rows over (2 signs, entries of all tensors), unit by unit, so that coefficients stay in strips.

    Units are counted along the axis whose extent most tensors share: the width of a layer.
    """
    total = sum(shape.numel() for shape in shapes)
    indices = [
        part.reshape(shape or (1,))
        for part, shape in zip(
            torch.arange(total).split([shape.numel() for shape in shapes]), shapes, strict=True
        )
    ]
    shared = Counter(extent for index in indices for extent in set(index.shape))
    tables: dict[int, list[Tensor]] = {}
    for index in indices:
        axis = max(range(index.dim()), key=lambda a: (shared[index.shape[a]], index.shape[a]))
        extent = index.shape[axis]
        tables.setdefault(extent, []).append(index.movedim(axis, 0).reshape(extent, -1))
    for parts in tables.values():
        table = torch.cat(parts, 1)
        yield from torch.cat([table, table + total], 1)


def _packed(units: Iterable[Tensor], chunk: int) -> Iterator[Tensor]:
    """Pieces of at most ``chunk`` rows."""
    held: list[Tensor] = []
    for unit in units:
        for part in unit.split(chunk):
            if sum(map(len, held)) + len(part) > chunk:
                yield torch.cat(held)
                held = []
            held.append(part)
    if held:
        yield torch.cat(held)
