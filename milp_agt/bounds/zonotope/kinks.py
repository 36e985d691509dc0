"""Functions of two linear pieces, as what a flip of the phase adds to the piece of the centre."""

from __future__ import annotations

from dataclasses import dataclass

from milp_agt.core.graph import Operation
from milp_agt.formulations.heaviside import Heaviside
from milp_agt.formulations.relu import Relu


@dataclass(frozen=True)
class Kink:
    """``f(z) = left z`` for z <= 0 and ``jump + right z`` for z > 0.

    With the phase at the centre, ``y`` the distance beyond the kink, ``phi = 1`` if it is crossed and
    ``rho = max(0, y)``:  f(z) = (piece of the centre)(z) + sign jump phi + (right - left) rho, where sign is
    1 if the centre is off (y = z) and -1 if it is on (y = -z). There the pieces differ by ``-jump`` at
    the kink and by the slope ``left - right``, times ``z = -rho``.
    """

    left: float
    right: float
    jump: float


def kink_of(op: Operation) -> Kink | None:
    """The pieces of an operation, or None where it is no function of two pieces with a kink at 0."""
    if isinstance(op, Relu):
        return Kink(op.negative_slope, 1.0, 0.0)
    if isinstance(op, Heaviside):
        return Kink(0.0, 0.0, 1.0)
    return None
