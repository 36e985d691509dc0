"""Intermediate bounds: ranges of nodes by backward passes through the window, for their relaxations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.interval.bound_propagation import Ranges
from milp_agt.bounds.linear.backward import SampleForms, sample_forms
from milp_agt.bounds.linear.linearized_step import Intercepts, LinearizedStep, SampleChunk
from milp_agt.bounds.linear.window_bounds import propagate_backward
from milp_agt.bounds.passes import Passes
from milp_agt.bounds.step import NodeOrder, State, Step
from milp_agt.core.graph import LinearBounds, Node
from milp_agt.core.interval import Interval
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.univariate import Univariate
from milp_agt.threats.poison import Whole
from milp_agt.training.tracing import FEATURES, LABELS


def targets(schedule: NodeOrder) -> tuple[Node, ...]:
    """Nodes whose ranges are worth a backward pass: sums and products that a univariate function reads.

    Interval images of univariate functions are exact; operands of products gain little more. Gradients
    that are clipped coordinate by coordinate are left out: each sample has as many as parameters.
    """
    read = {
        name
        for node in schedule.before
        if isinstance(node.op, Univariate) and type(node.op) is not Clip
        for name in node.inputs
    }
    return tuple(
        node
        for node in schedule.before
        if node.name in read
        and node.batched
        and node.inputs
        and not isinstance(node.op, Univariate)
    )


@dataclass(frozen=True)
class BackwardPasses:
    """The input of intermediate bounds besides the step: the window before it and how to split the work.

    Attributes:
        chunk: rows of a backward pass through the window at once.
        pairs: pairs of a form and a sample whose coefficients on the parameters are kept at once.
        passes: how many rows fit into memory, remembered over the steps.
    """

    schedule: NodeOrder
    window: Sequence[LinearizedStep]
    adversary: AdversaryModel
    chunk: int
    pairs: int
    passes: Passes = field(default_factory=Passes)

    def samples_at_once(self, step: Step) -> int:
        """Samples of a chunk, so that all forms of a node fit; elements are split if not even one fits."""
        if step.poison.whole is Whole.REMOVED:
            return step.size  # the mean of the remaining samples needs the whole batch
        largest = max((n.signature.size for n in targets(self.schedule)), default=1)
        return max(1, min(step.size, self.pairs // (2 * largest)))


def propagate(context: BackwardPasses, state: State, step: Step, keep: Collection[str]) -> Ranges:
    """Boxes of the nodes of a step, where those of the targets are met with linear bounds.

    Nodes come in topological order, so that each form uses the ranges tightened before it.
    The forms of a sample i go back through the current step to theta_t and on through the window.
    Ranges are *conditional*: if i is clean, the budget goes to the other samples; if i is poisoned, it
    counts in full and the others have a budget of one less. Both hold for every admissible
    poisoning in that state, so that the meet with intervals, and sums over samples with the budget
    of the batch, stay sound. Forms of one sample do not depend on others, so chunks change nothing.
    """
    return bound_propagation.propagate(
        context.schedule,
        state,
        step,
        context.adversary,
        context.samples_at_once(step),
        keep,
        lambda part: _Refined(context, state, step, part),
    )


class _Refined:
    """Tightens the boxes of one sample chunk: keeps the planes so far and bounds the targets."""

    def __init__(self, context: BackwardPasses, state: State, step: Step, part: slice) -> None:
        self.context, self.state, self.step, self.part = context, state, step, part
        self.chosen = {node.name for node in targets(context.schedule)}
        self.planes: dict[str, LinearBounds] = {}
        self.offsets: dict[str, Intercepts] = {}
        self.nodes = [n for n in context.schedule.before if n.batched and not n.inputs]

    def __call__(self, node: Node, boxes: Mapping[str, Interval]) -> Interval:
        box = boxes[node.name]
        if not node.batched:
            return box
        self.nodes.append(node)
        planes = node.op.relax(*(boxes[name] for name in node.inputs))
        self.planes[node.name] = planes
        self.offsets[node.name] = Intercepts.of(planes, True, self.context.adversary.cases)
        return self._met(node, box, boxes) if node.name in self.chosen else box

    def _sample_chunk(self, boxes: Mapping[str, Interval]) -> SampleChunk:
        part, nominal = self.part, self.context.adversary.nominal(self.step)
        index = torch.arange(part.start, part.stop, device=self.step.samples.device)
        return SampleChunk(
            part,
            self.step.poison.take(index),
            self.planes,
            self.offsets,
            {name: boxes[name].magnitude.amax(0) for name in (FEATURES, LABELS)},
            {name: points[:, part] for name, points in nominal.items()},
        )

    def _met(self, node: Node, box: Interval, boxes: Mapping[str, Interval]) -> Interval:
        """The meet of a box with linear bounds of each element, some elements at a time."""
        size, count = node.signature.size, self.part.stop - self.part.start
        states = self.context.adversary.states
        bounds = box.lower.new_full((states, 2, size, count), -torch.inf)
        worth = _worth(self.context, node, box)
        sample_chunk = self._sample_chunk(boxes)
        signed = torch.arange(2 * size, device=worth.device)
        for forms in signed.split(max(1, self.context.pairs // count)):
            rows = worth[forms].flatten().nonzero()[:, 0]
            if len(rows):
                found = bounds.new_full((states, len(forms) * count), -torch.inf)
                own = sample_forms(self.nodes, sample_chunk, node.name, _units(node, forms, count))

                def bound(some: Tensor, own: SampleForms = own) -> Tensor:
                    return self._bound_rows(own, some, count)

                for some, low in self.context.passes.run(rows, self.context.chunk, bound):
                    found[:, some] = low
                bounds.flatten(1, 2)[:, forms] = found.reshape(states, len(forms), count)
        lower, upper = bounds.transpose(2, 3).unbind(1)
        shape = (states, count, *node.shape)
        linear = Interval(lower.reshape(shape), -upper.reshape(shape))
        full = box.expand_states(max(states, box.lower.shape[0]))
        return full.meet(linear, f"'{node.name}' by intervals and by linear forms")

    def _bound_rows(self, own: SampleForms, rows: Tensor, count: int) -> Tensor:
        """Lower bounds of some rows in each state, (states, rows): the best stop of the backward pass."""
        context, step = self.context, self.step
        forms = own.rows(rows, self.state)
        perturbation = context.adversary.open_worst_case(forms.rows)
        at = self.part.start + rows % count
        samples = step.samples[at]
        if not context.adversary.poison.is_clean:
            perturbation.add_own(step, own.moves_of(rows, at, step.size))
        best = forms.concretise(self.state, perturbation.worst_case_given(samples))
        for relaxed in reversed(context.window):
            forms = propagate_backward(context.schedule, relaxed, forms, perturbation)
            stop = forms.concretise(relaxed.state, perturbation.worst_case_given(samples))
            best = torch.maximum(best, stop)
        return best.T


def _units(node: Node, forms: Tensor, count: int) -> Tensor:
    """Coefficients of forms, numbered over (2 signs, elements): (forms, count, *shape)."""
    size = node.signature.size
    one = torch.zeros(len(forms), size, dtype=torch.float64, device=forms.device)
    one[torch.arange(len(forms)), forms % size] = torch.where(forms < size, 1.0, -1.0).to(one)
    return one.reshape(-1, 1, *node.shape).expand(-1, count, *node.shape)


def _worth(context: BackwardPasses, node: Node, box: Interval) -> Tensor:
    """Mask over (2 signs x elements, samples) of the rows that are worth a backward pass.

    Where every function that reads the node is linear on the interval box, its relaxation is already
    exact, and other nodes gain little from a smaller one.
    """
    hull = box.hull()
    settled = torch.ones_like(hull.lower, dtype=torch.bool)
    for reader in context.schedule.before:
        if node.name in reader.inputs and isinstance(reader.op, Univariate):
            settled &= reader.op.is_linear_on(hull)
    mask = ~settled.flatten(1).T
    return torch.cat([mask, mask])
