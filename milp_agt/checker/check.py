"""The verdict on a certificate.

What is proved, for a certificate that is PROVED: let M be the run that it describes (layers, initial
parameters, batches, optimiser, arithmetic). Then for every data set that its threat admits, what M ends
with lies in its box, and every model that M can end with satisfies its questions. The proof:
:mod:`~milp_agt.checker.training` encloses every run in boxes, step by step; here each claimed end is
compared with the end that was proved, and each threshold with the claimed end.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from milp_agt.checker import proof, training
from milp_agt.checker.boxes import Box, Unbounded, exact, joined
from milp_agt.checker.files import Rejected, open_certificate
from milp_agt.checker.proof import Reached
from milp_agt.checker.statement import Question, Statement, state


class Outcome(enum.Enum):
    """What a check comes to; the worst of its items."""

    PROVED = 0
    NOT_COVERED = 1
    NOT_PROVED = 2
    REJECTED = 3

    @property
    def text(self) -> str:
        return self.name.replace("_", " ")

    @property
    def exit_code(self) -> int:
        return {0: 0, 1: 1, 2: 1, 3: 3}[self.value]


@dataclass(frozen=True)
class Item:
    """One thing that was checked."""

    name: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All that was checked, and the words that were checked, which are the checker's own."""

    items: tuple[Item, ...]
    words: tuple[str, ...] = ()
    sha256: str = ""
    bytes: int = 0

    @property
    def outcome(self) -> Outcome:
        return max((item.outcome for item in self.items), key=lambda outcome: outcome.value)


def check(folder: Path, jobs: int = 1, exactly: bool = False) -> Report:
    """Check the certificate in a folder; ``exactly`` in fractions, for small runs.

    Never raises for what a certificate holds: whatever is wrong with one is a REJECTED item.
    """
    try:
        claim, sha256, size = open_certificate(folder)
        found = state(claim)
        words: tuple[str, ...] = ()
        if isinstance(found, tuple):
            items = tuple(Item(what, Outcome.NOT_COVERED) for what in found)
        else:
            words = found.words
            with np.errstate(all="ignore"):
                items = tuple(_items(exact(found) if exactly else found, jobs))
        return Report(items, words, sha256, size)
    except Rejected as error:
        return Report((Item("the certificate", Outcome.REJECTED, str(error)),))
    except MemoryError:
        return Report((Item("the certificate", Outcome.NOT_PROVED, "memory ran out"),))


def _items(given: Statement, jobs: int) -> Iterator[Item]:
    yield _nominal(given)
    try:
        cases = proof.reached(given, jobs)
    except Unbounded as error:
        detail = f"claimed finite; in the check, {error}"
        yield Item("the box of the parameters", Outcome.REJECTED, detail)
        return
    yield _claimed(given, [case.boxes for case in cases])
    for question in given.questions:
        yield _answer(question, cases)
    for what in given.not_covered:
        yield Item(what, Outcome.NOT_COVERED)


def _nominal(given: Statement) -> Item:
    """The run on the data as given ends where the certificate says, up to rounding."""
    name = "the run on the data as given"
    try:
        ends = training.train(given.problem, given.initial, given.samples)
    except Unbounded as error:
        return Item(name, Outcome.REJECTED, f"it does not end: {error}")
    stored = {key: Box.point(given.nominal[key][None]) for key in ends}
    return _inside(name, "stored", stored, "from where it ends", ends)


def _claimed(given: Statement, cases: Sequence[Mapping[str, Box]]) -> Item:
    """Every proved box lies in the claimed one."""
    claimed = {key: Box(low, given.upper[key]) for key, low in given.lower.items()}
    proved = {key: joined([case[key] for case in cases], 0) for key in claimed}
    return _inside("the box of the parameters", "claimed", proved, "tighter than proved", claimed)


def _inside(
    name: str, verb: str, inner: Mapping[str, Box], how: str, outer: Mapping[str, Box]
) -> Item:
    for key, box in inner.items():
        gaps = outer[key].lo - box.lo.min(0), box.hi.max(0) - outer[key].hi
        for side, gap in zip(("lower", "upper"), gaps, strict=True):
            if not (gap <= 0).all():
                place = np.unravel_index(int(np.argmax(gap)), gap.shape)
                detail = f"{verb} {float(gap[place]):.6g} {how} at {[int(k) for k in place]}"
                return Item(name, Outcome.REJECTED, f"{side} end of '{key}': {detail}")
    return Item(name, Outcome.PROVED)


def _answer(asked: Question, cases: Sequence[Reached]) -> Item:
    name = f"{asked.kind} on {asked.on}"
    try:
        least, most = proof.answer(asked, cases)
    except Unbounded as error:
        return Item(name, Outcome.REJECTED, f"claimed finite; in the check, {error}")
    for side, tighter, proved, claimed in (
        ("at least", asked.least > least, least, asked.least),
        ("at most", asked.most < most, most, asked.most),
    ):
        if tighter:
            detail = f"claimed {side} {claimed:.9g}, proved {side} {float(proved):.9g}"
            return Item(name, Outcome.REJECTED, detail)
    share = Fraction(1) if asked.kind == "loss" else Fraction(1, len(asked.x))
    # A share of k in n points meets a threshold if the float k / n does.
    low, high = (float(Fraction(end) * share) for end in (asked.least, asked.most))
    detail = f"between {low:.9g} and {high:.9g}"
    missed = (asked.at_least is not None and low < asked.at_least) or (
        asked.at_most is not None and high > asked.at_most
    )
    return Item(name, Outcome.NOT_PROVED if missed else Outcome.PROVED, detail)
