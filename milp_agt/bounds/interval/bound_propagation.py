"""Interval bound propagation through a training step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from milp_agt.bounds.adversary.model import AdversaryModel, SampleSum, SumOfProducts
from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.step import NodeOrder, State, Step
from milp_agt.core.graph import Node, boxes_of
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import MoveSet
from milp_agt.training.tracing import FEATURES, StepGraph

# Elements of coefficients (rows, n, size) at once.
ELEMENTS = 2**22


def meet_jointly(
    node: Node,
    box: Interval,
    boxes: Mapping[str, Interval],
    poison: Poison,
) -> Interval:
    """The meet of a box of ``W x`` with ``W x_nominal`` plus bounds of ``W e`` over the admissible moves e.

    For every W in its box, with centre C and radius R, and every admissible move e, ``W e`` is at most
    ``max over e of C e + max over e, |V| <= R of V e``: the support and the radius support of the set.
    Intervals take the box around the set instead, which is larger for the norms 0, 1 and 2 and for
    categories. Other nodes, and sets that are boxes, are returned unchanged.

    Args:
        box: by intervals, (states, n, outputs).
        boxes: those of the inputs, by name.
        poison: of these n samples.
    """
    moves, nominal = poison.feature_moves, poison.features
    if moves is None or moves.is_box or poison.is_clean or not _multiplies_features(node):
        return box
    weights, features = (boxes[name] for name in node.inputs)
    hull = weights.hull()
    centre = hull.centre
    radius = torch.maximum(hull.upper - centre, centre - hull.lower)
    if not bool(torch.isfinite(radius).all()):
        return box
    chunk = max(1, ELEMENTS // nominal.numel())
    parts = zip(centre.split(chunk), radius.split(chunk), strict=True)
    deviations = torch.cat([_deviations(moves, c, r, len(nominal)) for c, r in parts], 1)
    # Covers rounding of these sums, of x + e, and of the run's products with the poisoned features.
    size = torch.einsum("hd,nd->nh", hull.magnitude, features.magnitude.amax(0))
    error = gamma(8 * nominal.shape[1] + 128) * (size + deviations.amax(0).T) + TINY
    clean = node.op.interval(weights, Interval.point(nominal.unsqueeze(0)))
    down, up = (d.T + error for d in deviations)
    jointly = clean.widen(down, up).expand_states(box.lower.shape[0])
    return box.meet(jointly, f"'{node.name}' by coordinates and jointly")


def _multiplies_features(node: Node) -> bool:
    op = node.op
    dense = isinstance(op, Einsum) and op.equation == "hd,nd->nh"
    return dense and node.inputs[1] == FEATURES


def _deviations(moves: MoveSet, centre: Tensor, radius: Tensor, samples: int) -> Tensor:
    """How far ``W e`` may lie below and above 0 for rows of W, (2, rows, n)."""
    rows = centre[:, None].expand(-1, samples, -1)
    spread = moves.radius_support(radius[:, None].expand(-1, samples, -1))
    return torch.stack([moves.support(-rows) + spread, moves.support(rows) + spread])


@dataclass
class Ranges:
    """Boxes of the nodes of one step, over a box of states.

    ``sums`` bounds ``sum_i |term_i|`` of each sum over samples; rounding errors grow with it.
    """

    boxes: dict[str, Interval] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


# The box of a node, given all boxes of a sample chunk up to its own interval image.
Refine = Callable[[Node, Mapping[str, Interval]], Interval]


def propagate(
    schedule: NodeOrder,
    state: Mapping[str, Interval],
    step: Step,
    adversary: AdversaryModel,
    sample_chunk: int | None = None,
    keep: Collection[str] = (),
    refine: Callable[[slice], Refine] | None = None,
) -> Ranges:
    """Boxes of the nodes of a step for all states in a box and all admissible poisonings of the batch.

    Args:
        adversary: how poison reaches the batch; defines the meaning of the leading axis of boxes.
        sample_chunk: samples at once, to bound memory; None for the whole batch.
        keep: nodes with a sample axis whose boxes the other engines need.
        refine: makes, for each sample chunk, a function that may tighten each box before others use it.

    Raises:
        SoundnessError: a box with lower > upper (never expected).
    """
    size = sample_chunk or step.size
    ranges = Ranges()
    fixed = boxes_of((node for node in schedule.before if not node.batched), state)
    pieces: dict[str, list[Interval]] = {}
    totals = {node.name: adversary.total(step) for node in schedule.sums}
    terms = {node.name: node.inputs[0] for node in schedule.sums}
    outer = _outer_products(schedule, totals, keep)
    unmade = {product.name for product, _ in outer.values()}
    for start in range(0, step.size, size):
        part = slice(start, min(start + size, step.size))
        whole = part == slice(0, step.size)
        boxes = fixed | adversary.leaves(step, None if whole else part)
        index = torch.arange(part.start, part.stop, device=step.samples.device)
        poison = step.poison if whole else step.poison.take(index)
        refined = None if refine is None else refine(part)
        for node in schedule.before:
            if node.name not in boxes and node.name not in unmade:
                inputs = [boxes[i] for i in node.inputs]
                box = node.op.interval(*inputs)
                boxes[node.name] = meet_jointly(node, box, boxes, poison)
                if refined is not None:
                    boxes[node.name] = refined(node, boxes)
        for name, total in totals.items():
            if name in outer:
                product, summed = outer[name]
                a, b = (boxes[i] for i in product.inputs)
                summed.add_outer(a, b, step.samples[part])
            else:
                total.add(boxes[terms[name]], step.samples[part])
        for name in keep:
            pieces.setdefault(name, []).append(boxes[name])
    ranges.boxes = fixed
    for name in list(pieces):
        parts = pieces.pop(name)  # freed one by one
        # Chunks that no poison reaches have one state.
        states = max(len(piece.lower) for piece in parts)
        parts = [piece.expand_states(states) for piece in parts]
        ranges.boxes[name] = parts[0] if len(parts) == 1 else Interval.joined(parts, 1)
        del parts
    for node in schedule.sums:
        ranges.boxes[node.name], ranges.sums[node.name] = _summed(node, totals[node.name])
    ranges.boxes = boxes_of(schedule.after, ranges.boxes)
    return ranges


def _outer_products(
    schedule: NodeOrder, totals: Mapping[str, SampleSum], keep: Collection[str]
) -> dict[str, tuple[Node, SumOfProducts]]:
    """Sums that take the operands of outer products, with these products, whose boxes are not needed."""
    found = {}
    for name, product in schedule.outer_products.items():
        total = totals[name]
        if product.name not in keep and isinstance(total, SumOfProducts):
            found[name] = product, total
    return found


def completed(
    schedule: NodeOrder, state: State, step: Step, adversary: AdversaryModel, ranges: Ranges
) -> Ranges:
    """All boxes of a step, as programs need them, where only some were kept."""
    whole = propagate(schedule, state, step, adversary, keep=schedule.batched)
    known = {}
    for name, box in ranges.boxes.items():
        if name in whole.boxes:
            states = max(len(box.lower), len(whole.boxes[name].lower))
            full = whole.boxes[name].expand_states(states)
            known[name] = full.meet(box.expand_states(states), f"'{name}' by two engines")
    return narrowed(schedule, step, adversary, whole, known)


def narrowed(
    schedule: NodeOrder,
    step: Step,
    adversary: AdversaryModel,
    ranges: Ranges,
    known: Mapping[str, Interval],
) -> Ranges:
    """The ranges of a step after some boxes became smaller, propagated through the step.

    Raises:
        SoundnessError: a box with lower > upper (never expected).
    """
    boxes = {**ranges.boxes, **known}

    def again(node: Node) -> Interval:
        found = node.op.interval(*(boxes[i] for i in node.inputs))
        old = boxes[node.name]
        states = max(len(old.lower), len(found.lower))
        return old.expand_states(states).meet(found.expand_states(states), f"'{node.name}' again")

    for node in schedule.before:
        if node.inputs:
            boxes[node.name] = again(node)
    sums = dict(ranges.sums)
    for node in schedule.sums:
        total = adversary.total(step)
        total.add(boxes[node.inputs[0]], step.samples)
        found, sums[node.name] = _summed(node, total)
        boxes[node.name] = boxes[node.name].meet(found, f"'{node.name}' again")
    for node in schedule.after:
        boxes[node.name] = again(node)
    return Ranges(boxes, sums)


def _summed(node: Node, total: SampleSum) -> tuple[Interval, Tensor]:
    """The box of a sum over the samples in the precision of the run, and ``sum_i max|term_i|``."""
    box, size = total.result()
    assert isinstance(node.op, SumSamples)
    return node.op.widened(box, size), size


def update(step_graph: StepGraph, state: State, ranges: Ranges, step: Step) -> State:
    """Box of the next state before any projection: the optimiser step in interval arithmetic."""
    built = UpdateGraph.of(step_graph.gradient_nodes, step, step_graph.precision)
    boxes = built.boxes(state, ranges.boxes)
    return {name: boxes[node] for name, node in built.outputs.items()}
