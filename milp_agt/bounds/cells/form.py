"""Affine forms of the nodes of a step, for many cells at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.bounds.cells.cell import SLACK, Cells
from milp_agt.core.rounding import FLOAT32, TINY, gamma
from milp_agt.core.stacked import Stacked
from milp_agt.core.torch_modes import float32_products_are_exact

# Numbers of one product with the noise at a time: what a cache holds.
AT_ONCE = 2**18


@dataclass(frozen=True)
class Span:
    """Coefficients on some of the parameters, those from ``first`` on, (p, B, [n], *shape); B may be 1.

    Most nodes of a step read the parameters of few layers: the others take neither memory nor time.
    """

    first: int
    values: Tensor

    @property
    def at(self) -> slice:
        return slice(self.first, self.first + len(self.values))

    def map(self, change: Callable[[Tensor], Tensor]) -> Span:
        """The image under a map that is linear in the node."""
        return Span(self.first, change(self.values))

    def over(self, at: slice) -> Tensor:
        """The coefficients on a larger range of parameters."""
        if at == self.at:
            return self.values
        rest = self.values.shape[1:]
        before = self.values.new_zeros(1).expand(self.first - at.start, *rest)
        after = self.values.new_zeros(1).expand(at.stop - self.at.stop, *rest)
        return torch.cat([before, self.values, after])

    def plus(self, other: Span) -> Span:
        """The sum."""
        low, high = (self, other) if self.first <= other.first else (other, self)
        if low.at.stop == high.first and low.values.shape[1:] == high.values.shape[1:]:
            return Span(low.first, torch.cat([low.values, high.values]))
        at = hull([self, other])
        if self.at == at:
            self, other = other, self
        if other.at == at and other.values.shape[1:] == self.values.shape[1:]:
            total = other.values.clone()
            total[self.first - at.start : self.at.stop - at.start] += self.values
            return Span(at.start, total)
        return Span(at.start, self.over(at) + other.over(at))


def hull(spans: Sequence[Span]) -> slice:
    """The least range of parameters that holds those of all."""
    return slice(min(s.first for s in spans), max(s.at.stop for s in spans))


def added(first: Span | None, second: Span | None) -> Span | None:
    """The sum of two coefficients, None being 0."""
    if first is None or second is None:
        return second if first is None else first
    return first.plus(second)


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
        on_state: J.
        on_moves: E, (K, B, n, *shape).
        on_cut: coefficients on what J and E make of the node :class:`Cut` of the own sample, so that nodes
            behind it need no coefficients on all parameters, (m, B, n, *shape).
    """

    centre: Tensor
    radius: Tensor
    size: Tensor
    away: Tensor
    on_state: Span | None = None
    on_moves: Tensor | None = None
    on_cut: Tensor | None = None

    @staticmethod
    def constant(value: Tensor) -> Form:
        zero = torch.zeros_like(value)
        return Form(value, zero, value.abs(), zero)

    @property
    def is_constant(self) -> bool:
        parts = (self.on_state, self.on_moves, self.on_cut)
        return all(part is None for part in parts) and not bool(self.away.any())

    def elements(self, row: int, sample: Tensor, element: Tensor) -> Form:
        """Some numbers of one cell, (m,), as a form of shape (1, m)."""

        def one(part: Tensor) -> Tensor:
            return part.flatten(2)[row, sample, element][None]

        def coefficient(part: Tensor) -> Tensor:
            full = part.expand(-1, *self.centre.shape).flatten(3)
            return full[:, row, sample, element][:, None]

        return Form(
            one(self.centre),
            one(self.radius),
            one(self.size),
            one(self.away),
            None if self.on_state is None else self.on_state.map(coefficient),
            None if self.on_moves is None else coefficient(self.on_moves),
        )

    def scaled(self, slope: Tensor) -> Form:
        """Coefficients and radius times elementwise constants; centre, size and away stay."""
        return replace(
            self,
            radius=self.radius * slope.abs(),
            on_state=None
            if self.on_state is None
            else self.on_state.map(lambda part: part * slope),
            on_moves=None if self.on_moves is None else self.on_moves * slope,
            on_cut=None if self.on_cut is None else self.on_cut * slope,
        )


@dataclass(frozen=True)
class Cut:
    """The coefficients of a node of few numbers, through which the nodes behind it see the others.

    Attributes:
        on_state: (p, B, n, m).
        on_moves: (K, B, n, m), or None.
    """

    on_state: Span
    on_moves: Tensor | None

    @staticmethod
    def of(form: Form) -> tuple[Cut, Form]:
        """A node as the cut, and its form in terms of it."""
        assert form.on_state is not None
        numbers = form.centre[0, 0].numel()
        shape = (numbers, 1, 1, *form.centre.shape[2:])
        eye = torch.eye(numbers, dtype=form.centre.dtype, device=form.centre.device)
        on_moves = None if form.on_moves is None else form.on_moves.flatten(3)
        cut = Cut(form.on_state.map(lambda part: part.flatten(3)), on_moves)
        own = eye.reshape(shape).expand(-1, *form.centre.shape)
        return cut, replace(form, on_state=None, on_moves=None, on_cut=own)

    def resolved(self, form: Form, summed: bool = False) -> Form:
        """A form without the cut; ``summed`` over the samples if it is a sum already but for ``on_cut``."""
        if form.on_cut is None:
            return form
        flat = form.on_cut.flatten(3)
        out = "pbk" if summed else "pbnk"
        shape = form.centre.shape

        def image(part: Tensor) -> Tensor:
            found = torch.einsum(f"mbnk,pbnm->{out}", flat, part)
            return found.reshape(-1, *shape)

        moves = form.on_moves
        if self.on_moves is not None:
            more = image(self.on_moves)
            moves = more if moves is None else moves + more
        on_state = added(form.on_state, self.on_state.map(image))
        return replace(form, on_state=on_state, on_moves=moves, on_cut=None)


