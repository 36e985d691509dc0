"""What every model in a box of parameters does at test points.

The last layer is taken together with what is asked of it: ``sum_o c_o f_o(x) = sum_j (sum_o c_o W_oj) h_j
+ c . b``, so that outputs that share their hidden units are not bounded apart. With one hidden layer all
numbers in this sum are independent of each other, and the bound is exact but for rounding.
"""

from __future__ import annotations

import numpy as np

from milp_agt.checker import functions
from milp_agt.checker.boxes import Array, Box, corners, down, number, total, up
from milp_agt.checker.layers import Problem, State, forward

POINTS = 256  # test points at once


def outputs(problem: Problem, state: State, x: Array) -> Box:
    """Every output of every model at every point, (cases, n, outputs)."""
    return forward(problem, state, Box.point(x[None]))[-1]


def margins(problem: Problem, state: State, x: Array, labels: Array) -> Box:
    """The output of the label less each of the others, (cases, n, outputs - 1); of one logit f: f, or -f
    for label 0.
    """
    values = forward(problem, state, Box.point(x[None]))
    last, hidden, arithmetic = problem.layers[-1], values[-2], problem.arithmetic
    weight = state[last.weight]
    outputs = weight.lo.shape[1]
    bias = state[last.bias] if last.bias else Box.point(weight.lo[..., 0] * number(0.0, weight.lo))
    error = arithmetic.off(
        hidden.lo.shape[-1] + 1,
        hidden.size @ np.swapaxes(weight.size, -1, -2) + bias.size[:, None],
    )
    if outputs == 1:
        found = total(*corners(weight[:, None, 0], hidden)) + bias
        found = found.widened(error[..., 0])
        positive = labels > 0
        return Box(
            np.where(positive, found.lo, -found.hi), np.where(positive, found.hi, -found.lo)
        )[..., None]
    others = np.array([[k for k in range(outputs) if k != j] for j in range(outputs)])[labels]
    rows = weight[:, labels][:, :, None] - weight[:, others]
    found = total(*corners(rows, hidden[:, :, None])) + (
        bias[:, labels][:, :, None] - bias[:, others]
    )
    own = np.take_along_axis(
        error, np.broadcast_to(labels[None, :, None], (*error.shape[:2], 1)), -1
    )
    other = np.take_along_axis(error, np.broadcast_to(others, (*error.shape[:2], outputs - 1)), -1)
    return found.widened(up(own + other))


def count_right(problem: Problem, state: State, x: Array, labels: Array) -> tuple[int, int]:
    """For every case the points at which all its models, and at which some, predict the label: the worst
    case of both.

    A tie counts as wrong in the first number and as right in the second.
    """
    cases = max(state[name].lo.shape[0] for name in problem.parameters)
    sure, possible = np.zeros(cases, dtype=np.int64), np.zeros(cases, dtype=np.int64)
    for start in range(0, len(x), POINTS):
        part = slice(start, start + POINTS)
        margin = margins(problem, state, x[part], labels[part])
        sure += (margin.lo > 0).all(-1).sum(-1)
        possible += (margin.hi >= 0).all(-1).sum(-1)
    return int(sure.min()), int(possible.max())


def mean_loss(problem: Problem, state: State, x: Array, encoded: Array, labels: Array) -> Box:
    """The mean loss of every case, (cases,), as an exact function of the outputs of the run.

    cross_entropy: ``log(1 + sum_k exp(-margin_k))``; bce: the same of its one margin; hinge: ``max(0, 1 -
    margin)``; mse: the mean square of ``f - y`` over the outputs.
    """
    low: list[Array] = []
    high: list[Array] = []
    for start in range(0, len(x), POINTS):
        part = slice(start, start + POINTS)
        each = _losses(problem, state, x[part], encoded[part], labels[part])
        low.append(each.lo)
        high.append(each.hi)
    whole = total(np.concatenate(low, -1), np.concatenate(high, -1))
    count = number(float(len(x)), whole.lo)
    return Box(down(whole.lo / count), up(whole.hi / count))


def _losses(problem: Problem, state: State, x: Array, encoded: Array, labels: Array) -> Box:
    if problem.loss == "mse":
        gap = outputs(problem, state, x) - Box.point(encoded[None])
        zero, width = number(0.0, gap.lo), number(float(encoded.shape[1]), gap.lo)
        nearest = np.where(
            (gap.lo <= 0) & (gap.hi >= 0), zero, np.minimum(abs(gap.lo), abs(gap.hi))
        )
        squares = total(nearest * nearest, gap.size * gap.size)
        return Box(down(squares.lo / width), up(squares.hi / width))
    margin = margins(problem, state, x, labels)
    one, zero = number(1.0, margin.lo), number(0.0, margin.lo)
    if problem.loss == "hinge":
        return Box(
            np.maximum(down(one - margin.hi[..., 0]), zero),
            np.maximum(up(one - margin.lo[..., 0]), zero),
        )
    odds = functions.exp(-margin)
    whole = total(odds.lo, odds.hi)
    return functions.log(Box(np.maximum(down(one + whole.lo), one), up(one + whole.hi)))
