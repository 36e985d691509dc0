"""The verdict on a certificate.

What is proved, for a certificate that is PROVED: let M be the run that it describes (layers, initial
parameters, batches, optimiser, arithmetic). Then for every data set that its threat admits, what M ends
with lies in its box, and every model that M can end with satisfies its questions. The proof:
:mod:`~milp_agt.checker.training` encloses every run in boxes, step by step; here each claimed end is
compared with the end that was proved, and each threshold with the claimed end.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
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
        if isinstance(found, tuple):
            return Report(tuple(map(_not_covered, found)), (), sha256, size)
        with np.errstate(all="ignore"):
            items = tuple(_items(exact(found) if exactly else found, jobs))
        return Report(items, found.words, sha256, size)
    except Rejected as error:
        return Report((Item("the certificate", Outcome.REJECTED, str(error)),))
    except (MemoryError, RuntimeError) as error:  # also of a process of --jobs that died
        return Report((Item("the certificate", Outcome.NOT_PROVED, str(error) or "no memory"),))


def _items(given: Statement, jobs: int) -> Iterator[Item]:
    cases: list[Reached] = []
    yield _item("the run on the data as given", partial(_nominal, given))
    yield _item("the box of the parameters", partial(_claimed, given, cases, jobs))
    for number, asked in enumerate(given.questions if cases else ()):
        ends = proof.answer(number, cases)
        yield _item(f"{asked.kind} on {asked.on}", partial(_answer, asked, *ends))
    yield from map(_not_covered, given.not_covered)


_not_covered = partial(Item, outcome=Outcome.NOT_COVERED)


def _item(name: str, shown: Callable[[], tuple[Outcome, str]]) -> Item:
    try:
        return Item(name, *shown())
    except Unbounded as error:
        return Item(name, Outcome.REJECTED, f"claimed finite; in the check, {error}")
    except Rejected as error:
        return Item(name, Outcome.REJECTED, str(error))


def _nominal(given: Statement) -> tuple[Outcome, str]:
    """The run on the data as given ends where the certificate says, up to rounding."""
    ends = training.train(given.problem, given.initial, given.samples)
    stored = {key: Box.point(given.nominal[key][None]) for key in ends}
    return _inside("stored", stored, "from where it ends", ends)


def _claimed(given: Statement, cases: list[Reached], jobs: int) -> tuple[Outcome, str]:
    """Every proved box, which goes to the cases, lies in the claimed one."""
    cases += proof.reached(given, jobs)
    claimed = {key: Box(low, given.upper[key]) for key, low in given.lower.items()}
    proved = {key: joined([case.boxes[key] for case in cases], 0) for key in claimed}
    return _inside("claimed", proved, "tighter than proved", claimed)


def _inside(
    verb: str, inner: Mapping[str, Box], how: str, outer: Mapping[str, Box]
) -> tuple[Outcome, str]:
    for key, box in inner.items():
        gaps = outer[key].lo - box.lo.min(0), box.hi.max(0) - outer[key].hi
        for side, gap in zip(("lower", "upper"), gaps, strict=True):
            if not (gap <= 0).all():
                place = np.unravel_index(int(np.argmax(gap)), gap.shape)
                detail = f"{verb} {float(gap[place]):.6g} {how} at {[int(k) for k in place]}"
                raise Rejected(f"{side} end of '{key}': {detail}")
    return Outcome.PROVED, ""


def _answer(asked: Question, least: float, most: float) -> tuple[Outcome, str]:
    ends = (
        ("least", asked.least, least, asked.least - least),
        ("most", asked.most, most, most - asked.most),
    )
    for side, claimed, proved, gap in ends:
        if not gap <= 0:
            raise Rejected(f"claimed at {side} {claimed:.9g}, proved at {side} {float(proved):.9g}")
    share = Fraction(1) if asked.kind == "loss" else Fraction(1, len(asked.encoded))
    # A share of k in n points meets a threshold if the float k / n does.
    low, high = (float(Fraction(end) * share) for end in (asked.least, asked.most))
    met = asked.at_least <= low and high <= asked.at_most
    return Outcome.PROVED if met else Outcome.NOT_PROVED, f"between {low:.9g} and {high:.9g}"
