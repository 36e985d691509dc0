"""Affine forms of the nodes of a step in the generators of the state and of their own sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.local import OnState, mapped
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma

Image = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """``v = centre + J (theta - c) + E e + Lp phi + Lr rho + rest`` for a node of a step.

    ``theta - c`` are deviations of the parameters from the centre of the zonotope, ``e`` the move of
    the sample itself, phi and rho its own flips of this step (*slots*).
    Coefficients come first, so that operations that are linear act on them as on values; None is 0.

    Attributes:
        centre: ([n], *shape).
        rest: box of what is left, (states, [n], *shape) for samples that are clean and that may be
            poisoned, (1, *shape) without sample axis; holds 0.
        size: sum of the sizes of all terms, an upper bound of ``|v|`` as well, ([n], *shape).
        on_state: J, (p, *shape) without sample axis, else by way of symbols of each sample.
        on_moves: E, (width, n, *shape).
        on_phase, on_bend: Lp and Lr, (slots, n, *shape).
        charge: noise that is there only if a flip happens, on either side, (slots, n, *shape).
        owed: noise that is there only if another sample is poisoned, ends of (m, n, *shape) around 0.
        squares: further terms ``u'Qu`` in the move of the sample, (width^2, n, *shape); of summed products.
    """

    centre: Tensor
    rest: Interval
    size: Tensor
    on_state: OnState = None
    on_moves: Tensor | None = None
    on_phase: Tensor | None = None
    on_bend: Tensor | None = None
    charge: Tensor | None = None
    owed: Interval | None = None
    squares: Tensor | None = None

    @staticmethod
    def constant(value: Tensor, states: int) -> Form:
        """A node that nothing moves."""
        zero = torch.zeros_like(value).expand(states, *value.shape)
        return Form(value, Interval(zero, zero), value.abs())

    @property
    def is_constant(self) -> bool:
        """Whether it is one and the same number, whatever happens."""
        moved = (self.on_state, self.on_moves, self.on_phase, self.on_bend, self.charge, self.owed)
        exact = not bool(self.rest.lower.any()) and not bool(self.rest.upper.any())
        return exact and all(part is None for part in moved)

    @property
    def is_own(self) -> bool:
        """Whether the move of its own sample moves it, and the state does not, nor flips."""
        others = (self.on_state, self.on_phase, self.on_bend, self.charge, self.owed)
        return self.on_moves is not None and all(part is None for part in others)

    @property
    def is_phase(self) -> bool:
        """Whether nothing but flips of its own sample, and rounding, moves it."""
        others = (self.on_state, self.on_moves, self.on_bend, self.charge, self.owed)
        return self.on_phase is not None and all(part is None for part in others)

    def blurred(self, error: Tensor) -> Form:
        """``v + d`` with ``|d|`` within the error, ([states], [n], *shape): noise in each state."""
        error = error + torch.zeros_like(self.rest.lower)
        size = self.size + error.amax(0)
        error = error + gamma(4) * size + TINY
        return replace(self, rest=self.rest.expand_states(len(error)).widen(error), size=size)

    def scaled(self, factor: Tensor) -> Form:
        """Elementwise product with constants, but for the centre, which stays; ([n], *shape)."""
        return replace(
            self,
            rest=_scaled(self.rest, factor),
            owed=self.owed and outwards(_scaled(self.owed, factor), gamma(4)),
            on_state=mapped(self.on_state, lambda part: part * factor),
            **self.images(lambda part: part * factor, lambda part: part * factor.abs()),
        )

    def images(self, linear: Image, grown: Image) -> dict[str, Any]:
        """Coefficients but those on the state after a map that is linear in the node, and the charge after
        the one that its size takes."""
        maps = {"on_moves": linear, "on_phase": linear, "on_bend": linear, "charge": grown}
        parts = ((name, image, getattr(self, name)) for name, image in maps.items())
        return {name: None if part is None else image(part) for name, image, part in parts}


@dataclass(frozen=True)
class SummedForm:
    """A node without sample axis after a sum over samples: the moves and flips of all of them.

    Attributes:
        centre, size: (*shape).
        on_state: (p, *shape).
        on_moves: (width, entries, *shape), an entry for each sample and part.
        on_phase, on_bend: on the new flips of this step, (f, *shape).
        charge: on those of them that have rows, (q, *shape).
        base: noise of everyone, (1, *shape).
        charges: further noise if a sample is poisoned, ends of (entries, *shape) around 0.
        owed: noise of the others if it is, ends of (m, *shape) around 0, for all generators.
        squares: (width^2, entries, *shape), see squares.py.
    """

    centre: Tensor
    size: Tensor
    on_state: Tensor | None
    on_moves: Tensor | None
    on_phase: Tensor
    on_bend: Tensor
    charge: Tensor
    base: Interval
    charges: Interval
    owed: Interval | None = None
    squares: Tensor | None = None

    def without_squares(self) -> SummedForm:
        """A larger set, with all that is quadratic in moves as noise of their samples."""
        if self.squares is None:
            return self
        error = self.squares.abs().sum(0) * (1.0 + gamma(8.0 * len(self.squares)))
        return replace(self, charges=self.charges.widen(error), squares=None)

    def plus(self, other: SummedForm, samples: int) -> SummedForm:
        """With the sum over further samples, whose flips are further ones; ``samples`` are all of the sum."""
        if self.squares is None or other.squares is None:
            self, other = self.without_squares(), other.without_squares()
        size = self.size + other.size
        low, high = (getattr(self.base, e) + getattr(other.base, e) for e in ("lower", "upper"))
        error = gamma(8 * samples + 64) * size + TINY

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(self, name), getattr(other, name)])

        charges = (self.charges, other.charges)
        moves = None
        if self.on_moves is not None or other.on_moves is not None:
            # Where all units are off, say, the samples of one part move nothing.
            moves = torch.cat([self.moves_like(other), other.moves_like(self)], 1)
        return SummedForm(
            self.centre + other.centre,
            size,
            plus(self.on_state, other.on_state),
            moves,
            joined("on_phase"),
            joined("on_bend"),
            joined("charge"),
            Interval(low, high).widen(error),
            Interval(*(torch.cat([getattr(c, e) for c in charges]) for e in ("lower", "upper"))),
            together(self.owed, other.owed),
            None
            if self.squares is None or other.squares is None
            else torch.cat([self.squares, other.squares], 1),
        )

    def moves_like(self, like: SummedForm) -> Tensor:
        """The coefficients on moves, zeros where there are none, as many as those of ``like``."""
        if self.on_moves is not None:
            return self.on_moves
        assert like.on_moves is not None
        lower = self.charges.lower
        return lower.new_zeros(len(like.on_moves), *lower.shape)


def _scaled(box: Interval, factor: Tensor) -> Interval:
    low, high = factor * box.lower, factor * box.upper
    return Interval(torch.minimum(low, high), torch.maximum(low, high))


def together(first: Interval | None, second: Interval | None) -> Interval | None:
    """The sum of what two terms owe."""
    if first is None or second is None:
        return second if first is None else first
    error = gamma(4) * (first.magnitude + second.magnitude)
    return first.plus(second).widen(error)


def outwards(box: Interval, share: float) -> Interval:
    """A box whose ends, of any sign, move outwards by a share of their sizes."""
    return Interval(box.lower - share * box.lower.abs(), box.upper + share * box.upper.abs())


def by_part(ends: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Noise in each state of a sample, (states or 1, ...), >= 0, as noise of everyone and what the sample
    adds if it is poisoned in each part, (parts, ...).

    With two parts n_s is the noise in state s. The first adds ``n_1 - n_0``, the second the larger one of
    ``n_2 - n_0`` and of what is missing to ``n_3``: so that the sum is never below n_s in any state, up to
    a factor of ``1 + gamma(4)``.
    """
    base = ends[0]
    if len(ends) == 1:
        return base, torch.zeros_like(ends).expand(parts, *base.shape)
    first = (ends[1] - base).clamp(min=0.0)
    if parts == 1:
        return base, first[None]
    both = (ends[3] - base).clamp(min=0.0)
    second = torch.maximum(ends[2] - base, both - first + gamma(4) * both)
    return base, torch.stack([first, second.clamp(min=0.0)])


