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
from milp_agt.training.tracing import LABELS, LOSS_GRADIENT


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
        box = boxes[node.name]
        constant = op.matrix[:, 0] * 0.0 if op.bias is None else op.bias
        layer = parts.layers[node.inputs[0]]
        joint = forms_of_layer(layer, boxes, op.matrix[None], constant[None])
        return box.meet(joint.expand_states(len(box.lower)), f"'{node.name}' jointly")
    through = isinstance(op, Einsum) and op.equation == "nh,hd->nd"
    if through and node.inputs[0] == LOSS_GRADIENT and poison is not None and parts.on_labels:
        box = boxes[node.name]
        if parts.softmax:
            box = _through_softmax(parts.softmax, node, boxes, box)
        return _through_labels(parts.on_labels, node, boxes, box, poison)
    return boxes[node.name]


def _through_labels(
    scale: float, node: Node, boxes: Mapping[str, Interval], box: Interval, poison: Poison
) -> Interval:
    """``r W`` with the gradient r of the loss: clean data plus bounds of ``s e W`` over the moves e."""
    moves = poison.label_moves
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


def _through_softmax(
    logits: str, node: Node, boxes: Mapping[str, Interval], box: Interval
) -> Interval:
    """``(p - y) W`` of clean data, p the softmax of logits f: p sums to 1, so that much cancels.

    With m in the middle of f and w a column of W, ``(p(f) - p(m)) w`` is a mean over the way from m to f of

        1/2 sum_{jk} p_j p_k (w_j - w_k) ((f_j - m_j) - (f_k - m_k)) .
    """
    output, labels = boxes[logits].of_clean, boxes[LABELS].of_clean.lower
    middle, most = output.centre, output.magnitude.amax(-1, keepdim=True)
    classes = middle.shape[-1]
    apart = middle[..., None, :] - middle[..., None]
    others = ~torch.eye(classes, dtype=torch.bool, device=middle.device)
    pairs = boxes[f"affine/{logits}"].of_clean
    far = torch.zeros_like(apart)
    known = apart[:, others]
    far[:, others] = torch.maximum(pairs.upper - known, known - pairs.lower).clamp(min=0.0)
    far = far + gamma(16) * most[..., None]
    grown = torch.where(others, torch.exp(apart - far), 0.0).sum(-1)
    largest = (1.0 + 1e-9) / (1.0 + grown)
    weight = 0.5 * far * (largest[..., None] * largest[..., None, :]).clamp(max=0.25)
    centre, radius = _ball(boxes[node.inputs[1]])
    spread = (centre[:, None] - centre[None]).abs().flatten(0, 1)
    residual = boxes[LOSS_GRADIENT].of_clean.magnitude
    size = (residual + 1.0) @ (centre.abs() + radius)
    rounded = gamma(1024) + gamma(32) * (classes + most)
    off = (weight.flatten(1) @ spread) * (1.0 + gamma(8 * classes**2)) + residual @ radius
    value = (torch.softmax(middle, -1) - labels) @ centre
    joint = Interval(value, value).widen(off + rounded * size + TINY)
    clean = box.of_clean.meet(joint, f"'{node.name}' by softmax")
    return Interval.joined(
        [clean.each(lambda end: end[None]), Interval(box.lower[1:], box.upper[1:])]
    )


def forms_of_layer(
    layer: tuple[str, str, str],
    boxes: Mapping[str, Interval],
    coefficients: Tensor,
    constant: Tensor,
) -> Interval:
    """Boxes of forms ``c . (W h + b) + d`` of the outputs of a dense layer, from ``c W`` in place of the box
    of ``W h + b``, in which outputs are apart, (states, n, forms).

    Coefficients (n or 1, forms, outputs), constants (n or 1, forms).
    """
    weight, inputs, bias = layer
    centre, radius = _ball(boxes[weight])
    hidden, sizes = boxes[inputs], coefficients.abs()
    largest, rows = hidden.magnitude, coefficients @ centre
    value = _of_samples(rows, hidden.centre) + constant
    wide, size = largest @ radius.T, largest @ (centre.abs() + radius).T
    if bias:
        shift, spread = _ball(boxes[bias])
        value = value + coefficients @ shift
        wide, size = wide + spread, size + shift.abs() + spread
    off = _of_samples(rows.abs(), 0.5 * hidden.width) + _of_samples(sizes, wide)
    total = _of_samples(sizes, size) + constant.abs() + off
    terms = centre.shape[1] + 2 * coefficients.shape[-1]
    return Interval(value, value).widen(off + gamma(8 * terms + 128) * total + TINY)


def _of_samples(rows: Tensor, values: Tensor) -> Tensor:
    """Forms (n or 1, forms, d) of the values of samples, (states, n, d)."""
    if len(rows) == 1:
        return values @ rows[0].T
    return (rows @ values[..., None]).squeeze(-1)


def _ball(box: Interval) -> tuple[Tensor, Tensor]:
    hull = box.hull()
    centre = hull.centre
    return centre, torch.maximum(hull.upper - centre, centre - hull.lower)
