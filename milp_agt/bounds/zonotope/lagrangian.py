"""The bound of directions as a function of its multipliers, in float32: what a search reads at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.dual import Directions, Multipliers
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.samples import SampleGenerators


class Lagrangian:
    """:func:`dual.bound` before rounding, and a subgradient of it, at multipliers (r, 2 q + l) of C1, C2, C3.

    In ``z = alpha / (least, largest)`` and ``D = z_1 - z_2`` all that multipliers of rows add is
    linear: ``D @ by_difference`` to the coefficients on moves, phases and bends, ``z @ by_total`` to the
    prices of flips with rows, to what samples are charged, and to the rest. Both matrices are made once.

    Args:
        free: mask of the samples that may be poisoned for each direction, (r, m) as numbers; None for all.
    """

    def __init__(
        self, d: Directions, flips: Flips, samples: SampleGenerators, free: Tensor | None
    ) -> None:
        self.samples, self.free = samples.single, None if free is None else _single(free)
        self.rows, self.width = flips.rows, flips.count
        self.moves = d.on_moves.shape
        self.column, self.limited, self.alone = flips.column, flips.limited, flips.paid_alone
        self.own = flips.own[self.alone]
        self.largest, self.threshold = _single(flips.largest), _single(flips.threshold)
        self.by_all = torch.ones_like(self.largest)
        self.by_all[self.alone] = 0.0
        self.scale = _single(torch.cat([flips.least, flips.beyond]))
        self.by_difference = _single(
            torch.cat([flips.on_moves.flatten(1), flips.on_phase, flips.on_bend], 1)
        )
        first = [
            flips.charge - flips.least.diag(),
            flips.up,
            (flips.quiet - flips.margin + flips.above)[:, None],
        ]
        second = [
            flips.charge + flips.beyond.diag(),
            flips.down,
            (flips.margin + flips.below)[:, None],
        ]
        self.by_total = _single(torch.cat([torch.cat(first, 1), torch.cat(second, 1)]))
        self.plain = _single(torch.cat([d.on_moves.flatten(1), d.on_phase, d.on_bend], 1))
        charge = d.charge if flips.rows else d.base.new_zeros(d.rows, 0)
        self.charged = _single(torch.cat([charge, d.up, d.base[:, None]], 1))
        self.one = torch.ones_like(self.charged[:, -1:])
        self._opened = None if flips.rows else self._open(self.plain, self.charged)

    def at(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """The bound, (r,), and a subgradient, (r, 2 q + l)."""
        rows, limits = alpha[:, : 2 * self.rows], alpha[:, 2 * self.rows :]
        opened = self._opened
        if opened is None:
            z = rows / self.scale
            difference = z[:, : self.rows] - z[:, self.rows :]
            opened = self._open(
                torch.addmm(self.plain, difference, self.by_difference),
                torch.addmm(self.charged, z, self.by_total),
            )
        attained, prices, bent, dev, rest = opened
        if len(self.limited):
            prices = prices.index_add(1, self.limited, limits, alpha=-1.0)
            dev = dev + limits @ self.threshold
        happens, due = (prices > 0.0).to(prices), prices.clamp(min=0.0)
        if len(self.alone):
            dev = dev.index_add(1, self.own, due[:, self.alone])
        dev = dev.clamp(min=0.0)
        if self.free is not None:
            dev = dev * self.free
        paid = self.samples.chosen(dev) * (dev > 0.0) if self.samples.count else dev
        value = rest + due @ self.by_all + (paid * dev).sum(1)
        if len(self.alone):
            happens[:, self.alone] *= paid[:, self.own]
        by_limit = paid @ self.threshold.T - happens[:, self.limited]
        if not self.rows:
            return value, by_limit
        moved = (attained * paid.unsqueeze(-1)).flatten(1)
        by_difference = torch.cat([moved, happens, happens * bent], 1) @ self.by_difference.T
        by_total = torch.cat([happens[:, self.column], paid, self.one], 1) @ self.by_total.T
        slopes = (by_total + torch.cat([by_difference, -by_difference], 1)) / self.scale
        return value, torch.cat([slopes, by_limit], 1)

    def _open(
        self, linear: Tensor, charged: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Moves that attain the most, prices of flips before C3, what bends add to them for each unit of
        their coefficients, what samples are charged, and the rest."""
        flips, moved = self.width, linear.shape[1] - 2 * self.width
        moves = linear[:, :moved].reshape(self.moves)
        phases, bends = linear[:, moved : moved + flips], linear[:, moved + flips :]
        bent = self.largest * (bends > 0.0)
        prices = torch.addcmul(phases, bent, bends)
        if self.rows:
            prices = prices.index_add(1, self.column, charged[:, : self.rows])
        attained = self.samples.maximise(moves)
        dev = (attained * moves).sum(-1) + charged[:, self.rows : -1]
        return attained, prices, bent, dev, charged[:, -1]


def flat(alpha: Multipliers) -> Tensor:
    """Multipliers as (r, 2 q + l), in float32."""
    return _single(torch.cat([*alpha.rows, alpha.limits], 1))


def unflat(alpha: Tensor, flips: Flips) -> Multipliers:
    """The multipliers of (r, 2 q + l), in float64."""
    alpha, rows = alpha.to(torch.float64), flips.rows
    first, second = alpha[:, :rows], alpha[:, rows : 2 * rows]
    return Multipliers.of(torch.stack([first, second]), alpha[:, 2 * rows :], flips)


def _single(part: Tensor) -> Tensor:
    return part.to(torch.float32)
