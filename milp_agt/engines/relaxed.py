"""A training step with linear bounds of all its nodes: what walks and programs stand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.core.operation import Relaxed
from milp_agt.engines.arithmetic import Arithmetic
from milp_agt.engines.exposure import Exposure
from milp_agt.engines.interval import Ranges
from milp_agt.engines.step import Schedule, State, Step
from milp_agt.engines.update import UpdateGraph
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.poison import Poison
from milp_agt.tracing import FEATURES, LABELS


class Spendable(Protocol):
    """Offsets of one node's planes, as a walk spends them on rows of coefficients."""

    def narrow(self, axis: int, index: Tensor) -> Spendable:
        """The offsets of some indices of one axis, counted from the right."""
        ...

    def spend(self, coefficients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Constant (rows, cases), magnitude (rows,) and charges (rows, n, states - 1) of rows."""
        ...

    def spend_diagonal(self, coefficients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The same for one row per pair (form, sample): (forms, n, cases), (forms, n), (forms, n, ...)."""
        ...


@dataclass(frozen=True)
class Offsets:
    """The offsets of one node's planes, arranged for rows of coefficients ``c``.

    With ``p = max(c, 0)`` the constant of a row is ``p . lower + (c - p) . upper``, once for each case;
    the magnitude is ``|c| . size``. With one case, the difference between the state CLEAN and each
    state in which sample i is poisoned is charged to it: ``p . charge_positive_i + c . charge_all_i``.

    Attributes:
        size: ([n], *shape).
        batched: whether the node has a sample axis.
        lower, upper: (cases, [n], *shape); None where the planes are linear without a constant.
        charge_positive, charge_all: (states - 1, n, *shape), or None where no state is charged.
    """

    size: Tensor
    batched: bool
    lower: Tensor | None = None
    upper: Tensor | None = None
    charge_positive: Tensor | None = None
    charge_all: Tensor | None = None

    @staticmethod
    def of(planes: Relaxed, batched: bool, cases: int) -> Offsets:
        size, lower, upper = planes.magnitude, planes.lower, planes.upper
        if lower is None or upper is None:
            return Offsets(size, batched)
        if not (cases == 1 and batched and max(len(lower), len(upper)) > 1):
            full = (-1, *size.shape)
            return Offsets(size, batched, lower.expand(full), upper.expand(full))
        full = (max(len(lower), len(upper)), *size.shape)
        lower, upper = lower.expand(full), upper.expand(full)
        up = upper[:1] - upper[1:]
        return Offsets(size, batched, lower[:1], upper[:1], lower[:1] - lower[1:] - up, up)

    def narrow(self, axis: int, index: Tensor) -> Offsets:
        """The offsets of some indices of one axis, counted from the right."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(axis, index)

        return Offsets(
            self.size.index_select(axis, index),
            self.batched,
            of(self.lower),
            of(self.upper),
            of(self.charge_positive),
            of(self.charge_all),
        )

    @cached_property
    def uniform(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the samples, for coefficients that are the same for every sample."""
        if self.lower is None or self.upper is None:
            return self.size.sum(0), self.size, self.size
        return self.size.sum(0), self.lower.sum(1), self.upper.sum(1)

    def spend(self, coefficients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Constant (rows, cases), magnitude (rows,) and charges (rows, n, states - 1) of rows."""
        one = self.batched and coefficients.shape[1] == 1 and self.size.shape[0] != 1
        flat = coefficients.flatten(1)
        size = self.uniform[0] if one else self.size
        magnitude = flat.abs() @ size.flatten()
        if self.lower is None or self.upper is None:
            return None, magnitude, None
        positive = coefficients.clamp(min=0.0)
        lower, upper = self.uniform[1:] if one else (self.lower, self.upper)
        above = positive.flatten(1)
        constant = above @ lower.flatten(1).T + (flat - above) @ upper.flatten(1).T
        if self.charge_positive is None or self.charge_all is None:
            return constant, magnitude, None
        return constant, magnitude, self._charges(coefficients, positive, one)

    def spend_diagonal(self, coefficients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The same for one row per pair (form, sample): (forms, n, cases), (forms, n), (forms, n, ...)."""
        magnitude = (coefficients.abs() * self.size).flatten(2).sum(-1)
        if self.lower is None or self.upper is None:
            return None, magnitude, None
        positive = coefficients.clamp(min=0.0)
        constant = per_sample(positive, self.lower) + per_sample(
            coefficients - positive, self.upper
        )
        if self.charge_positive is None:
            return constant, magnitude, None
        return constant, magnitude, self._charges(coefficients, positive, False)

    def _charges(self, coefficients: Tensor, positive: Tensor, one: bool) -> Tensor:
        assert self.charge_positive is not None
        assert self.charge_all is not None
        charges = []
        for above, everywhere in zip(self.charge_positive, self.charge_all, strict=True):
            if one:
                on_above = positive.flatten(1) @ above.flatten(1).T
                charges.append(on_above + coefficients.flatten(1) @ everywhere.flatten(1).T)
            else:
                terms = (positive * above).addcmul_(coefficients, everywhere)
                charges.append(terms.flatten(2).sum(-1))
        return torch.stack(charges, -1)


def per_sample(coefficients: Tensor, values: Tensor) -> Tensor:
    """Products sample by sample: (forms, n, *shape) with (cases, n, *shape) -> (forms, n, cases)."""
    if len(values) == 1:
        return (coefficients * values[0]).flatten(2).sum(-1, keepdim=True)
    return torch.einsum("fnu,cnu->fnc", coefficients.flatten(2), values.flatten(2))


@dataclass(frozen=True)
class Fragment:
    """Some samples of a batch with the linear bounds of all nodes that have a sample axis."""

    samples: slice
    poison: Poison
    planes: Mapping[str, Relaxed]
    offsets: Mapping[str, Spendable]
    leaves: Mapping[str, Tensor]  # largest magnitudes of features and labels
    nominal: Mapping[str, Tensor]  # points that moves are counted from, (1 or cases, n, *shape)


@dataclass(frozen=True)
class Cut:
    """Forms on the parameters that bound one node, sample by sample, for all walks through a step.

    Where a batch is large, the part of a walk before a narrow node (the outputs, say) is the same for
    every row up to a factor for each sample: it is walked once for every element and sign, and each
    row takes a matrix product with the result.

    Attributes:
        node: name of the node v with k elements.
        coefficients: on the parameters, (2 k n, *shape): of lower bounds of v, then of -v.
        constant: for each case, (2 k n, cases or 1).
        magnitude: (2 k n,).
        features, charges: on the moves of the samples, (2 k, n, *shape), and (2 k, n, states - 1); or None.
        operations: roundings in a row.
    """

    node: str
    coefficients: Mapping[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    features: Tensor | None
    charges: Tensor | None
    operations: float


@dataclass(frozen=True)
class RelaxedStep:
    """A step with linear bounds of all its nodes: all that the walk needs, and no heuristics.

    Whoever keeps these (boxes, planes, in the order of the run) can replay the bound. ``shared``
    holds the nodes without a sample axis, those of the update included; the batch is cut into
    fragments, so that the tensors of a walk stay in the processor's cache. ``cuts`` holds one for each
    fragment, or nothing.
    """

    step: Step
    state: State
    ranges: Ranges
    shared: Fragment
    fragments: tuple[Fragment, ...]
    update: UpdateGraph
    cuts: tuple[Cut, ...] = ()

    @property
    def planes(self) -> Mapping[str, Relaxed]:
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
    planes = {
        node.name: exposure.arithmetic.relax(
            node, [box(i, kinds[i]) for i in node.inputs], step.samples[part]
        )
        for node in schedule.before
        if node.batched and node.inputs
    }
    index = torch.arange(part.start, part.stop, device=step.samples.device)
    return Fragment(
        samples=part,
        poison=step.poison if whole else step.poison.take(index),
        planes=planes,
        offsets={name: Offsets.of(p, True, exposure.cases) for name, p in planes.items()},
        leaves={n: box(n, True).magnitude.amax(0) for n in (FEATURES, LABELS)},
        nominal={n: v if whole else v[:, part] for n, v in nominal.items()},
    )
