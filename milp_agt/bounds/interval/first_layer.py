"""Products of parameters and poisoned features, bounded over the set of moves instead of its box."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from milp_agt.core.graph import Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.bilinear import Einsum
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import MoveSet
from milp_agt.training.tracing import FEATURES

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
