"""Bounds through training: linear forms walked backwards through the steps of a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.graph import Node
from milp_agt.core.interval import CLEAN, POISONED, Interval
from milp_agt.core.operation import Relaxed
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.rounding import TINY, gamma
from milp_agt.engines.adversary import Debt, open_debt
from milp_agt.engines.interval import Ranges
from milp_agt.engines.step import Schedule, State, Step, velocity_of
from milp_agt.formulations.linear import LinearPlanes, SumSamples
from milp_agt.poison import Poison
from milp_agt.tracing import FEATURES, LABELS, StepGraph


@dataclass(frozen=True)
class RelaxedStep:
    """A step with linear bounds of all its nodes: all that the walk needs, and no heuristics.

    Whoever keeps these (boxes, planes, in the order of the run) can replay the bound.
    """

    step: Step
    state: State
    ranges: Ranges
    planes: Mapping[str, Relaxed]
    leaves: Mapping[str, Tensor]  # largest magnitudes of features and labels of the batch


def relax_step(
    schedule: Schedule, state: State, step: Step, ranges: Ranges
) -> RelaxedStep:
    """Linear bounds of every node of a step with the default slopes, valid on ``ranges``."""
    planes: dict[str, Relaxed] = {}
    for node in schedule.all:
        if isinstance(node.op, SumSamples):
            planes[node.name] = LinearPlanes(node.op, 1, None, None, ranges.sums[node.name])
        elif node.inputs:
            planes[node.name] = node.op.relax(*(ranges.boxes[i] for i in node.inputs))
    leaves = {name: ranges.boxes[name].magnitude.amax(0) for name in (FEATURES, LABELS)}
    return RelaxedStep(step, state, ranges, planes, leaves)


@dataclass
class Forms:
    """Lower bounds ``coefficients . state + constant - error`` of some quantities, row by row.

    Attributes:
        coefficients: on the tensors of a state, (rows, *shape) each.
        constant: (rows,).
        magnitude: sum of the absolute values of all terms met on the way, (rows,); rounding errors
            are at most ``gamma(operations) * magnitude``.
        operations: bound of the length of any chain of roundings so far.
    """

    coefficients: dict[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    operations: float = 0.0

    @staticmethod
    def start(coefficients: dict[str, Tensor], constant: Tensor | None = None) -> Forms:
        first = next(iter(coefficients.values()))
        zero = first.new_zeros(first.shape[0])
        start = zero if constant is None else constant
        return Forms(coefficients, start, start.abs())

    @property
    def rows(self) -> int:
        return len(self.constant)

    def concretise(self, state: Mapping[str, Interval], debt: Debt) -> Tensor:
        """Lower bounds over a box of states and all admissible poisonings, (rows,).

        Rounding is subtracted; a bound that is no number becomes -inf.
        """
        bound, magnitude, terms = self.constant, self.magnitude, 0
        for name, coefficient in self.coefficients.items():
            box = state[name]
            flat = coefficient.flatten(1)
            positive = flat.clamp(min=0.0)
            low, high = box.lower[CLEAN].flatten(), box.upper[CLEAN].flatten()
            bound = bound + positive @ low + (flat - positive) @ high
            magnitude = magnitude + flat.abs() @ box.magnitude[CLEAN].flatten()
            terms += flat.shape[1]
        owed = debt.worst()
        error = gamma(self.operations + terms + 64) * 4.0 * (magnitude + owed) + TINY
        bound = bound - owed - error
        return torch.where(torch.isnan(bound), -torch.inf, bound)


def walk(step_graph: StepGraph, schedule: Schedule, relaxed: RelaxedStep, forms: Forms, debt: Debt) -> Forms:
    """Carry forms on the state after a step to forms on the state before it.

    Every node is replaced by its lower or upper plane according to the sign of its coefficient; the
    clean offsets go into the constant, the difference to the poisoned offsets is charged to the
    sample (one slope, two offsets).
    """
    step = relaxed.step
    before, pending, magnitude = _through_update(step_graph, relaxed, forms)
    walker = _Walker(relaxed.planes, step.poison, relaxed.leaves, forms.constant, magnitude)
    walker.pending = pending
    for node in reversed(schedule.all):
        walker.replace(node)
    for name in step_graph.parameters:
        own = walker.pending.pop(name, None)
        if own is not None:
            before[name] = before[name] + own
    if not step.poison.is_clean:
        debt.add(step, walker.on_features, walker.on_labels, walker.charges)
    return Forms(
        before,
        walker.constant,
        walker.magnitude,
        forms.operations + _operations(schedule, step.size),
    )


def _operations(schedule: Schedule, samples: int) -> float:
    """Bound of the chain of roundings that one step adds to any number of the walk.

    The longest sum is over all elements of one node, and every exchange adds a few operations.
    """
    largest = max(n.signature.size * (samples if n.batched else 1) for n in schedule.all)
    return 2.0 * largest + 16.0 * len(schedule.all) + 64.0


def _through_update(
    step_graph: StepGraph, relaxed: RelaxedStep, forms: Forms
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Coefficients on the old state and on the summed gradients, from those on the new state."""
    step, state = relaxed.step, relaxed.state
    before: dict[str, Tensor] = {}
    pending: dict[str, Tensor] = {}
    magnitude = forms.magnitude
    for name in step_graph.parameters:
        gradient = step_graph.gradients[name]
        operands = [name, velocity_of(name), gradient] if step.has_velocity else [name, gradient]
        parts: list[Tensor] = []
        for scalar_index in range(len(operands)):
            part = step.theta_scalars[scalar_index] * forms.coefficients[name]
            if step.has_velocity:
                on_velocity = forms.coefficients[velocity_of(name)]
                part = part + step.velocity_scalars[scalar_index] * on_velocity
            parts.append(part)
        sizes = [state[operand].magnitude[CLEAN] for operand in operands[:-1]]
        sizes.append(relaxed.planes[gradient].magnitude)
        for part, size in zip(parts, sizes, strict=True):
            magnitude = magnitude + part.abs().flatten(1) @ size.flatten()
        # The new state is rounded once more in the run.
        for own, scalars in ((name, step.theta_sizes), (velocity_of(name), step.velocity_scalars)):
            if own in forms.coefficients:
                total = sum(abs(c) * s for c, s in zip(scalars, sizes, strict=True))
                assert isinstance(total, Tensor)
                magnitude = magnitude + forms.coefficients[own].abs().flatten(1) @ total.flatten()
        for operand, part in zip(operands[:-1], parts[:-1], strict=True):
            before[operand] = part
        known = pending.get(gradient)
        pending[gradient] = parts[-1] if known is None else known + parts[-1]
    return before, pending, magnitude


