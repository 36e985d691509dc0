"""A training step with linear bounds of all its nodes, as backward passes and programs use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.interval.bound_propagation import Ranges
from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.linear.intercepts import HasIntercepts, Intercepts, SummedIntercepts
from milp_agt.bounds.step import NodeOrder, State, Step
from milp_agt.core.interval import Interval
from milp_agt.core.planes import BackwardSlopes, LinearBounds
from milp_agt.formulations.einsum import BilinearPlanes
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, LABELS


@dataclass(frozen=True)
class SampleChunk:
    """Some samples of a batch with the linear bounds of all nodes that have a sample axis."""

    samples: slice
    poison: Poison
    planes: Mapping[str, BackwardSlopes]
    offsets: Mapping[str, HasIntercepts]
    leaves: Mapping[str, Tensor]  # largest magnitudes of features and labels
    nominal: Mapping[str, Tensor]  # points from which moves start, (1 or cases, n, *shape)


@dataclass(frozen=True)
class LinearizedStep:
    """A step with linear bounds of all its nodes: all that a backward pass needs, without heuristics.

    The bound can be replayed from these steps (boxes and planes, in the order of the run). ``shared``
    holds the nodes without a sample axis, including those of the update. The batch is split into
    ``chunks``, so that the tensors of a backward pass stay in the processor's cache.
    """

    step: Step
    state: State
    ranges: Ranges
    shared: SampleChunk
    chunks: tuple[SampleChunk, ...]
    update: UpdateGraph

    @property
    def planes(self) -> Mapping[str, BackwardSlopes]:
        """Planes of the nodes without a sample axis, sums over samples included."""
        return self.shared.planes

    def new(self, name: str) -> str:
        """The node with the new value of a tensor of the state, after projection if that is relaxed."""
        last = self.update.projections.get(name)
        settled = last is not None and last.name in self.planes
        return last.name if last is not None and settled else self.update.outputs[name]


def settle(relaxed: LinearizedStep, state: State, cases: int) -> LinearizedStep:
    """The same step with its projection relaxed on the box of the new state before projection.

    Until then, forms are on the state before the projection.
    """
    planes: dict[str, LinearBounds] = {}
    for name, node in relaxed.update.projections.items():
        relaxed.ranges.boxes[node.inputs[0]] = state[name]
        planes[node.name] = node.op.relax(state[name])
    offsets = {name: Intercepts.of(p, False, cases) for name, p in planes.items()}
    shared = replace(
        relaxed.shared,
        planes={**relaxed.planes, **planes},
        offsets={**relaxed.shared.offsets, **offsets},
    )
    return replace(relaxed, shared=shared)


def linearize_step(
    schedule: NodeOrder,
    state: State,
    step: Step,
    ranges: Ranges,
    adversary: AdversaryModel,
    sample_chunk: int | None = None,
) -> LinearizedStep:
    """Linear bounds of every node of a step with the default slopes, valid on ``ranges``.

    ``sample_chunk`` is the number of samples in a chunk; None for the whole batch.
    """
    size = sample_chunk or step.size
    planes: dict[str, LinearBounds] = {}
    for node in schedule.all:
        if isinstance(node.op, SumSamples):
            planes[node.name] = node.op.planes(ranges.sums[node.name])
        elif node.inputs and not node.batched:
            inputs = [ranges.boxes[i] for i in node.inputs]
            planes[node.name] = node.op.relax(*inputs)
    update = UpdateGraph.of(schedule.gradients, step, schedule.precision)
    planes |= _planes_of_update(update, state, ranges)
    offsets = {name: Intercepts.of(p, False, adversary.cases) for name, p in planes.items()}
    shared = SampleChunk(slice(0, 0), step.poison, planes, offsets, {}, {})
    nominal = adversary.nominal(step)
    chunks = [
        _linearize_chunk(
            schedule,
            step,
            ranges,
            adversary,
            nominal,
            slice(start, min(start + size, step.size)),
        )
        for start in range(0, step.size, size)
    ]
    return LinearizedStep(step, state, ranges, shared, tuple(chunks), update)


def _planes_of_update(update: UpdateGraph, state: State, ranges: Ranges) -> dict[str, LinearBounds]:
    """Planes of the update, and of the projections whose range is already known."""
    boxes = update.boxes(state, ranges.boxes)
    planes = {n.name: n.op.relax(*(boxes[i] for i in n.inputs)) for n in update.nodes}
    for node in update.projections.values():
        if node.inputs[0] in ranges.boxes:
            planes[node.name] = node.op.relax(ranges.boxes[node.inputs[0]])
    return planes


def _linearize_chunk(
    schedule: NodeOrder,
    step: Step,
    ranges: Ranges,
    adversary: AdversaryModel,
    nominal: Mapping[str, Tensor],
    part: slice,
) -> SampleChunk:
    whole = part == slice(0, step.size)

    def box(name: str, batched: bool) -> Interval:
        full = ranges.boxes[name]
        return full if whole or not batched else full.each(lambda end: end[:, part])

    kinds = {node.name: node.batched for node in schedule.before}
    summed = {product.name for product in schedule.summed_products.values()}
    planes: dict[str, BackwardSlopes] = {}
    offsets: dict[str, HasIntercepts] = {}
    for node in schedule.before:
        if node.batched and node.inputs:
            inputs = [box(i, kinds[i]) for i in node.inputs]
            found = node.op.relax(*inputs)
            if node.name in summed and type(found) is BilinearPlanes:
                planes[node.name] = found.without_offsets()
                offsets[node.name] = SummedIntercepts.of(found, adversary.cases)
            else:
                planes[node.name] = found
                offsets[node.name] = Intercepts.of(found, True, adversary.cases)
    index = torch.arange(part.start, part.stop, device=step.samples.device)
    return SampleChunk(
        samples=part,
        poison=step.poison if whole else step.poison.take(index),
        planes=planes,
        offsets=offsets,
        leaves={n: box(n, True).magnitude.amax(0) for n in (FEATURES, LABELS)},
        nominal={n: v if whole else v[:, part] for n, v in nominal.items()},
    )
