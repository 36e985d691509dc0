"""Products of deviations as differences of squares: the largest of them are less than products of ranges.

For any a, b > 0 the product ``da db`` is ``a b / 4`` times the square of ``da / a + db / b`` less that of
``da / a - db / b``, so that

    -a b r_-^2 / 4  <=  da db  <=  a b r_+^2 / 4

with the ranges ``r_+-`` of these two sums. With a and b the ranges of both factors they are at most 2,
which gives back the product of the ranges; but sums are directions of the state like any others, and what
moves one factor most rarely moves the other most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from milp_agt.bounds.zonotope.form import Form, outwards, plus, together
from milp_agt.bounds.zonotope.local import PLAIN, Local
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import gamma
from milp_agt.formulations.einsum import Letters, aligned, contracted, full_index
from milp_agt.formulations.interval_products import corner_products

# Of all products those that are bounded so, the largest; how few are not worth it; and the share of noise in
# the state from which they are.
SHARE, FEWEST, NOISY = 4, 8, 0.03
# Products that are looked at one by one at most.
MOST_PAIRS = 2**20

# How far numbers of some samples (r,) lie below and above their centres, (states, r) each.
ReachOf = Callable[[Form, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Factor:
    """A factor: its form, the range of its deviation, (states, n, *shape), and the letters of that."""

    form: Form
    away: Interval
    letters: str

    @property
    def is_shared(self) -> bool:
        """Whether it is a parameter, whose range depends on the sample, but not its form."""
        return self.form.centre.dim() < len(self.letters)

    @property
    def states(self) -> int:
        """More than of the range where noise that stands for flips depends on who is poisoned."""
        return max(len(self.away.lower), len(self.form.rest.lower))

    @property
    def is_moved(self) -> bool:
        """Whether the state moves it, in a range of its own for each sample."""
        return self.form.on_state is not None and self.letters.startswith("n")

    def chosen(self, full: str, shape: torch.Size, at: Tensor) -> Form:
        """The deviations in some products, in units of their ranges, as numbers of the samples ``at[0]``.

        ``at`` (axes, r) are places in an array of this shape, whose letters are ``full``.
        """
        form = self.form
        own = [full.index(letter) for letter in self.letters[1:]]
        sizes = [shape[axis] for axis in own]
        flat = torch.zeros_like(at[0])
        for axis, size in zip(own, sizes, strict=True):
            flat = flat * size + at[axis]
        by = 1.0 / self.away.magnitude[0].flatten(1)[at[0], flat]

        def taken(part: Tensor, lead: int = 1) -> Tensor:
            """Values (..., [n], *shape) at the places, (..., r)."""
            if self.is_shared:
                return part.flatten(lead)[..., flat]
            return part.flatten(lead + 1)[..., at[0] if part.shape[lead] > 1 else 0, flat]

        if isinstance(form.on_state, Local):
            rows = form.on_state.rows(at[0], flat).T
        else:
            assert form.on_state is not None
            rows = taken(form.on_state)
        low, high = (taken(end) * by for end in (form.rest.lower, form.rest.upper))
        parts = (form.on_moves, form.on_phase, form.on_bend, form.charge)
        moves, phase, bend, charge = (None if p is None else taken(p) * by for p in parts)
        owed = form.owed and outwards(form.owed.each(lambda end: taken(end) * by), gamma(4))
        return Form(
            torch.zeros_like(by),
            Interval(low, high).expand_states(self.states),
            taken(form.size, 0) * by,
            rows * by,
            moves,
            phase,
            bend,
            charge,
            owed,
        )


def product(
    letters: Letters, first: Factor, second: Factor, most: int, reach: ReachOf
) -> Interval | None:
    """The box of ``einsum(da, db)``, letters with samples; None where too few products are large, or too many
    there at all. ``most`` of them are bounded by ``reach``."""
    full, (a, b) = full_index(letters), (first, second)
    if not (a.is_moved and b.is_moved and full.startswith("n")):
        return None
    ends = [
        f.away.expand_states(f.states).each(partial(aligned, own, full))
        for own, f in zip(letters, (a, b), strict=False)
    ]
    shape = torch.Size(np.broadcast_shapes(*(end.lower.shape for end in ends)))
    if shape.numel() > MOST_PAIRS:
        return None
    scale = (ends[0].magnitude[0] * ends[1].magnitude[0]).expand(shape[1:])
    count = min(most, scale.numel() // SHARE, int((scale > 0.0).sum()))
    if count < FEWEST:
        return None
    worth, place = scale.flatten().topk(count, sorted=False)
    at = torch.stack(torch.unravel_index(place, shape[1:]))
    u, v = (f.chosen(full, shape[1:], at) for f in (a, b))
    grow = 1.0 + gamma(64)
    squares = []
    for sign in (-1.0, 1.0):
        down, up = reach(_sum(u, v, sign), at[0])
        squares.append(0.25 * grow * worth * torch.maximum(down, up).square())
    box = corner_products(*ends).each(lambda end: end.expand(shape).flatten(1).clone())
    box.lower[:, place] = torch.maximum(box.lower[:, place], -squares[0])
    box.upper[:, place] = torch.minimum(box.upper[:, place], squares[1])
    axes = tuple(range(-len(contracted(letters)), 0))
    return box.each(lambda end: end.reshape(shape).sum(axes) if axes else end.reshape(shape))


def _sum(first: Form, second: Form, sign: float) -> Form:
    """One form plus or less another."""
    low, high = second.rest.lower, second.rest.upper
    rest = Interval(low, high) if sign > 0 else Interval(-high, -low)
    owed = second.owed
    if owed is not None and sign < 0:
        owed = Interval(-owed.upper, -owed.lower)

    def both(name: str) -> Tensor | None:
        part = getattr(second, name)
        signed = part if part is None or name == "charge" else sign * part
        return plus(getattr(first, name), signed)

    on_state = both("on_state")
    assert on_state is not None
    return Form(
        first.centre,
        first.rest.plus(rest),
        first.size + second.size,
        Local({PLAIN: on_state}, len(on_state)),
        both("on_moves"),
        both("on_phase"),
        both("on_bend"),
        both("charge"),
        together(first.owed, owed),
    )
