"""Interval bound propagation through a training step, and the poisoned sum over the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.rounding import TINY, gamma
from milp_agt.engines.step import Schedule, State, Step, velocity_of
from milp_agt.poison import Poison
from milp_agt.tracing import FEATURES, LABELS, StepGraph


def worst_sum(hurt: Tensor, budget: int) -> Tensor:
    """The most that ``budget`` samples can add up to: top-k sum of ``hurt >= 0`` (n, ...) on axis 0."""
    if budget <= 0 or len(hurt) == 0:
        return torch.zeros_like(hurt.sum(0))
    if budget >= len(hurt):
        return hurt.sum(0)
    if budget == 1:
        return hurt.amax(0)
    return hurt.topk(budget, dim=0, sorted=False).values.sum(0)


@dataclass
class Ranges:
    """Boxes of the nodes of one step, over a box of states.

    ``sums`` bounds ``sum_i |term_i|`` of each sum over samples: rounding is charged to it.
    """

    boxes: dict[str, Interval] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Masks:
    """A restriction seen from one batch: (n,) masks, or None where it says nothing."""

    inside: Tensor | None = None
    outside: Tensor | None = None

    @staticmethod
    def of(restriction: Restriction, samples: Tensor) -> Masks:
        def mask(chosen: frozenset[int]) -> Tensor | None:
            if not chosen:
                return None
            return torch.isin(samples, torch.tensor(sorted(chosen), device=samples.device))

        return Masks(mask(restriction.inside), mask(restriction.outside))

    @property
    def free(self) -> Tensor | None:
        """Samples that may or may not be poisoned; None for all."""
        fixed = [m for m in (self.inside, self.outside) if m is not None]
        return ~torch.stack(fixed).any(0) if fixed else None


class PoisonedSum:
    """Box of ``sum_i term_i`` where at most ``budget`` terms are in the state POISONED.

    Lower end: ``sum_i clean_i - topk_i max(0, clean_i - poisoned_i)``, upper end alike (SEMin and
    SEMax of Sosnin et al. 2024, section 4). Terms come in fragments of the batch; only the largest
    differences so far are kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._count = 0
        self._totals: list[Tensor] = []  # clean lower, clean upper, sum of magnitudes
        self._paid: list[Tensor] = []  # differences of samples known to be poisoned
        self._largest: list[Tensor] = []  # the largest differences of the others, down and up

    def add(self, terms: Interval, masks: Masks) -> None:
        """Add a fragment of terms, shape (states, n, *shape)."""
        self._count += terms.lower.shape[1]
        totals = [
            terms.lower[CLEAN].sum(0),
            terms.upper[CLEAN].sum(0),
            terms.magnitude.amax(0).sum(0),
        ]
        self._totals = _added(self._totals, totals)
        if terms.lower.shape[0] == 1 or self.budget == 0:
            return
        hurt = [
            (terms.lower[CLEAN] - terms.lower[POISONED]).clamp(min=0.0),
            (terms.upper[POISONED] - terms.upper[CLEAN]).clamp(min=0.0),
        ]
        if masks.inside is not None:
            self._paid = _added(self._paid, [h[masks.inside].sum(0) for h in hurt])
        free = masks.free
        if free is not None:
            hurt = [h[free] for h in hurt]
        if self._largest:
            hurt = [torch.cat([old, new]) for old, new in zip(self._largest, hurt, strict=True)]
        keep = self.budget
        self._largest = [
            h if len(h) <= keep else h.topk(keep, dim=0, sorted=False).values for h in hurt
        ]

    def result(self, inside: int = 0) -> tuple[Interval, Tensor]:
        """The box of the sum, (1, *shape), and ``sum_i max|term_i|``.

        ``inside`` counts the samples of the batch that are known to be poisoned.
        """
        lower, upper, size = self._totals
        if self._largest:
            down, up = (worst_sum(h, self.budget - inside) for h in self._largest)
            lower, upper = lower - down, upper + up
        if self._paid:
            lower, upper = lower - self._paid[0], upper + self._paid[1]
        error = size * gamma(4 * self._count + 16) + TINY
        return Interval(lower.unsqueeze(0), upper.unsqueeze(0)).widen(error), size


