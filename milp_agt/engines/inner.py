"""Inner bounds by linear forms: the ranges that relaxations stand on, walked through the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.graph import Node
from milp_agt.core.interval import Interval
from milp_agt.core.operation import Relaxed
from milp_agt.engines.exposure import Exposure
from milp_agt.engines.first_layer import sharpened
from milp_agt.engines.interval import Ranges
from milp_agt.engines.linear import walk
from milp_agt.engines.relaxed import Fragment, Offsets, RelaxedStep
from milp_agt.engines.step import Schedule, State, Step
from milp_agt.engines.walker import SampleForms, sample_forms
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.univariate import Univariate
from milp_agt.tracing import FEATURES, LABELS, StepGraph


def targets(schedule: Schedule) -> tuple[Node, ...]:
    """Nodes whose ranges are worth a walk: sums and products that a univariate function reads.

    Their images are exact by intervals; operands of products gain little more. Gradients that are
    clipped coordinate by coordinate are left out: there are as many for each sample as parameters.
    """
    read = {
        name
        for node in schedule.before
        if isinstance(node.op, Univariate) and not isinstance(node.op, Clip)
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
class Walks:
    """What inner walks need besides the step: the past of the window and how to cut the work."""

    step_graph: StepGraph
    schedule: Schedule
    window: Sequence[RelaxedStep]
    exposure: Exposure
    chunk: int


def propagate(walks: Walks, state: State, step: Step) -> Ranges:
    """Boxes of the nodes of a step, where the targets are met with linear forms.

    Node by node in topological order, so that each form stands on the ranges tightened before it.
    The forms of a sample i go back through the current step to theta_t and on through the window.
    Ranges are *conditional*: if i is not poisoned, the budget is spent on the others; if it is, its
    own debt is paid in full and one less is left for the others. Both hold for every admissible
    poisoning in that state, so that the meet with intervals, and sums over samples with the budget
    of the batch, stay sound.
    """
    chosen = {node.name for node in targets(walks.schedule)}
    boxes: dict[str, Interval] = dict(state) | walks.exposure.leaves(step)
    planes: dict[str, Relaxed] = {}
    offsets: dict[str, Offsets] = {}
    leaves = {name: boxes[name].magnitude.amax(0) for name in (FEATURES, LABELS)}
    nominal = walks.exposure.nominal(step)
    walked: list[Node] = []
    for node in walks.schedule.before:
        if node.name in boxes:
            if node.batched:
                walked.append(node)
            continue
        inputs = tuple(boxes[name] for name in node.inputs)
        box = node.op.interval(*inputs)
        boxes[node.name] = sharpened(node, box, boxes, step.poison)
        if not node.batched:
            continue
        walked.append(node)
        planes[node.name] = node.op.relax(*inputs)
        offsets[node.name] = Offsets.of(planes[node.name], True, walks.exposure.cases)
        if node.name in chosen:
            whole = Fragment(slice(0, step.size), step.poison, planes, offsets, leaves, nominal)
            boxes[node.name] = _refined(walks, state, step, whole, walked, boxes[node.name])
    return _summed(walks, step, boxes)


def _refined(
    walks: Walks,
    state: State,
    step: Step,
    fragment: Fragment,
    nodes: Sequence[Node],
    box: Interval,
) -> Interval:
    """The meet of a box with linear bounds of every element of the last of ``nodes``."""
    node = nodes[-1]
    size = node.signature.size
    unit = torch.eye(size, dtype=torch.float64, device=box.lower.device)
    unit = unit.reshape(size, 1, *node.shape).expand(size, step.size, *node.shape)
    own = sample_forms(nodes, fragment, node.name, torch.cat([unit, -unit]))
    count = 2 * size * step.size
    states = walks.exposure.states
    bounds = torch.full((states, count), -torch.inf, dtype=torch.float64, device=box.lower.device)
    for part in _worth(walks, node, box).split(walks.chunk):
        if len(part):
            bounds[:, part] = _bound_rows(walks, state, step, own, part)
    lower, upper = bounds.reshape(states, 2, size, step.size).transpose(2, 3).unbind(1)
    shape = (states, step.size, *node.shape)
    walked = Interval(lower.reshape(shape), -upper.reshape(shape))
    return box.expand_states(max(states, box.lower.shape[0])).meet(
        walked, f"'{node.name}' by intervals and by linear forms"
    )


def _worth(walks: Walks, node: Node, box: Interval) -> Tensor:
    """Flat indices over (2 signs, elements, samples) of the rows that are worth a walk.

    Where every function that reads the node is linear on the box by intervals, its relaxation is
    exact already.
    """
    hull = box.hull()
    settled = torch.ones_like(hull.lower, dtype=torch.bool)
    for reader in walks.schedule.before:
        if node.name in reader.inputs and isinstance(reader.op, Univariate):
            settled &= reader.op.is_linear_on(hull)
    mask = ~settled.flatten(1).T.flatten()
    return torch.cat([mask, mask]).nonzero()[:, 0]


def _bound_rows(walks: Walks, state: State, step: Step, own: SampleForms, part: Tensor) -> Tensor:
    """Lower bounds of some rows in each state, (states, rows): the best of all stops of the walk."""
    forms = own.rows(part, state)
    debt = walks.exposure.open_debt(forms.rows)
    samples = step.samples[part % step.size]
    if not walks.exposure.poison.is_clean:
        debt.add_own(step, *own.moves(part, step.size))
    best = forms.concretise(state, debt.owed_given(samples))
    for relaxed in reversed(walks.window):
        forms = walk(walks.step_graph, walks.schedule, relaxed, forms, debt)
        stop = forms.concretise(relaxed.state, debt.owed_given(samples))
        best = torch.maximum(best, stop)
    return best.T


def _summed(walks: Walks, step: Step, boxes: dict[str, Interval]) -> Ranges:
    """Sums over the samples, and what follows them."""
    ranges = Ranges(boxes)
    for node in walks.schedule.sums:
        total = walks.exposure.total(step)
        total.add(boxes[node.inputs[0]], step.samples)
        boxes[node.name], ranges.sums[node.name] = total.result()
    for node in walks.schedule.after:
        boxes[node.name] = node.op.interval(*(boxes[i] for i in node.inputs))
    return ranges
