"""Runs as affine forms, step by step, and what is asked of the forms that they end with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from milp_agt.checker.affine import Pass, mixed, points, ranged
from milp_agt.checker.boxes import BITS, Array, Box, Unbounded, allowance, coarse, down, largest, up
from milp_agt.checker.forms import Form, Symbols, magnitude, own_ranges, reach, wide
from milp_agt.checker.layers import Problem
from milp_agt.checker.statement import Statement
from milp_agt.checker.training import begin

# Multipliers for the parameters of the state before a step, (2, *shape, flips); there may be none.
Choice = Callable[[int, Mapping[str, Form], Symbols], Mapping[str, Array]]


def stored(given: Statement) -> Choice:
    """The multipliers of a certificate: those of each state in turn, for the flips of the steps before that
    it names. Any multipliers give bounds. Flips without them have 0, and names that no flip has are passed
    over: a phase that is judged otherwise here, for how numbers are rounded, costs width at most.
    """
    used = 0

    def choose(index: int, state: Mapping[str, Form], symbols: Symbols) -> dict[str, Array]:
        nonlocal used
        named = given.flips[given.flips[:, 0] < index]
        at, own = np.nonzero((named[:, None] == symbols.names).all(-1))
        found = {}
        for name, form in state.items() if len(named) else ():
            shape = 2, *form.c.shape
            end = used + math.prod(shape) * len(named)
            part, used = given.multipliers[used:end].reshape(*shape, -1), end
            found[name] = np.zeros_like(part, shape=(*shape, len(symbols.flips)))
            found[name][..., own] = part[..., at]
        return found

    return choose


def settled(new: Mapping[str, Form], symbols: Symbols) -> tuple[dict[str, Form], Symbols]:
    """Every rest as noise of its own: ``(low + high) / 2`` into the centre, half the width a new symbol."""
    found = {}
    for name, form in new.items():
        middle = 0.5 * (form.low + form.high)
        c = form.c + middle
        radius = np.maximum(up(form.high - middle), up(middle - form.low))
        short, s = (coarse(Box.point(values)).lo for values in (c, form.s))
        cut = 2.0**-BITS * (1.0 + symbols.sizes.sum())  # of fractions
        radius = up(radius + allowance(0, abs(c) + abs(middle)) + cut).reshape(-1)
        more = form.owned.reshape(len(radius), -1)
        radius, owned = (coarse(Box(v, v)).hi for v in (radius, more))
        first, none = symbols.count, np.full(len(radius), -1)
        symbols = symbols.with_noise(radius, owned, none, np.zeros(len(radius)))
        s = wide(s, symbols.count).reshape(len(radius), -1)
        s[np.arange(len(radius)), first + np.arange(len(radius))] = 1.0
        zero = np.zeros_like(c)
        found[name] = Form(short, s.reshape(*c.shape, -1), zero, zero)
    return found, symbols


def moving(values: Array, symbols: Symbols, own: Array, columns: Array) -> Form:
    """Numbers (n, m) of samples plus their moves, which some columns have."""
    known = np.flatnonzero(own >= 0)
    form = points(values, int(symbols.moves[own[known]].max(initial=-1)) + 1)
    form.s[known[:, None], columns, symbols.moves[own[known]]] = 1.0
    return form


def folded(
    sums: Mapping[str, Form], inner: Symbols, known: int
) -> dict[str, tuple[Form, Array, Array]]:
    """Sums over a part of a batch, of which only the first columns stay: what all others do to them goes
    into the rest, whoever is poisoned, and into what the slots of this part add, (2, *shape, slots). And
    magnitudes.
    """
    found = {}
    for name, form in sums.items():
        s = form.s.copy()
        s[..., :known] = 0.0
        own = replace(form, c=0.0 * form.c, s=s)
        every = reach(own, inner)
        rest, dev = min(every, key=lambda pair: float((pair[0] + inner.worst(pair[1])).sum()))
        ends = Form(form.c, form.s[..., :known], form.low - rest[0], form.high + rest[1])
        found[name] = ends, up(form.owned + dev), magnitude(form, inner)
    return found


def whole(parts: Sequence[Mapping[str, tuple[Form, Array, Array]]], budget: int) -> dict[str, Form]:
    """The sums over a batch from those over its parts, none of whose slots are in any other step."""
    found = {}
    for name in parts[0]:
        forms, owned, sizes = zip(*(part[name] for part in parts), strict=True)
        both, total = np.concatenate(owned, -1), reduce(Form.__add__, forms)
        fall, rise = largest(both, budget, -1).sum(-1) if budget else np.zeros((2, *total.c.shape))
        error = allowance(2 * len(parts) + budget + 16, sum(sizes) + fall + rise)
        none = np.zeros((*total.c.shape, 1))
        total = replace(total, low=total.low - fall, high=total.high + rise, owned=none)
        found[name] = total.widened(error)
    return found


def train(given: Statement, choose: Choice) -> Final:
    """The forms that the run ends with.

    ``given.anew``: moves are chosen in every step; else once for the run, by at most ``budget`` samples.
    ``choose`` gives the multipliers for the parameters of each state, that at the end among them.
    ``given.at_once``: of moves that are chosen anew so many samples of a batch are taken at once, and their
    symbols are left behind.
    """
    problem, poisoned, anew = given.problem, given.poisoned, given.anew
    at_once = given.at_once if anew else 0  # else slots would be counted in every part
    x, y, box = given.samples.x.lo[0], given.samples.y.lo[0], poisoned.samples
    low = np.concatenate([box.x.lo[0] - x, box.y.lo[0] - y], 1)
    high = np.concatenate([box.x.hi[0] - x, box.y.hi[0] - y], 1)
    low, high = np.where(low < 0, down(low), 0.0), np.where(high > 0, up(high), 0.0)
    radius = np.zeros_like(low)
    if poisoned.radius is not None:
        radius[:, : x.shape[1]] = poisoned.radius
    open_ = poisoned.open
    columns = np.flatnonzero((low < 0)[open_].any(0) | (high > 0)[open_].any(0))  # those that move
    low, high, radius = (part[:, columns] for part in (low, high, radius))
    still = np.zeros((1, len(columns)))  # a slot that no sample has, so that there is one
    symbols = Symbols.none(len(columns), poisoned.budget, poisoned.norm)
    symbols = symbols.with_slots(still, still, still)
    if not anew:
        symbols = symbols.with_slots(low[open_], high[open_], radius[open_])
    state = begin(
        problem, given.initial, lambda v: Form(v, v[..., None][..., :0], 0.0 * v, 0.0 * v)
    )
    for index, (batch, rule) in enumerate(zip(problem.batches, problem.rules, strict=True)):
        parts = np.array_split(batch, -(-len(batch) // at_once) if at_once else 1)
        try:
            done = []
            for part in parts:
                own, inner = np.where(open_, np.cumsum(open_), -1)[part], symbols
                if anew:
                    own = np.where(open_[part], len(symbols.low) + np.cumsum(open_[part]) - 1, -1)
                    some = part[open_[part]]
                    inner = symbols.with_slots(low[some], high[some], radius[some])
                own_rows = choose(index, {n: state[n] for n in problem.parameters}, inner)
                forced = {number: sign for at, number, sign in given.phases if at == index}
                step = Pass(problem, inner, own, own_rows, index, forced, len(batch))
                both = moving(np.concatenate([x, y], 1)[part], inner, own, columns)
                sums = step.gradients(state, both[:, : x.shape[1]], both[:, x.shape[1] :])
                done += [folded(sums, step.symbols, symbols.count)] if at_once else []
            if at_once:
                sums, step = whole(done, poisoned.budget), Pass(problem, symbols, own, own_rows)
            new: dict[str, Form] = {}
            for name, total in sums.items():
                new |= step.updated(rule, name, state, total, len(batch))
            state, symbols = settled({name: new[name] for name in state}, step.symbols)
        except Unbounded as error:
            raise Unbounded(f"step {index + 1} of {len(problem.batches)}: {error}") from None
    state = {name: state[name] for name in problem.parameters}
    return Final(problem, state, symbols, choose(len(problem.batches), state, symbols))


@dataclass(frozen=True)
class Final:
    """What a run ends with: forms, and multipliers to bound them with."""

    problem: Problem
    state: Mapping[str, Form]
    symbols: Symbols
    given: Mapping[str, Array]

    def boxes(self) -> dict[str, Box]:
        """The box of each parameter, (1, *shape)."""
        known = partial(own_ranges, symbols=self.symbols, own=np.array([-1]))
        return {n: known(form, given=self.given.get(n))[0] for n, form in self.state.items()}

    def rows(self, x: Box, rows: Array) -> Box:
        """Some rows (n, r, outputs) times the outputs at all features of points, (1, n, r)."""
        step = Pass(self.problem, self.symbols, np.full(len(rows), -1), self.given)
        values, slopes = step.forward(self.state, points(x.lo) if x.is_point else ranged(x))
        found, size = mixed(rows, values[-1]), magnitude(values[-1], step.symbols)
        found = found.widened(allowance(rows.shape[2] + 4, (abs(rows) @ size[..., None])[..., 0]))
        at = np.repeat(np.arange(len(rows)), rows.shape[1])
        given = step.carried(self.state, values, slopes, at, rows.reshape(len(at), -1))
        given = given.reshape(2, *rows.shape[:2], given.shape[-1])
        return own_ranges(found, step.symbols, step.own, given)[:1]
