"""A window of training steps as one program: copies of the step graph, joined at the states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.program.incumbents import EncodedBatch
from milp_agt.bounds.program.move_columns import (
    MoveColumns,
    admitted,
    encode_influence,
    influence_on,
)
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.encoder import Encoder, SelectionColumns
from milp_agt.core.expression import Expression
from milp_agt.core.graph import Node
from milp_agt.core.program import Program
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.univariate import Univariate
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, LABELS, SELECTION, StepGraph

# On m40 (1,000 products per step) envelopes add 0.3 % to the gain of a window of ten steps over linear
# bounds, and make its solves five times slower.
ENVELOPES = 2500
# Larger ranges are left to the cheaper relaxation, because no solver handles them.
RANGE_LIMIT = 1e8


@dataclass(frozen=True)
class EncodedWindow:
    """A program whose feasible set contains every run through the window, with final state and data."""

    program: Program
    state: dict[str, Expression]
    batches: tuple[EncodedBatch, ...] = ()


@dataclass(frozen=True)
class EncodedSteps:
    """Expressions over the columns of a window: the state after it.

    ``selection`` has the columns of the last batch; None if none of its samples can be poisoned.
    ``batches`` are the data of the steps in which some can.
    """

    state: dict[str, Expression]
    selection: SelectionColumns | None
    batches: tuple[EncodedBatch, ...]


@dataclass(frozen=True)
class Window:
    """The steps of one program: copies of the step graph, joined at the states.

    Up to ``ENVELOPES`` products get McCormick envelopes; with more, all get the planes of linear bounds.

    Attributes:
        poison, restriction: what the adversary may still choose.
        exact_phases: whether phases and selection stay binary.
        exact_products: whether bilinear terms stay.
        past: the steps before the window, as far as they are kept.
    """

    step_graph: StepGraph
    schedule: NodeOrder
    steps: Sequence[LinearizedStep]
    poison: Poison
    exact_phases: bool
    restriction: Restriction = UNRESTRICTED
    exact_products: bool = False
    past: Sequence[LinearizedStep] = ()

    @property
    def largest(self) -> float:
        """The largest number in the ranges of the steps."""
        boxes = (box for relaxed in self.steps for box in relaxed.ranges.boxes.values())
        return max(float(box.magnitude.max()) for box in boxes)

    def encoder(self) -> Encoder:
        """One that still has no columns."""
        products = [n for n in self.schedule.all if isinstance(n.op, Einsum) and n.batched]
        each = sum(n.signature.size for n in products)
        count = sum(each * relaxed.step.size for relaxed in self.steps)
        return Encoder(self.exact_phases, self.exact_products, count <= ENVELOPES)

    def program(self) -> EncodedWindow:
        """The program of the steps only.

        Raises:
            EncodingError: a node without finite bounds.
        """
        encoder = self.encoder()
        encoded = self.encode(encoder)
        return EncodedWindow(encoder.finish(), encoded.state, encoded.batches)

    def encode(self, encoder: Encoder) -> EncodedSteps:
        """Columns and rows of the steps, for further rows on top."""
        moves = MoveColumns(encoder, self.poison, self.restriction)
        state: dict[str, Expression] | None = None
        selection: SelectionColumns | None = None
        batches: list[EncodedBatch] = []
        undecided = admitted(self.poison, self.restriction)
        for relaxed in self.steps:
            encoder.origin = f"step {relaxed.step.index}: state"
            columns: dict[str, Expression] = {}
            for name, box in relaxed.state.items():
                if state is None:
                    columns[name] = encoder.columns_of(box)
                else:
                    columns[name] = encoder.bounded(state[name], box)
            if state is None and self.past and undecided:
                joint = Joint(self.poison, self.restriction)
                rows = influence_on(self.schedule, self.past, relaxed.state, joint)
                encode_influence(encoder, moves, rows, list(columns.values()))
            known, selection = _encode_nodes(self.schedule, relaxed, encoder, moves, columns)
            if selection is not None:
                batches.append(moves.batch(relaxed.step, selection, known[FEATURES], known[LABELS]))
            state = _encode_update(self.step_graph, relaxed, encoder, known)
        assert state is not None
        moves.close()
        return EncodedSteps(state, selection, tuple(batches))


def origin_of(relaxed: LinearizedStep, node: Node) -> str:
    return f"step {relaxed.step.index}: {node.name}"


def _encode_nodes(
    schedule: NodeOrder,
    relaxed: LinearizedStep,
    encoder: Encoder,
    moves: MoveColumns,
    state: dict[str, Expression],
) -> tuple[dict[str, Expression], SelectionColumns | None]:
    """Expressions of all nodes of a step, and the selection of its batch."""
    step, boxes = relaxed.step, relaxed.ranges.boxes
    known = dict(state)
    encoder.selection = None
    if step.poison.is_clean:
        known[FEATURES] = Expression.of(step.poison.features.cpu().numpy())
        known[LABELS] = Expression.of(step.poison.labels.cpu().numpy())
    else:
        encoder.selection = moves.select(step)
        known[FEATURES] = moves.features(step, encoder.selection)
        known[LABELS] = moves.labels(step, encoder.selection)
    if step.poison.whole is not None:
        nobody = Expression.of(np.zeros(step.size))
        chosen = nobody if encoder.selection is None else encoder.selection.states[0]
        known[SELECTION] = chosen.reshape((step.size, 1))
    curved = curved_inputs(schedule.all)
    summed = _only_summed(schedule)
    for node in schedule.all:
        if node.name in known:
            continue
        encoder.origin = origin_of(relaxed, node)
        inputs = tuple(known[name] for name in node.inputs)
        ranges = tuple(boxes[name] for name in node.inputs)
        expression = node.op.encode(encoder, inputs, ranges)
        # Errors of a slack count as independent, which is exact if each is read once, by a sum.
        scattered = expression.slack is not None and node.name not in summed
        if node.name in curved or scattered:
            expression = encoder.bounded(expression, boxes[node.name])
        known[node.name] = expression
    return known, encoder.selection


def curved_inputs(nodes: Sequence[Node]) -> set[str]:
    """Nodes that a function or a product reads; these get columns."""
    return {
        name for node in nodes if isinstance(node.op, (Univariate, Einsum)) for name in node.inputs
    }


def _only_summed(schedule: NodeOrder) -> set[str]:
    """Nodes that lead to the gradients through sums over samples and combinations only."""
    readers: dict[str, list[Node]] = {}
    for node in schedule.all:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    for node in reversed(schedule.all):
        reading = readers.get(node.name, [])
        if len(reading) <= 1 and all(
            isinstance(r.op, (SumSamples, Combine)) and (not r.batched or r.name in found)
            for r in reading
        ):
            found.add(node.name)
    return found


def _encode_update(
    step_graph: StepGraph, relaxed: LinearizedStep, encoder: Encoder, known: dict[str, Expression]
) -> dict[str, Expression]:
    """The new state; projected if the projection is already relaxed."""
    update = relaxed.update
    total = relaxed.step.update.clip_total is not None
    if (
        relaxed.step.has_velocity or total
    ):  # theta and velocity both read the gradient, or norm and factor
        for name in step_graph.gradients.values():
            known[name] = encoder.bounded(known[name], relaxed.ranges.boxes[name])
    boxes = update.boxes(relaxed.state, relaxed.ranges.boxes)
    encoder.selection = None
    for node in update.nodes:
        encoder.origin = f"step {relaxed.step.index}: {node.name}"
        ranges = tuple(boxes[name] for name in node.inputs)
        known[node.name] = node.op.encode(encoder, tuple(known[i] for i in node.inputs), ranges)
        if total and node.name not in update.outputs.values():
            known[node.name] = encoder.bounded(known[node.name], boxes[node.name])
    for node in update.projections.values():
        if node.name in relaxed.planes:
            encoder.origin = f"step {relaxed.step.index}: {node.name}"
            box = relaxed.ranges.boxes[node.inputs[0]]
            before = encoder.bounded(known[node.inputs[0]], box)
            known[node.name] = node.op.encode(encoder, (before,), (box,))
    return {name: known[relaxed.new(name)] for name in update.outputs}
