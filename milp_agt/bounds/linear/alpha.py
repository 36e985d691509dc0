"""Slopes of linear bounds optimised by gradient ascent: each signed entry of the state gets its own planes.

The bound of a form is a function of the slopes of all planes in its backward pass, in every step of the
window. *Any* slopes give a bound (the intercepts follow from them), so an ascent may stop at any time
and needs no proof of its own. It is the dual ascent of alpha-CROWN (Xu et al. 2021), extended from one
network to a training run, with slopes for products as well as activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import MappingProxyType

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.linear.ascent import Free, Variables, has_choice
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.slopes import Slopes, free_slopes, with_slopes
from milp_agt.bounds.linear.window_bounds import bound_forms
from milp_agt.bounds.signed_entries import forms_of_entries
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.planes import FreeSlope

# An ascent stops after this many moves without a relative gain of at least GAIN in the sum of bounds.
PATIENCE, GAIN = 8, 1e-4
# Tensors of the size of all slopes that are alive at once during a gradient computation.
LIVE_SLOPES = 40
FLOAT = 8


@dataclass(frozen=True)
class Problem:
    """The problem of an ascent: the window after whose last step forms are bounded."""

    schedule: NodeOrder
    window: Sequence[LinearizedStep]
    adversary: AdversaryModel

    def bound(self, forms: Forms, slopes: Sequence[Slopes]) -> Tensor:
        """Lower bounds of forms, with the given slopes for each step of the window, (rows, cases)."""
        window = [
            with_slopes(self.schedule, relaxed, own) if own else relaxed
            for relaxed, own in zip(self.window, slopes, strict=True)
        ]
        return bound_forms(self.schedule, window, forms, self.adversary)


@dataclass(frozen=True)
class Optimised:
    """The result of an ascent.

    Attributes:
        bounds: lower bounds of the requested signed entries, (cases, ends), with the kept slopes.
        slopes: for each step of the window and each place in it, one row for each of the ends. Empty
            for steps with their default slopes.
        steps: how many steps of the window had slopes to choose.
        late: whether the deadline stopped an ascent.
    """

    bounds: Tensor
    slopes: tuple[Slopes, ...]
    steps: int
    late: bool


def optimise_ends(
    problem: Problem,
    ends: Tensor,
    moves: int,
    memory: int,
    start: Mapping[int, Slopes] = MappingProxyType({}),
    until: float | None = None,
) -> Optimised:
    """Bounds of signed entries of the state after a window, with slopes optimised for each of them.

    The returned bounds come from an ordinary backward pass, without gradients, with the best slopes
    found.

    Args:
        ends: numbers of the signed entries: all lower ends in the order of the state, then all upper.
        moves: the most moves of each ascent.
        memory: bytes for gradients; if it does not suffice for all steps of the window, the first
            ones keep their default slopes.
        start: initial slopes by the index of the training step, one row for each of the ends;
            default slopes elsewhere.
        until: a time of ``time.monotonic`` after which no move begins.
    """
    free = _affordable(problem, memory)
    elements = sum(_elements(each) for own in free for each in own.values())
    chunk = max(1, memory // (LIVE_SLOPES * FLOAT * max(1, elements)))
    state = problem.window[-1].state
    indices = [relaxed.step.index for relaxed in problem.window]
    made = [moves * (indices[-1] - index) if index in start else 0 for index in indices]
    bounds: list[Tensor] = []
    kept: list[list[Slopes]] = []
    late = False
    for rows in torch.arange(len(ends), device=ends.device).split(chunk):
        first = [
            {
                place: _start(slopes, start.get(index, {}).get(place), rows)
                for place, slopes in own.items()
            }
            for index, own in zip(indices, free, strict=True)
        ]
        variables = Variables.of(free, first, made)
        forms = forms_of_entries(state, ends[rows])
        if variables.each:
            late |= _ascend(problem, forms, variables, moves, until)
        with torch.no_grad():
            bounds.append(problem.bound(forms, variables.best()).T)
        kept.append(variables.best())
    return Optimised(torch.cat(bounds, 1), _joined(kept), sum(map(bool, free)), late)


def _affordable(problem: Problem, memory: int) -> list[Free]:
    """The slopes to choose, of as many of the last steps as memory for gradients of one row allows."""
    room = memory // (LIVE_SLOPES * FLOAT)
    free: list[Free] = []
    for relaxed in reversed(problem.window):
        found: Free = {
            place: slopes
            for place, slopes in free_slopes(problem.schedule, relaxed).items()
            if any(map(has_choice, slopes))
        }
        room -= sum(_elements(slopes) for slopes in found.values())
        free.append(found if room >= 0 else {})
    return free[::-1]


def _elements(slopes: Sequence[FreeSlope]) -> int:
    return sum(s.start.numel() for s in slopes if has_choice(s))


def _start(
    slopes: tuple[FreeSlope, ...], known: tuple[Tensor, ...] | None, rows: Tensor
) -> tuple[Tensor, ...]:
    if known is not None:
        return tuple(slope[rows] for slope in known)
    return tuple(s.start.expand(len(rows), *s.start.shape) for s in slopes)


def _joined(parts: Sequence[list[Slopes]]) -> tuple[Slopes, ...]:
    """The slopes of all ends, concatenated from those of each part."""
    if len(parts) == 1:
        return tuple(parts[0])
    return tuple(
        {
            place: tuple(map(torch.cat, zip(*(own[place] for own in step), strict=True)))
            for place in step[0]
        }
        for step in zip(*parts, strict=True)
    )


def _ascend(
    problem: Problem, forms: Forms, variables: Variables, moves: int, until: float | None
) -> bool:
    """Run an ascent and keep the best slopes of each row, after at least one move.

    Returns whether the deadline stopped it.
    """
    best = forms.magnitude.new_full((forms.rows,), -torch.inf)
    last_gain, target = 0, -torch.inf
    for move in range(moves + 1):
        with torch.set_grad_enabled(move < moves):
            leaves = variables.leaves()
            bound = problem.bound(forms, variables.now()).amin(1)
        if move > 0:
            found = bound.detach()
            variables.keep(found > best)
            best = torch.maximum(best, found)
            total = float(best.sum())
            if not total <= target:
                last_gain, target = move, total + GAIN * abs(total)
            if move == moves or move - last_gain >= PATIENCE:
                return False
            if until is not None and monotonic() > until:
                return True
        variables.move(torch.autograd.grad(bound.sum(), leaves, allow_unused=True), move)
    return False
