"""Programs on the rows of a hybrid zonotope: both ends of its state, and linear forms for questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from milp_agt.bounds.program.incumbents import Incumbents
from milp_agt.bounds.program.state_bounds import (
    Objectives,
    ProgramReport,
    SolveOptions,
    bound_state,
    improved,
)
from milp_agt.bounds.program.window import RANGE_LIMIT
from milp_agt.bounds.program.witness import Witness
from milp_agt.bounds.program.zonotope_rows import ZonotopeRows
from milp_agt.bounds.step import State
from milp_agt.bounds.zonotope import ZonotopePass
from milp_agt.core.deadline import Deadline
from milp_agt.core.interval import Interval
from milp_agt.errors import SolverUnavailableError


@dataclass
class FinalZonotope:
    """The program over all steps of a run that was bounded by a zonotope, for its state and for questions.

    Attributes:
        exact: whether samples and phases are binary (``milp``) or relaxed (``lp``).
        witness: real runs that no bound may exclude; None for none.
        of_state: what solvers proposed for the ends of the state, as starts for attacks.
        reports, notes: of the questions so far.
    """

    forward: ZonotopePass
    exact: bool
    options: SolveOptions
    witness: Witness | None = None
    of_state: tuple[Sequence[Incumbents], ...] = ()
    reports: list[ProgramReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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

    @property
    def incumbents(self) -> tuple[Sequence[Incumbents], ...]:
        """The adversary's choices in programs for the state and for the questions so far."""
        asked = (own for report in self.reports for own in report.incumbents)
        return (*self.of_state, *asked)