class _Walker:
    """The state of one walk through one graph."""

    def __init__(
        self,
        planes: Mapping[str, Relaxed],
        poison: Poison,
        leaves: Mapping[str, Tensor],
        constant: Tensor,
        magnitude: Tensor,
    ) -> None:
        self.planes, self.poison, self.leaves = planes, poison, leaves
        self.constant, self.magnitude = constant, magnitude
        self.pending: dict[str, Tensor] = {}
        self.charges: Tensor | None = None
        self.on_features: Tensor | None = None
        self.on_labels: Tensor | None = None

    def replace(self, node: Node) -> None:
        """Exchange a node for its inputs."""
        if node.name not in self.pending or (not node.inputs and node.op.key == "parameter"):
            return
        coefficient = self.pending.pop(node.name)
        if not node.inputs:
            self._leaf(node, coefficient)
            return
        planes = self.planes[node.name]
        self._charge_rounding(coefficient, planes.magnitude, node.batched)
        if planes.lower is not None and planes.upper is not None:
            self._offsets(coefficient, planes.lower, planes.upper, node.batched)
        for name, pulled in zip(node.inputs, planes.pull(coefficient), strict=True):
            known = self.pending.get(name)
            self.pending[name] = pulled if known is None else known + pulled

    def _leaf(self, node: Node, coefficient: Tensor) -> None:
        poison = self.poison
        if node.name == FEATURES:
            self._nominal(coefficient, poison.features, FEATURES)
            self.on_features = coefficient.expand(-1, len(poison.features), *poison.features.shape[1:])
        elif node.name == LABELS:
            self._nominal(coefficient, poison.labels, LABELS)
            self.on_labels = coefficient.expand(-1, len(poison.labels), *poison.labels.shape[1:])
        else:
            value = node.op.value()
            self.constant = self.constant + coefficient.flatten(1) @ value.flatten()
            self._charge_rounding(coefficient, value.abs(), False)

    def _nominal(self, coefficient: Tensor, nominal: Tensor, leaf: str) -> None:
        self.constant = self.constant + _contract(coefficient, nominal)
        self._charge_rounding(coefficient, self.leaves[leaf], True)

    def _charge_rounding(self, coefficient: Tensor, size: Tensor, batched: bool) -> None:
        magnitude = coefficient.abs()
        if batched:
            self.magnitude = self.magnitude + _contract(magnitude, size)
        else:
            self.magnitude = self.magnitude + magnitude.flatten(1) @ size.flatten()

    def _offsets(self, coefficient: Tensor, lower: Tensor, upper: Tensor, batched: bool) -> None:
        positive = coefficient.clamp(min=0.0)
        negative = coefficient - positive
        if not batched:
            self.constant = (
                self.constant
                + positive.flatten(1) @ lower[CLEAN].flatten()
                + negative.flatten(1) @ upper[CLEAN].flatten()
            )
            return
        self.constant = (
            self.constant + _contract(positive, lower[CLEAN]) + _contract(negative, upper[CLEAN])
        )
        if lower.shape[0] > 1:
            charge = _per_sample(positive, lower[CLEAN] - lower[POISONED]) + _per_sample(
                negative, upper[CLEAN] - upper[POISONED]
            )
            self.charges = charge if self.charges is None else self.charges + charge


