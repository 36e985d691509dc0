"""Multipliers for the rows of flips, which a certificate stores: found by dual ascent in float32.

Whatever they are, the checker's bounds with them hold; so nothing here has to be exact; they are kept with
eight binary digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.checker.boxes import Unbounded
from milp_agt.checker.forms import COVERS, Form, Symbols, wide
from milp_agt.checker.statement import Statement, multipliers_of
from milp_agt.checker.steps import train

Array = npt.NDArray[Any]

# Adam: iterations for each state, and the scale of the first and of the last.
ITERATIONS, FIRST, LAST = 25, 0.15, 0.0045
RATE = 5e10  # products in a second


def ascended(given: Statement, seconds: float) -> tuple[Array, Array]:
    """The flips of a run and their multipliers, as a certificate stores them, if they are found in about so
    many seconds.

    Raises:
        Unbounded: the run becomes infinite in spite of them, or is too large for a search.
    """
    search = _Search(RATE * seconds)
    with np.errstate(all="ignore"):
        train(given, search)
    return search.names, np.concatenate([np.zeros(0, np.uint16), *search.found])


class _Search:
    """Multipliers for each state in turn, from those of the last."""

    def __init__(self, most: float) -> None:
        self.found: list[Array] = []
        self.names = np.zeros((0, 2), np.int64)
        self.last = torch.zeros(0, 0)
        self.left = most

    def __call__(self, index: int, state: Mapping[str, Form], symbols: Symbols) -> dict[str, Array]:
        self.names = symbols.names
        flips, sizes = len(symbols.flips), [form.c.size for form in state.values()]
        if not flips:
            return {}
        s = np.concatenate([wide(f.s, symbols.count).reshape(f.c.size, -1) for f in state.values()])
        self.left -= 12.0 * ITERATIONS * len(s) * flips * symbols.count
        if self.left < 0:
            raise Unbounded("multipliers that take long to find")
        self.last = _climbed(np.concatenate([-s, s]), symbols, self.last)
        pairs = self.last.numpy().reshape(2, len(s), flips)
        parts = np.split(pairs, np.cumsum(sizes)[:-1], 1)
        words = [
            (part.reshape(-1).view(np.uint32) >> 16).astype(np.uint16) for part in map(_own, parts)
        ]
        self.found += words
        return {
            name: multipliers_of(word).reshape(2, *form.c.shape, flips)
            for (name, form), word in zip(state.items(), words, strict=True)
        }


def _own(part: Array) -> Array:
    return np.ascontiguousarray(part, np.float32)


def _climbed(s: Array, symbols: Symbols, last: Tensor) -> Tensor:
    """The best multipliers that were met for each of some forms, (r, flips)."""
    bound = _Bound(s, symbols)
    best = torch.zeros(len(s), len(symbols.flips))
    with torch.no_grad():
        least = bound(best)
        price = bound.parts(best)[2]
        unit = torch.from_numpy(-symbols.rows[:, 0][np.arange(len(price[0])), symbols.flips[:, 0]])
        scale = (price + 1e-6 * least[:, None]) / (unit.float() + 1e-30)
        start = torch.zeros_like(best)
        start[:, : last.shape[1]] = last / scale[:, : last.shape[1]] if len(last) else 0.0
        first = least.clamp(min=1e-30)
    free = start.clamp(-4.0, 4.0).requires_grad_()
    steps = torch.optim.Adam([free], lr=FIRST, betas=(0.8, 0.98))
    for iteration in range(ITERATIONS + 1):
        tried = free * scale
        value = bound(tried)
        with torch.no_grad():
            best = torch.where((value < least)[:, None], tried, best)
            least = torch.minimum(value, least)
        steps.param_groups[0]["lr"] = FIRST * (LAST / FIRST) ** (iteration / ITERATIONS)
        steps.zero_grad()
        (value / first).sum().backward()
        steps.step()
    return torch.nan_to_num(best, 0.0, 0.0, 0.0)


class _Bound:
    """The bound of ``milp_agt.checker.forms``, without its rounding."""

    def __init__(self, s: Array, symbols: Symbols) -> None:
        def tensor(values: Array) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, np.float32))

        charged = np.flatnonzero(symbols.flip >= 0)
        self.s, self.rows = tensor(s), tensor(wide(symbols.rows, symbols.count))
        self.above, self.pays = tensor(symbols.above), tensor(symbols.pays)
        self.low, self.high, self.most = map(tensor, (symbols.low, symbols.high, symbols.most))
        self.owned, self.base = tensor(symbols.owned), tensor(symbols.base)
        self.charged, self.onto = torch.from_numpy(charged), torch.from_numpy(symbols.flip[charged])
        self.charge = tensor(symbols.charge[charged])
        known = np.isfinite(symbols.cover)[:, None]
        self.shares = tensor(np.where(known, symbols.shares, 0.0))
        self.few = [torch.from_numpy(symbols.cover <= most) for most in COVERS]
        self.symbols = symbols

    def parts(self, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second = given.clamp(min=0.0), (-given).clamp(min=0.0)
        flips, moves = self.symbols.flips, self.symbols.moves
        x = self.s + first @ self.rows[:, 0] + second @ self.rows[:, 1]
        rest = first @ self.above[:, 0] + second @ self.above[:, 1]
        more = first @ self.pays[:, 0] + second @ self.pays[:, 1]
        dev = torch.maximum(x[:, moves] * self.low, x[:, moves] * self.high).sum(-1) + more
        spread = x[:, self.symbols.noise].abs()
        price = x[:, flips[:, 0]] + self.most * x[:, flips[:, 1]].clamp(min=0.0)
        price = price.index_add(1, self.onto, spread[:, self.charged] * self.charge)
        return rest + spread @ self.base, dev + spread @ self.owned, price.clamp(min=0.0)

    def __call__(self, given: Tensor) -> Tensor:
        rest, dev, price = self.parts(given)
        found = []
        for few in self.few:
            paid, value = dev + (price * few) @ self.shares, rest + (price * ~few).sum(-1)
            for group in self.symbols.groups:
                own = paid[:, group]
                value = value + own.topk(min(self.symbols.budget, own.shape[1]), 1).values.sum(-1)
            found.append(value)
        return torch.stack(found).amin(0)
