"""Programs on the rows of a hybrid zonotope: their size is flips and samples, whatever the number of steps.

Columns are who is poisoned, the moves, and for each flip f its phase ``phi_f`` and ``rho_f = max(0, y_f)``,
how far its argument is beyond the kink (``zonotope/flips.py``). Besides the budget, the sets of moves and C3
the rows are

    rho_f <= largest_f phi_f
    least_f phi_f + rho_f <= offset_f + y_f      (phi = 0: y >= -offset;  phi = 1: rho <= y)
    y_f <= rho_f

each loosened by the noise of ``y_f``. The last two imply C1 and C2, as rho is in [0, largest phi]. ``lp``
relaxes s and phi to [0, 1]: its optimum is at most what the dual of ``zonotope/dual.py`` ascends to.
``milp`` keeps them binary, as they are in every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.bounds.program.incumbents import EncodedBatch
from milp_agt.bounds.program.state_bounds import (
    Objectives,
    ProgramReport,
    Programs,
    bound_state,
    improved,
)
from milp_agt.bounds.program.window import RANGE_LIMIT, EncodedWindow
from milp_agt.bounds.step import State
from milp_agt.bounds.zonotope import ZonotopePass
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.layout import Layout
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.bounds.zonotope.state import HybridZonotope
from milp_agt.core.deadline import Deadline
from milp_agt.core.encoder import SHARED_ROWS, Encoder
from milp_agt.core.expression import Expression, Slack, add
from milp_agt.core.interval import Interval, as_array
from milp_agt.core.program import Program
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import SolverUnavailableError

# Roundings of a coefficient of a row, those in sums over generators and coordinates of a move aside.
FEW = 64.0


@dataclass(frozen=True)
class Columns:
    """The columns of a hybrid zonotope.

    Attributes:
        units: who is poisoned, (units,); on_units: the unit of each sample generator, (m, units).
        moves: of each sample generator, (m, width).
        phase, bend: phi and rho of each flip, (f,).
        rounding: relative error of the coefficients that :meth:`form` sums up.
    """

    units: Expression
    on_units: sp.csr_matrix
    moves: Expression
    phase: Expression
    bend: Expression
    rounding: float

    @staticmethod
    def of(encoder: Encoder, samples: SampleGenerators, flips: Flips) -> Columns:
        """New columns with what limits them: budgets, sets of moves, C3 and the range of rho."""
        known = as_array(samples.known.to(samples.reach))
        units = encoder.columns(known, np.ones_like(known), integer=encoder.exact_phases)
        members, count = samples.members.cpu().numpy(), len(known)
        group, place = np.nonzero(members < count)
        inside = (np.ones(len(group)), (group, members[group, place]))
        of_group = sp.csr_matrix(inside, shape=(len(members), count))
        budget = np.maximum(samples.budgets.cpu().numpy(), of_group @ known)
        encoder.rows(units.apply(of_group, (len(members),)), -np.inf, budget)
        unit = samples.unit.cpu().numpy()
        phase = encoder.columns(
            np.zeros(flips.count), np.ones(flips.count), integer=encoder.exact_phases
        )
        largest = as_array(flips.largest)
        bend = encoder.columns(np.zeros(flips.count), largest)
        encoder.rows(add([bend, phase.scale(-largest)]), -np.inf, 0.0)
        columns = Columns(
            units,
            _one_of(unit, count),
            _moves(encoder, samples, units.take(unit)),
            phase,
            bend,
            gamma(4.0 * samples.count + 4.0 * samples.width + FEW),
        )
        alone = flips.paid_alone
        own = units.take(unit[flips.own[alone].cpu().numpy()])
        encoder.rows(add([phase.take(alone.cpu().numpy()), own.scale(-1.0)]), -np.inf, 0.0)
        admitted = columns.on_samples(-flips.threshold)
        limits = add([phase.take(flips.limited.cpu().numpy()), admitted])
        encoder.rows(limits.plus_error(columns.rounding * as_array(flips.cover)), -np.inf, 0.0)
        return columns

    def on_samples(self, charges: Tensor) -> Expression:
        """``charges . s`` with numbers for each sample generator, (rows, m)."""
        return self.units.apply(sp.csr_matrix(as_array(charges) @ self.on_units), (len(charges),))

    def form(self, moves: Tensor, phase: Tensor, bend: Tensor) -> Expression:
        """A form with coefficients (rows, m, width) and (rows, f) twice."""
        parts = ((self.moves, moves.flatten(1)), (self.phase, phase), (self.bend, bend))
        return add([x.apply(sp.csr_matrix(as_array(on)), (len(on),)) for x, on in parts])


@dataclass(frozen=True)
class ZonotopeRows:
    """The program of a hybrid zonotope, to which forms of the state are added. Every run is a point of it.

    Attributes:
        batches: the moved data as the incumbents of a static adversary; empty for an adaptive one.
    """

    zonotope: HybridZonotope
    layout: Layout
    terms: Tensor
    columns: Columns
    program: Program
    batches: tuple[EncodedBatch, ...]

    @staticmethod
    def of(forward: ZonotopePass, exact: bool) -> ZonotopeRows:
        """The rows of a set; ``exact`` keeps s and phi binary."""
        zonotope, encoder = forward.zonotope, Encoder(exact)
        encoder.origin = SHARED_ROWS
        flips, samples = zonotope.flips, zonotope.samples
        columns = Columns.of(encoder, samples, flips)
        first = flips.column.cpu().numpy()
        own, rho = columns.phase.take(first), columns.bend.take(first)
        least = as_array(flips.least)
        error = as_array(flips.size + flips.quiet + flips.least + flips.beyond)
        error = columns.rounding * error + TINY
        missing = (0, flips.count - flips.on_phase.shape[1])  # of flips after the newest row
        read = (functional.pad(part, missing) for part in (flips.on_phase, flips.on_bend))
        y = columns.form(flips.on_moves, *read)
        charge = own.apply(sp.csr_matrix(as_array(-flips.charge)), rho.shape)
        crossed = [own.scale(least), rho, y.scale(-1.0), charge, columns.on_samples(-flips.up)]
        offset = as_array(flips.quiet - flips.margin + flips.above)
        encoder.rows(add(crossed).plus_error(error), -np.inf, offset)
        reached = [y, rho.scale(-1.0), charge, columns.on_samples(-flips.down)]
        beyond = as_array(flips.margin + flips.below)
        encoder.rows(add(reached).plus_error(error), -np.inf, beyond)
        return ZonotopeRows(
            zonotope,
            forward.layout,
            forward.bounds.terms,
            columns,
            encoder.finish(),
            _batches(columns, samples),
        )

    def forms(self, rows: Tensor) -> Expression:
        """Linear forms (rows, p) of the first p coordinates of the state, with their noise as slack."""
        zonotope, flips = self.zonotope, self.zonotope.flips
        spread = zonotope.spread(rows, self.terms)
        exact = self.columns.form(spread.on_moves, spread.on_phase, spread.on_bend)
        centre = zonotope.centre[: rows.shape[1]]
        noise = [self._noise(spread.charge, by) for by in (spread.down, spread.up)]
        slack = Slack(-noise[0], noise[1], -as_array(spread.below), as_array(spread.above))
        operations = 2.0 * spread.operations + 8.0 * flips.count + FEW
        error = gamma(operations) * spread.size + self.columns.rounding * spread.size
        error = error + gamma(8.0 * zonotope.size + FEW) * (rows.abs() @ centre.abs()) + TINY
        return Expression(
            exact.matrix, as_array(rows @ centre), as_array(error), exact.shape, slack
        )

    def window(self) -> EncodedWindow:
        """The program with the whole state."""
        size = self.zonotope.size
        every = self.forms(torch.eye(size, dtype=self.terms.dtype, device=self.terms.device))
        place = np.arange(size)
        state = {
            name: every.take(place[part].reshape(self.layout.shapes[name]))
            for name, part in self.layout.slices.items()
        }
        return EncodedWindow(self.program, state, self.batches)

    def _noise(self, charge: Tensor, samples: Tensor) -> sp.csr_matrix:
        """What flips with rows and poisoned samples add to noise, over the columns."""
        first = self.zonotope.flips.column.cpu().numpy()
        by_flips = self.columns.phase.take(first).apply(
            sp.csr_matrix(as_array(charge)), (len(charge),)
        )
        return add([by_flips, self.columns.on_samples(samples)]).matrix


def _one_of(index: npt.NDArray[np.int64], count: int) -> sp.csr_matrix:
    ones = (np.ones(len(index)), (np.arange(len(index)), index))
    return sp.csr_matrix(ones, shape=(len(index), count))


def _moves(encoder: Encoder, samples: SampleGenerators, gates: Expression) -> Expression:
    """The moves of all generators, (m, width): coordinates of features, then those of labels."""
    sets = (samples.poison.feature_moves, samples.poison.label_moves)
    parts = [moves.encode(encoder, gates) for moves in sets if moves is not None]
    width, at, placed = samples.width, 0, []
    for part in parts:
        index = np.arange(at, at + part.shape[1])
        flat = (np.arange(samples.count)[:, None] * width + index).reshape(-1)
        place = _one_of(flat, samples.count * width).T
        placed.append(part.apply(sp.csr_matrix(place), (samples.count, width)))
        at += part.shape[1]
    return add(placed) if placed else Expression.of(np.zeros((samples.count, 0)))


def _batches(columns: Columns, samples: SampleGenerators) -> tuple[EncodedBatch, ...]:
    """The data of all samples that can move, once for the whole run; none of an adaptive adversary, of two
    budgets, or where whole samples change."""
    poison, index = samples.poison, samples.columns.cpu().numpy()
    if not poison.static or samples.parts > 1 or poison.whole is not None:
        return ()
    gates = columns.units.take(samples.unit.cpu().numpy())
    every = np.arange(samples.count * samples.width).reshape(samples.count, samples.width)
    inner = every[:, : samples.on_features], every[:, samples.on_features :]
    features, labels = (
        add([Expression.of(as_array(data)), columns.moves.take(part).reshape(tuple(data.shape))])
        if part.shape[1]
        else Expression.of(as_array(data))
        for data, part in zip((poison.features, poison.labels), inner, strict=True)
    )
    return (EncodedBatch(0, index, (gates,), features, labels),)


@dataclass(kw_only=True)
class FinalZonotope(Programs):
    """The program over all steps of a run that was bounded by a zonotope, for its state and for questions.

    Attributes:
        exact: whether samples and phases are binary (``milp``) or relaxed (``lp``).
    """

    forward: ZonotopePass
    exact: bool

    @staticmethod
    def gains(forward: ZonotopePass) -> bool:
        """Whether programs may gain something: without flips the dual is exact, and what is beyond
        ``RANGE_LIMIT`` no solver takes."""
        flips = forward.zonotope.flips
        parts = (forward.bounds.radius, flips.largest, flips.least, flips.size)
        sizes = [float(part.max()) for part in parts if len(part)]
        return flips.count > 0 and all(size <= RANGE_LIMIT for size in sizes)

    @cached_property
    def rows(self) -> ZonotopeRows:
        return ZonotopeRows.of(self.forward, self.exact)

    def bound_state(
        self, state: State, deadline: float | None = None
    ) -> tuple[State, ProgramReport]:
        """The meet of a box of the state with the dual bounds of all of its ends, as far as they are
        found by ``deadline``, a time of ``time.monotonic``.

        Raises:
            EncodingError: an infeasible program.
            SolverUnavailableError: the solver refuses the program.
            SoundnessError: the meet is empty, or a run of ``witness`` lies outside a bound.
        """
        options = replace(self.options, deadline=deadline)
        return bound_state(self.rows.window(), state, options, self.witness)

    def least(
        self, coefficients: Mapping[str, Tensor], known: Tensor, deadline: Deadline | None = None
    ) -> Tensor:
        """Lower bounds of linear forms of the state, (rows,), nowhere below those ``known`` already.

        Coefficients by tensor of the state, (rows, *shape). Those furthest below the centre come first;
        those that are not solved by the deadline stay as known.

        Raises:
            EncodingError, SoundnessError: see :meth:`bound_state`.
        """
        layout = self.forward.layout
        flat = torch.cat([coefficients[name].flatten(1) for name in layout.slices], 1)
        forms = self.rows.forms(flat)
        lowest = known.cpu().numpy()
        gain = np.nan_to_num(forms.constant - lowest, nan=0.0, posinf=np.finfo(np.float64).max)
        program, batches = self.rows.program, self.rows.batches
        try:
            found, report = improved(
                lowest,
                gain,
                lambda: Objectives.of(program, forms.below, gain, batches),
                replace(self.options, deadline=None if deadline is None else deadline.at),
            )
        except SolverUnavailableError as error:  # a licence that is too small, say
            self.notes.append(f"{len(known)} forms were left to the dual of the zonotope: {error}")
            return known
        self.reports.append(report)
        least = torch.from_numpy(found).to(known)
        if self.witness is not None:
            value, room = self.witness.at(coefficients)
            ends = Interval(least, torch.full_like(least, torch.inf))
            name = self.options.solver.name
            self.witness.check_forms("functional", value, room, ends, name)
        return least