def data_form(
    nominal: Tensor, box: Interval, every: int, start: int, width: int, columns: Tensor, part: int
) -> Form:
    """Features or labels of a batch: coordinates of a move, of ``every`` those from ``start`` on, act on
    the elements in their order; ``columns`` (n, parts) are -1 for samples that stay clean."""
    states, columns = 2 ** columns.shape[1], columns[:, part]
    if not width:
        return Form.constant(nominal, states)
    open_ = (columns >= 0).to(nominal)
    flat = nominal.flatten(1)
    moves = flat.new_zeros(every, len(flat), flat.shape[1])
    index = torch.arange(width, device=flat.device)
    moves[start + index, :, index] = open_
    # x + e is rounded to nearest in the run.
    size = box.magnitude.amax(0) + (box.upper - box.lower).amax(0)
    error = gamma(4) * size * open_.reshape(-1, *[1] * (nominal.dim() - 1)) + TINY
    error = torch.stack([error * float(state >> part & 1) for state in range(states)])
    on_moves = moves.reshape(-1, *nominal.shape)
    return Form(nominal, Interval(-error, error), size, on_moves=on_moves)


def plus(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two coefficients, None being 0."""
    if first is None or second is None:
        return second if first is None else first
    count = max(len(first), len(second))
    return led(first, count) + led(second, count)


def added_images(*images: dict[str, Any]) -> dict[str, Any]:
    """The sums of :meth:`Form.images` of several forms."""
    return {name: reduce(plus, (each[name] for each in images)) for name in images[0]}


def shaped(at_slots: Tensor | None, centre: Tensor) -> Tensor | None:
    """Coefficients (slots, n, elements) in the shape of a node."""
    return None if at_slots is None else at_slots.reshape(len(at_slots), *centre.shape)


def led(part: Tensor, count: int, value: float = 0.0) -> Tensor:
    """With ``count`` entries along the first axis, the further ones ``value``; none is ever dropped."""
    missing = count - len(part)
    return torch.cat([part, part.new_full((missing, *part.shape[1:]), value)]) if missing else part


def holding_zero(box: Interval) -> Interval:
    """A box stretched to 0."""
    return Interval(box.lower.clamp(max=0.0), box.upper.clamp(min=0.0))
