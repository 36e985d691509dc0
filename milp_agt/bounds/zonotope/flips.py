"""Binary generators: phases that poisoned data may flip, with rows that hold for every admissible choice."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.rounding import gamma
from milp_agt.errors import EncodingError


@dataclass(frozen=True)
class Flips:
    """One flip for each phase ``(step, sample, unit)`` whose range holds the kink of its function.

    With the phase at the centre, ``y_f`` is the distance of the argument beyond the kink, negative at
    the centre; ``phi_f`` in {0, 1} says whether ``y_f`` crossed (so that ``phi_f = 1`` implies
    ``y_f >= 0``, and ``y_f > 0`` implies ``phi_f = 1``), and ``rho_f = max(0, y_f)`` how far. As a form
    on all generators, those of earlier flips included,

        y_f = -margin + a_f . e + b_f . phi + r_f . rho + noise,
        -noise in [-above - sum s_i up_i - sum phi_h charge_h,  below + sum s_i down_i + ...].

    Three rows hold for every admissible choice, with proved ``-least <= y_f <= largest``:

        C1  least phi_f <= offset + y_f         (phi = 1 only where y >= 0; phi = 0: y >= -least)
        C2  y_f <= largest phi_f
        C3  phi_f <= sum_i s_i threshold_i      (who must be poisoned for it to flip)

    Where only its own sample can flip it (*alone*), C3 is ``phi_f <= s_i``, and what it costs stands in
    the part of that sample.

    The offset is ``least``. Where only its own sample i can flip it, it is ``quiet + s_i (least - quiet)``
    with ``y_f >= -quiet`` proved for clean i: then phi is 0, and phi = 1 needs s_i = 1. The part of
    s_i stands in ``up``, which nothing but C1 reads.

    C1 and C2 are kept for q of all f flips, the others are *loose*; C3 for l of those that are not alone.

    Attributes:
        largest: how far beyond its kink a flip gets at most, (f,), > 0.
        own: the sample generator of the flip's own sample, (f,), -1 if it stays clean.
        alone: whether only its own sample can flip it, (f,).
        sign: of ``y_f`` in the argument, (f,): -1 where the centre is on.
        place: step, sample of the data set, and slot of the unit, (f, 3).
        column: the flip that each row is of, (q,), ascending.
        on_moves: a, (q, m, width).
        on_phase, on_bend: b and r, (q, f); a row reads earlier flips only.
        charge: noise that is there only if another flip, with a row, happens, (q, q), on either side.
        below, above: noise of everyone, (q,), >= 0.
        down, up: further noise if a sample is poisoned, (q, m), >= 0.
        margin, least: (q,); least > 0.
        quiet: the part of the offset of C1 that is there whoever is poisoned, (q,).
        size: sum of the sizes of all terms of ``y_f``, to which rounding is charged, (q,).
        limited: the flip that each C3 is of, (l,), ascending.
        threshold: (l, m), in [0, 1].
        cover: the most that C3 admits, the sum of the ``budget`` largest thresholds, (l,).
    """

    largest: Tensor
    own: Tensor
    alone: Tensor
    sign: Tensor
    place: Tensor
    column: Tensor
    on_moves: Tensor
    on_phase: Tensor
    on_bend: Tensor
    charge: Tensor
    below: Tensor
    above: Tensor
    down: Tensor
    up: Tensor
    margin: Tensor
    least: Tensor
    quiet: Tensor
    size: Tensor
    limited: Tensor
    threshold: Tensor
    cover: Tensor

    @staticmethod
    def none(samples: SampleGenerators) -> Flips:
        zero = samples.poison.features.new_zeros
        m, index = samples.count, samples.columns.new_zeros(0)
        return Flips(
            largest=zero(0),
            own=index,
            alone=index.bool(),
            sign=zero(0),
            place=index.new_zeros(0, 3),
            column=index,
            on_moves=zero(0, m, samples.width),
            on_phase=zero(0, 0),
            on_bend=zero(0, 0),
            charge=zero(0, 0),
            below=zero(0),
            above=zero(0),
            down=zero(0, m),
            up=zero(0, m),
            margin=zero(0),
            least=zero(0),
            quiet=zero(0),
            size=zero(0),
            limited=index,
            threshold=zero(0, m),
            cover=zero(0),
        )

    @property
    def count(self) -> int:
        return len(self.largest)

    @property
    def rows(self) -> int:
        return len(self.column)

    @property
    def limits(self) -> int:
        return len(self.limited)

    @cached_property
    def beyond(self) -> Tensor:
        """``largest`` of the flips with rows, (q,)."""
        return self.largest[self.column]

    @cached_property
    def row_of(self) -> Tensor:
        """The row of each flip, (f,), -1 for loose ones."""
        rows = torch.full_like(self.own, -1)
        rows[self.column] = torch.arange(self.rows, device=rows.device)
        return rows

    @cached_property
    def paid_alone(self) -> Tensor:
        """Numbers of the flips that only their own samples can cause."""
        return (self.alone & (self.own >= 0)).nonzero()[:, 0]

    @cached_property
    def paid_by_all(self) -> Tensor:
        """Numbers of all others."""
        every = torch.ones_like(self.alone)
        every[self.paid_alone] = False
        return every.nonzero()[:, 0]

    @cached_property
    def unlimited(self) -> Tensor:
        """Numbers of those of :attr:`paid_by_all` that have no C3."""
        every = torch.ones_like(self.alone)
        every[self.paid_alone] = False
        every[self.limited] = False
        return every.nonzero()[:, 0]

    def joined(self, new: Flips) -> Flips:
        """These and new ones, whose rows may read both, and flips before them."""
        read = max(self.on_phase.shape[1], new.on_phase.shape[1])
        total = max(self.count + new.count, read)
        charged = max(self.rows + new.rows, self.charge.shape[1], new.charge.shape[1])
        parts = {}
        for field in fields(self):
            old, more = getattr(self, field.name), getattr(new, field.name)
            if field.name in ("on_phase", "on_bend"):
                old, more = widened(old, total), widened(more, total)
            elif field.name == "charge":
                old, more = widened(old, charged), widened(more, charged)
            elif field.name in ("column", "limited"):
                more = more + self.count
            parts[field.name] = torch.cat([old, more])
        return Flips(**parts)

    def since(self, first: Flips) -> Flips:
        """Those after the flips ``first``, numbered from 0; their rows still read all of them."""
        if not first.count:
            return self
        starts = dict.fromkeys(("largest", "own", "alone", "sign", "place"), first.count)
        starts |= dict.fromkeys(("limited", "threshold", "cover"), first.limits)
        parts = {
            f.name: getattr(self, f.name)[starts.get(f.name, first.rows) :] for f in fields(self)
        }
        for name in ("column", "limited"):
            parts[name] = parts[name] - first.count
        return Flips(**parts)

    def with_rows(self, keep: Tensor) -> Flips:
        """Only some rows, (q',) ascending; the other flips are loose from here on.

        What was charged to one of these is noise of its own sample where only that can flip it, else of
        everyone.
        """
        drop = torch.ones(self.rows, dtype=torch.bool, device=keep.device)
        drop[keep] = False
        gone = drop.nonzero()[:, 0]
        alone, shared = self.settled(self.charge[keep][:, gone], gone)
        parts = {
            name: getattr(self, name)[keep]
            for name in ("column", "on_moves", "on_phase", "on_bend", "margin", "least", "quiet")
        }
        parts["size"] = self.size[keep]
        return replace(
            self,
            **parts,
            charge=self.charge[keep][:, keep],
            below=self.below[keep] + shared,
            above=self.above[keep] + shared,
            down=self.down[keep] + alone,
            up=self.up[keep] + alone,
        )

    def only(self, keep: Tensor) -> Flips:
        """Only some flips, (f',) ascending, all that have C3 among them; there are no rows."""
        parts = {
            name: getattr(self, name)[keep] for name in ("largest", "own", "alone", "sign", "place")
        }
        limited = torch.searchsorted(keep, self.limited)
        on_flips = self.on_phase[:, :0]
        return replace(self, **parts, limited=limited, on_phase=on_flips, on_bend=on_flips)

    def with_limits(self, keep: Tensor) -> Flips:
        """Only some of C3, (l',) ascending."""
        parts = {name: getattr(self, name)[keep] for name in ("limited", "threshold", "cover")}
        return replace(self, **parts)

    def of_samples(self, count: int) -> Flips:
        """The same beside more sample generators, of which none is read."""
        parts = {name: widened(getattr(self, name), count) for name in ("down", "up", "threshold")}
        return replace(self, on_moves=more_samples(self.on_moves, count), **parts)

    def settled(self, charge: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Noise that is charged to the flips of some rows, (..., rows), as noise of samples, (..., m), and of
        everyone, (...)."""
        columns = self.column[rows]
        by_own = self.alone[columns] & (self.own[columns] >= 0)
        grow = 1.0 + gamma(4.0 * charge.shape[-1] + 8.0)
        alone = charge.new_zeros(*charge.shape[:-1], self.threshold.shape[1])
        alone.index_add_(-1, self.own[columns][by_own], charge[..., by_own])
        return alone * grow, charge[..., ~by_own].sum(-1) * grow


def more_samples(on_moves: Tensor, count: int) -> Tensor:
    """Coefficients on moves, (r, m, width), for ``count`` samples, those of the further ones 0."""
    return functional.pad(on_moves, (0, 0, 0, count - on_moves.shape[1]))


def widened(on_flips: Tensor, count: int) -> Tensor:
    """Coefficients (..., f) for ``count`` flips, those of the further ones 0; none is ever dropped."""
    missing = count - on_flips.shape[-1]
    if missing < 0:
        raise EncodingError(f"{on_flips.shape[-1]} flips were to fit into {count}", "fewer columns")
    return functional.pad(on_flips, (0, missing)) if missing else on_flips
