"""A training step with linear bounds of all its nodes: what walks and programs stand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.bounds.adversary.box_algebra import Arithmetic
from milp_agt.bounds.adversary.model import Exposure
from milp_agt.bounds.interval.propagation import Ranges
from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.linear.composed import Cut, Shortcut
from milp_agt.bounds.linear.intercepts import Offsets, Spendable, SummedOffsets
from milp_agt.bounds.step import Schedule, State, Step
from milp_agt.core.interval import Interval
from milp_agt.core.linear_bounds import Pulling, Relaxed
from milp_agt.formulations.product_planes import BilinearPlanes
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, LABELS


@dataclass(frozen=True)
class Fragment:
    """Some samples of a batch with the linear bounds of all nodes that have a sample axis."""

    samples: slice
    poison: Poison
    planes: Mapping[str, Pulling]
    offsets: Mapping[str, Spendable]
    leaves: Mapping[str, Tensor]  # largest magnitudes of features and labels
    nominal: Mapping[str, Tensor]  # points that moves are counted from, (1 or cases, n, *shape)


@dataclass(frozen=True)
class RelaxedStep:
    """A step with linear bounds of all its nodes: all that the walk needs, and no heuristics.

    Whoever keeps these (boxes, planes, in the order of the run) can replay the bound. ``shared``
    holds the nodes without a sample axis, those of the update included; the batch is cut into
    fragments, so that the tensors of a walk stay in the processor's cache. ``cuts`` holds one for each
    fragment, or nothing. With a ``shortcut`` walks do not visit the nodes at all.
    """

    step: Step
    state: State
    ranges: Ranges
    shared: Fragment
    fragments: tuple[Fragment, ...]
    update: UpdateGraph
    cuts: tuple[Cut, ...] = ()
    shortcut: Shortcut | None = None

    @property
    def planes(self) -> Mapping[str, Pulling]:
        """Planes of the nodes without a sample axis, sums over samples included."""
        return self.shared.planes

    def new(self, name: str) -> str:
        """The node with the new value of a tensor of the state, projected if that is relaxed yet."""
        last = self.update.projections.get(name)
        settled = last is not None and last.name in self.planes
        return last.name if last is not None and settled else self.update.outputs[name]


def settle(relaxed: RelaxedStep, state: State, cases: int) -> RelaxedStep:
    """The same step with its projection relaxed on the box of the new state before it.

    Until then forms are on the state before the projection.
    """
    planes: dict[str, Relaxed] = {}
    for name, node in relaxed.update.projections.items():
        relaxed.ranges.boxes[node.inputs[0]] = state[name]
        planes[node.name] = node.op.relax(state[name])
    offsets = {name: Offsets.of(p, False, cases) for name, p in planes.items()}
    shared = replace(
        relaxed.shared,
        planes={**relaxed.planes, **planes},
        offsets={**relaxed.shared.offsets, **offsets},
    )
    return replace(relaxed, shared=shared)


def relax_step(
    schedule: Schedule,
    state: State,
    step: Step,
    ranges: Ranges,
    exposure: Exposure,
    fragment: int | None = None,
) -> RelaxedStep:
    """Linear bounds of every node of a step with the default slopes, valid on ``ranges``.

    ``fragment`` is the count of samples in a piece; None for the whole batch.
    """
    size = fragment or step.size
    planes: dict[str, Relaxed] = {}
    for node in schedule.all:
        if isinstance(node.op, SumSamples):
            planes[node.name] = node.op.planes(ranges.sums[node.name])
        elif node.inputs and not node.batched:
            inputs = [ranges.boxes[i] for i in node.inputs]
            planes[node.name] = exposure.arithmetic.relax(node, inputs, step.samples)
    update = UpdateGraph.of(schedule.gradients, step)
    planes |= _planes_of_update(update, state, ranges, exposure.arithmetic)
    offsets = {name: Offsets.of(p, False, exposure.cases) for name, p in planes.items()}
    shared = Fragment(slice(0, 0), step.poison, planes, offsets, {}, {})
    nominal = exposure.nominal(step)
    fragments = [
        _relax_fragment(
            schedule,
            step,
            ranges,
            exposure,
            nominal,
            slice(start, min(start + size, step.size)),
        )
        for start in range(0, step.size, size)
    ]
    return RelaxedStep(step, state, ranges, shared, tuple(fragments), update)


def _planes_of_update(
    update: UpdateGraph, state: State, ranges: Ranges, arithmetic: Arithmetic
) -> dict[str, Relaxed]:
    """Planes of the update, and of the projections whose range is settled."""
    boxes = update.boxes(state, ranges.boxes, arithmetic)
    planes = {n.name: arithmetic.relax(n, [boxes[i] for i in n.inputs], None) for n in update.nodes}
    for node in update.projections.values():
        if node.inputs[0] in ranges.boxes:
            planes[node.name] = node.op.relax(ranges.boxes[node.inputs[0]])
    return planes


def _relax_fragment(
    schedule: Schedule,
    step: Step,
    ranges: Ranges,
    exposure: Exposure,
    nominal: Mapping[str, Tensor],
    part: slice,
) -> Fragment:
    whole = part == slice(0, step.size)

    def box(name: str, batched: bool) -> Interval:
        full = ranges.boxes[name]
        if whole or not batched:
            return full
        return Interval(full.lower[:, part], full.upper[:, part])

    kinds = {node.name: node.batched for node in schedule.before}
    summed = {product.name for product in schedule.summed_products.values()}
    planes: dict[str, Pulling] = {}
    offsets: dict[str, Spendable] = {}
    for node in schedule.before:
        if node.batched and node.inputs:
            inputs = [box(i, kinds[i]) for i in node.inputs]
            found = exposure.arithmetic.relax(node, inputs, step.samples[part])
            if node.name in summed and type(found) is BilinearPlanes:
                planes[node.name] = found.without_offsets()
                offsets[node.name] = SummedOffsets.of(found, exposure.cases)
            else:
                planes[node.name] = found
                offsets[node.name] = Offsets.of(found, True, exposure.cases)
    index = torch.arange(part.start, part.stop, device=step.samples.device)
    return Fragment(
        samples=part,
        poison=step.poison if whole else step.poison.take(index),
        planes=planes,
        offsets=offsets,
        leaves={n: box(n, True).magnitude.amax(0) for n in (FEATURES, LABELS)},
        nominal={n: v if whole else v[:, part] for n, v in nominal.items()},
    )
