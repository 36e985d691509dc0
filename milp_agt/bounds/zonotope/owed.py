"""Second order of clean samples by who else is poisoned: noise that is there only with its culprits.

A term of second order in the deviations of a sample, a product of two or the residual of a curved
function, is noise of everyone if its largest value counts. But what moves a sample most depends on who is
poisoned, and few are: here each poisoned sample *owes* a part.

Let the sample j be clean, and let a deviation d of it be at most ``base + sum_{i in S} each_i`` for every
admissible set S without j, and at most ``total_i`` if i is in S. Whatever has the bounds ``k_i d + o_i``
for every i in S, k_i >= 0, is at most

    sum_{i in S} ( k_i (base + each_i) + o_i ),

for with the i in S whose k_i is least, ``k_i d <= k_i base + sum_{h in S} k_h each_h``. A part of S may as
well owe an upper bound of the whole.

**Labels** out of finitely many classes, of which one changes. Then the sample that is poisoned moves for
sure: what it adds is an interval of either sign, nearly a number, and d lies in ``base + each_i``, for j = i
as well. Of a product of two factors i owes ``(r + d_i)(r' + d'_i) - r r'``, of a curved function what it is
off its line over the interval. Sums over samples and steps of numbers with their signs are much less than
those of their sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.bounds import StateBounds
from milp_agt.bounds.zonotope.dual import Bound
from milp_agt.bounds.zonotope.form import Form, outwards
from milp_agt.bounds.zonotope.local import Local
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.einsum import Letters
from milp_agt.formulations.interval_products import box_of_sums

# Numbers of what a node owes at most, and how much less than noise of everyone that should be.
MOST, LESS = 2**23, 0.9
# What all nodes of a step owe at most, number by number.
PER_STEP = 2**27


def tells(samples: SampleGenerators, elements: int) -> bool:
    """Whether few of the samples can be poisoned together: of more it gains nothing who owes what; and
    whether that is worth its time with so many elements of nodes in a step."""
    few = 0 < 2 * _wanted(samples) <= len(samples.known)
    return samples.count * elements <= PER_STEP and few


def is_signed(samples: SampleGenerators) -> bool:
    """Whether what a sample adds is told with its sign: of one that is poisoned alone, and moves for sure."""
    return samples.moved is not None and _wanted(samples) == 1


def _wanted(samples: SampleGenerators) -> int:
    """How many are poisoned together at most."""
    return sum(groups * most for groups, most in samples.quotas)


@dataclass(frozen=True)
class Shares:
    """How far numbers of clean samples lie from their centres, by who else is poisoned.

    Attributes:
        base: where nobody is, ends of (1, n, *shape) around 0.
        each: what each generator adds if it is poisoned, (m, n, *shape); around 0 if it has no sign.
        total: all there is if it is, (m, n, *shape).
        others: all but what it adds itself, around 0, (m, n, *shape), if that has a sign.
    """

    base: Interval
    each: Interval
    total: Interval
    others: Interval | None = None

    @staticmethod
    def of(
        bounds: tuple[Bound, Bound], samples: SampleGenerators, own: Tensor
    ) -> tuple[Tensor, ...]:
        """The ends of :attr:`base`, (r,), of :attr:`each`, and of :attr:`total`, or :attr:`others`, (r, m),
        from bounds of rows downwards and upwards with own generators (r, parts)."""
        ends = []
        for found in bounds:
            rest = found.rest + found.slack
            rest = (rest + gamma(8) * rest.abs()).clamp(min=0.0)
            share = gamma(16 + 8 * samples.terms)
            if is_signed(samples):
                ends.append(signed(rest[:, None], found.each, samples, share))
                continue
            others, _ = samples.others(found.dev, own)
            _, total = samples.conditional(others)
            grow = 1.0 + share
            ends.append((rest, others * grow, (rest[:, None] + total) * grow))
        return tuple(part for pair in zip(*ends, strict=True) for part in pair)

    @staticmethod
    def _of(base: Interval, each: Interval, last: Interval, samples: SampleGenerators) -> Shares:
        """From :attr:`total`, or :attr:`others` where signed."""
        if not is_signed(samples):
            return Shares(base, each, last)
        # What bounds towards both sides leave of an interval may be less than nothing by rounding.
        each = Interval(
            torch.minimum(each.lower, each.upper), torch.maximum(each.lower, each.upper)
        )
        total = outwards(each.plus(last), gamma(4)).widen(gamma(4) * last.magnitude)
        return Shares(base, each, total, last)

    @staticmethod
    def joined(
        parts: Sequence[tuple[Tensor, ...]], like: Tensor, samples: SampleGenerators
    ) -> Shares:
        """From rows ordered by elements, then samples; ``like`` is the node, (n, *shape)."""
        count = len(like)

        def shaped(part: Tensor) -> Tensor:
            rows = part.reshape(-1, count, part[0].numel())  # (elements, n, m)
            return rows.permute(2, 1, 0).reshape(-1, *like.shape)

        down, up, each_down, each_up, all_down, all_up = (
            shaped(torch.cat(part)) for part in zip(*parts, strict=True)
        )
        each, total = Interval(-each_down, each_up), Interval(-all_down, all_up)
        return Shares._of(Interval(-down, up), each, total, samples)

    @staticmethod
    def of_state(
        bounds: StateBounds, at: slice, shape: Sequence[int], samples: SampleGenerators
    ) -> Shares:
        """Of some coordinates of the state, (*shape), in all samples alike: n is 1."""
        size = len(bounds.below)
        lower, upper = (slice(end + at.start, end + at.stop) for end in (size, 0))

        def spread(part: Tensor) -> Interval:
            low, high = (
                part[rows].reshape(*shape, -1).movedim(-1, 0).unsqueeze(1)
                for rows in (lower, upper)
            )
            return Interval(-low, high)

        if not is_signed(samples):
            return Shares(spread(bounds.rest), spread(bounds.dev), spread(bounds.poisoned))
        rest, each, others = signed(
            bounds.rest[:, None], bounds.each, samples, gamma(16 + 8 * samples.terms)
        )
        return Shares._of(spread(rest), spread(each), spread(others), samples)

    @staticmethod
    def of_form(
        form: Form,
        moved: tuple[Tensor, Tensor] | None,
        bounds: StateBounds,
        samples: SampleGenerators,
    ) -> Shares | None:
        """Of a node by what coordinates of the state do one by one, and flips of its sample (``moved``); None
        where what it adds itself is wanted."""
        if is_signed(samples):
            return None
        on_state = form.on_state
        assert isinstance(on_state, Local)
        ends = (bounds.rest[:, None], bounds.dev, bounds.poisoned)
        size, used = len(bounds.below), on_state.parameters
        radius = torch.cat([torch.maximum(e[:used], e[size : size + used]).T for e in ends])
        far = torch.vmap(on_state.reach)(radius)
        far = far * (1.0 + gamma(8.0 * used + 8.0 * on_state.symbols + 64.0))
        base, each, total = far.split([1, samples.count, samples.count])
        own = form.rest.magnitude[0] + gamma(64) * form.size + TINY
        if moved is not None:
            own = own + torch.maximum(moved[0][0], moved[1][0])
        base, total = base + own, total + own
        if form.owed is not None:
            each, total = each + form.owed.magnitude, total + most_of(samples, form.owed)
        grown = [part * (1.0 + gamma(8)) for part in (base, each, total)]
        nobody, alone, every = (Interval(-part, part) for part in grown)
        return Shares(nobody, alone, every)

    def apart(self) -> Shares:
        """How far numbers along the last axis, two or more, lie apart from the furthest of the others."""

        def furthest(part: Interval) -> Interval:
            high, low = part.upper, part.lower
            above, below = _without_each(high) - low, high + _without_each(-low)
            far = torch.maximum(above, below) * (1.0 + gamma(4))
            return Interval(-far, far)

        others = None if self.others is None else furthest(self.others)
        return Shares(furthest(self.base), furthest(self.each), furthest(self.total), others)

    @property
    def size(self) -> Sequence[Tensor]:
        """The largest sizes: of all with base, (m, n, *shape), of totals, and of base."""
        base, each, total = (part.magnitude for part in (self.base, self.each, self.total))
        return base + each, total, base


def _without_each(part: Tensor) -> Tensor:
    """The largest along the last axis without each of them."""
    first, second = part.topk(2, -1).values.split(1, -1)
    return torch.where(part == first, second, first)


def signed(
    rest: Tensor, each: Tensor, samples: SampleGenerators, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One end of the shares of samples that move for sure if they are poisoned, from parts of a bound: of
    nobody, of each, and of all the others, rounded upwards."""
    _, total = samples.conditional(each.clamp(min=0.0))
    others = total * (1.0 + share) - each.clamp(min=0.0)
    return rest[:, 0], each + share * each.abs(), rest * (1.0 + share) + others.clamp(min=0.0)


