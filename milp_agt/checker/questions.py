"""What every model in a box of parameters does at test points.

The last layer is taken together with what is asked of it: ``sum_o c_o f_o(x) = sum_j (sum_o c_o W_oj) h_j
+ c . b``, so that outputs that share their hidden units are not bounded apart. With one hidden layer all
numbers in this sum are independent of each other, and the bound is exact but for rounding.
"""

from __future__ import annotations

import numpy as np

from milp_agt.checker import functions
from milp_agt.checker.boxes import Array, Box, corners, down, exact, is_exact, matmul, total, up
from milp_agt.checker.layers import Problem, State, forward


def of_rows(problem: Problem, state: State, x: Array, rows: Array) -> Box:
    """Some rows (n, r, outputs), of at most two numbers that are not 0, times the outputs of every model at
    the points, (cases, n, r).
    """
    hidden, last = forward(problem, state, Box.point(x[None]))[-2], problem.layers[-1]
    weight, c = state[last.weight], exact(rows) if is_exact(x) else rows
    size = hidden.size @ weight.T.size
    found = matmul(Box.point(c[None]), weight[:, None])
    found = total(*corners(found, hidden[:, :, None]))
    if last.bias:
        bias = state[last.bias][:, None]
        size = size + bias.size
        found = found + matmul(Box.point(c[None]), bias[..., None])[..., 0]
    error = problem.arithmetic.off(hidden.lo.shape[-1] + 1, size)[..., None]
    return found.widened(up(abs(c) @ error)[..., 0])


def differences(labels: Array, outputs: int) -> Array:
    """Rows (n, r, outputs) that give the output of the label less each of the others; of one logit f: f, or
    -f for label 0.
    """
    if outputs == 1:
        return np.where(labels > 0, 1.0, -1.0)[:, None, None]
    ends, own = np.eye(outputs), range(outputs)
    found: Array = np.array([[ends[j] - ends[k] for k in own if k != j] for j in own])[labels]
    return found


def count_right(margin: Box) -> tuple[int, int]:
    """At how many points all models of a case, and at how many some, predict the label: the worst case of
    both.

    ``margin`` (cases, n, others); a tie counts as wrong in the first number and as right in the second.
    """
    sure, possible = (margin.lo > 0).all(-1).sum(-1), (margin.hi >= 0).all(-1).sum(-1)
    return int(sure.min()), int(possible.max())


def mean(losses: Box) -> Box:
    """The mean over the points, (cases,)."""
    whole = total(losses.lo, losses.hi)
    count = float(losses.lo.shape[-1])
    return Box(down(whole.lo / count), up(whole.hi / count))


def losses_of_margins(loss: str, margin: Box) -> Box:
    """``log(1 + sum_k exp(-margin_k))`` of each point (cross_entropy, bce), or ``max(0, 1 - margin)``
    (hinge).
    """
    if loss == "hinge":
        low, high = down(1.0 - margin.hi[..., 0]), up(1.0 - margin.lo[..., 0])
        return Box(np.maximum(low, 0.0), np.maximum(high, 0.0))
    odds = functions.exp(-margin)
    whole = total(odds.lo, odds.hi)
    return functions.log(Box(np.maximum(down(1.0 + whole.lo), 1.0), up(1.0 + whole.hi)))


def losses_of_outputs(found: Box, encoded: Array) -> Box:
    """The mean square of ``f - y`` over the outputs of each point (mse)."""
    square = (found - Box.point(encoded[None])).square()
    return mean(square)
