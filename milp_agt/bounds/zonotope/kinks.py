"""Functions of two linear pieces: the piece of the centre, and flips as jumps and bends of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from milp_agt.bounds.zonotope.form import Form, plus, shaped
from milp_agt.bounds.zonotope.rows import Slots
from milp_agt.core.graph import Node, Operation
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import UnsupportedOperationError
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


def pieces_of(node: Node, kink: Kink, argument: Form, slots: Slots, first: int) -> Form:
    """A function of two pieces: that of the centre, and what flips of the sample add; ``first`` is the slot
    of its first element."""
    centre = argument.centre
    on = centre > 0
    slope = torch.where(on, centre.new_tensor(kink.right), centre.new_tensor(kink.left))
    form = argument.scaled(slope)
    elements = centre[0].numel()
    flat = on.reshape(len(centre), elements)
    jump = slots.of(kink.jump * torch.where(flat, -1.0, 1.0).to(centre), first)
    bend = slots.of(torch.full_like(flat, kink.right - kink.left, dtype=centre.dtype), first)
    furthest = slots.of(torch.ones_like(flat).to(centre), first)
    beyond = torch.zeros_like(centre)
    if furthest is not None:
        beyond = (furthest * slots.largest[-1][..., None]).sum(0).reshape(centre.shape)
    value = node.op.value(centre)
    if argument.on_state is None and not argument.is_constant:
        raise unsupported(node.op, node)
    size = value.abs() + slope.abs() * (argument.size + centre.abs())
    size = size + abs(kink.jump) + abs(kink.right - kink.left) * beyond
    exact = kink.left in (0.0, 1.0) and kink.right in (0.0, 1.0)
    error = torch.zeros_like(size) if exact else gamma(8) * size + TINY
    straight = all(p is None for p in (argument.on_state, argument.on_moves)) or not bool(
        slope.any()
    )
    form = replace(
        form,
        centre=value,
        rest=Interval(form.rest.lower - error, form.rest.upper + error),
        size=size,
        on_phase=plus(form.on_phase, shaped(jump, centre)),
        on_bend=plus(form.on_bend, shaped(bend, centre)),
    )
    if straight:
        form = replace(form, on_state=None, on_moves=None, charge=None)
    return form


def unsupported(op: Operation, node: Node) -> UnsupportedOperationError:
    """The refusal of a node."""
    return UnsupportedOperationError(
        f"Relaxation 'zonotope' was asked for operation '{op.key}'",
        f"node '{node.name}', of which it has no rule yet",
        "use relaxation 'linear', or leave the operation out",
    )
