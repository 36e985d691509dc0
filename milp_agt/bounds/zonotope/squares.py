"""What is quadratic in the move of one sample, carried as it is and bounded at a corner of its box.

The gradient of the first layer is a product of two factors that the sample's own move e reaches: with
``da = A e + ra`` and ``db = B e + rb`` there is a term ``(A e)(B e)``. Step by step it is a box of its own;
but it is one and the same e in all steps, so that sums over steps, with their signs, are smaller.

Coordinates of moves are in units of their largest size, ``e_j = reach_j u_j`` with ``|u_j| <= 1``; matrices
Q are symmetric, and ``u'Qu`` lies within ``+- sum |Q_jk|``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.bounds.zonotope.dual import Bound, Directions, Multipliers, on_moves
from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.samples import SampleGenerators
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.einsum import Letters

# Multiplications of one step with the Jacobian of the state; and how much of a factor its own move is,
# below which it is not worth it, and what the move and the rest may add up to, in parts of the range of both.
PER_STEP, SHARE, LOOSER = 2**27, 0.25, 1.1
# What a number of them takes: there are a handful of copies while a step is taken, less than a tenth of all.
BYTES = 8 * 64


def fit_in(size: int, count: int, width: int, memory: int) -> bool:
    """Whether matrices for each of so many coordinates and samples fit, and are worth their time."""
    numbers = size * count * width * width
    return 0 < size * numbers <= PER_STEP and BYTES * numbers <= memory


def of_moves(letters: Letters, first: Tensor, second: Tensor, reach: Tensor) -> Tensor:
    """``einsum(A e, B e)`` as matrices, (width^2, n, *shape), from coefficients (width, n, *shape).

    ``reach`` of the moves of the samples, (n, width).
    """
    a, b, out = letters
    first, second = (
        part * reach.T.reshape(*reach.T.shape, *[1] * (part.dim() - 2)) for part in (first, second)
    )
    found = torch.einsum(f"Y{a},Z{b}->YZ{out}", first, second)
    return (0.5 * (found + found.transpose(0, 1))).flatten(0, 1)


def saved(linear: Tensor, squares: Tensor, reach: Tensor) -> Tensor:
    """By how much ``max g.e + u'Qu`` is below ``sum_j |g_j| reach_j + sum_jk |Q_jk|`` at least, (r, m).

    At the corner ``s = sign(g)`` with ``u_j = s_j (1 - t_j)``, ``t`` in [0, 2], and ``R_jk = s_j s_k Q_jk``

        g.e + u'Qu = sum_j G_j + sum_jk R_jk - sum_j t_j (G_j + 2 sum_k R_jk) + sum_jk R_jk t_j t_k
                  <= sum_j G_j + sum_jk R_jk + sum_j t_j (2 r_j - G_j),

    where ``G_j = |g_j| reach_j``, ``r_j = sum_k max(0, -R_jk)``, and ``t_j t_k <= t_j + t_k`` for numbers up
    to 2. Where its factor is positive t_j is 2, else 0: ``2 sum_j min(r_j, G_j - r_j)`` is saved.

    Args:
        linear: g, (r, m, width).
        squares: Q, (r, m, width^2).
        reach: (m, width).
    """
    width = reach.shape[1]
    sign = torch.where(linear >= 0.0, 1.0, -1.0).to(linear)
    signed = squares.unflatten(-1, (width, width)) * sign.unsqueeze(-1) * sign.unsqueeze(-2)
    against = (-signed).clamp(min=0.0).sum(-1)
    return (2.0 * torch.minimum(against, linear.abs() * reach - against).sum(-1)).clamp(min=0.0)


def spared(d: Directions, moves: Tensor, samples: SampleGenerators) -> Tensor:
    """What :func:`saved` says of directions with the coefficients ``moves`` on moves, (r, m); else 0."""
    if d.squares is None or not d.squares.shape[-1] or not samples.is_mirrored:
        return torch.zeros_like(d.up)
    return saved(moves, d.squares, samples.reach)


def narrowed(
    found: Bound, d: Directions, flips: Flips, alpha: Multipliers, samples: SampleGenerators
) -> Bound:
    """The bound of directions, in which squares were a box of noise, with what a corner spares of it."""
    if d.squares is None or not d.squares.shape[-1]:
        return found
    less = spared(d, on_moves(d, flips, alpha, samples), samples)
    operations = d.operations + 8.0 * flips.count + 8.0 * samples.width**2 + 64.0
    slack = found.slack + gamma(2.0 * operations) * d.size + TINY
    return Bound(found.rest, found.each - less, slack)
