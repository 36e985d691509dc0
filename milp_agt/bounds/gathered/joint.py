"""Boxes of sums that cancel: what all moves of a label do together, and differences of outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from milp_agt.bounds.gathered.supported import Gathered
from milp_agt.core.graph import Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.linear import Affine
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import LOSS_GRADIENT


def jointly(
    parts: Gathered, node: Node, boxes: Mapping[str, Interval], poison: Poison | None
) -> Interval:
    """The box of a node met with what intervals of its inputs leave out.

    Args:
        boxes: of the node and of all before it.
        poison: of the samples, in a step.
    """
    op = node.op
    if isinstance(op, Affine) and node.inputs[0] in parts.layers:
        return _differences(op, parts.layers[node.inputs[0]], node, boxes)
    through = isinstance(op, Einsum) and op.equation == "nh,hd->nd"
    if through and node.inputs[0] == LOSS_GRADIENT and poison is not None and parts.on_labels:
        return _through_labels(parts.on_labels, node, boxes, poison)
    return boxes[node.name]


def _through_labels(
    scale: float, node: Node, boxes: Mapping[str, Interval], poison: Poison
) -> Interval:
    """``r W`` with the gradient r of the loss: that of clean data plus bounds of ``s e W`` over the moves e."""
    box, moves = boxes[node.name], poison.label_moves
    if len(box.lower) == 1 or moves is None:
        return box
    centre, radius = _ball(boxes[node.inputs[1]])
    rows, wide = (w.T[:, None].expand(-1, len(poison.labels), -1) for w in (centre, radius))
    reach = torch.maximum(moves.upper, -moves.lower)
    up, down = (moves.support(sign * scale * rows).T for sign in (1.0, -1.0))
    size = (boxes[LOSS_GRADIENT].magnitude.amax(0) + abs(scale) * reach) @ (centre.abs() + radius)
    error = abs(scale) * moves.radius_support(wide).T + gamma(8 * len(centre) + 128) * size + TINY
    clean = box.of_clean.each(lambda end: end[None])
    joint = clean.widen(down + error, up + error)
    poisoned = Interval(box.lower[1:], box.upper[1:]).meet(joint, f"'{node.name}' jointly")
    return Interval.joined([clean, poisoned])


def _differences(
    op: Affine, layer: tuple[str, str, str], node: Node, boxes: Mapping[str, Interval]
) -> Interval:
    """``A (W h + b) + c`` from ``A W`` in place of the box of ``W h + b``, in which outputs are apart."""
    box, (weight, inputs, bias) = boxes[node.name], layer
    centre, radius = _ball(boxes[weight])
    hidden, matrix = boxes[inputs], op.matrix
    middle, half = hidden.centre, 0.5 * hidden.width
    rows = matrix @ centre
    size = hidden.magnitude @ (centre.abs() + radius).T
    off = half @ rows.abs().T + (hidden.magnitude @ radius.T) @ matrix.abs().T
    value = middle @ rows.T
    if bias:
        shift, wide = _ball(boxes[bias])
        value, off = value + matrix @ shift, off + matrix.abs() @ wide
        size = size + shift.abs() + wide
    total = size @ matrix.abs().T
    if op.bias is not None:
        value, total = value + op.bias, total + op.bias.abs()
    terms = centre.shape[1] + 2 * matrix.shape[1]
    joint = Interval(value, value).widen(off + gamma(8 * terms + 128) * (total + off) + TINY)
    return box.meet(joint.expand_states(len(box.lower)), f"'{node.name}' jointly")


def _ball(box: Interval) -> tuple[Tensor, Tensor]:
    hull = box.hull()
    centre = hull.centre
    return centre, torch.maximum(hull.upper - centre, centre - hull.lower)
