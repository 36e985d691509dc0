"""A training step with linear bounds of all its nodes, as backward passes and programs use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.interval.bound_propagation import Ranges
from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.step import NodeOrder, State, Step
from milp_agt.core.graph import BackwardSlopes, LinearBounds
from milp_agt.core.interval import Interval
from milp_agt.formulations.einsum import BilinearPlanes, EndPlanes
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, LABELS

Applied = tuple[Tensor | None, Tensor, Tensor | None]


@dataclass(frozen=True)
class Intercepts:
    """The intercepts of one node's planes, arranged for rows of coefficients ``c``.

    With ``p = max(c, 0)`` the constant of a row is ``p . lower + (c - p) . upper``, once for each case;
    the magnitude is ``|c| . size``. With one case, the difference between the state CLEAN and each
    state in which sample i is poisoned is charged to sample i.

    Attributes:
        size: ([n], *shape).
        batched: whether the node has a sample axis.
        lower, upper: (cases or states, [n], *shape); None if the planes have no intercepts.
        charged: whether the leading axis of ``lower`` and ``upper`` holds the states of a sample.
        charges: of sums over samples, see :meth:`over_samples`: the two terms of the charges of single
            samples, (states - 1, n, *shape).
    """

    size: Tensor
    batched: bool
    lower: Tensor | None = None
    upper: Tensor | None = None
    charged: bool = False
    charges: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(planes: LinearBounds, batched: bool, cases: int) -> Intercepts:
        size, lower, upper = planes.magnitude, planes.lower, planes.upper
        if lower is None or upper is None:
            return Intercepts(size, batched)
        charged = cases == 1 and batched and max(len(lower), len(upper)) > 1
        full = (max(len(lower), len(upper)) if charged else -1, *size.shape)
        return Intercepts(size, batched, lower.expand(full), upper.expand(full), charged)

    def over_samples(self) -> Intercepts:
        """Those of products of single samples that only a sum over the samples reads.

        Each sample would have as many as there are parameters. All share one coefficient, so only the sums
        over the samples are kept, and the terms of the charges of single samples.
        """
        size, lower, upper = self.uniform
        return Intercepts(size, False, lower, upper, self.charged, self._charged())

    def narrow(self, axis: int, index: Tensor) -> Intercepts:
        """The intercepts of some indices of one axis, counted from the right."""

        def some(part: Tensor) -> Tensor:
            return part.index_select(axis, index)

        lower, upper = (None if end is None else some(end) for end in (self.lower, self.upper))
        charges = None if self.charges is None else (some(self.charges[0]), some(self.charges[1]))
        return replace(self, size=some(self.size), lower=lower, upper=upper, charges=charges)

    @cached_property
    def uniform(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Sums over the samples, for coefficients that are equal for all samples."""
        ends = self._ends
        if ends is None:
            return self.size.sum(0), None, None
        return self.size.sum(0), ends[0].sum(1), ends[1].sum(1)

    @property
    def _ends(self) -> tuple[Tensor, Tensor] | None:
        """The intercepts that go into the constants of the cases."""
        if self.lower is None or self.upper is None:
            return None
        return (self.lower[:1], self.upper[:1]) if self.charged else (self.lower, self.upper)

    def _charged(self) -> tuple[Tensor, Tensor] | None:
        """The charge to a sample per positive coefficient, and per coefficient of any sign, by state."""
        if self.charges is not None or not self.charged:
            return self.charges
        assert self.lower is not None
        assert self.upper is not None
        everywhere = self.upper[:1] - self.upper[1:]
        return self.lower[:1] - self.lower[1:] - everywhere, everywhere

    def apply(self, coefficients: Tensor) -> Applied:
        """Constant (rows, cases), magnitude (rows,) and charges (rows, n, states - 1) of rows."""
        one = self.batched and coefficients.shape[1] == 1 and self.size.shape[0] != 1
        ends = self._ends
        size, *ends_of_one = self.uniform if one else (self.size, None, None)
        flat = coefficients.flatten(1)
        magnitude = flat.abs() @ size.flatten()
        if ends is None:
            return None, magnitude, None
        lower, upper = ends_of_one if one else ends
        assert lower is not None
        assert upper is not None
        positive = coefficients.clamp(min=0.0)
        above = positive.flatten(1)
        constant = above @ lower.flatten(1).T + (flat - above) @ upper.flatten(1).T
        if not self.charged:
            return constant, magnitude, None
        alike = one or self.charges is not None
        return constant, magnitude, self._charges(coefficients, positive, alike)

    def apply_diagonal(self, coefficients: Tensor) -> Applied:
        """The same for one row per pair (form, sample): (forms, n, cases), (forms, n), (forms, n, ...)."""
        magnitude, ends = (coefficients.abs() * self.size).flatten(2).sum(-1), self._ends
        if ends is None:
            return None, magnitude, None
        positive = coefficients.clamp(min=0.0)
        constant = per_sample(positive, ends[0]) + per_sample(coefficients - positive, ends[1])
        if not self.charged:
            return constant, magnitude, None
        return constant, magnitude, self._charges(coefficients, positive, False)

    def _charges(self, coefficients: Tensor, positive: Tensor, alike: bool) -> Tensor:
        """``p . above + c . everywhere`` for each state in which a sample is poisoned; ``alike``: all samples
        share one coefficient."""
        known, charges = self._charged(), []
        assert known is not None
        for above, everywhere in zip(*known, strict=True):
            if alike:
                on_above = positive.flatten(1) @ above.flatten(1).T
                charges.append(on_above + coefficients.flatten(1) @ everywhere.flatten(1).T)
            else:
                terms = (positive * above).addcmul_(coefficients, everywhere)
                charges.append(terms.flatten(2).sum(-1))
        return torch.stack(charges, -1)


HasIntercepts = Intercepts | EndPlanes


def per_sample(coefficients: Tensor, values: Tensor) -> Tensor:
    """Products sample by sample: (forms, n, *shape) with (cases, n, *shape) -> (forms, n, cases)."""
    if len(values) == 1:
        return (coefficients * values[0]).flatten(2).sum(-1, keepdim=True)
    return torch.einsum("fnu,cnu->fnc", coefficients.flatten(2), values.flatten(2))


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
                offsets[node.name] = Intercepts.of(found, True, adversary.cases).over_samples()
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
