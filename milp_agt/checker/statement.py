"""What a certificate states, from its files: the run, the threat, the claim, and the same in words.

The words are made here, from the data; those in the certificate must be the same, so that they cannot say
more than what is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from milp_agt.checker.boxes import Array, Box
from milp_agt.checker.layers import Poisoned, Problem, Samples

ASSUMPTIONS = (
    "The initial parameters, the order of the batches and the optimiser are fixed as they stand here.",
    "What was done to the data before (scaling, selection, splits) does not depend on data that the "
    "adversary touches; no early stopping or choice of models looks at poisoned data.",
    "The run is made of the operations of its layers, its loss and its optimiser, each rounded with a "
    "relative error of at most the unit roundoff, sums in any order; exp, log, tanh and sigmoid are off by "
    "at most 16 units.",
    "The numbers in the certificate are those of the run: hashes alone tie them to it.",
)


@dataclass(frozen=True)
class Question:
    """How many of some points are classified as ``labels`` say, or the mean loss: between ``least`` and
    ``most``.
    """

    kind: str
    on: str
    x: Array
    labels: Array
    encoded: Array
    least: float
    most: float
    at_least: float | None
    at_most: float | None


@dataclass(frozen=True)
class Statement:
    """All that is claimed, and of what.

    Attributes:
        initial, nominal, lower, upper: by parameter; the last two are the claimed box.
        choices: for method ``listed`` every label that a sample may have, (n, choices, outputs).
        open: which samples may be poisoned.
        not_covered: what the run was asked that this certificate does not say.
    """

    problem: Problem
    samples: Samples
    poisoned: Poisoned
    choices: Array | None
    method: str
    questions: tuple[Question, ...]
    not_covered: tuple[str, ...]
    words: tuple[str, ...]
    removed: bool  # whether poisoned samples are left out, by method listed
    multipliers: Array  # for affine, see forms.py
    tree: Array | None  # nodes (kind, what, value), see tree.py
    anew: bool  # whether the budget is one of every step, and not of the run
    initial: Mapping[str, Array]
    nominal: Mapping[str, Array]
    lower: Mapping[str, Array]
    upper: Mapping[str, Array]
    phases: tuple[tuple[int, int, bool], ...] = ()  # of leaves: step, number, whether it is on


def words(given: Statement) -> tuple[str, ...]:
    """The claim in sentences."""
    problem, poisoned = given.problem, given.poisoned
    rule, rates = problem.rules[0], [r.rate for r in problem.rules]
    count = sum(values.size for values in given.initial.values())
    sizes = [len(batch) for batch in problem.batches]
    run = (
        f"The run: {len(problem.batches)} steps of gradient descent on the mean {problem.loss} loss in "
        f"{problem.arithmetic.name}; {count} parameters, {len(poisoned.open)} samples, batches of "
        f"{min(sizes)} to {max(sizes)}, rates {min(rates):.9g} to {max(rates):.9g}, momentum "
        f"{rule.momentum:.9g}{' (Nesterov)' if rule.nesterov else ''}, weight decay {rule.decay:.9g}"
    )
    if rule.undecayed:
        run += f" on all but {', '.join(sorted(rule.undecayed))}"
    run += f", l1 {rule.l1:.9g}" if rule.l1 else ""
    run += f", clamped to {rule.projection}" if rule.projection else ""
    lines = [
        f"{run}.",
        f"The adversary: at most {poisoned.budget} of {int(poisoned.open.sum())} samples poisoned "
        f"{_when(given)}: "
        f"{_changes(given)}.",
        "The claim: every such run ends with all parameters inside the stored box, whose mean width is "
        f"{_mean_width(given):.9g}.",
    ]
    for q in given.questions:
        points = f"{len(q.x)} {q.on} points"
        what = {
            "accuracy": f"between {q.least:g} and {q.most:g} of {points} are classified right",
            "stable": f"at least {q.least:g} of {points} keep the class that is stored for them",
            "loss": f"the mean loss on {points} lies between {q.least:.9g} and {q.most:.9g}",
        }[q.kind]
        lines.append(f"The claim: of every such model, {what}.")
    return tuple(lines)


def _when(given: Statement) -> str:
    if given.method == "interval" or given.anew:
        return "in any batch"
    return "once, for the whole run"


def _changes(given: Statement) -> str:
    if given.removed:
        return "left out of every batch, with means over the samples that stay"
    if given.choices is not None:
        return f"the label exchanged for one of {given.choices.shape[1]} stored for it"
    own = given.poisoned.samples
    pairs = (("feature", given.samples.x, own.x), ("label", given.samples.y, own.y))
    moves = [_reach(what, n, box, given.poisoned.open) for what, n, box in pairs]
    return " and ".join(filter(None, moves)) or "nothing changed"


def _reach(what: str, nominal: Box, box: Box, open_: Array) -> str:
    """How far the samples that are open may move, and the least of that where it differs. Features move
    up and down, labels of classes one way.
    """
    ends = (box.hi - nominal.hi)[:, open_], (nominal.lo - box.lo)[:, open_]
    far = np.stack(ends) if what == "feature" else np.maximum(*ends)
    least, most = float(far.min(initial=np.inf)), float(far.max(initial=0.0))
    if not most:
        return ""
    if least >= most * (1.0 - 1e-6):
        return f"every {what} moved by at most {most:.9g}"
    return f"{what}s moved by at most {least:.9g} to {most:.9g}, as stored for each"


def _mean_width(given: Statement) -> float:
    widths = [(given.upper[name] - given.lower[name]).reshape(-1) for name in given.lower]
    return float(np.concatenate(widths).mean())
