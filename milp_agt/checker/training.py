"""One training step, bounded for every admissible poisoning at once.

At most k samples of a batch are poisoned. Let the term of sample i in a sum over the
batch lie in ``[c_i, C_i]`` if i is clean and in ``[p_i, P_i]`` if it may be poisoned. For every admissible
set S

    sum_i t_i <= sum_{i not in S} C_i + sum_{i in S} P_i <= sum_i C_i + sum of the k largest max(0, P_i -
    C_i)

and alike from below (Sosnin et al. 2024, section 4). This covers static and adaptive adversaries, since
nothing ties the poisoned samples of two steps to each other, and budgets for the data set, since a batch
holds at most k of them.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from milp_agt.checker import boxes, layers
from milp_agt.checker.boxes import Array, Box, Unbounded, down, largest, scale_of, up
from milp_agt.checker.layers import VELOCITY, Poisoned, Problem, Samples, State, T, Values

Term = tuple[Box, Box]  # the factors of an outer product


def summed(clean: Term, poisoned: Term | None, places: Array, budget: int) -> tuple[Box, Array]:
    """The sum over the batch with at most ``budget`` of the samples at ``places`` poisoned; and ``sum
    |terms|``.

    Returns boxes (cases, *shape).
    """
    delta, given = clean
    if poisoned is None:
        if delta.lo.shape[0] > 1 or delta.is_point:
            return boxes.matmul(delta.T, given), delta.T.size @ given.size
        poisoned = delta[:, places], given[:, places]
    pieces = [
        _worst(_outer(clean, part), _outer(poisoned, part), places, budget)
        for part in layers.parts_of(given.lo[0].size, delta.lo.shape[-1])
    ]
    low, high, size = (np.concatenate(each, 1) for each in zip(*pieces, strict=True))
    return Box(low, high), size


def _outer(pair: Term, part: slice) -> tuple[Array, Array]:
    """Ends of the terms of some rows, (cases, n, rows, width), rounded to nearest."""
    return boxes.corners(pair[0][:, :, part, None], pair[1][:, :, None])


def _worst(
    clean: tuple[Array, Array], poisoned: tuple[Array, Array], places: Array, budget: int
) -> tuple[Array, Array, Array]:
    """Lower and upper end of the sum over axis 1, and the sum of sizes. Every term is a product that was
    rounded; a difference of terms is no larger than both together.
    """
    low, high = clean
    falls = np.maximum(up(low[:, places] - poisoned[0]), 0.0)
    rises = np.maximum(up(poisoned[1] - high[:, places]), 0.0)
    size = np.maximum(abs(low), abs(high))
    reach = np.maximum(abs(poisoned[0]), abs(poisoned[1]))
    size = size.sum(1) + np.maximum(reach - size[:, places], 0.0).sum(1)
    fall, rise = (largest(h, budget, 1).sum(1) if budget else 0.0 for h in (falls, rises))
    error = boxes.allowance(low.shape[1] + len(places) + 8, size * 4.0)
    return down(low.sum(1) - fall - error), up(high.sum(1) + rise + error), size


def updated(
    problem: Problem, index: int, name: str, state: State, sums: Box, size: Array
) -> dict[str, Box]:
    """The optimiser step of one parameter, with exact coefficients (see :class:`~.layers.Rule`)."""
    rule, batch, theta = problem.rules[index], problem.batches[index].shape[-1], state[name]
    velocity, share = state.get(VELOCITY + name, theta), scale_of(Fraction(1, batch), theta.lo)
    errors = rule.off(problem.arithmetic, name, theta.size, velocity.size, size * share.hi)
    if rule.l1:
        sums = sums + Box(np.sign(theta.lo), np.sign(theta.hi)).times(Fraction(rule.l1) * batch)
    new = rule.applied(name, state, sums, batch, errors)
    if rule.projection is not None:
        ends = [scale_of(end, theta.lo).lo for end in rule.projection]
        new[name] = Box(np.clip(new[name].lo, *ends), np.clip(new[name].hi, *ends))
    return {key: boxes.coarse(box) for key, box in new.items()}


def step(
    problem: Problem, index: int, state: State, samples: Samples, poisoned: Poisoned | None
) -> dict[str, Box]:
    """The state after a step from any state in the boxes, on any admissible batch."""
    batch, arithmetic = problem.batches[index], problem.arithmetic
    clean = layers.terms(problem, state, samples.at(batch))
    places = np.flatnonzero(poisoned.open[batch] if poisoned and poisoned.budget else [])
    worse, budget = {}, poisoned.budget if poisoned else 0
    if poisoned and len(places):
        worse = layers.terms(problem, state, poisoned.samples.at(batch[places]))
    new: dict[str, Box] = {}
    for name, pair in clean.items():
        sums, size = summed(pair, worse.get(name), places, budget)
        if state[name].lo.ndim == 2:  # a bias
            sums, size = sums[..., 0], size[..., 0]
        sums = arithmetic.rounded(sums, batch.shape[-1] + 2, size)
        new |= updated(problem, index, name, state, sums, size)
    return new


def begin(problem: Problem, initial: Values, made: Callable[[Array], T]) -> dict[str, T]:
    """The state before the first step; velocities are zero."""
    state = {name: made(initial[name]) for name in problem.parameters}
    if any(rule.momentum for rule in problem.rules):
        state |= {VELOCITY + n: made(0.0 * initial[n]) for n in problem.parameters}
    return state


def train(
    problem: Problem, initial: Values, samples: Samples, poisoned: Poisoned | None = None
) -> dict[str, Box]:
    """Boxes of the parameters after the run, (cases, *shape)."""
    state = begin(problem, initial, lambda values: Box.point(values[None]))
    for index in range(len(problem.batches)):
        try:
            state = step(problem, index, state, samples, poisoned)
        except Unbounded as error:
            raise Unbounded(f"step {index + 1} of {len(problem.batches)}: {error}") from None
    return {name: state[name] for name in problem.parameters}
