"""Affine forms: what the numbers of a run are made of, and how far that can move them.

Every number is ``c + sum_i a_i . e_i + sum_f (p_f phi_f + q_f rho_f) + sum_m g_m n_m + r``. At most k slots
of a group are poisoned; ``e_i`` is the move of slot i, in its box if it is poisoned and 0 else. A flip f says
whether a kink is crossed that the run at the centres does not cross: ``phi_f`` in {0, 1} and ``0 <= rho_f
<= most_f phi_f``. Noise ``n_m`` is what nothing else is known of but its size: a base, more if a slot is
poisoned, more if a flip happens. The rest r lies in an interval, which may be another one if the sample that
a number belongs to is clean than if it is poisoned (states 0 and 1).

**A bound.** Let S be the slots that are poisoned. A flip adds at most its price ``max(0, p + q^+ most +
sum |g_m| charged_m)``, and nothing if it does not happen, which by ``phi <= sum_{i in S} share_i`` is at
most ``sum_{i in S} share_i`` times the price. So a form is at most

    c + r + sum |g_m| base_m + prices of flips that are paid in full
      + sum_{i in S} ( support_i(a_i) + sum |g_m| owned_mi + sum of prices times shares_i of the others )

whichever flips are paid in full, and the last sum is at most that of its k largest terms in each group.

**Rows.** Let y be how far a number lies beyond its kink, seen from its centre, so that ``rho = max(0, y)``.
With ``y >= -l``,

    0 <= y + l - l phi - rho        and        0 <= rho - y:

if the flip happens, y is rho, else rho is 0. If nothing but its own sample i can bring it about, and
``y >= -q`` where i is clean, the first row holds with ``q`` for a clean and ``l`` for a poisoned i in place
of its second term: phi and rho are 0 for a clean i. A form is at most itself plus a sum of rows with
multipliers >= 0, which is a form again. So *every* multiplier >= 0 gives a bound;
certificates hold those of good ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import Any

import numpy as np

from milp_agt.checker import boxes
from milp_agt.checker.boxes import SPARE, TINY, Array, Box, Unbounded, down, largest, up

NUMBERS = 2**27  # coefficients of one array at most
# Which flips samples pay for: those of which so many fit in the budget.
COVERS = (1.0, 2.0, 4.0, 1e300)
Pair = tuple[Array, Array]


@dataclass(frozen=True)
class Symbols:
    """What forms are made of, column by column.

    Attributes:
        low, high: ranges of the moves of slots, (slots, width); a slot that is not poisoned has none.
        radius: with a ``norm`` of 1 or 2, that of ``move / radius`` is at most 1, (slots, width); columns
            that have a radius of 0 are not in it.
        groups: the slots of each group, at most ``budget`` of which are poisoned.
        moves: their columns, (slots, width).
        flips: columns of phi and rho of each flip, (flips, 2): ``phi in {0, 1}, 0 <= rho <= most phi``.
        names: the step of each flip, and its number in that, (flips, 2).
        most: (flips,).
        shares: ``phi <= sum of the shares of the slots that are poisoned``, (flips, slots).
        cover: the most that these add up to; infinite where they say nothing.
        noise: columns of the noise, (noise,).
        base: of each noise, (noise,): ``|n| <= base + sum of owned (noise, slots) over the slots that are
            poisoned + charge if flip happens``.
        flip, charge: the flip that a noise is charged to, (noise,), -1 for none; each has one noise at most.
        blocks: coefficients of the two rows of each flip, of some flips each, (flips, 2, columns).
        above: what they add besides, (flips, 2), and if slots are poisoned, ``pays`` (flips, 2, slots).
        terms: the sizes of all their terms, (flips,).
        count: of the columns.
    """

    low: Array
    high: Array
    radius: Array
    groups: tuple[slice, ...]
    budget: int
    norm: int
    moves: Array
    flips: Array
    names: Array
    most: Array
    shares: Array
    cover: Array
    noise: Array
    base: Array
    owned: Array
    flip: Array
    charge: Array
    blocks: tuple[Array, ...]
    above: Array
    pays: Array
    terms: Array
    count: int

    @staticmethod
    def none(width: int, budget: int, norm: int = 0) -> Symbols:
        z, no = np.zeros, np.zeros(0)
        slots, flips, noise = z((0, width)), z((0, 2), dtype=np.int64), z(0, dtype=np.int64)
        columns, rows, pairs = z((0, width), dtype=np.int64), z((0, 2, 0)), z((0, 2))
        rest = no, z((0, 0)), no, noise, no, z((0, 0)), noise, no, (rows,), pairs, rows, no
        return Symbols(slots, slots, slots, (), budget, norm, columns, flips, flips, *rest, 0)

    def _columns(self, *shape: int) -> Array:
        size = int(np.prod(shape))
        return np.arange(self.count, self.count + size).reshape(shape)

    def _more(self, new: Array, **parts: Array) -> Symbols:
        joined = {n: np.concatenate([getattr(self, n), part]) for n, part in parts.items()}
        return replace(self, count=self.count + new.size, **joined)  # type: ignore[arg-type]

    def with_slots(self, low: Array, high: Array, radius: Array) -> Symbols:
        """With a group of slots more."""
        before, new = len(self.low), self._columns(*low.shape)
        slots = before + len(low)
        wider: Any = {n: wide(getattr(self, n), slots) for n in ("shares", "owned", "pays")}
        found = self._more(new, low=low, high=high, radius=radius, moves=new)
        return replace(found, groups=(*self.groups, slice(before, slots)), **wider)

    def with_flips(self, y: Form, least: Array, quiet: Array, **own: Array) -> Symbols:
        """With flips of kinks, and their rows: l is ``least``, and q ``quiet``. ``own``: names, most, shares,
        cover and pays.
        """
        new, each = self._columns(len(least), 2), np.arange(len(least))
        rows = wide(np.stack([y.s, -y.s], 1), self.count + new.size).astype(least.dtype)
        rows[each, 0, new[:, 0]] = -least
        rows[each, :, new[:, 1]] = -1.0, 1.0
        above = np.stack([y.c + y.high + quiet, -(y.c + y.low)], 1)
        terms = magnitude(y, self) + own["pays"].sum((1, 2)) + 2.0 * (least + own["most"])
        found = self._more(new, flips=new, above=above, terms=terms, **own)
        return replace(found, blocks=(*self.blocks, rows))

    def with_noise(self, base: Array, owned: Array, flip: Array, charge: Array) -> Symbols:
        new = self._columns(len(base))
        found = self._more(new, noise=new, base=base, owned=owned, flip=flip, charge=charge)
        if (np.bincount(found.flip[found.flip >= 0]) > 1).any():
            raise Unbounded("a flip with noise already")  # _parts would count one of them
        return found

    @cached_property
    def rows(self) -> Array:
        """The two rows of all flips, (flips, 2, columns)."""
        return np.concatenate([wide(block, self.count) for block in self.blocks])

    @cached_property
    def sizes(self) -> Array:
        """The most that each column is, (count,)."""
        found = np.zeros_like(self.base, shape=self.count)
        found[self.moves] = np.maximum(-self.low, self.high)
        found[self.flips[:, 0]], found[self.flips[:, 1]] = 1.0, self.most
        found[self.noise] = self.base + self.owned.sum(1) + self.charge
        return found

    def support(self, by: Array) -> Array:
        """The most that coefficients of the moves of some slots, (..., slots, width), add up to.

        At most the dual norm of ``by radius``: the largest of norm 1, the root of the squares of norm 2.
        """
        slots = by.shape[-2]
        gains = np.maximum(by * self.low[:slots], by * self.high[:slots])
        found: Array = gains.sum(-1)
        if self.norm:
            radius = self.radius[:slots]
            scaled = abs(by) * radius
            squares = (scaled * scaled).sum(-1)
            ball = scaled.max(-1, initial=0.0) if self.norm == 1 else boxes.root(squares)
            found = np.minimum(found, ball + np.where(radius > 0, 0.0, gains).sum(-1))
        return found

    def given(self, values: Array) -> Pair:
        """The most that values >= 0 of the slots, (..., slots), add up to over all that may be poisoned:
        if a slot is not, and if it is (..., slots).

        A slot among the k largest of its group leaves the next in its place; another one that is poisoned
        takes the place of the smallest of them.
        """
        total = self.worst(values)[..., None]
        clean, poisoned = np.zeros_like(values), np.zeros_like(values)
        for group in self.groups:
            own = values[..., group]
            count = min(self.budget, own.shape[-1])
            if count == 0:
                clean[..., group] = poisoned[..., group] = total
                continue
            top = largest(own, count + 1, -1)
            top = np.sort(top, -1)[..., ::-1]
            last = top[..., count - 1 : count]
            further = top[..., count : count + 1].sum(-1, keepdims=True)
            among = own >= last
            clean[..., group] = np.where(among, total - own + further, total)
            poisoned[..., group] = np.where(among, total, total - last + own)
        return clean, poisoned

    def worst(self, values: Array) -> Array:
        """The same, whoever is poisoned, (...,)."""
        total = np.zeros(values.shape[:-1])
        for group in self.groups if self.budget else ():
            total = total + largest(values[..., group], self.budget, -1).sum(-1)
        return total


def wide(values: Array, count: int) -> Array:
    """Zeros for columns that are new."""
    if count == values.shape[-1]:
        return values
    found = np.zeros_like(values, shape=(*values.shape[:-1], count))
    found[..., : values.shape[-1]] = values
    return found


def plus(*parts: Array) -> Array:
    """The sum, where columns that some have not are 0."""
    shape = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
    found = np.zeros((*shape, max(part.shape[-1] for part in parts)), np.result_type(*parts))
    for part in parts:
        found[..., : part.shape[-1]] += part
    return found


def near(factor: Fraction, like: Array) -> Array:
    """A float off by a share of U at most; of fractions, the same."""
    if factor and not 2.0**-1000 < abs(factor) < 2.0**1000:
        raise Unbounded("a factor that no float is near")
    return np.asarray(boxes.Exact(factor) if boxes.is_exact(like) else float(factor))


@dataclass(frozen=True)
class Form:
    """Forms of one array of numbers.

    Attributes:
        c: centres, (*shape).
        s: coefficients, (*shape, columns); those that are not there are 0.
        low, high: of the rest, (*shape), or (2, n, *shape) by the state of the sample.
        owned: how much more the rest may be if a slot is poisoned, (*shape, slots); of sums, else (1,).
    """

    c: Array
    s: Array
    low: Array
    high: Array
    owned: Array = field(default_factory=partial(np.zeros, 1))
    known: dict[str, Array] = field(default_factory=dict, init=False)  # of magnitude

    def __post_init__(self) -> None:
        if self.s.size > NUMBERS:
            raise Unbounded(f"{self.s.size} coefficients")
        # Coefficients are seen where they are bounded: there one that is infinite makes a box that is.
        boxes.finite(self.c, self.low, self.high)

    def widened(self, error: Array) -> Form:
        """With the rest widened by an error that covers the rounding here, too."""
        return replace(self, low=self.low - error, high=self.high + error)

    def __getitem__(self, key: Any) -> Form:
        """Some of the numbers of samples."""
        key = key if isinstance(key, tuple) else (key,)
        whole = slice(None), *key
        return Form(self.c[key], self.s[key], self.low[whole], self.high[whole])

    def __add__(self, other: Form) -> Form:
        """The sum, up to rounding; of the last one, what slots add."""
        s, low, high = plus(self.s, other.s), self.low + other.low, self.high + other.high
        return Form(self.c + other.c, s, low, high, other.owned)

    def __sub__(self, other: Form) -> Form:
        """The difference, up to rounding."""
        return self + other.scaled(np.asarray(-1.0))

    def scaled(self, factor: Array, count: int = 0) -> Form:
        """The product with numbers, up to rounding; with ``count`` columns, if these are more."""
        ends, known = (factor * self.low, factor * self.high), self.s.shape[-1]
        shape = *self.s.shape[:-1], max(known, count)
        s = np.zeros(shape, np.result_type(factor, self.s, self.c))
        np.multiply(factor[..., None], self.s, out=s[..., :known])
        return Form(factor * self.c, s, np.minimum(*ends), np.maximum(*ends))

    def times(self, factor: Fraction) -> Form:
        """The product with a number, up to rounding; of what slots add, rounded upwards."""
        by = near(factor, self.c)
        return replace(self.scaled(by), owned=up(up(abs(by) * self.owned)))


def _parts(form: Form, symbols: Symbols, given: Array | None) -> tuple[Array, Array, Array, Array]:
    """How far noise and rows move the forms, (2, *shape), slots lower and raise them, (2, *shape, slots), and
    flips, (2, *shape, flips); and the sizes of all terms.
    """
    s, size = form.s[None], magnitude(form, symbols)
    rest = more = np.zeros(1)
    sign = np.array([-1.0, 1.0]).reshape(2, *[1] * form.c.ndim)
    if given is not None:
        rows = len(symbols.flips) * 2
        pairs = np.maximum(given, 0.0), np.maximum(-given, 0.0)  # one row of each flip is enough
        by = wide(np.stack(pairs, -1).reshape(*given.shape[:-1], -1), rows)
        s = plus(s, sign[..., None] * (by @ symbols.rows.reshape(rows, -1)))
        more, lost = by @ symbols.pays.reshape(rows, -1), TINY * symbols.sizes.sum()
        rest = by @ symbols.above.reshape(rows) + lost
        size = size + abs(given) @ symbols.terms[: given.shape[-1]]
    known = s.shape[-1]
    columns = symbols.moves[:, -1:], symbols.flips[:, -1], symbols.noise
    slots, flips, noise = (int((each < known).sum()) for each in columns)
    moves = sign[..., None, None] * s[..., symbols.moves[:slots]]
    dev = symbols.support(moves)
    spread = abs(s[..., symbols.noise[:noise]])
    dev = wide(dev, len(symbols.low)) + spread @ symbols.owned[:noise] + more
    charged = np.flatnonzero(symbols.flip[:noise] >= 0)
    phi, rho = (sign[..., None] * s[..., symbols.flips[:flips, k]] for k in (0, 1))
    price = phi + symbols.most[:flips] * np.maximum(rho, 0.0)
    price = wide(price, len(symbols.flips))
    price[..., symbols.flip[charged]] += spread[..., charged] * symbols.charge[charged]
    return spread @ symbols.base[:noise] + rest, dev, np.maximum(price, 0.0), size


def magnitude(form: Form, symbols: Symbols) -> Array:
    """The sum of the sizes of all terms of the forms, all slots poisoned and all flips happening, or a bound
    of it that rules keep: what rounding errors grow with. Symbols that come later are in none of them.
    """
    if "size" in form.known:
        return form.known["size"]
    rest = np.maximum(abs(form.low), abs(form.high))
    rest = rest.max(0) if rest.ndim > form.c.ndim else rest
    rest = rest + form.owned.sum(-1)
    moves = abs(form.s) @ symbols.sizes[: form.s.shape[-1]]
    found = form.known["size"] = np.asarray((abs(form.c) + moves + rest) * SPARE)
    return found


def reach(form: Form, symbols: Symbols, given: Array | None = None) -> Iterator[Pair]:
    """Pairs of which each bounds how far the forms go below and above ``c + rest``: what is there whoever
    is poisoned, (2, *shape), and what each slot adds if it is, (2, *shape, slots).

    A flip costs at most its price, if it happens; it is paid in full, or by each slot that is poisoned
    its share of it. Without rows, and with those that are given multipliers of (2, *shape, flips): their
    differences, for ``-form`` and ``form``.
    """
    count = symbols.count + 2 * len(symbols.flips) + 68
    for each in (None, given) if given is not None and given.any() else (None,):
        noise, dev, price, size = _parts(form, symbols, each)
        size = size * (2 + symbols.budget * len(symbols.groups))
        done = -1
        for most in COVERS:
            few = symbols.cover <= most
            if int(few.sum()) == done:
                continue
            done = int(few.sum())
            paid = dev + price[..., few] @ symbols.shares[few]
            rest = noise + price[..., ~few].sum(-1)
            error = boxes.allowance(count, size + abs(rest) + symbols.worst(paid))
            yield rest + error, paid


def own_ranges(form: Form, symbols: Symbols, own: Array, given: Array | None = None) -> Box:
    """Bounds by the state of the sample, (2, n, *shape); ``own`` are the slots of the samples, -1 for
    none. Forms that belong to no sample are bounded given each of them.
    """
    alike = form.low.ndim == form.c.ndim
    found = list[Array]()
    for rest, dev in reach(form, symbols, given):
        states = np.stack(symbols.given(dev), 1) + rest[:, None, ..., None]
        every = symbols.worst(dev) + rest
        if alike:
            ends = np.moveaxis(states[..., own], -1, 2)
            ends[:, :, own < 0] = every[:, None, None]
        else:
            at = np.arange(len(own))
            ends = np.moveaxis(states[:, :, at, ..., own], 0, 2)
            ends[:, :, own < 0] = every[:, None, own < 0]
        found.append(ends)
    reached = up(np.min(found, 0))
    low, high = (form.low[None, None], form.high[None, None]) if alike else (form.low, form.high)
    return boxes.coarse(Box(down(form.c + low - reached[0]), up(form.c + high + reached[1])))
