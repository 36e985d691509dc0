"""Lower bounds that are linear in a state, row by row, with the rounding they carry.

A lower bound of the negative of an entry is an upper bound of it. Signed entries ("ends") are numbered over
(2 signs, entries of all tensors), in the order of the state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.step import State
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma


@dataclass
class Forms:
    """Lower bounds ``coefficients . state + constant - error`` of some quantities, one per row.

    Attributes:
        coefficients: on the tensors of a state, (rows, *shape) each.
        constant: for each case, (rows, cases or 1).
        magnitude: sum of the absolute values of all terms so far, (rows,); rounding errors are at
            most ``gamma(operations) * magnitude``.
        operations: upper bound on the length of any chain of roundings so far.
    """

    coefficients: dict[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    operations: float = 0.0

    @staticmethod
    def start(coefficients: dict[str, Tensor], constant: Tensor | None = None) -> Forms:
        first = next(iter(coefficients.values()))
        zero = first.new_zeros(first.shape[0])
        start = zero if constant is None else constant
        return Forms(coefficients, start.unsqueeze(1), start.abs())

    @property
    def rows(self) -> int:
        return len(self.constant)

    def plus(self, other: Forms) -> Forms:
        """The sums, row by row, with the same tensors of the state."""
        return Forms(
            {name: on + other.coefficients[name] for name, on in self.coefficients.items()},
            self.constant + other.constant,
            self.magnitude + other.magnitude,
            max(self.operations, other.operations),
        )

    def paying(self, worst_case: Tensor) -> Forms:
        """The forms minus their worst case over the poisoned samples, (rows, cases)."""
        magnitude = self.magnitude + worst_case.amax(1)
        return Forms(
            self.coefficients, self.constant - worst_case, magnitude, self.operations + 1.0
        )

    def part(self, rows: Tensor) -> Forms:
        """The forms of these rows only."""
        return Forms(
            {name: on[rows] for name, on in self.coefficients.items()},
            self.constant[rows],
            self.magnitude[rows],
            self.operations,
        )

    def where(self, wins: Tensor, other: Forms) -> Forms:
        """These rows where the mask (rows,) says so, else the others."""
        on = self.coefficients.items()
        return Forms(
            {
                n: torch.where(wins.reshape(-1, *[1] * (c.dim() - 1)), c, other.coefficients[n])
                for n, c in on
            },
            torch.where(wins[:, None], self.constant, other.constant),
            torch.where(wins, self.magnitude, other.magnitude),
            max(self.operations, other.operations),
        )

    def concretise(self, state: Mapping[str, Interval], worst_case: Tensor) -> Tensor:
        """Lower bounds over the boxes of a state, minus the worst case, (rows, cases or states).

        ``worst_case`` is (rows, cases), or (rows, states) for forms of a single sample with one case.
        Rounding is subtracted; a NaN bound becomes -inf.
        """
        bound, magnitude, terms = self.constant, self.magnitude, 0
        for name, coefficient in self.coefficients.items():
            box = state[name]
            flat = coefficient.flatten(1)
            positive = flat.clamp(min=0.0)
            low, high = box.lower.flatten(1), box.upper.flatten(1)
            bound = bound + positive @ low.T + (flat - positive) @ high.T
            magnitude = magnitude + flat.abs() @ box.magnitude.amax(0).flatten()
            terms += flat.shape[1]
        size = magnitude.unsqueeze(1) + worst_case
        error = gamma(self.operations + terms + 64) * 4.0 * size + TINY
        bound = bound - worst_case - error
        return torch.where(torch.isnan(bound), -torch.inf, bound)


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