def _added(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(old, new, strict=True)] if old else new


def leaf_boxes(poison: Poison) -> dict[str, Interval]:
    return {FEATURES: poison.feature_box(), LABELS: poison.label_box()}


def propagate(
    schedule: Schedule,
    state: Mapping[str, Interval],
    step: Step,
    restriction: Restriction = UNRESTRICTED,
    fragment: int | None = None,
    keep: bool = False,
) -> Ranges:
    """Boxes of the nodes of a step for all states in a box and all admissible poisonings of the batch.

    Args:
        fragment: samples at once, so that memory stays bounded; None for the whole batch.
        keep: keep the boxes of nodes with a sample axis (the other engines need them).

    Raises:
        SoundnessError: a box with lower > upper (never expected).
    """
    size = fragment or step.size
    ranges = Ranges()
    fixed: dict[str, Interval] = dict(state)
    for node in schedule.before:
        if not node.batched and node.name not in fixed:
            fixed[node.name] = node.op.interval(*(fixed[i] for i in node.inputs))
    pieces: dict[str, list[Interval]] = {}
    totals = {node.name: PoisonedSum(step.poison.budget) for node in schedule.sums}
    for start in range(0, step.size, size):
        part = torch.arange(start, min(start + size, step.size), device=step.samples.device)
        whole = len(part) == step.size
        boxes = fixed | leaf_boxes(step.poison if whole else step.poison.take(part))
        masks = Masks.of(restriction, step.samples[part])
        for node in schedule.before:
            if node.name not in boxes:
                boxes[node.name] = node.op.interval(*(boxes[i] for i in node.inputs))
        for node in schedule.sums:
            totals[node.name].add(boxes[node.inputs[0]], masks)
        if keep:
            for node in schedule.before:
                if node.batched:
                    pieces.setdefault(node.name, []).append(boxes[node.name])
    known = Masks.of(restriction, step.samples).inside
    inside = 0 if known is None else int(known.sum())
    ranges.boxes = fixed
    for name, parts in pieces.items():
        ranges.boxes[name] = parts[0] if len(parts) == 1 else _concatenate(parts)
    for node in schedule.sums:
        ranges.boxes[node.name], ranges.sums[node.name] = totals[node.name].result(inside)
    for node in schedule.after:
        ranges.boxes[node.name] = node.op.interval(*(ranges.boxes[i] for i in node.inputs))
    return ranges


def _concatenate(parts: list[Interval]) -> Interval:
    return Interval(torch.cat([p.lower for p in parts], 1), torch.cat([p.upper for p in parts], 1))


def update(step_graph: StepGraph, state: State, ranges: Ranges, step: Step) -> State:
    """Box of the next state: the optimiser step in interval arithmetic.

    Each of theta, velocity and gradient stands once in ``theta'`` and once in ``v'``, with its scalar
    in front, so a negative ``1 - rate * weight_decay`` turns its box around.
    """
    new: State = {}
    for name in step_graph.parameters:
        gradient = ranges.boxes[step_graph.gradients[name]]
        operands = [state[name], gradient]
        if step.has_velocity:
            velocity = velocity_of(name)
            operands.insert(1, state[velocity])
            new[velocity] = _combine(step.velocity_scalars, step.velocity_scalars, operands)
        new[name] = _combine(step.theta_scalars, step.theta_sizes, operands)
    return new


def _combine(
    scalars: tuple[float, ...], sizes: tuple[float, ...], boxes: list[Interval]
) -> Interval:
    lower = upper = size = torch.zeros((), dtype=torch.float64)
    for scalar, bound, box in zip(scalars, sizes, boxes, strict=True):
        first, second = scalar * box.lower, scalar * box.upper
        lower = lower + (first if scalar >= 0 else second)
        upper = upper + (second if scalar >= 0 else first)
        size = size + abs(bound) * box.magnitude
    return Interval(lower, upper).widen(size * gamma(24) + TINY)
