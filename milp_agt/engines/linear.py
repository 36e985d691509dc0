"""Bounds through training: linear forms walked backwards through the steps of a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.graph import Node
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.operation import Relaxed
from milp_agt.core.rounding import TINY, gamma
from milp_agt.engines.exposure import Debt, Exposure
from milp_agt.engines.relaxed import Fragment, Offsets, RelaxedStep, per_sample
from milp_agt.engines.step import Schedule, State
from milp_agt.poison import Poison
from milp_agt.tracing import FEATURES, LABELS, StepGraph


@dataclass
class Forms:
    """Lower bounds ``coefficients . state + constant - error`` of some quantities, row by row.

    Attributes:
        coefficients: on the tensors of a state, (rows, *shape) each.
        constant: for each case, (rows, cases or 1).
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
        return Forms(coefficients, start.unsqueeze(1), start.abs())

    @property
    def rows(self) -> int:
        return len(self.constant)

    def concretise(self, state: Mapping[str, Interval], owed: Tensor) -> Tensor:
        """Lower bounds over the boxes of a state, less what is owed, (rows, cases or states).

        ``owed`` is (rows, cases), or (rows, states) where the one case is seen by a single sample.
        Rounding is subtracted; a bound that is no number becomes -inf.
        """
        bound, magnitude, terms = self.constant, self.magnitude, 0
        for name, coefficient in self.coefficients.items():
            box = state[name]
            flat = coefficient.flatten(1)
            positive = flat.clamp(min=0.0)
            low, high = box.lower.flatten(1), box.upper.flatten(1)
            bound = bound + positive @ low.T + (flat - positive) @ high.T
            magnitude = magnitude + flat.abs() @ box.magnitude.amax(0).flatten()
            terms += flat.shape[1]
        size = magnitude.unsqueeze(1) + owed
        error = gamma(self.operations + terms + 64) * 4.0 * size + TINY
        bound = bound - owed - error
        return torch.where(torch.isnan(bound), -torch.inf, bound)


