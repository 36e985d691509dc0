"""Softmax as one function: its first and second derivatives say more than those of its pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.form import Form, holding_zero, together
from milp_agt.bounds.zonotope.local import mapped
from milp_agt.bounds.zonotope.owed import Owing, Shares, Split, of_everyone
from milp_agt.core.graph import Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import ELEMENTARY, TINY, UNIT_ROUNDOFF, gamma
from milp_agt.formulations.exponential import Exponential
from milp_agt.formulations.linear import Affine
from milp_agt.formulations.reciprocal import Reciprocal

# Where p (1 - p) (1 - 2 p) and the bound of the negative part are largest.
RISE, FALL = (3.0 - 3.0**0.5) / 6.0, (3.0 + 3.0**0.5) / 6.0
# Differences of logits beyond this settle every probability.
SETTLED = 60.0


@dataclass(frozen=True)
class Softmax:
    """Nodes that together are ``p_j = 1 / (1 + sum_{k != j} exp(f_k - f_j))``."""

    logits: str
    differences: Node
    exponentials: Node
    total: Node
    probability: Node


def softmaxes(nodes: Sequence[Node]) -> dict[str, Softmax]:
    """Every softmax of three or more classes, by the name of its last node."""
    known = {node.name: node for node in nodes}
    found = {}
    for node in nodes:
        if isinstance(node.op, Reciprocal) and node.inputs[0] in known:
            chain = _chain(node, known)
            if chain is not None:
                found[node.name] = chain
    return found


def _chain(probability: Node, known: dict[str, Node]) -> Softmax | None:
    total = known[probability.inputs[0]]
    exponentials = known.get(total.inputs[0]) if isinstance(total.op, Affine) else None
    if exponentials is None or not isinstance(exponentials.op, Exponential):
        return None
    differences = known.get(exponentials.inputs[0])
    if differences is None or not isinstance(differences.op, Affine):
        return None
    assert isinstance(total.op, Affine)
    read = [n for n in known.values() if {exponentials.name, total.name} & set(n.inputs)]
    classes = probability.shape[0]
    eye = torch.eye(classes, dtype=torch.float64, device=total.op.matrix.device)
    pairs = [(j, k) for j in range(classes) for k in range(classes) if k != j]
    matrix = torch.stack([eye[k] - eye[j] for j, k in pairs])
    alike = (
        len(read) == 2
        and differences.op.bias is None
        and total.op.bias is not None
        and torch.equal(differences.op.matrix, matrix)
        and torch.equal(total.op.matrix, eye.repeat_interleave(classes - 1, dim=1))
        and torch.equal(total.op.bias, torch.ones_like(total.op.bias))
    )
    if not alike:
        return None
    return Softmax(differences.inputs[0], differences, exponentials, total, probability)


def softmax_form(
    logits: Form,
    away: Interval,
    shares: Shares | None = None,
    owing: Owing = of_everyone,
) -> Form:
    """The form of softmax, from that of the logits and the deviations of all differences.

    ``away`` (2, n, c (c - 1)) are those of ``f_k - f_j``, ordered as :class:`Softmax` has them. Along a
    move w of the logits, with mu and Var the mean and the variance of w under p,

        d2 p_j = p_j ((w_j - mu)^2 - Var).

    Let the others have a mean at distance m from w_j and a variance V, and q = 1 - p. Then the variance
    of all is ``q V + p q m^2`` and ``d2 p_j = p q ((q - p) m^2 - V)``. With ``|w_k - w_j| <= D_j`` for all k
    that is at most ``p q (1 - 2 p) D_j^2``, and at most 0 for p >= 1/2. All differences being at most D,
    V is at most ``D^2 / 4``, and ``m (D - m)`` if w_j is at an end, where m may be largest: so that
    ``-d2 p_j`` is at most ``p q D^2 / 4`` for p <= 1/2, ``p D^2 / 8`` up to 3/4, and ``p q (2 p - 1) D^2``
    beyond.
    Both are unimodal in p, and on the way p_j stays within ``p exp(+-D_j) / (1 - p + p exp(+-D_j))``.

    With the ``shares`` of the differences, or of the largest of each class, ``owing`` may leave of that what
    is there if nobody is poisoned, and have generators owe the rest: where i is poisoned, ``D^2`` is at most
    D times its total.
    """
    centre = torch.softmax(logits.centre, -1)
    jacobian = torch.diag_embed(centre) - centre.unsqueeze(-1) * centre.unsqueeze(-2)
    classes = centre.shape[-1]

    def furthest(part: Tensor) -> Tensor:  # (..., n, c)
        return part.reshape(*part.shape[:-1], classes, -1).amax(-1)

    reach = furthest(away.magnitude)
    widest = reach.amax(-1, keepdim=True)
    second, split = _second_order(centre, reach, reach), None
    if shares is not None:
        each, total, base = (furthest(part) for part in shares.size)
        anyway = _second_order(centre, base, base)
        split = Split(anyway, _second_order(centre, total, each), shares.others is not None)
    largest = second.magnitude.amax(0)
    second, owed = owing(second, split)
    positive, negative = jacobian.clamp(min=0.0), (-jacobian).clamp(min=0.0)

    def image(part: Tensor, matrix: Tensor) -> Tensor:
        return torch.einsum("...nk,njk->...nj", part, matrix)

    lower = image(logits.rest.lower, positive) - image(logits.rest.upper, negative)
    upper = image(logits.rest.upper, positive) - image(logits.rest.lower, negative)
    size = centre + image(logits.size, jacobian.abs()) + largest
    spread = logits.centre.amax(-1, keepdim=True) - logits.centre.amin(-1, keepdim=True)
    # Of the run: exponentials of differences, their sum, and a quotient, relative to p <= 1.
    argument = spread + widest.amax(0)
    evaluation = UNIT_ROUNDOFF * (4.0 * ELEMENTARY + 8.0 * classes + 16.0 * argument)
    error = evaluation + gamma(16 * classes + 64) * size + TINY
    rest = holding_zero(Interval(lower, upper).plus(second).widen(error))
    if logits.owed is not None:
        low, high = logits.owed.lower, logits.owed.upper
        ends = (
            image(low, positive) - image(high, negative),
            image(high, positive) - image(low, negative),
        )
        sizes = image(logits.owed.magnitude, jacobian.abs())
        own = Interval(*ends).widen(gamma(8 * classes + 64) * sizes)
        owed = together(own, owed)
    return Form(
        centre,
        rest,
        size,
        mapped(logits.on_state, lambda part: image(part, jacobian)),
        **logits.images(lambda p: image(p, jacobian), lambda p: image(p, jacobian.abs())),
        owed=owed,
    )


def _second_order(centre: Tensor, reach: Tensor, other: Tensor) -> Interval:
    """What second order adds, for moves within a reach whose squares are at most ``reach * other``."""
    low, high = _moved(centre, -reach), _moved(centre, reach)
    slack = 1.0 + 1e-9
    rise = torch.clamp(torch.full_like(low, RISE), min=low, max=high)
    fall = torch.clamp(torch.full_like(low, FALL), min=low, max=high)
    widest = reach.amax(-1, keepdim=True) * other.amax(-1, keepdim=True)
    return Interval(
        -0.5 * slack * _falling(fall) * widest, 0.5 * slack * _rising(rise) * reach * other
    )


def _moved(p: Tensor, by: Tensor) -> Tensor:
    """The probability after all differences to the others grew by ``by``."""
    factor = torch.exp(by.clamp(min=-SETTLED, max=SETTLED))
    moved = p * factor / (1.0 - p + p * factor)
    moved = torch.where(by.abs() >= SETTLED, (by > 0).to(p), moved)
    # Rounding, a thousand times over; the bounds are flat enough in p not to notice.
    return (moved + torch.where(by > 0, 1e-12, -1e-12).to(p)).clamp(min=0.0, max=1.0)


def _rising(p: Tensor) -> Tensor:
    return p * (1.0 - p) * (1.0 - 2.0 * p).clamp(min=0.0)


def _falling(p: Tensor) -> Tensor:
    q = 1.0 - p
    steep = torch.where(p <= 0.75, 0.125 * p, p * q * (2.0 * p - 1.0))
    return torch.where(p <= 0.5, 0.25 * p * q, steep)
