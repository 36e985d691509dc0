"""What is proved of a run: everything that it can end with, and what such models do. Claims are compared
with it later.

**Trees** over who is poisoned and how have leaves that together hold every run of a threat. They are for at
most one poisoned sample, the same in the whole run. A node is a row (kind, what, value): a leaf; or two
nodes, which follow it, the first with all below it first. Of a node that asks WHO, the children have
the samples that may be poisoned with numbers below ``what``, and the others; of one that asks WHERE, which
has one such sample, those values of its features and labels whose entry ``what`` is at most ``value``, and at
least that; of one that asks for a PHASE, the runs in which the argument of an activation, number ``value``
(in the order of layers, samples of the batch and units) of those of step ``what``, is at most 0, and the
others. So the children of a node hold each of its runs, that on the data as given among them (it is one in
which the sample, at its own values, is poisoned); by induction the leaves hold those of the root.
In a leaf the run is bounded around the middle of its box: affine forms do not ask what was there before.

**Questions.** The last layer is taken together with what is asked of it: ``sum_o c_o f_o(x) = sum_j (sum_o
c_o W_oj) h_j + c . b``, so that outputs that share their hidden units are not bounded apart. With one hidden
layer all numbers in this sum are independent of each other, and the bound is exact but for rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from milp_agt.checker import boxes, functions, steps, training
from milp_agt.checker.boxes import Array, Box, down, joined, up
from milp_agt.checker.files import Rejected
from milp_agt.checker.layers import Problem, Samples, State, forward
from milp_agt.checker.statement import Question, Statement, asked_for

AT_ONCE = 64  # listed runs that are bounded side by side, and test points
MOST_LISTED = 1_000_000
LEAF, WHO, WHERE, PHASE = range(4)


def leaves(given: Statement) -> Iterator[Statement]:
    """The statement for each leaf; itself without a tree.

    Raises:
        Rejected: no tree.
    """
    waiting, used, after, whole = [given], 0, 0, len(given.flips)
    for kind, what, value in [(LEAF, 0, whole)] if given.tree is None else given.tree.tolist():
        if not waiting or kind not in (LEAF, WHO, WHERE, PHASE):
            raise Rejected("claim.tree: a node that is none, or more nodes than a tree has")
        one = waiting.pop()
        if kind == LEAF:
            if not 0 <= value <= whole - used:
                raise Rejected("claim.tree: a leaf with flips that are not there")
            own, used = given.flips[used : used + int(value)], used + int(value)
            before, after = after, after + asked_for(given, own)
            yield replace(one, flips=own, multipliers=given.multipliers[before:after])
        else:
            waiting += [_child(one, kind, int(what), value, side) for side in (True, False)]
    if waiting or used != whole:
        raise Rejected("claim.tree: a node without children, or flips that no leaf has")


def _child(one: Statement, kind: int, what: int, value: float, above: bool) -> Statement:
    """One side of a split. In a part of a box, moves are from its middle, of which a norm says nothing."""
    poisoned = one.poisoned
    if kind == PHASE:
        return replace(one, phases=(*one.phases, (what, int(value), 1.0 if above else -1.0)))
    if kind == WHO:
        side = (np.arange(len(poisoned.open)) >= what) == above
        return replace(one, poisoned=replace(poisoned, open=poisoned.open & side))
    width, own = one.samples.x.lo.shape[2], np.flatnonzero(poisoned.open)
    given, ranges = one.samples, poisoned.samples
    low = np.concatenate([ranges.x.lo, ranges.y.lo], 2)
    high = np.concatenate([ranges.x.hi, ranges.y.hi], 2)
    middle = np.concatenate([given.x.lo, given.y.lo], 2)
    inside = len(own) == 1 and 0 <= what < low.shape[2]
    if not inside or not low[0, own[0], what] <= value <= high[0, own[0], what]:
        raise Rejected("claim.tree: a box that is not there, or cut outside of itself")
    (low if above else high)[0, own, what] = value
    middle[0, own] = 0.5 * low[0, own] + 0.5 * high[0, own]
    box, point = (
        Samples(Box(a[..., :width], b[..., :width]), Box(a[..., width:], b[..., width:]))
        for a, b in ((low, high), (middle, middle))
    )
    return replace(one, samples=point, poisoned=replace(poisoned, samples=box, norm=0))


def of_rows(problem: Problem, state: State, x: Box, rows: Array) -> Box:
    """Some rows (n, r, outputs), of at most two numbers that are not 0, times the outputs of every model at
    all features of the points (n, d), (cases, n, r).
    """
    hidden, last = forward(problem, state, x[None])[-2], problem.layers[-1]
    weight, c = state[last.weight], boxes.exact(rows) if boxes.is_exact(x.lo) else rows
    size = hidden.size @ weight.T.size
    found = boxes.matmul(Box.point(c[None]), weight[:, None])
    found = boxes.total(*boxes.corners(found, hidden[:, :, None]))
    if last.bias:
        bias = state[last.bias][:, None]
        size = size + bias.size
        found = found + boxes.matmul(Box.point(c[None]), bias[..., None])[..., 0]
    error = problem.arithmetic.off(hidden.lo.shape[-1] + 1, size)[..., None]
    return found.widened(up(abs(c) @ error)[..., 0])


def differences(encoded: Array) -> Array:
    """Rows (n, r, outputs) that give the output of the class (n, outputs) less each of the others; of one
    logit f: f, or -f for class 0.
    """
    if encoded.shape[1] == 1:
        return np.where(encoded > 0, 1.0, -1.0)[:, None]
    ends, own = np.eye(encoded.shape[1]), range(encoded.shape[1])
    every = np.array([[ends[j] - ends[k] for k in own if k != j] for j in own])
    return np.asarray(every[encoded.argmax(-1)])


def count_right(margin: Box, edge: Array) -> tuple[int, int]:
    """At how many points all models of a case, and at how many some, predict the label (at all features, and
    at some): the worst case of both.

    ``margin`` (cases, n, others); a tie counts as wrong in the first number and as right in the second.
    """
    sure, possible = (margin.lo > edge).all(-1).sum(-1), (margin.hi >= -edge).all(-1).sum(-1)
    return int(sure.min()), int(possible.max())


def mean(losses: Box) -> Box:
    """The mean over the points, (cases,)."""
    whole = boxes.total(losses.lo, losses.hi)
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
    whole = boxes.total(odds.lo, odds.hi)
    return functions.log(Box(np.maximum(down(1.0 + whole.lo), 1.0), up(1.0 + whole.hi)))


@dataclass(frozen=True)
class Reached:
    """Cases of the parameters, one of which holds: boxes (cases, *shape), and what is proved of each question
    for all of them: bounds of what it counts, or of the mean loss.
    """

    boxes: Mapping[str, Box]
    ends: tuple[tuple[float, float], ...]


def reached(given: Statement, jobs: int = 1) -> list[Reached]:
    """By the method of a statement.

    Raises:
        Unbounded: nothing is known at some step, or of some question.
    """
    with np.errstate(all="ignore"):
        if given.method == "listed":
            # The run on every data set that the adversary may choose: plain runs with their rounding.
            return list(_each(partial(_run_on, given), _chunks(given), jobs))
        if given.method == "interval":
            run = given.problem, given.initial, given.samples, given.poisoned
            return [_known(given, training.train(*run))]
        return list(_each(_by_forms, leaves(given), jobs))


def _by_forms(given: Statement) -> Reached:
    with np.errstate(all="ignore"):
        forms = steps.train(given, steps.stored(given))
        return _known(given, forms.boxes(), forms)


def _each(work: Callable[[Any], Reached], parts: Iterable[Any], jobs: int) -> Iterator[Reached]:
    """The work on each part, in their order."""
    if jobs == 1:
        yield from map(work, parts)
        return
    from concurrent.futures import ProcessPoolExecutor  # a fifth of the time that all imports take

    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(work, parts)


def answer(number: int, cases: Sequence[Reached]) -> tuple[float, float]:
    """The bounds of a question over all cases."""
    ends = [case.ends[number] for case in cases]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _known(given: Statement, state: State, forms: steps.Final | None = None) -> Reached:
    ends = (_ends(given.problem, asked, state, forms) for asked in given.questions)
    return Reached(state, tuple(ends))


def _ends(
    problem: Problem, asked: Question, state: State, forms: steps.Final | None
) -> tuple[float, float]:
    pieces, squares = [], asked.kind == "loss" and problem.loss == "mse"
    for start in range(0, len(asked.encoded), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        x, y = asked.x[part], asked.encoded[part]
        rows = np.repeat(np.eye(y.shape[1])[None], len(y), 0) if squares else differences(y)
        found = of_rows(problem, state, x, rows)
        found = found if forms is None else found.met(forms.rows(x, rows))
        if squares:
            found = mean((found - Box.point(y[None])).square())
        elif asked.kind == "loss":
            found = losses_of_margins(problem.loss, found)
        pieces.append(found)
    whole = joined(pieces, 1)
    if asked.kind == "loss":
        means = mean(whole)
        return means.lo.min(), means.hi.max()
    least, most = count_right(whole, problem.arithmetic.edge(whole))
    if asked.kind == "backdoor":
        return len(asked.encoded) - most, len(asked.encoded) - least
    return least, len(asked.encoded) if asked.kind == "stable" else most


def all_choices(given: Statement) -> Iterator[dict[int, int]]:
    """Every admissible data set as what is exchanged: which choice for which sample; 0 for one left out.

    Raises:
        Rejected: more than can be listed.
    """
    labels, choices = given.samples.y.lo[0], given.choices
    every = range(1 if choices is None else choices.shape[1])
    others = {
        int(i): [c for c in every if choices is None or (choices[i, c] != labels[i]).any()]
        for i in np.flatnonzero(given.poisoned.open)
    }
    most = max(map(len, others.values()), default=0)
    total = 0
    for count in range(given.poisoned.budget + 1):  # ends soon: these numbers may be huge
        total += math.comb(len(others), count) * most**count
        if total > MOST_LISTED:
            raise Rejected(f"the threat: more than the {MOST_LISTED} data sets that are listed")
    for count in range(given.poisoned.budget + 1):
        for chosen in itertools.combinations(others, count):
            for labelled in itertools.product(*(others[i] for i in chosen)):
                yield dict(zip(chosen, labelled, strict=True))


def _chunks(given: Statement) -> Iterator[list[dict[int, int]]]:
    """Data sets whose batches are of the same sizes, some at once."""
    removed = given.choices is None

    def sizes(chosen: dict[int, int]) -> list[int]:
        return [len(batch) for batch in _batches(given, chosen)] if removed else []

    for _, alike in itertools.groupby(all_choices(given), sizes):
        while chunk := list(itertools.islice(alike, AT_ONCE)):
            yield chunk


def _batches(given: Statement, left_out: dict[int, int]) -> list[Array]:
    return [batch[~np.isin(batch, list(left_out))] for batch in given.problem.batches]


def _run_on(given: Statement, chosen: list[dict[int, int]]) -> Reached:
    problem, samples = given.problem, given.samples
    if given.choices is None:  # a batch that loses all of its samples has no step
        kept = [np.stack(each) for each in zip(*(_batches(given, c) for c in chosen), strict=True)]
        pairs = [pair for pair in zip(kept, problem.rules, strict=True) if pair[0].size]
        first = problem.rules[0].dampening  # of whichever step is taken first: torch has none there
        rules = [r if n else replace(r, dampening=first) for n, (_, r) in enumerate(pairs)]
        problem = replace(problem, batches=tuple(b for b, _ in pairs), rules=tuple(rules))
    else:
        y = np.repeat(samples.y.lo, len(chosen), 0)
        for case, exchanged in enumerate(chosen):
            for sample, choice in exchanged.items():
                y[case, sample] = given.choices[sample, choice]
        samples = Samples(samples.x, Box.point(y))
    with np.errstate(all="ignore"):
        return _known(given, training.train(problem, given.initial, samples))
