"""From bounds and thresholds to verdicts: what was asked of the trained model, and is it proved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from milp_agt.attacks import Sandwich
from milp_agt.attacks.objectives import objective_of
from milp_agt.certification.result import Result
from milp_agt.core.reachable import Bounds
from milp_agt.data.dataset import Dataset
from milp_agt.properties.answer import Answer, nested
from milp_agt.properties.backdoor import BackdoorTable
from milp_agt.properties.functional import AttackedFunctional
from milp_agt.properties.property_table import (
    PROPERTIES,
    PickedPoints,
    PropertyTable,
    TableOfParameters,
    TableOfPoints,
)
from milp_agt.properties.witness import Witness

Status = Literal["PROVED", "REFUTED", "OPEN", "REPORTED"]
BEYOND_ROUNDING = 1e-8  # a value that attacks reach refutes a threshold only beyond this, relative


@dataclass(frozen=True)
class Verdict:
    """One property: its bounds over the reachable set, and whether they meet the threshold.

    ``lower`` and ``upper`` hold for every admissible poisoning, ``nominal`` for the data as given.
    PROVED: the certified end meets the threshold. REFUTED: a real training run on admissible data misses
    it, by more than rounding. OPEN: neither is known. A property without a threshold is REPORTED.

    ``points`` is the table of the test points, column by column, with their rows in the file and their
    positions in the part; None for parameters and for subgroups. ``reached`` are the least and largest
    value of attacks aimed at the property and ``ratio`` the certified width over theirs; None for
    subgroups, and where nothing was attacked. ``worst`` is the worst value that one checked run on
    admissible data shows, and ``shown`` are its data; ``witnesses`` are the poisoned data that refute
    test points.
    """

    kind: str
    on: str
    lower: float
    nominal: float
    upper: float
    at_least: float | None
    at_most: float | None
    status: Status
    detail: str = ""
    group: str | None = None
    points: Mapping[str, list[Any]] | None = None
    reached: tuple[float, float] | None = None
    ratio: float | None = None
    worst: float | None = None
    witnesses: tuple[Witness, ...] = field(default=(), repr=False)
    shown: Witness | None = field(default=None, repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """How many test points are PROVED, REFUTED and OPEN; empty where points are not judged."""
        if self.points is None or "verdict" not in self.points:
            return {}
        return {word: self.points["verdict"].count(word) for word in ("PROVED", "REFUTED", "OPEN")}

    @property
    def name(self) -> str:
        """The kind and the part of the data, for instance ``backdoor (radius 0.1) on test``."""
        kind = f"{self.kind} ({self.detail})" if self.detail else self.kind
        group = "" if self.group is None else f", {self.group}"
        return f"{kind} on {self.on}{group}"

    @property
    def is_vacuous(self) -> bool:
        """Whether the bounds hold for every model, whatever was trained: they prove nothing."""
        table = PROPERTIES.all()[self.kind]
        if table.is_share:
            return self.lower <= 0.0 and self.upper >= 1.0
        return self.lower <= table.least and self.upper == math.inf

    @property
    def threshold(self) -> str:
        """The threshold with its direction, for instance ``>= 0.9``; a dash without one."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "-"


def answers(result: Result, dataset: Dataset, asked: Sequence[PropertyTable]) -> dict[str, Bounds]:
    """The bounds of every property by its name, without thresholds; a repeated one has a number."""
    found: dict[str, Bounds] = {}
    for number, table in enumerate(asked, 1):
        name, bounds = table.name, _bounds(result, dataset, table)[0]
        found[f"{name} ({number})" if name in found else name] = bounds
    return found


def trigger_curve(
    result: Result, dataset: Dataset, asked: BackdoorTable, radii: Sequence[float]
) -> dict[str, Bounds]:
    """A backdoor for balls of several radii by name, met with each other: no larger ball reaches less."""
    at = asked.pick(dataset)
    tables = [asked.model_copy(update={"radius": radius}) for radius in sorted(set(radii))]
    curve = nested([result.ask(table, at) for table in tables])
    return {table.name: answer for table, answer in zip(tables, curve, strict=True)}


def judge(result: Result, dataset: Dataset, asked: PropertyTable) -> tuple[Verdict, ...]:
    """Bound one property and compare it with its threshold, in each subgroup as well. A NaN proves
    nothing. Raises InvalidInputError: the property does not fit the loss or the data; SoundnessError: an
    attack outside the bounds."""
    answer, at = _bounds(result, dataset, asked)
    both = result.against(objective_of(asked, at), answer)
    if at is None or not isinstance(asked, TableOfPoints):
        return (_verdict(asked, answer, both=both),)
    assert isinstance(answer, Answer)
    positions = at.positions[answer.points.index].tolist()
    points = {"row": dataset.rows.of(asked.on)[positions].tolist()}
    if dataset.ids is not None:
        points["id"] = dataset.ids.of(asked.on)[positions].tolist()
    columns = answer.points.columns()
    points |= {"position": positions} | {n: columns[n] for n in columns if n != "index"}
    what = "class" if asked.groups == "class" else "group"
    return (
        _verdict(asked, answer, points=points, both=both),
        *(
            _verdict(asked, bounds, group=f"{what} {name}", shown=answer.shown_in.get(name))
            for name, bounds in answer.groups.items()
        ),
    )


def _bounds(
    result: Result, dataset: Dataset, asked: PropertyTable
) -> tuple[Bounds, PickedPoints | None]:
    """The bounds of a property, and the points that it is about."""
    if isinstance(asked, TableOfPoints):
        at = asked.pick(dataset)
        return result.ask(asked, at), at
    assert isinstance(asked, TableOfParameters)
    return result.of_parameters(asked), None


def _verdict(
    asked: PropertyTable,
    bounds: Bounds,
    *,
    group: str | None = None,
    points: Mapping[str, list[Any]] | None = None,
    both: Sandwich | None = None,
    shown: Witness | None = None,
) -> Verdict:
    # What an answer carries is the end that harms: of a threshold on the other side it says nothing. A
    # functional is attacked where its threshold is.
    harms = (asked.at_least is not None) == asked.high_is_good
    worst = bounds.reached if harms or isinstance(bounds, AttackedFunctional) else None
    answer = bounds if isinstance(bounds, Answer) else None
    if shown is None and isinstance(bounds, (Answer, AttackedFunctional)):
        shown = bounds.shown
    return Verdict(
        **{name: getattr(asked, name) for name in ("kind", "on", "at_least", "at_most", "detail")},
        lower=bounds.lower,
        nominal=bounds.nominal,
        upper=bounds.upper,
        status=decide(bounds.lower, bounds.upper, asked.at_least, asked.at_most, worst),
        group=group,
        points=points,
        reached=None if both is None else both.reached,
        ratio=None if both is None else both.ratio,
        worst=bounds.reached,
        witnesses=() if answer is None else answer.witnesses,
        shown=shown,
    )


def decide(
    lower: float,
    upper: float,
    at_least: float | None,
    at_most: float | None,
    worst: float | None = None,
) -> Status:
    """PROVED only if the bound on the right side is a number that meets the threshold.

    REFUTED only if ``worst``, the value of a real run, misses it by more than rounding.
    """
    if at_least is None and at_most is None:
        return "REPORTED"
    if (lower >= at_least) if at_least is not None else (upper <= at_most):  # type: ignore[operator]
        return "PROVED"
    if worst is None:
        return "OPEN"
    slack = BEYOND_ROUNDING * (1.0 + abs(worst))
    missed = worst < at_least - slack if at_least is not None else worst > at_most + slack  # type: ignore[operator]
    return "REFUTED" if missed else "OPEN"
