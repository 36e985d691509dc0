"""Witnesses: real training runs; a bound that excludes one of them is wrong.

Bounds of ``lp`` and of our own trees are recomputed from row multipliers; those of the trees of SCIP and
Gurobi depend on their tolerances and on the status that they report. A real run through the window is a
feasible point of every correct program, whatever its rows, so its value of an objective is never
below a valid bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.bounds.step import is_velocity
from milp_agt.core.expression import Array
from milp_agt.core.interval import Interval, as_array
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import SoundnessError


@dataclass(frozen=True)
class Witness:
    """Final states of real runs on admissible data, in float64.

    Attributes:
        states: parameters and velocities by name, (runs, *shape), all finite.
        projection: range to which the run clamps parameters at the end of a step; the program of the
            step bounds the state before it.
    """

    states: Mapping[str, Tensor]
    projection: tuple[float, float] | None = None

    def check_state(self, names: Sequence[str], bounds: Array, solver: str) -> None:
        """Check that no run violates lower bounds of the entries of the state and of their negatives.

        Bounds include the rounding of runs, so there is no tolerance.

        Args:
            names: of the tensors of the state, in the order of the bounds.
            bounds: lower ends of all entries, then negative upper ends, (2 * entries,).

        Raises:
            SoundnessError: a run outside.
        """
        values = as_array(torch.cat([self.states[name].flatten(1) for name in names], 1))
        low, high = np.split(bounds, 2)
        if self.projection is not None:
            sizes = [self.states[name][0].numel() for name in names]
            clamped = np.repeat([not is_velocity(name) for name in names], sizes)
            low = np.where(clamped, np.clip(low, *self.projection), low)
            high = np.where(clamped, -np.clip(-high, *self.projection), high)
        both = np.concatenate([values, -values], 1)
        check(np.concatenate([low, high]), both, 0.0, f"entry of {', '.join(names)}", solver)

    def at(self, coefficients: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Linear forms of the state, coefficients (rows, *shape), and their rounding: (runs, rows)."""
        size = value = torch.zeros(1)
        for name, on in coefficients.items():
            flat, states = on.flatten(1).T, self.states[name].flatten(1)
            value, size = value + states @ flat, size + states.abs() @ flat.abs()
        terms = sum(on[0].numel() for on in coefficients.values())
        return value, gamma(2 * terms + 16) * size + TINY

    def check_forms(
        self, what: str, value: Tensor, error: Tensor, bounds: Interval, solver: str
    ) -> None:
        """Check forms with values (runs, *shape), known up to an error, against bounds (*shape).

        Raises:
            SoundnessError: a run outside.
        """
        ends = np.concatenate([as_array(bounds.lower.flatten()), -as_array(bounds.upper.flatten())])
        value, error = value.flatten(1), error.flatten(1)
        both, room = as_array(torch.cat([value, -value], 1)), as_array(torch.cat([error, error], 1))
        check(ends, both, room, what, solver)

    def check_count(
        self, value: Tensor, error: Tensor, groups: Tensor, most: int, solver: str
    ) -> None:
        """Check that no run reaches more than ``most`` test points.

        A point is reached if for one of its groups, (n, forms), all forms are <= 0.

        Raises:
            SoundnessError: a run that does.
        """
        below = value <= -error
        ways = [
            (below | (groups != group)).all(-1) & (groups == group).any(-1)
            for group in groups.unique()
        ]
        reached = torch.stack(ways).any(0).sum(-1)
        if len(reached) and int(reached.max()) > most:
            raise _violated(
                solver,
                f"at most {most} of {len(groups)} test points by the bound, and "
                f"{int(reached.max())} by a run",
            )


def check(bounds: Array, values: Array, error: Array | float, what: str, solver: str) -> None:
    """Check lower bounds (objectives,) against values (runs, objectives) known up to ``error``.

    The second half of the objectives are the negatives of the first.

    Raises:
        SoundnessError: a value below its bound.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # runs that overflow prove nothing
        excess = np.nan_to_num(bounds - (values + error), nan=-np.inf)
    if not excess.size or not (excess > 0.0).any():
        return
    run, number = np.unravel_index(int(np.argmax(excess)), excess.shape)
    side, place = divmod(int(number), max(1, len(bounds) // 2))
    raise _violated(
        solver,
        f"{what} [{place}] from {'above' if side else 'below'}: {float(bounds[number])!r} by the bound, "
        f"{float(values[run, number])!r} by a run (of the negative, where the bound is from above)",
    )


def _violated(solver: str, found: str) -> SoundnessError:
    return SoundnessError(
        f"A bound proved by solver '{solver}' must hold for every training run on admissible data",
        found,
        "please report this run; bounds of relaxation='lp' do not rest on what a solver claims, and "
        "another solver= may be right",
    )