def walk(
    step_graph: StepGraph, schedule: Schedule, relaxed: RelaxedStep, forms: Forms, debt: Debt
) -> Forms:
    """Carry forms on the state after a step to forms on the state before it.

    Every node is replaced by its lower or upper plane according to the sign of its coefficient; the
    clean offsets go into the constant, the difference to the poisoned offsets is charged to the
    sample (one slope, two offsets).
    """
    step = relaxed.step
    shared = _through_update(relaxed, forms)
    before = {name: shared.pending.pop(name) for name in relaxed.state}
    for node in reversed((*schedule.sums, *schedule.after)):
        shared.replace(node)
    constant, magnitude = shared.constant, shared.magnitude
    on_terms = shared.pending
    pieces = []
    for fragment in relaxed.fragments:
        walker = _Walker(fragment, constant, magnitude, dict(on_terms))
        for node in reversed(schedule.before):
            if node.batched:
                walker.replace(node)
        constant, magnitude = walker.constant, walker.magnitude
        for name, total in walker.pending.items():
            before[name] = before[name] + total if name in before else total
        pieces.append(walker)
    rest = _Walker(relaxed.shared, constant, magnitude, before)
    for node in reversed(schedule.before):
        if not node.batched and node.name not in relaxed.state:
            rest.replace(node)
    if not step.poison.is_clean:
        debt.add(
            step,
            _joined([w.on_features for w in pieces]),
            _joined([w.on_labels for w in pieces]),
            _joined([w.charges for w in pieces]),
        )
    return Forms(
        {name: rest.pending[name] for name in relaxed.state},
        rest.constant,
        rest.magnitude,
        forms.operations + _operations(schedule, relaxed),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Fragments one after the other along the sample axis."""
    present = [p for p in parts if p is not None]
    if not present:
        return None
    return present[0] if len(present) == 1 else torch.cat(present, 1)


def _operations(schedule: Schedule, relaxed: RelaxedStep) -> float:
    """Bound of the chain of roundings that one step adds to any number of the walk.

    The longest sum is over all elements of one node, and every exchange adds a few operations.
    """
    samples, update = relaxed.step.size, relaxed.update
    largest = max(n.signature.size * (samples if n.batched else 1) for n in schedule.all)
    nodes = len(schedule.all) + len(update.nodes) + len(update.projections)
    return 2.0 * largest + 16.0 * nodes + 64.0


def _through_update(relaxed: RelaxedStep, forms: Forms) -> _Walker:
    """Forms on the new state as forms on the old one and on the summed gradients."""
    on_new = {relaxed.new(name): c for name, c in forms.coefficients.items()}
    walker = _Walker(relaxed.shared, forms.constant, forms.magnitude, on_new)
    for node in (*relaxed.update.projections.values(), *reversed(relaxed.update.nodes)):
        walker.replace(node)
    return walker


class _Walker:
    """The state of one walk through the nodes of one fragment."""

    def __init__(
        self,
        fragment: Fragment,
        constant: Tensor,
        magnitude: Tensor,
        pending: dict[str, Tensor],
        diagonal: bool = False,
    ) -> None:
        self.fragment, self.diagonal = fragment, diagonal
        self.constant, self.magnitude, self.pending = constant, magnitude, pending
        self.charges: Tensor | None = None
        self.on_features: Tensor | None = None
        self.on_labels: Tensor | None = None

    def replace(self, node: Node) -> None:
        """Exchange a node for its inputs."""
        if node.name not in self.pending:
            return
        coefficient = self.pending.pop(node.name)
        if not node.inputs:
            self._leaf(node, coefficient)
            return
        offsets = self.fragment.offsets[node.name]
        spend = offsets.spend_diagonal if self.diagonal else offsets.spend
        constant, magnitude, charges = spend(coefficient)
        self.magnitude = self.magnitude + magnitude
        if constant is not None:
            self.constant = self.constant + constant
        if charges is not None:
            self.charges = charges if self.charges is None else self.charges + charges
        pulled = self.fragment.planes[node.name].pull(coefficient, self.diagonal)
        for name, own in zip(node.inputs, pulled, strict=True):
            known = self.pending.get(name)
            self.pending[name] = own if known is None else known + own

    def _leaf(self, node: Node, coefficient: Tensor) -> None:
        if node.name == FEATURES:
            self.on_features = self._from_nominal(coefficient, FEATURES)
        elif node.name == LABELS:
            self.on_labels = self._from_nominal(coefficient, LABELS)
        else:
            value = node.op.value()
            axes = coefficient.dim() - value.dim()
            self._spend((coefficient * value).flatten(axes))

    def _spend(self, terms: Tensor) -> None:
        """Add terms, (rows, ..., elements), to the constant of every case."""
        self.constant = self.constant + terms.sum(-1, keepdim=True)
        self.magnitude = self.magnitude + terms.abs().sum(-1)

    def _from_nominal(self, coefficient: Tensor, leaf: str) -> Tensor:
        """Put the nominal value into the constant; returns the coefficients on the moves."""
        nominal, size = self.fragment.nominal[leaf], self.fragment.leaves[leaf]
        full = coefficient.expand(-1, *nominal.shape[1:])
        if self.diagonal:
            self.constant = self.constant + per_sample(full, nominal)
            self.magnitude = self.magnitude + (full.abs() * size).flatten(2).sum(-1)
        else:
            flat = full.flatten(1)
            self.constant = self.constant + flat @ nominal.flatten(1).T
            self.magnitude = self.magnitude + flat.abs() @ size.flatten()
        return full


@dataclass
class SampleForms:
    """Lower bounds of quantities of single samples, one row for each pair (form, sample).

    ``(form, i)`` is bounded by ``coefficients . state + constant + moves of sample i - charge`` where
    moves and charge count only if sample i is poisoned.

    Attributes:
        coefficients: on the parameters, (forms, n, *shape).
        constant: for each case, (forms, n, cases or 1).
        magnitude: (forms, n).
        features, labels: on the moves of the sample itself, (forms, n, ...); None where there are none.
        charges: (forms, n), or None.
        operations: as in :class:`Forms`.
    """

    coefficients: dict[str, Tensor]
    constant: Tensor
    magnitude: Tensor
    features: Tensor | None
    labels: Tensor | None
    charges: Tensor | None
    operations: float

    def rows(self, part: Tensor, state: Mapping[str, Interval]) -> Forms:
        """The rows with flat indices ``part`` over (forms, n), as forms on a state."""

        def on(name: str, box: Interval) -> Tensor:
            own = self.coefficients.get(name)
            if own is None:
                return box.lower.new_zeros(len(part), *box.lower.shape[1:])
            return own.flatten(0, 1)[part]

        return Forms(
            {name: on(name, box) for name, box in state.items()},
            self.constant.flatten(0, 1)[part],
            self.magnitude.flatten()[part],
            self.operations,
        )

    def moves(
        self, part: Tensor, samples: int
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Features, labels and charges of rows ``part``, spread over the batch: (rows, n, ...)."""
        own = part % samples

        def spread(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            picked = tensor.flatten(0, 1)[part]
            full = picked.new_zeros(len(part), samples, *picked.shape[1:])
            full[torch.arange(len(part)), own] = picked
            return full

        return spread(self.features), spread(self.labels), spread(self.charges)


def sample_forms(
    nodes: Sequence[Node], fragment: Fragment, target: str, coefficients: Tensor
) -> SampleForms:
    """Walk forms of one node back to the parameters, every sample by itself.

    Args:
        nodes: nodes with a sample axis up to the target, in topological order, with their planes in
            ``fragment``, which holds the whole batch.
        target: the node that the forms are about.
        coefficients: on the target, (forms, n, *shape).
    """
    zero = coefficients.new_zeros(coefficients.shape[:2])
    walker = _Walker(fragment, zero.unsqueeze(-1), zero, {target: coefficients}, diagonal=True)
    for node in reversed(nodes):
        walker.replace(node)
    largest = max(node.signature.size for node in nodes)
    return SampleForms(
        walker.pending,
        walker.constant,
        walker.magnitude,
        walker.on_features,
        walker.on_labels,
        walker.charges,
        2.0 * largest + 16.0 * len(nodes) + 64.0,
    )


def forms_of_outputs(
    step_graph: StepGraph,
    nodes: Sequence[Node],
    state: State,
    features: Interval,
    coefficients: Tensor,
) -> SampleForms:
    """Forms on the parameters that bound forms of the outputs of test points from below.

    Over a box of inputs with centre x and radius r, ``c . x'`` is at least ``c . x - |c| . r``: the
    support of the box is paid here, point by point, because no training step shares these inputs.

    Args:
        nodes: the forward pass, in topological order.
        state: box of the parameters on which the linear bounds must hold.
        features: boxes of the inputs, (1, n, *shape); points where nobody touches them.
        coefficients: on the model's outputs, (forms, n, outputs).
    """
    boxes = dict(state) | {FEATURES: features}
    planes: dict[str, Relaxed] = {}
    for node in nodes:
        if node.name in boxes:
            continue
        inputs = tuple(boxes[i] for i in node.inputs)
        boxes[node.name] = node.op.interval(*inputs)
        planes[node.name] = node.op.relax(*inputs)
    centre = features.centre[CLEAN]
    radius = torch.maximum(features.upper[CLEAN] - centre, centre - features.lower[CLEAN])
    radius = torch.where(radius > 0, torch.nextafter(radius, radius + torch.inf), radius)
    clean = Poison.none(centre, centre.new_zeros(len(centre), step_graph.outputs))
    cases = len(next(iter(state.values())).lower)
    fragment = Fragment(
        slice(0, len(centre)),
        clean,
        planes,
        {name: Offsets(p, True, cases) for name, p in planes.items()},
        {FEATURES: centre.abs() + radius},
        {FEATURES: centre.unsqueeze(0)},
    )
    forward = [n for n in nodes if n.batched]
    forms = sample_forms(forward, fragment, step_graph.output, coefficients)
    if forms.features is not None:
        forms.constant = forms.constant - per_sample(forms.features.abs(), radius.unsqueeze(0))
    return forms


def bound_forms(
    step_graph: StepGraph,
    schedule: Schedule,
    window: Sequence[RelaxedStep],
    forms: Forms,
    exposure: Exposure,
) -> Tensor:
    """Lower bounds of forms on the state after the window, (rows, cases).

    The forms are walked back step by step; at every stop they are concretised on the box of that
    step, and the best bound counts.
    """
    debt = exposure.open_debt(forms.rows)
    best: Tensor | None = None
    for relaxed in reversed(window):
        forms = walk(step_graph, schedule, relaxed, forms, debt)
        bound = forms.concretise(relaxed.state, debt.owed())
        best = bound if best is None else torch.maximum(best, bound)
    assert best is not None
    return best


def bound_state(
    step_graph: StepGraph,
    schedule: Schedule,
    window: Sequence[RelaxedStep],
    exposure: Exposure,
    chunk: int,
) -> State:
    """Boxes of the state after the window: every entry bounded from both sides, ``chunk`` rows at once."""
    state = window[-1].state
    names = list(state)
    shapes = [state[name].lower.shape[1:] for name in names]
    sizes = [shape.numel() for shape in shapes]
    total = sum(sizes)
    device = exposure.poison.features.device
    bounds = torch.empty(exposure.cases, 2 * total, dtype=torch.float64, device=device)
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
        bounds[:, rows] = bound_forms(step_graph, schedule, window, forms, exposure).T
    lower, upper = bounds[:, :total].split(sizes, 1), (-bounds[:, total:]).split(sizes, 1)
    return {
        name: Interval(low.reshape(-1, *shape), high.reshape(-1, *shape))
        for name, low, high, shape in zip(names, lower, upper, shapes, strict=True)
    }
