"""A window of training steps as one program: the step graph copied, joined at the states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milp_agt.core.encoder import Encoder, as_arrays
from milp_agt.core.expression import Expression, add
from milp_agt.core.graph import Node
from milp_agt.core.interval import CLEAN
from milp_agt.core.program import Program
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.engines.program.moves import Moves
from milp_agt.engines.relaxed import RelaxedStep
from milp_agt.engines.step import Schedule, velocity_of
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.linear import Combine, SumSamples
from milp_agt.formulations.univariate import Univariate
from milp_agt.poison import Poison
from milp_agt.tracing import FEATURES, LABELS, StepGraph


@dataclass(frozen=True)
class EncodedWindow:
    """A program whose feasible set holds every run through the window, and its final state."""

    program: Program
    state: dict[str, Expression]


def encode_window(
    step_graph: StepGraph,
    schedule: Schedule,
    window: Sequence[RelaxedStep],
    poison: Poison,
    exact_phases: bool,
    restriction: Restriction = UNRESTRICTED,
    exact_products: bool = False,
) -> EncodedWindow:
    """The program of the last steps: w copies of the step graph joined at the states.

    ``exact_phases`` keeps phases and selection integral, ``exact_products`` bilinear terms.

    Raises:
        EncodingError: a node without finite bounds.
    """
    encoder = Encoder(exact_phases, exact_products)
    moves = Moves(encoder, poison, restriction)
    state: dict[str, Expression] | None = None
    for relaxed in window:
        encoder.origin = f"step {relaxed.step.index}: state"
        columns: dict[str, Expression] = {}
        for name, box in relaxed.state.items():
            if state is None:
                shape = tuple(box.lower.shape[1:])
                columns[name] = encoder.columns(*as_arrays(box.hull(), shape))
            else:
                columns[name] = encoder.bounded(state[name], box)
        state = _encode_step(step_graph, schedule, relaxed, encoder, moves, columns)
    moves.close()
    assert state is not None
    return EncodedWindow(encoder.finish(), state)


def _encode_step(
    step_graph: StepGraph,
    schedule: Schedule,
    relaxed: RelaxedStep,
    encoder: Encoder,
    moves: Moves,
    state: dict[str, Expression],
) -> dict[str, Expression]:
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
    curved = {
        name
        for node in schedule.all
        if isinstance(node.op, (Univariate, Einsum))
        for name in node.inputs
    }
    summed = _only_summed(schedule)
    for node in schedule.all:
        if node.name in known:
            continue
        encoder.origin = f"step {step.index}: {node.name}"
        inputs = tuple(known[name] for name in node.inputs)
        ranges = tuple(boxes[name] for name in node.inputs)
        expression = node.op.encode(encoder, inputs, ranges)
        # Errors of a spread count as independent: that is exact where each is read once, by a sum.
        scattered = expression.spread is not None and node.name not in summed
        if node.name in curved or scattered:
            expression = encoder.bounded(expression, boxes[node.name])
        known[node.name] = expression
    if step.has_velocity:  # theta and velocity both read the gradient
        for name in step_graph.gradients.values():
            known[name] = encoder.bounded(known[name], boxes[name])
    return _encode_update(step_graph, relaxed, known)


def _only_summed(schedule: Schedule) -> set[str]:
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
    step_graph: StepGraph, relaxed: RelaxedStep, known: dict[str, Expression]
) -> dict[str, Expression]:
    step = relaxed.step
    new: dict[str, Expression] = {}
    for name in step_graph.parameters:
        operands = [name, step_graph.gradients[name]]
        targets = [(name, step.theta_scalars, step.theta_sizes)]
        if step.has_velocity:
            operands.insert(1, velocity_of(name))
            targets.append((velocity_of(name), step.velocity_scalars, step.velocity_scalars))
        sizes = [relaxed.state[o].magnitude[CLEAN].cpu().numpy() for o in operands[:-1]]
        sizes.append(relaxed.planes[operands[-1]].magnitude.cpu().numpy())
        for target, scalars, bounds in targets:
            total = add([known[o].scale(s) for o, s in zip(operands, scalars, strict=True)])
            size = sum(abs(s) * z for s, z in zip(bounds, sizes, strict=True))
            new[target] = total.blur(size * (64 * 2.0**-53))
    return new
