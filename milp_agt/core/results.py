"""The result of a solve: why it stopped, what it proved and what it found, kept separate."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from milp_agt.core.arguments import at_least


class Termination(Enum):
    """Why a solve ended, mapped from the raw status of the solver."""

    OPTIMAL = "optimal"
    BOUND_ONLY = (
        "bound only"  # a limit was reached; the dual bound is valid, the incumbent is not optimal
    )
    INFEASIBLE = "infeasible"
    FAILED = "failed"  # nothing was proved: numerical trouble, an unlisted status


@dataclass(frozen=True)
class Limits:
    """Limits of one solve of a program. A limit loosens bounds and never breaks them.

    Attributes:
        time: seconds (default: 60); None for no limit. Trees over bilinear terms may use all of it;
            their dual bound is valid whenever they end.
        gap: relative distance of bound and incumbent at which a tree may stop.
        nodes: of a tree; None for no limit.

    Raises:
        InvalidInputError: not numbers, or numbers below 0.
    """

    time: float | None = 60.0
    gap: float = 1e-6
    nodes: int | None = None

    def __post_init__(self) -> None:
        remedy = "give agt.Limits(time=10.0, gap=1e-6, nodes=1000), say; None is no limit"
        if self.time is not None:
            at_least(self.time, 0.0, "The time of a solve", remedy)
        at_least(self.gap, 0.0, "The gap of a solve", remedy)
        if self.nodes is not None:
            at_least(self.nodes, 0.0, "The count of nodes of a solve", remedy, whole=True)


@dataclass(frozen=True)
class SolveResult:
    """One minimisation ``min c.x`` over a program.

    Attributes:
        termination: why the solver stopped.
        dual_bound: a proved lower bound on the minimum, already rounded to the safe side; None if
            nothing was proved. Only this value may enter a certificate.
        primal_bound: value of the best point found (an incumbent), None if there is none. It is not
            a lower bound on the minimum.
        point: the best point found (columns,), None if there is none.
        relaxed: the minimum point of the linear relaxation (columns,), None if unknown.
        multipliers: row multipliers (rows,) from which ``dual_bound`` was recomputed; None if the
            bound is the solver's own (a mixed-integer tree).
        raw_status: the status in the solver's own words.
        seconds: wall-clock time of the solve.
    """

    termination: Termination
    dual_bound: float | None
    primal_bound: float | None
    point: npt.NDArray[np.float64] | None
    multipliers: npt.NDArray[np.float64] | None
    raw_status: str
    seconds: float
    relaxed: npt.NDArray[np.float64] | None = None

    @property
    def hint(self) -> npt.NDArray[np.float64] | None:
        """A start for attacks: the best point found, else the minimum point of the relaxation."""
        return self.relaxed if self.point is None else self.point