@dataclass(frozen=True)
class Split:
    """Second order of clean samples: what is there if nobody is poisoned, (1, n, *shape), and what each
    generator owes, (m, n, *shape); of all samples in all states, if it is ``whole``."""

    base: Interval
    owed: Interval
    whole: bool = False


# Second order as noise, in each state of its sample, and as what is owed; from all of it as noise.
Owing = Callable[[Interval, Split | None], tuple[Interval, Interval | None]]


def of_everyone(whole: Interval, split: Split | None) -> tuple[Interval, None]:
    """Nobody owes anything."""
    return whole, None


def product(letters: Letters, first: Shares, second: Shares) -> Split:
    """Of ``einsum(da, db)``, letters with samples.

    ``da db`` has the bound ``|da| total_i`` with the total of db, and the other way round: half of each.
    """
    equation = "Z{},Z{}->Z{}".format(*letters)
    if first.others is not None and second.others is not None:
        return _signed_product(letters, equation, first, second)
    (one, all_one, none), (two, all_two, nothing) = first.size, second.size
    grow = 1.0 + gamma(16.0 * one[0, 0].numel() + 64.0)
    owed = torch.einsum(equation, one, all_two) + torch.einsum(equation, all_one, two)
    base, owed = torch.einsum(equation, none, nothing) * grow, 0.5 * grow * owed
    return Split(Interval(-base, base), Interval(-owed, owed))