def _contract(coefficient: Tensor, values: Tensor) -> Tensor:
    """``sum over samples and axes`` of coefficient (rows, n or 1, ...) times values (n, ...): (rows,)."""
    if coefficient.shape[1] == 1:
        return coefficient.flatten(1) @ values.sum(0).flatten()
    return coefficient.flatten(1) @ values.flatten()


def _per_sample(coefficient: Tensor, values: Tensor) -> Tensor:
    """The same sum for each sample: (rows, n)."""
    flat, each = coefficient.flatten(2), values.flatten(1)
    if coefficient.shape[1] == 1:
        return flat[:, 0] @ each.T
    return torch.einsum("rnf,nf->rn", flat, each)


def forms_of_outputs(
    step_graph: StepGraph,
    nodes: Sequence[Node],
    state: State,
    features: Tensor,
    coefficients: Tensor,
    constant: Tensor,
) -> Forms:
    """Forms on the parameters that bound ``coefficients . outputs + constant`` from below.

    Args:
        nodes: the forward pass, in topological order.
        state: box of the parameters on which the linear bounds must hold.
        features: inputs, (n, *shape), not poisoned.
        coefficients: on the model's outputs, (rows, n, outputs).
        constant: (rows,).
    """
    boxes = dict(state) | {FEATURES: Interval.point(features.unsqueeze(0))}
    planes: dict[str, Relaxed] = {}
    for node in nodes:
        if node.name in boxes:
            continue
        inputs = tuple(boxes[i] for i in node.inputs)
        boxes[node.name] = node.op.interval(*inputs)
        if node.inputs:
            planes[node.name] = node.op.relax(*inputs)
    clean = Poison.none(features, features.new_zeros(len(features), step_graph.outputs))
    walker = _Walker(planes, clean, {FEATURES: features.abs()}, constant, constant.abs())
    walker.pending = {step_graph.output: coefficients}
    for node in reversed(nodes):
        walker.replace(node)
    on_state = {
        name: walker.pending.get(name, box.lower.new_zeros(len(constant), *box.lower.shape[1:]))
        for name, box in state.items()
    }
    largest = max(n.signature.size * (len(features) if n.batched else 1) for n in nodes)
    operations = 2.0 * largest + 16.0 * len(nodes) + 64.0
    return Forms(on_state, walker.constant, walker.magnitude, operations)


def bound_forms(
    step_graph: StepGraph,
    schedule: Schedule,
    window: Sequence[RelaxedStep],
    forms: Forms,
    poison: Poison,
    restriction: Restriction = UNRESTRICTED,
) -> Tensor:
    """Lower bounds of forms on the state after the window, (rows,).

    The forms are walked back step by step; at every stop they are concretised on the box of that
    step, and the best bound counts.
    """
    debt = open_debt(poison, forms.rows, restriction)
    best: Tensor | None = None
    for relaxed in reversed(window):
        forms = walk(step_graph, schedule, relaxed, forms, debt)
        bound = forms.concretise(relaxed.state, debt)
        best = bound if best is None else torch.maximum(best, bound)
    assert best is not None
    return best


def bound_state(
    step_graph: StepGraph,
    schedule: Schedule,
    window: Sequence[RelaxedStep],
    poison: Poison,
    chunk: int,
    restriction: Restriction = UNRESTRICTED,
) -> State:
    """Box of the state after the window: every entry bounded from both sides, ``chunk`` rows at once."""
    state = window[-1].state
    names = list(state)
    shapes = [state[name].lower.shape[1:] for name in names]
    sizes = [shape.numel() for shape in shapes]
    total = sum(sizes)
    device = poison.features.device
    bounds = torch.empty(2 * total, dtype=torch.float64, device=device)
    for start in range(0, 2 * total, chunk):
        rows = torch.arange(start, min(start + chunk, 2 * total), device=device)
        one_hot = torch.zeros(len(rows), total, dtype=torch.float64, device=device)
        one_hot[torch.arange(len(rows)), rows % total] = torch.where(rows < total, 1.0, -1.0).to(
            torch.float64
        )
        parts = one_hot.split(sizes, dim=1)
        coefficients = {
            name: part.reshape(len(rows), *shape)
            for name, part, shape in zip(names, parts, shapes, strict=True)
        }
        forms = Forms.start(coefficients)
        bounds[rows] = bound_forms(step_graph, schedule, window, forms, poison, restriction)
    lower, upper = bounds[:total].split(sizes), (-bounds[total:]).split(sizes)
    return {
        name: Interval(low.reshape(1, *shape), high.reshape(1, *shape))
        for name, low, high, shape in zip(names, lower, upper, shapes, strict=True)
    }
