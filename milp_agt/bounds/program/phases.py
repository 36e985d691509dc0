"""Phases tied to the selection: who must be poisoned before a unit changes sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp
import torch

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.linear.backward import sample_forms
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.window_bounds import bound_by_sample
from milp_agt.bounds.program.move_columns import MoveColumns
from milp_agt.bounds.program.selection_rows import SelectionRows
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, Index, add
from milp_agt.core.graph import Node
from milp_agt.formulations.heaviside import Heaviside as Phase
from milp_agt.formulations.relu import Relu


def encode_phases(
    schedule: NodeOrder,
    past: Sequence[LinearizedStep],
    relaxed: LinearizedStep,
    encoder: Encoder,
    moves: MoveColumns,
    known: Mapping[str, Expression],
) -> None:
    """Rows for every unit of a step whose phase is open, once its nodes are encoded.

    With bounds ``z >= m - sum_{i in S} dev_i`` for every admissible S and m > 0, the phase a = [z > 0]
    has ``a >= 1 - sum_i s_i min(1, dev_i / m)``: where the sum is below 1, z is positive. From above alike.
    """
    for node in schedule.before:
        readers = [n for n in schedule.before if node.name in n.inputs]
        kinks = [n for n in readers if isinstance(n.op, (Phase, Relu))]
        if not kinks or not node.inputs:
            continue
        hull = relaxed.ranges.boxes[node.name].hull()
        ambiguous = ((hull.lower <= 0) & (hull.upper > 0)).cpu().numpy()
        element = np.flatnonzero(ambiguous)
        if not element.size:
            continue
        found = influence_inside(schedule, past, relaxed, node, element, moves).without_tiny()
        phase = encoder.phase(known[node.name], ambiguous)
        # Rows are kept or dropped with the phase, whose columns the first reader made.
        encoder.origin = f"step {relaxed.step.index}: {kinks[0].name}"
        _tied(encoder, moves, found, phase)
        values = [known[n.name] for n in kinks if n.op == Relu()]
        if encoder.strengthening.rlt and values:
            z, h = (e.take(element) for e in (known[node.name], values[0]))
            _multiplied(encoder, moves, found, phase, z, h)


def influence_inside(
    schedule: NodeOrder,
    past: Sequence[LinearizedStep],
    relaxed: LinearizedStep,
    node: Node,
    element: Index,
    moves: MoveColumns,
) -> SelectionRows:
    """Influence rows of elements of a node inside a step, flat over samples and units: from below all of
    them, then from above."""
    joint, step, size = Joint(moves.poison, moves.restriction), relaxed.step, node.signature.size
    nodes = [n for n in schedule.before if n.batched]
    nodes = nodes[: nodes.index(node) + 1]
    unit = torch.eye(size, dtype=torch.float64, device=step.samples.device)
    both = torch.cat([unit, -unit]).reshape(2 * size, 1, *node.shape)
    constant = np.zeros(2 * element.size)
    devs = np.zeros((2 * element.size, len(moves.poison.features)))
    for sample_chunk in relaxed.chunks:
        first, last = sample_chunk.samples.start, sample_chunk.samples.stop
        own = np.flatnonzero((element >= first * size) & (element < last * size))
        if not own.size:
            continue
        sample, of = np.divmod(element[own] - first * size, size)
        row = np.concatenate([of, of + size]) * (last - first) + np.tile(sample, 2)
        part = torch.from_numpy(row).to(step.samples.device)
        forms = sample_forms(
            nodes, sample_chunk, node.name, both.expand(-1, last - first, *node.shape)
        )
        at = torch.from_numpy(np.tile(sample, 2) + first).to(part)
        perturbation = joint.open_worst_case(len(part))
        perturbation.add_own(step, *forms.moves(part, at, step.size))
        on_state = forms.rows(part, relaxed.state)
        base, dev = bound_by_sample(schedule, past, on_state, joint, (perturbation, relaxed.state))
        places = np.concatenate([own, own + element.size])
        constant[places], devs[places] = base.cpu().numpy(), dev.cpu().numpy()
    return SelectionRows(constant, devs)


def _tied(encoder: Encoder, moves: MoveColumns, found: SelectionRows, phase: Expression) -> None:
    """``a + sum_i w_i s_i >= 1`` where z > 0 unless poisoned, ``-a + sum_i w_i s_i >= 0`` where z < 0."""
    distance = found.constant
    sure = np.flatnonzero(distance > 0.0)
    if not sure.size:
        return
    count = phase.size
    share = np.nextafter(found.devs[sure] / distance[sure, None], np.inf)
    weight = np.where(found.devs[sure] > 0.0, np.minimum(1.0, share), 0.0)
    worst_case = moves.of_all().apply(sp.csr_matrix(weight), (sure.size,))
    sign = np.where(sure < count, 1.0, -1.0)
    own = phase.take(sure % count).scale(sign)
    encoder.rows(add([own, worst_case]), np.where(sure < count, 1.0, 0.0), np.inf)


def _multiplied(
    encoder: Encoder,
    moves: MoveColumns,
    found: SelectionRows,
    phase: Expression,
    z: Expression,
    h: Expression,
) -> None:
    """Products ``p_j = s_j a`` of the selection and each phase, and the rows that these linearise
    (Sherali and Adams 1990): the budget and both influence rows, times a and times ``1 - a``.

    With ``h = a z`` the rows of z times a are rows of h, those times ``1 - a`` rows of ``z - h``.
    """
    selection = moves.of_all()
    budget = float(sum(quota.budget for quota in moves.poison.quotas))
    count, samples = phase.size, selection.size
    shape = (count, samples)
    own, encoder.origin = encoder.origin, f"{encoder.origin}, products"
    product = encoder.columns(np.zeros(shape), np.ones(shape))
    encoder.origin = own
    s = selection.take(np.tile(np.arange(samples), count)).reshape(shape)
    a = phase.take(np.repeat(np.arange(count), samples)).reshape(shape)
    off = add([s, product.scale(-1.0)])  # s (1 - a)
    encoder.rows(off, 0.0, np.inf)
    encoder.rows(add([a, product.scale(-1.0)]), 0.0, np.inf)
    encoder.rows(add([off, a]), -np.inf, 1.0)
    total = np.ones(shape)
    encoder.rows(add([_summed(product, total), phase.scale(-budget)]), -np.inf, 0.0)
    encoder.rows(add([_summed(off, total), phase.scale(budget)]), -np.inf, budget)
    beyond = add([z, h.scale(-1.0)])
    for sign, at in ((1.0, slice(0, count)), (-1.0, slice(count, None))):
        least, devs = found.constant[at], found.devs[at]
        on_rows = add([h.scale(sign), _summed(product, devs), phase.scale(-least)])
        encoder.rows(on_rows, 0.0, np.inf)
        off_rows = add([beyond.scale(sign), _summed(off, devs), phase.scale(least)])
        encoder.rows(off_rows, least, np.inf)


def _summed(terms: Expression, weights: Array) -> Expression:
    """``sum_j weights_kj terms_kj`` for each k."""
    count, width = weights.shape
    rows = np.repeat(np.arange(count), width)
    matrix = sp.csr_matrix(
        (weights.reshape(-1), (rows, np.arange(weights.size))), shape=(count, weights.size)
    )
    matrix.eliminate_zeros()
    return terms.apply(matrix, (count,))