def _signed_product(letters: Letters, equation: str, first: Shares, second: Shares) -> Split:
    """Of ``einsum(da, db)`` with signs: ``d_i d'_i`` by intervals, ``r d'_i + d_i r'`` by size."""
    assert first.others is not None
    assert second.others is not None
    one, two = first.each.magnitude, second.each.magnitude
    none, nothing = first.base.magnitude, second.base.magnitude
    grow = gamma(32.0 * one[0, 0].numel() + 128.0)
    base = torch.einsum(equation, none, nothing) * (1.0 + grow)
    crossed = torch.einsum(equation, one, second.others.magnitude + nothing)
    crossed = crossed + torch.einsum(equation, first.others.magnitude + none, two)
    error = grow * (crossed + torch.einsum(equation, one, two)) + TINY
    own = box_of_sums(letters, first.each, second.each)
    return Split(Interval(-base, base), own.widen(0.5 * crossed + error), whole=True)


def owing(
    samples: SampleGenerators, columns: Tensor, whole: Interval, split: Split | None
) -> tuple[Interval, Interval | None]:
    """Second order of a node as noise and as what is owed, if that is less than all of it as noise.

    Who owes has all of it, as noise of its own, in the states in which it may be poisoned itself; ``columns``
    (n, parts) are the generators of the samples.
    """
    if split is None:
        return whole, None
    rank = whole.lower.dim() - 2
    owed = split.owed.width.flatten(1).sum(1)
    if not bool(split.base.width.sum() + samples.worst(owed) < LESS * whole.width[0].sum()):
        return whole, None
    if split.whole:
        return split.base.expand_states(len(whole.lower)), split.owed
    masks = []
    for state in range(len(whole.lower)):
        chosen = [p for p in range(columns.shape[1]) if state >> p & 1]
        masks.append((columns[:, chosen] >= 0).any(1))
    poisoned = torch.stack(masks).reshape(len(masks), -1, *[1] * rank)
    ends = ((getattr(whole, e), getattr(split.base, e)) for e in ("lower", "upper"))
    return Interval(*(torch.where(poisoned, own, base) for own, base in ends)), split.owed


def times_centre(
    letters: Letters, owed: Interval | None, centre: Tensor, summed: bool
) -> Interval | None:
    """What is owed of a product with constants, (m, n, *shape), or (m, 1, *shape) summed over samples."""
    if owed is None:
        return None
    own, other, out = letters
    if summed:
        out = out.replace("n", "")
    equation = f"Z{own},{other}->Z{out}"
    plus, minus = centre.clamp(min=0.0), (-centre).clamp(min=0.0)
    low = torch.einsum(equation, owed.lower, plus) - torch.einsum(equation, owed.upper, minus)
    high = torch.einsum(equation, owed.upper, plus) - torch.einsum(equation, owed.lower, minus)
    sizes = torch.einsum(equation, owed.magnitude, centre.abs())
    found = Interval(low, high).widen(gamma(16.0 * centre.numel() + 64.0) * sizes)
    return found.each(lambda end: end.unsqueeze(1)) if summed else found


def most_of(samples: SampleGenerators, owed: Interval) -> Tensor:
    """The most that an admissible choice owes, ([n], *shape)."""
    return samples.worst(owed.magnitude.movedim(0, -1)) * (1.0 + gamma(8 * samples.terms + 8))
