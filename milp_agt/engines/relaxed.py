"""A training step with linear bounds of all its nodes: what walks and programs stand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.operation import Relaxed
from milp_agt.engines.interval import Ranges
from milp_agt.engines.step import Schedule, State, Step
from milp_agt.formulations.linear import LinearPlanes, SumSamples
from milp_agt.poison import Poison
from milp_agt.tracing import FEATURES, LABELS


class Offsets:
    """The offsets of one node's planes, arranged for rows of coefficients ``c``.

    With ``p = max(c, 0)``: constant and magnitude are ``p . on_positive + c . on_all`` (two columns),
    charges of sample i are ``p_i . charge_positive_i + c_i . charge_all_i``. Rearranged from
    ``p . lower + (c - p) . upper`` and ``|c| = 2 p - c``.
    """

    def __init__(self, planes: Relaxed, batched: bool) -> None:
        size = planes.magnitude
        self.batched = batched
        self.is_linear = planes.lower is None or planes.upper is None
        self.charge_positive: Tensor | None = None
        self.charge_all: Tensor | None = None
        self.size = size
        if planes.lower is None or planes.upper is None:
            return
        lower, upper = planes.lower.expand(-1, *size.shape), planes.upper.expand(-1, *size.shape)
        self.on_positive = torch.stack([lower[CLEAN] - upper[CLEAN], 2.0 * size], -1)
        self.on_all = torch.stack([upper[CLEAN], -size], -1)
        if batched and len(lower) > 1:
            up = upper[CLEAN] - upper[POISONED]
            self.charge_all = up
            self.charge_positive = lower[CLEAN] - lower[POISONED] - up

    @cached_property
    def uniform(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the samples, for coefficients that are the same for every sample."""
        if self.is_linear:
            return self.size.sum(0), self.size, self.size
        return self.size, self.on_positive.sum(0), self.on_all.sum(0)

    def spend(self, coefficients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Constant (rows,), magnitude (rows,) and charges (rows, n) of rows of coefficients."""
        one = self.batched and coefficients.shape[1] == 1 and self.size.shape[0] != 1
        flat = coefficients.flatten(1)
        if self.is_linear:
            size = self.uniform[0] if one else self.size
            return None, flat.abs() @ size.flatten(), None
        positive = coefficients.clamp(min=0.0)
        on_positive, on_all = self.uniform[1:] if one else (self.on_positive, self.on_all)
        total = positive.flatten(1) @ on_positive.flatten(0, -2) + flat @ on_all.flatten(0, -2)
        if self.charge_positive is None or self.charge_all is None:
            return total[:, 0], total[:, 1], None
        return total[:, 0], total[:, 1], self._charges(coefficients, positive, one)

    def spend_diagonal(self, coefficients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The same for one row per pair (form, sample): (forms, n) each."""
        if self.is_linear:
            return None, (coefficients.abs() * self.size).flatten(2).sum(-1), None
        positive = coefficients.clamp(min=0.0)
        weights_positive = self.on_positive.flatten(1, -2)
        weights_all = self.on_all.flatten(1, -2)
        total = (
            positive.flatten(2)[..., None] * weights_positive
            + coefficients.flatten(2)[..., None] * weights_all
        ).sum(2)
        if self.charge_positive is None:
            return total[..., 0], total[..., 1], None
        return total[..., 0], total[..., 1], self._charges(coefficients, positive, False)

    def _charges(self, coefficients: Tensor, positive: Tensor, one: bool) -> Tensor:
        assert self.charge_positive is not None
        assert self.charge_all is not None
        if one:
            return (
                positive.flatten(1) @ self.charge_positive.flatten(1).T
                + coefficients.flatten(1) @ self.charge_all.flatten(1).T
            )
        terms = (positive * self.charge_positive).addcmul_(coefficients, self.charge_all)
        return terms.flatten(2).sum(-1)


@dataclass(frozen=True)
class Fragment:
    """Some samples of a batch with the linear bounds of all nodes that have a sample axis."""

    samples: slice
    poison: Poison
    planes: Mapping[str, Relaxed]
    offsets: Mapping[str, Offsets]
    leaves: Mapping[str, Tensor]  # largest magnitudes of features and labels


@dataclass(frozen=True)
class RelaxedStep:
    """A step with linear bounds of all its nodes: all that the walk needs, and no heuristics.

    Whoever keeps these (boxes, planes, in the order of the run) can replay the bound. ``shared``
    holds the nodes without a sample axis; the batch is cut into fragments, so that the tensors of a
    walk stay in the processor's cache.
    """

    step: Step
    state: State
    ranges: Ranges
    shared: Fragment
    fragments: tuple[Fragment, ...]

    @property
    def planes(self) -> Mapping[str, Relaxed]:
        """Planes of the nodes without a sample axis, sums over samples included."""
        return self.shared.planes


def relax_step(
    schedule: Schedule, state: State, step: Step, ranges: Ranges, fragment: int | None = None
) -> RelaxedStep:
    """Linear bounds of every node of a step with the default slopes, valid on ``ranges``.

    ``fragment`` is the count of samples in a piece; None for the whole batch.
    """
    size = fragment or step.size
    planes: dict[str, Relaxed] = {}
    for node in schedule.all:
        if isinstance(node.op, SumSamples):
            planes[node.name] = LinearPlanes(node.op, 1, None, None, ranges.sums[node.name])
        elif node.inputs and not node.batched:
            planes[node.name] = node.op.relax(*(ranges.boxes[i] for i in node.inputs))
    offsets = {name: Offsets(p, False) for name, p in planes.items()}
    shared = Fragment(slice(0, 0), step.poison, planes, offsets, {})
    fragments = [
        _relax_fragment(schedule, step, ranges, slice(start, min(start + size, step.size)))
        for start in range(0, step.size, size)
    ]
    return RelaxedStep(step, state, ranges, shared, tuple(fragments))


def _relax_fragment(schedule: Schedule, step: Step, ranges: Ranges, part: slice) -> Fragment:
    whole = part == slice(0, step.size)

    def box(name: str, batched: bool) -> Interval:
        full = ranges.boxes[name]
        if whole or not batched:
            return full
        return Interval(full.lower[:, part], full.upper[:, part])

    kinds = {node.name: node.batched for node in schedule.before}
    planes = {
        node.name: node.op.relax(*(box(i, kinds[i]) for i in node.inputs))
        for node in schedule.before
        if node.batched and node.inputs
    }
    index = torch.arange(part.start, part.stop, device=step.samples.device)
    return Fragment(
        samples=part,
        poison=step.poison if whole else step.poison.take(index),
        planes=planes,
        offsets={name: Offsets(p, True) for name, p in planes.items()},
        leaves={n: box(n, True).magnitude.amax(0) for n in (FEATURES, LABELS)},
    )
