"""The bound of directions as a function of its multipliers, in float32: what a search reads at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.dual import Directions, Multipliers
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.samples import SampleGenerators


class Lagrangian:
    """:func:`dual.bound` before rounding, and a subgradient of it, at scaled multipliers.

    In ``z = (alpha_1 / least, alpha_2 / beyond, alpha_3)``, (r, 2 q + l), and ``D = z_1 - z_2`` all that
    multipliers of rows add is linear: ``D @ by_difference`` to the coefficients on moves, phases and bends,
    ``z @ by_total`` to the prices of flips with rows, to what samples are charged, and to the rest. Both
    matrices are made once.

    Args:
        free: mask of the samples that may be poisoned for each direction, (r, m) as numbers; None for all.
    """

    def __init__(
        self, d: Directions, flips: Flips, samples: SampleGenerators, free: Tensor | None
    ) -> None:
        self.samples, self.free = samples.single, None if free is None else _single(free)
        self.rows, self.width = flips.rows, flips.count
        self.moves = d.on_moves.shape
        self.limited, self.alone = flips.limited, flips.paid_alone
        self.own = flips.own[self.alone]
        every = torch.arange(flips.count, device=flips.column.device)
        self.column = None if torch.equal(flips.column, every) else flips.column
        self.by_all = torch.ones_like(flips.largest, dtype=torch.float32)
        self.by_all[self.alone] = 0.0
        self.largest, self.threshold = _single(flips.largest), _single(flips.threshold)
        ones = flips.largest.new_ones(flips.limits)
        self.scale = _single(torch.cat([flips.least, flips.beyond, ones]))
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
        self._opened = None if flips.rows else self._open(self.plain, self.charged)

    def scaled(self, alpha: Multipliers) -> Tensor:
        """The z of multipliers."""
        return _single(torch.cat([*alpha.rows, alpha.limits], 1)) / self.scale

    def multipliers(self, z: Tensor, flips: Flips) -> Multipliers:
        """The multipliers of a z, in float64."""
        alpha, rows = (z * self.scale).to(torch.float64), self.rows
        first, second = alpha[:, :rows], alpha[:, rows : 2 * rows]
        return Multipliers.of(torch.stack([first, second]), alpha[:, 2 * rows :], flips)

    def at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The bound, (r,), and a subgradient, (r, 2 q + l)."""
        rows, opened = self.rows, self._opened
        if opened is None:
            difference = z[:, :rows] - z[:, rows : 2 * rows]
            opened = self._open(
                torch.addmm(self.plain, difference, self.by_difference),
                torch.addmm(self.charged, z[:, : 2 * rows], self.by_total),
            )
        moved, prices, bent, dev, rest = opened
        if len(self.limited):
            limits = z[:, 2 * rows :]
            prices = prices.index_add(1, self.limited, limits, alpha=-1.0)
            dev = torch.addmm(dev, limits, self.threshold)
        due = prices.clamp(min=0.0)
        happens = due.sign()
        if len(self.own):
            dev = dev.index_add(1, self.own, due.index_select(1, self.alone))
        dev = dev.clamp(min=0.0)
        if self.free is not None:
            dev = dev * self.free
        paid = self.samples.chosen(dev) * dev.sign() if self.samples.count else dev
        value = torch.addmv(rest, due, self.by_all) + (paid * dev).sum(1)
        if len(self.own):
            both = happens.index_select(1, self.alone) * paid.index_select(1, self.own)
            happens = happens.index_copy(1, self.alone, both)
        by_limit = paid @ self.threshold.T - happens.index_select(1, self.limited)
        if not rows:
            return value, by_limit
        moved = (moved * paid.unsqueeze(-1)).flatten(1)
        by_difference = torch.cat([moved, happens, happens * bent], 1) @ self.by_difference.T
        with_rows = happens if self.column is None else happens.index_select(1, self.column)
        used = torch.cat([with_rows, paid], 1)
        by_total = torch.addmm(self.by_total[:, -1], used, self.by_total[:, :-1].T)
        first, second = by_total[:, :rows], by_total[:, rows:]
        return value, torch.cat([first + by_difference, second - by_difference, by_limit], 1)

    def _open(
        self, linear: Tensor, charged: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The best moves, prices of flips before C3, what bends add to them for each unit of their
        coefficients, what samples are charged, and the rest."""
        flips, moved = self.width, linear.shape[1] - 2 * self.width
        coefficients = linear[:, :moved].reshape(self.moves)
        phases, bends = linear[:, moved : moved + flips], linear[:, moved + flips :]
        bent = bends.clamp(min=0.0).sign_().mul_(self.largest)
        prices = torch.addcmul(phases, bent, bends)
        charge = charged[:, : self.rows]
        if self.column is None:
            prices = prices + charge
        else:
            prices = prices.index_add(1, self.column, charge)
        moves = self.samples.maximise(coefficients)
        dev = charged[:, self.rows : -1] + (moves * coefficients).sum(-1)
        return moves, prices, bent, dev, charged[:, -1]


def _single(part: Tensor) -> Tensor:
    return part.to(torch.float32)
