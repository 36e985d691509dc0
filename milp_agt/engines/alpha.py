"""Slopes of linear bounds optimised by gradient ascent: every end of the state gets planes of its own.

The bound of a form is a function of the slopes of all planes that its walk meets, in every step of the
window; *any* slopes give a bound (the offsets follow from them), so that an ascent may stop at any time
and needs no proof of its own. It is the dual ascent of alpha-CROWN (Xu et al. 2021), from one network to
a run of training, with slopes for products beside those of activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from milp_agt.core.operation import FreeSlope
from milp_agt.engines.exposure import Exposure
from milp_agt.engines.linear import bound_forms, boxes_of, ends_of
from milp_agt.engines.relaxed import RelaxedStep
from milp_agt.engines.slopes import Place, Slopes, free_slopes, with_slopes
from milp_agt.engines.step import Schedule, State
from milp_agt.engines.walker import Forms

# Length of the first move, as a share of the range of a slope, how it shrinks with every move that the
# slopes of a training step have made, and how short it gets.
RATE, DECAY, SHORTEST = 0.1, 0.95, 0.01
# Adam's averages (Kingma and Ba 2015), and the share of the steepest slope of a row below which
# gradients are not scaled up: most slopes hardly matter, and kinks lie where they start.
MEMORY = (0.5, 0.9)
FLOOR = 0.03
# Moves without a gain of this share of the gap between both ends after which an ascent stops.
PATIENCE, GAIN = 8, 1e-4
# Tensors of the size of all slopes that are alive at once while a gradient is taken.
LIVE_SLOPES = 40
FLOAT = 8


@dataclass(frozen=True)
class Problem:
    """What is optimised: forms on the state after a window."""

    schedule: Schedule
    window: Sequence[RelaxedStep]
    exposure: Exposure

    def bound(self, forms: Forms, slopes: Sequence[Slopes]) -> Tensor:
        """Lower bounds of forms with slopes for each step of the window, (rows, cases)."""
        window = [
            with_slopes(self.schedule, relaxed, own) if own else relaxed
            for relaxed, own in zip(self.window, slopes, strict=True)
        ]
        return bound_forms(self.schedule, window, forms, self.exposure)


@dataclass(frozen=True)
class Optimised:
    """What an ascent ends with.

    Attributes:
        state: boxes of the state after the window, by the slopes that are kept.
        slopes: for each step of the window and each place in it, one row for each end of the state:
            lower ends first, in the order of the state. Nothing for steps with their default slopes.
        moves: of the longest ascent.
        steps: how many steps of the window had slopes to choose.
    """

    state: State
    slopes: tuple[Slopes, ...]
    moves: int
    steps: int


def optimise_state(
    problem: Problem, moves: int, memory: int, start: Mapping[int, Slopes]
) -> Optimised:
    """Boxes of the state after a window, with slopes optimised for each of its ends.

    The bounds that are returned are made by the ordinary walk, without gradients, from the best
    slopes that were met.

    Args:
        moves: of each ascent, at most.
        memory: bytes for gradients; where it does not suffice for all steps of the window, the first
            ones keep their default slopes.
        start: slopes to begin with by the index of the training step, for all ends; default ones
            elsewhere.
    """
    free = _affordable(problem, memory)
    elements = sum(s.start.numel() for f in free for each in f.values() for s in each)
    state = problem.window[-1].state
    rows = 2 * sum(box.lower[0].numel() for box in state.values())
    chunk = max(1, min(rows, memory // (LIVE_SLOPES * FLOAT * max(1, elements))))
    bounds = torch.empty(
        problem.exposure.cases,
        rows,
        dtype=torch.float64,
        device=next(iter(state.values())).lower.device,
    )
    kept: list[tuple[Tensor, list[Slopes]]] = []
    longest, last = 0, problem.window[-1].step.index
    indices = [relaxed.step.index for relaxed in problem.window]
    made = [moves * (last - index) if index in start else 0 for index in indices]
    for part, forms in ends_of(state, chunk, chunk):
        first = [
            {
                place: _start(slopes, start.get(relaxed.step.index, {}).get(place), part)
                for place, slopes in own.items()
            }
            for relaxed, own in zip(problem.window, free, strict=True)
        ]
        slopes, done = _ascend(problem, forms, free, first, moves, made)
        with torch.no_grad():
            bounds[:, part] = problem.bound(forms, slopes).T
        kept.append((part, slopes))
        longest = max(longest, done)
    return Optimised(
        boxes_of(state, bounds), _joined(kept, rows), longest, sum(bool(own) for own in free)
    )


Free = Mapping[Place, tuple[FreeSlope, ...]]


def _affordable(problem: Problem, memory: int) -> list[Free]:
    """The slopes to choose, of as many of the last steps as gradients of one row have room for."""
    room = memory // (LIVE_SLOPES * FLOAT)
    free: list[Free] = []
    for relaxed in reversed(problem.window):
        found: Free = {
            place: slopes
            for place, slopes in free_slopes(problem.schedule, relaxed).items()
            if any(bool((s.upper > s.lower).any()) for s in slopes)
        }
        room -= sum(s.start.numel() for slopes in found.values() for s in slopes)
        free.append(found if room >= 0 else {})
    return free[::-1]


def _start(
    slopes: tuple[FreeSlope, ...], known: tuple[Tensor, ...] | None, rows: Tensor
) -> tuple[Tensor, ...]:
    if known is not None:
        return tuple(slope[rows] for slope in known)
    return tuple(s.start.expand(len(rows), *s.start.shape) for s in slopes)


def _joined(parts: Sequence[tuple[Tensor, list[Slopes]]], rows: int) -> tuple[Slopes, ...]:
    """The slopes of all ends, in their order, from those of some of them."""
    if len(parts) == 1 and bool((parts[0][0].diff() > 0).all()):
        return tuple(parts[0][1])
    order = torch.cat([part for part, _ in parts]).argsort()
    joined: list[Slopes] = []
    for step, first in enumerate(parts[0][1]):
        joined.append(
            {
                place: tuple(
                    torch.cat([slopes[step][place][k] for _, slopes in parts])[order]
                    for k in range(len(first[place]))
                )
                for place in first
            }
        )
    return tuple(joined)


def _ascend(
    problem: Problem,
    forms: Forms,
    free: Sequence[Free],
    start: Sequence[Slopes],
    moves: int,
    made: Sequence[int],
) -> tuple[list[Slopes], int]:
    """The best slopes of each row that at least one move has changed, and how many moves were made.

    ``made`` counts the moves that the slopes of each step of the window have behind them.
    """
    variables = _Variables.of(free, start, made)
    if not variables.values:
        return variables.by_step(), 0
    best: Tensor | None = None
    last_gain, target = 0, 0.0
    for move in range(moves):
        with torch.enable_grad():
            leaves = variables.leaves()
            bound = problem.bound(forms, leaves.by_step()).amin(1)
            gradients = torch.autograd.grad(bound.sum(), leaves.values, allow_unused=True)
        if move > 0:
            best = variables.keep(bound.detach(), best)
            total = float(best.sum())
            if move == 1 or not total <= target:
                last_gain, target = move, total + GAIN * abs(total)
            if move - last_gain >= PATIENCE:
                return variables.kept_by_step(), move
        variables.move(gradients, move)
    with torch.no_grad():
        bound = problem.bound(forms, variables.by_step()).amin(1)
    variables.keep(bound, best)
    return variables.kept_by_step(), moves


@dataclass
class _Variables:
    """Slopes on their way, (rows, *shape) each, with their ranges and Adam's averages."""

    places: list[tuple[int, Place]]
    steps: int
    lower: list[Tensor]
    upper: list[Tensor]
    values: list[Tensor]
    made: Sequence[int] = ()
    kept: list[Tensor] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)
    count: int = 0

    @staticmethod
    def of(free: Sequence[Free], start: Sequence[Slopes], made: Sequence[int]) -> _Variables:
        found = _Variables([], len(free), [], [], [], made)
        for step, (own, values) in enumerate(zip(free, start, strict=True)):
            for place, slopes in own.items():
                for slope, value in zip(slopes, values[place], strict=True):
                    found.places.append((step, place))
                    found.lower.append(slope.lower)
                    found.upper.append(slope.upper)
                    found.values.append(value)
        found.kept = list(found.values)
        return found

    def leaves(self) -> _Variables:
        """The same values as the leaves of a graph of gradients."""
        values = [v.detach().clone().requires_grad_() for v in self.values]
        return _Variables(self.places, self.steps, self.lower, self.upper, values)

    def by_step(self) -> list[Slopes]:
        return self._arranged(self.values)

    def kept_by_step(self) -> list[Slopes]:
        return self._arranged(self.kept)

    def _arranged(self, values: Sequence[Tensor]) -> list[Slopes]:
        arranged: list[dict[Place, tuple[Tensor, ...]]] = [{} for _ in range(self.steps)]
        for (step, place), value in zip(self.places, values, strict=True):
            arranged[step][place] = (*arranged[step].get(place, ()), value)
        return list(arranged)

    def keep(self, bound: Tensor, best: Tensor | None) -> Tensor:
        """Keep the values of the rows whose bound is the best so far."""
        if best is None:
            self.kept = list(self.values)
            return bound
        better = bound > best
        self.kept = [
            torch.where(_aligned(better, value), value, old)
            for value, old in zip(self.values, self.kept, strict=True)
        ]
        return torch.where(better, bound, best)

    def move(self, gradients: Sequence[Tensor | None], before: int) -> None:
        """One move upwards after so many others, projected on the ranges."""
        self.count += 1
        rates = [max(SHORTEST, RATE * DECAY ** (made + before)) for made in self.made]
        scaled = [
            torch.zeros_like(value) if g is None else g.nan_to_num(0.0, 0.0, 0.0) * (high - low)
            for g, value, low, high in zip(
                gradients, self.values, self.lower, self.upper, strict=True
            )
        ]
        decays = [1.0 - memory**self.count for memory in MEMORY]
        if not self.first:
            self.first = [torch.zeros_like(g) for g in scaled]
            self.second = [torch.zeros_like(g) for g in scaled]
        self.first = [
            MEMORY[0] * m + (1 - MEMORY[0]) * g for m, g in zip(self.first, scaled, strict=True)
        ]
        self.second = [
            MEMORY[1] * v + (1 - MEMORY[1]) * g.square()
            for v, g in zip(self.second, scaled, strict=True)
        ]
        top = torch.stack([v.flatten(1).amax(1) for v in self.second]).amax(0)
        floor = FLOOR * (top / decays[1]).sqrt() + 1e-300
        moved = []
        for (step, _), value, m, v, low, high in zip(
            self.places, self.values, self.first, self.second, self.lower, self.upper, strict=True
        ):
            length = (m / decays[0]) / ((v / decays[1]).sqrt() + _aligned(floor, v))
            moved.append((value + rates[step] * (high - low) * length).clamp(low, high))
        self.values = moved


def _aligned(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (like.dim() - 1))
