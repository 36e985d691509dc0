"""What is proved of a run: everything that it can end with, and what such models do. Claims are compared
with it later.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from milp_agt.checker import questions, steps, training
from milp_agt.checker.boxes import Array, Box, joined
from milp_agt.checker.files import Rejected
from milp_agt.checker.layers import Problem, Samples
from milp_agt.checker.statement import Question, Statement
from milp_agt.checker.tree import leaves

AT_ONCE = 64  # listed runs that are bounded side by side, and test points
MOST_LISTED = 1_000_000


@dataclass(frozen=True)
class Reached:
    """Cases of the parameters, one of which holds: boxes (cases, *shape), and the forms that one case
    may have.
    """

    problem: Problem
    boxes: Mapping[str, Box]
    forms: steps.Final | None = None

    def rows(self, x: Array, rows: Array) -> Box:
        """See :func:`questions.of_rows`; by boxes and by forms."""
        found = questions.of_rows(self.problem, self.boxes, x, rows)
        return found if self.forms is None else found.met(self.forms.rows(x, rows))


def reached(given: Statement, jobs: int = 1) -> list[Reached]:
    """By the method of a statement.

    Raises:
        Unbounded: nothing is known at some step.
    """
    problem = given.problem
    with np.errstate(all="ignore"):
        if given.method == "listed":
            # The run on every data set that the adversary may choose: plain runs with their rounding.
            return list(_each(partial(_run_on, given), _chunks(given), jobs))
        if given.method == "interval":
            boxes = training.train(problem, given.initial, given.samples, given.poisoned)
            return [Reached(problem, boxes)]
        return list(_each(_by_forms, leaves(given), jobs))


def _by_forms(given: Statement) -> Reached:
    with np.errstate(all="ignore"):
        stored = steps.Stored(given.multipliers)
        run = given.initial, given.samples, given.poisoned, given.anew
        forms = steps.train(given.problem, *run, stored, given.phases)
        stored.fits(stored.used == len(stored.values))
        return Reached(given.problem, forms.boxes(), forms)


def _each(work: Callable[[Any], Reached], parts: Iterable[Any], jobs: int) -> Iterator[Reached]:
    """The work on each part, in their order."""
    if jobs == 1:
        yield from map(work, parts)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(work, parts)


def answer(asked: Question, cases: Sequence[Reached]) -> tuple[float, float]:
    """Bounds of what a question counts, or of the mean loss, over all cases.

    Raises:
        Unbounded: nothing is known.
    """
    with np.errstate(all="ignore"):
        ends = [_of_case(asked, case) for case in cases]
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    return least, float(len(asked.x)) if asked.kind == "stable" else most


def _of_case(asked: Question, case: Reached) -> tuple[float, float]:
    pieces, count = [], case.boxes[case.problem.layers[-1].weight].lo.shape[1]
    squares = asked.kind == "loss" and case.problem.loss == "mse"
    for start in range(0, len(asked.x), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        rows = questions.differences(asked.labels[part], count)
        rows = np.broadcast_to(np.eye(count), (len(rows), count, count)) if squares else rows
        found = case.rows(asked.x[part], rows)
        if squares:
            found = questions.losses_of_outputs(found, asked.encoded[part])
        elif asked.kind == "loss":
            found = questions.losses_of_margins(case.problem.loss, found)
        pieces.append(found)
    whole = joined(pieces, 1)
    if asked.kind == "loss":
        mean = questions.mean(whole)
        return mean.lo.min(), mean.hi.max()
    return questions.count_right(whole)


def all_choices(given: Statement) -> Iterator[dict[int, int]]:
    """Every admissible data set as what is exchanged: which choice for which sample; 0 for one left out.

    Raises:
        Rejected: more than can be listed.
    """
    labels, choices = given.samples.y.lo[0], given.choices
    others = {
        int(i): [0]
        if choices is None
        else [c for c in range(choices.shape[1]) if (choices[i, c] != labels[i]).any()]
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
        return Reached(given.problem, training.train(problem, given.initial, samples))