@dataclass(frozen=True)
class States(Stacked):
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

    def reduced(self, most: int, kept: int) -> States:
        """The same sets, or larger ones, with fewer than ``most`` columns of noise.

        Beside the ``kept`` columns that would lose most, all are one box: ``|L xi| <= sum |L|`` in each
        coordinate. A column along one coordinate loses nothing (Girard, HSCC 2005).
        """
        size, width = self.noise.shape[1:]
        if width <= most or width <= size + kept:
            return self
        magnitude = self.noise.abs()
        loss = magnitude.sum(1) - magnitude.amax(1)
        order = loss.topk(kept, 1).indices[:, None]
        lead = self.noise.gather(2, order.expand(-1, size, -1))
        rest = magnitude.scatter(2, order.expand(-1, size, -1), 0.0).sum(2)
        radius = rest * (1.0 + gamma(self.operations)) + TINY
        return replace(self, noise=torch.cat([lead, torch.diag_embed(radius)], 2))

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

    def reach_of(self, form: Form, kink: bool = False) -> tuple[Tensor, Tensor]:
        """How far a node lies below and above its centre, (B, [n], *shape) each.

        At a ``kink`` only numbers that boxes of moves leave on both sides of 0 are held against half-spaces.
        """
        shape = form.centre.shape
        moves = self.moves_of(form)
        down, up = self.cells.reach_of_box(moves) if kink else self.cells.reach(moves)
        spread = form.radius.reshape(down.shape)
        if form.on_state is not None and self.noise.shape[2]:
            spread = spread + self._noise_of(form)
        error = (gamma(self.operations) + SLACK) * form.size.reshape(down.shape) + TINY
        spread = spread + error
        if kink:
            down, up = self._near(form, moves, down, up, spread)
        return (down + spread).reshape(shape), (up + spread).reshape(shape)

    def _near(
        self, form: Form, moves: Tensor, down: Tensor, up: Tensor, spread: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What moves add below and above, (B, M), by all that is known of cells where 0 is in reach."""
        centre, away = form.centre.reshape(down.shape), form.away.reshape(down.shape)
        low = centre - torch.minimum(down + spread, away)
        high = centre + torch.minimum(up + spread, away)
        at = ((low <= 0.0) & (high > 0.0)).nonzero(as_tuple=True)
        less, more = self.cells.take(at[0]).reach(moves[at][:, None])
        return down.index_put(at, less[:, 0]), up.index_put(at, more[:, 0])

    def moves_of(self, form: Form) -> Tensor:
        """Coefficients of a node on the moves, those through the state included, (B, M, K)."""
        rows = self._rows(form)
        count = form.centre[0].numel()
        total = self.centre.new_zeros(len(self), count, self.on_moves.shape[2])
        if rows is not None:
            assert form.on_state is not None
            total = rows @ self.on_moves[:, form.on_state.at]
        if form.on_moves is not None:
            own = form.on_moves.expand(-1, *form.centre.shape).flatten(2)
            total = total + own.permute(1, 2, 0)
        return total

    def _rows(self, form: Form) -> Tensor | None:
        """Coefficients on the parameters, (B, M, p)."""
        if form.on_state is None:
            return None
        return form.on_state.values.expand(-1, *form.centre.shape).flatten(2).permute(1, 2, 0)

    def _noise_of(self, form: Form) -> Tensor:
        """At least ``|J L|_1`` for each number of a node, (B, M).

        Where each number reads few parameters (the weights of one unit), only these are multiplied. In
        float32, whose rounding of at most ``gamma(p + Q)`` of all terms is added: far below the noise. In
        float64 where torch is set to round the factors of float32 products.
        """
        assert form.on_state is not None
        values, at = form.on_state.values, form.on_state.at
        count, used, width = len(self), len(values), self.noise.shape[2]
        lead = form.centre.shape[1] if form.centre.dim() > 2 else 1
        kind = torch.float32 if float32_products_are_exact() else torch.float64
        single = values.to(kind).expand(-1, *form.centre.shape)
        single = single.reshape(used, count, lead, -1)
        noise = self.noise[:, at].to(kind)
        per = max(1, AT_ONCE // (count * width))
        touched = (single != 0.0).any(1).any(1).T  # (elements, p)
        found = single.new_empty(count, lead, len(touched))
        if 3 * int(touched.sum(1).max()) > used:
            rows = single.flatten(2).permute(1, 2, 0)
            parts = [torch.linalg.vector_norm(r @ noise, 1, -1) for r in rows.split(per, 1)]
            found = torch.cat(parts, 1).reshape(found.shape)
        else:
            for element, read in enumerate(touched):  # a handful: units of a layer
                few = noise[:, read]
                rows = single[read, :, :, element].permute(1, 2, 0)
                parts = [torch.linalg.vector_norm(r @ few, 1, -1) for r in rows.split(per, 1)]
                found[..., element] = torch.cat(parts, 1)
        total = self.noise[:, at].abs().sum(-1)
        terms = torch.einsum("pbm,bp->bm", single.abs().flatten(2).double(), total)
        error = FLOAT32.gamma(2.0 * (used + width) + 64.0) * terms + FLOAT32.tiny
        return found.flatten(1).double() + error
