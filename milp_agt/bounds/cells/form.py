"""Affine forms of the nodes of a step, for many cells at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.bounds.cells.cell import SLACK, Cells
from milp_agt.core.rounding import TINY, gamma

# Numbers of one product with the noise at a time: what a cache holds.
AT_ONCE = 2**18


@dataclass(frozen=True)
class Form:
    """``v = centre + J (theta - c) + E (e - e_c) + rest``, |rest| <= radius, for each of B cells.

    ``theta - c`` are the deviations of the trained parameters from the centre of their set, ``e - e_c`` those
    of the moves from the centre of the cell. Coefficients come first, so that operations that are linear
    act on them as on values; None is 0.

    Attributes:
        centre: (B, [n], *shape).
        radius: of what is left, same shape.
        size: sum of the sizes of all terms, at least ``|v|``, same shape.
        away: a bound of ``|v - centre|``, same shape.
        on_state: J, (p, B, [n], *shape); B may be 1.
        on_moves: E, (K, B, n, *shape).
    """

    centre: Tensor
    radius: Tensor
    size: Tensor
    away: Tensor
    on_state: Tensor | None = None
    on_moves: Tensor | None = None

    @staticmethod
    def constant(value: Tensor) -> Form:
        zero = torch.zeros_like(value)
        return Form(value, zero, value.abs(), zero)

    @property
    def is_constant(self) -> bool:
        parts = (self.on_state, self.on_moves)
        return all(part is None for part in parts) and not bool(self.away.any())

    def element(self, row: int, sample: int, element: int) -> Form:
        """One number of one cell, as a form of shape (1, 1)."""

        def one(part: Tensor) -> Tensor:
            return part.flatten(2)[row, sample, element].reshape(1, 1)

        def coefficient(part: Tensor | None) -> Tensor | None:
            if part is None:
                return None
            full = part.expand(-1, *self.centre.shape).flatten(3)
            return full[:, row, sample, element].reshape(-1, 1, 1)

        return Form(
            one(self.centre),
            one(self.radius),
            one(self.size),
            one(self.away),
            coefficient(self.on_state),
            coefficient(self.on_moves),
        )

    def scaled(self, slope: Tensor) -> Form:
        """Coefficients and radius times elementwise constants; centre, size and away stay."""
        return replace(
            self,
            radius=self.radius * slope.abs(),
            on_state=None if self.on_state is None else self.on_state * slope,
            on_moves=None if self.on_moves is None else self.on_moves * slope,
        )


@dataclass(frozen=True)
class States:
    """The set of states of each of B cells after some steps.

    ``theta = centre + on_moves (e - e_c) + noise xi``, xi in [-1, 1]^Q, e in the cell.

    Attributes:
        cells: the moves of the poisoned samples.
        samples: these samples of the data set, (B, k).
        centre: parameters, then velocities, (B, P).
        on_moves: (B, P, K).
        noise: (B, P, Q).
    """

    cells: Cells
    samples: Tensor
    centre: Tensor
    on_moves: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.centre)

    def take(self, rows: Tensor) -> States:
        return States(
            self.cells.take(rows),
            self.samples[rows],
            self.centre[rows],
            self.on_moves[rows],
            self.noise[rows],
        )

    @property
    def operations(self) -> float:
        """Length of the longest chain of roundings of a product with these generators."""
        return 8.0 * sum(self.noise.shape[1:]) + 8.0 * self.on_moves.shape[2] + 64.0

    def reach(self) -> tuple[Tensor, Tensor]:
        """How far each coordinate lies below and above its centre, (B, P)."""
        noise = self.noise.abs().sum(-1)
        down, up = self.cells.reach(self.on_moves)
        error = gamma(self.operations) * (noise + down.abs() + up.abs()) + TINY
        return down + noise + error, up + noise + error

    def terms(self) -> Tensor:
        """Sum of the sizes of all terms but the centre, (B, P)."""
        moved = (self.on_moves.abs() @ self.cells.radius[..., None])[..., 0]
        total = moved + self.noise.abs().sum(-1)
        return total * (1.0 + gamma(self.operations)) + TINY

    def reach_of(self, form: Form) -> tuple[Tensor, Tensor]:
        """How far a node lies below and above its centre, (B, [n], *shape) each."""
        shape = form.centre.shape
        rows, moves = self._rows(form), self.moves_of(form)
        down, up = self.cells.reach(moves)
        spread = form.radius.reshape(down.shape)
        if rows is not None and self.noise.shape[2]:
            spread = spread + self._noise_of(rows)
        error = (gamma(self.operations) + SLACK) * form.size.reshape(down.shape) + TINY
        spread = spread + error
        return (down + spread).reshape(shape), (up + spread).reshape(shape)

    def moves_of(self, form: Form) -> Tensor:
        """Coefficients of a node on the moves, those through the state included, (B, M, K)."""
        rows = self._rows(form)
        count = form.centre[0].numel()
        total = self.centre.new_zeros(len(self), count, self.on_moves.shape[2])
        if rows is not None:
            total = rows @ self.on_moves[:, : rows.shape[2]]
        if form.on_moves is not None:
            own = form.on_moves.expand(-1, *form.centre.shape).flatten(2)
            total = total + own.permute(1, 2, 0)
        return total

    def _rows(self, form: Form) -> Tensor | None:
        """Coefficients on the parameters, (B, M, p)."""
        if form.on_state is None:
            return None
        return form.on_state.expand(-1, *form.centre.shape).flatten(2).permute(1, 2, 0)

    def _noise_of(self, rows: Tensor) -> Tensor:
        """``|J L|_1`` row by row, (B, M).

        Where each row reads few parameters (the weights of one unit), only these are multiplied.
        """
        used = rows.shape[2]
        per = max(1, AT_ONCE // (len(self) * self.noise.shape[2]))
        noise = self.noise[:, :used]
        touched = (rows != 0.0).any(0)  # (M, p)
        most = int(touched.sum(1).max())
        if 3 * most > used:
            parts = [torch.linalg.vector_norm(part @ noise, 1, -1) for part in rows.split(per, 1)]
            return torch.cat(parts, 1)
        patterns, which = torch.unique(touched, dim=0, return_inverse=True)
        found = rows.new_empty(rows.shape[:2])
        for number, pattern in enumerate(patterns):  # one for each unit, not for each row
            read, mine = pattern.nonzero()[:, 0], (which == number).nonzero()[:, 0]
            few = noise[:, read]
            for part in mine.split(per):
                product = rows[:, part][..., read] @ few
                found[:, part] = torch.linalg.vector_norm(product, 1, -1)
        return found


def joined(states: Sequence[States], cells: Cells) -> States:
    """Sets of several batches as one; their noise has one width, ``cells`` are those of all."""
    return States(
        cells,
        torch.cat([s.samples for s in states]),
        torch.cat([s.centre for s in states]),
        torch.cat([s.on_moves for s in states]),
        torch.cat([s.noise for s in states]),
    )
