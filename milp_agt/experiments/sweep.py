"""Curves: the same questions under many budgets and radii, and what holds for all smaller threats."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from milp_agt.certification.result import Result
from milp_agt.core.arguments import callable_of, listed
from milp_agt.core.deadline import Deadline
from milp_agt.core.reachable import Bounds
from milp_agt.errors import InvalidInputError
from milp_agt.io.tables import Exported, format_table
from milp_agt.properties.answer import meet, unattacked
from milp_agt.threats import SeparatePoisoning, ThreatModel

Certify = Callable[["ThreatModel"], "Result"]
Ask = Callable[["Result"], Mapping[str, Bounds]]


@dataclass(frozen=True)
class SweepCell:
    """The answers under one threat.

    Attributes:
        budget, radius: of the threat; no radius where it is not swept.
        answers: bounds by name of the question, after the meet with all larger threats.
        seconds: of the certification and its questions; None where nothing was run, because the
            bounds of a larger threat left nothing to gain.
    """

    budget: int
    radius: float | None
    answers: Mapping[str, Bounds]
    seconds: float | None


@dataclass(frozen=True)
class Sweep(Exported):
    """Cells by rising budget, then rising radius.

    ``cut_short`` says that time was over: cells that were not run have the bounds of larger threats.
    """

    cells: tuple[SweepCell, ...]
    cut_short: bool = False

    columns = ("question", "budget", "radius", "lower", "nominal", "upper", "seconds")

    def lines(self) -> Iterator[dict[str, Any]]:
        """One for each cell and question."""
        for cell in self.cells:
            at = {"budget": cell.budget, "radius": cell.radius}
            for name, bounds in cell.answers.items():
                ends = {end: getattr(bounds, end) for end in ("lower", "nominal", "upper")}
                yield {"question": name, **at, **ends, "seconds": cell.seconds}

    def table(self) -> str:
        """The rows as text; no seconds where a larger threat left nothing to gain."""
        rows = []
        for row in self.lines():
            spent = row["seconds"]
            row["seconds"] = None if spent is None else f"{spent:.2f}"
            rows.append(tuple(row.values()))
        return format_table(self.columns, rows)

    def document(self) -> Mapping[str, Any]:
        return {"schema_version": 1, "rows": list(self.lines())}


def sweep(
    certify: Certify,
    threat: ThreatModel,
    ask: Ask,
    *,
    budgets: Sequence[int] | None = None,
    radii: Sequence[float] | None = None,
    within: float | None = None,
    on_cell: Callable[[SweepCell, int, int], None] | None = None,
) -> Sweep:
    """Certify a run under every budget and radius, from the largest threat to the smallest.

    What is proved for a larger threat holds for a smaller one, so every cell is met with the cells
    of larger budget and larger radius: bounds never get worse as the threat shrinks, although one
    run by itself may be looser than a run under a larger threat. A cell that has nothing to
    gain (every lower bound equals its upper bound already) is not run.

    Args:
        certify: the run, for instance ``lambda threat: agt.certify(model, data, training, threat)``.
        threat: the threat whose ``budget`` (both of two, as far as they are above 0) and ``radius`` are
            replaced.
        ask: the questions, for instance ``lambda result: {"accuracy": result.accuracy(X, y)}``.
        budgets: counts of samples; None to leave the budget as it is.
        radii: None to leave the radius as it is.
        within: seconds after which no further cell is run; the first one, of the largest threat, always is.
        on_cell: called after every cell with the cell, its number from 1, and the number of cells.

    Raises:
        InvalidInputError: no budgets or no radii, or a threat without a radius.
        SoundnessError: bounds of two threats that do not meet.
    """
    callable_of(
        certify, "certify", "give lambda threat: agt.certify(model, data, training, threat)"
    )
    callable_of(ask, "ask", "give lambda result: {'accuracy': result.accuracy(X, y)}")
    if on_cell is not None:
        callable_of(on_cell, "on_cell", "give a function (cell, number, cells), or leave it out")
    if budgets is not None:
        listed(budgets, int, "budgets", "give counts of samples: budgets=[1, 2, 5]")
    if radii is not None:
        listed(radii, (int, float), "radii", "give numbers: radii=[0.01, 0.1]")
    falling: Sequence[int | None] = (
        (None,) if budgets is None else sorted(set(budgets), reverse=True)
    )
    sizes: Sequence[float | None] = (None,) if radii is None else sorted(set(radii), reverse=True)
    if not falling or not sizes:
        raise InvalidInputError(
            "Sweep over budgets and radii",
            f"{len(falling)} budgets and {len(sizes)} radii",
            "give at least one of each",
        )
    found: dict[tuple[int | None, float | None], SweepCell] = {}
    grid = list(itertools.product(range(len(falling)), range(len(sizes))))
    deadline = Deadline.within(within)
    for number, (i, j) in enumerate(grid, 1):
        larger = [
            found[falling[a], sizes[b]].answers
            for a, b in ((i - 1, j), (i, j - 1))
            if a >= 0 and b >= 0
        ]
        budget, radius = falling[i], sizes[j]
        answers = _known(larger)
        seconds: float | None = None
        is_open = not answers or any(b.lower != b.upper for b in answers.values())
        if is_open and not (found and deadline.is_over()):
            begun = time.perf_counter()
            own = ask(certify(resized(threat, budget, radius)))
            seconds = time.perf_counter() - begun
            answers = {n: meet(b, answers[n]) if n in answers else b for n, b in own.items()}
        count = threat.budget if budget is None else budget
        cell = found[budget, radius] = SweepCell(count, radius, answers, seconds)
        if on_cell is not None:
            on_cell(cell, number, len(grid))
    return Sweep(tuple(reversed(found.values())), deadline.missed)


def resized(threat: ThreatModel, budget: int | None, radius: float | None) -> ThreatModel:
    """The same threat with another budget, another radius, or both; both budgets of two that are apart.

    Raises:
        InvalidInputError: the threat has no radius.
    """
    if not hasattr(type(threat), "__dataclass_fields__"):
        raise InvalidInputError(
            "A threat whose budget and radius can be replaced",
            f"{type(threat).__name__} {threat!r:.60}",
            "give agt.FeaturePoisoning(budget, radius), for instance",
        )
    if isinstance(threat, SeparatePoisoning):
        moved = resized(threat.features, budget if threat.features.budget else None, radius)
        flipped = resized(threat.labels, budget if threat.labels.budget else None, None)
        return dataclasses.replace(threat, features=moved, labels=flipped)  # type: ignore[arg-type]
    fields = {f.name for f in dataclasses.fields(threat)}  # type: ignore[arg-type]
    changes = {"budget": budget, "radius": radius}
    wanted = {name: value for name, value in changes.items() if value is not None}
    missing = sorted(set(wanted) - fields)
    if missing or (radius is not None and getattr(threat, "radius", None) is None):
        raise InvalidInputError(
            f"Another {' and '.join(sorted(wanted))} for {type(threat).__name__}",
            f"a threat without a {missing[0] if missing else 'radius'}",
            "leave it out, or choose a threat that has one",
        )
    changed: ThreatModel = dataclasses.replace(threat, **wanted)  # type: ignore[type-var]
    return changed


def _known(larger: Sequence[Mapping[str, Bounds]]) -> Mapping[str, Bounds]:
    """What holds under a threat by the answers under larger ones."""
    known = {name: unattacked(bounds) for name, bounds in larger[0].items()} if larger else {}
    for answers in larger[1:]:
        known = {name: meet(bounds, answers[name]) for name, bounds in known.items()}
    return known
