"""Many threats: curves over budgets and radii, and the largest threat that is still certified.

What is proved for a threat holds for all smaller ones; bisection asks many questions at once.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy.typing as npt

from milp_agt.certification.result import Result
from milp_agt.core.arguments import callable_of, listed, of_kind
from milp_agt.core.deadline import Deadline
from milp_agt.core.reachable import Bounds
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.io.tables import Exported, format_table
from milp_agt.properties.answer import meet, unattacked
from milp_agt.threats import SeparatePoisoning, ThreatModel

Certify = Callable[["ThreatModel"], "Result"]
Ask = Callable[["Result"], Mapping[str, Bounds]]
Holds = Callable[["Result"], Mapping[str, bool | str]]
_CERTIFY = "give lambda threat: agt.certify(model, data, training, threat)"


@dataclass(frozen=True)
class SweepCell:
    """The answers under one threat.

    Attributes:
        budget, radius: of the threat; no radius where it is not swept.
        answers: bounds by name of the question, after the meet with all larger threats.
        seconds: of the certification and its questions; None where a larger threat left nothing to gain.
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
    callable_of(certify, "certify", _CERTIFY)
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
        return replace(threat, features=moved, labels=flipped)  # type: ignore[arg-type]
    known = {f.name for f in fields(threat)}  # type: ignore[arg-type]
    wanted = {n: v for n, v in (("budget", budget), ("radius", radius)) if v is not None}
    missing = sorted(set(wanted) - known)
    if missing or (radius is not None and getattr(threat, "radius", None) is None):
        raise InvalidInputError(
            f"Another {' and '.join(sorted(wanted))} for {type(threat).__name__}",
            f"a threat without a {missing[0] if missing else 'radius'}",
            "leave it out, or choose a threat that has one",
        )
    changed: ThreatModel = replace(threat, **wanted)  # type: ignore[type-var]
    return changed


def _known(larger: Sequence[Mapping[str, Bounds]]) -> Mapping[str, Bounds]:
    """What holds under a threat by the answers under larger ones."""
    known = {name: unattacked(bounds) for name, bounds in larger[0].items()} if larger else {}
    for answers in larger[1:]:
        known = {name: meet(bounds, answers[name]) for name, bounds in known.items()}
    return known


@dataclass(frozen=True)
class Bracket:
    """Between which threats a statement stops being proved.

    Attributes:
        proved: the largest value that was proved; None if not even the smallest was.
        unproved: the smallest value above it that was tried and not proved; None if the largest
            value was proved.
        refuted: the smallest value at which real poisoned data violate it: a larger threat admits them as
            well; None where no attack was told of.

    Raises:
        SoundnessError: proved where it is refuted.
    """

    proved: float | None
    unproved: float | None
    refuted: float | None = None

    def __post_init__(self) -> None:
        if None not in (self.proved, self.refuted) and self.refuted <= self.proved:  # type: ignore[operator]
            raise SoundnessError(
                "What is proved for one threat cannot be refuted for a smaller one",
                f"proved up to {self.proved}, refuted from {self.refuted} on",
                "do not use these certificates; please report this run",
            )


@dataclass(frozen=True)
class Trial:
    """One certification: the value, how many statements it proved, what it cost."""

    value: float
    proved: int
    seconds: float


@dataclass(frozen=True)
class Largest(Exported):
    """Brackets of every statement, and the runs that found them, in their order.

    What is proved for one value holds for all smaller ones: the statement is certified up to and
    including ``proved``. Above ``unproved`` it may still be provable by tighter means. ``cut_short``:
    time was over before the brackets were narrow.
    """

    what: str
    brackets: Mapping[str, Bracket]
    trials: tuple[Trial, ...]
    cut_short: bool = False

    columns = ("statement", "over", "proved", "unproved", "refuted")

    def __getitem__(self, name: str) -> Bracket:
        return self.brackets[name]

    def table(self) -> str:
        """Brackets and runs as text."""
        count = len(self.brackets)
        rows = [(name, b.proved, b.unproved, b.refuted) for name, b in self.brackets.items()]
        runs = [(t.value, f"{t.proved} of {count}", f"{t.seconds:.2f}") for t in self.trials]
        headers = ("statement", f"largest {self.what} proved", "not proved", "refuted from")
        found = format_table(headers, rows)
        return f"{found}\n\n{format_table((self.what, 'proved', 'seconds'), runs)}"

    def lines(self) -> Iterable[Mapping[str, Any]]:
        return ({"statement": n, "over": self.what, **asdict(b)} for n, b in self.brackets.items())

    def document(self) -> Mapping[str, Any]:
        brackets = {name: asdict(b) for name, b in self.brackets.items()}
        runs = [asdict(trial) for trial in self.trials]
        return {"schema_version": 1, "over": self.what, "brackets": brackets, "runs": runs}


def largest(
    certify: Certify,
    threat: ThreatModel,
    holds: Holds,
    *,
    budgets: tuple[int, int] | None = None,
    radii: tuple[float, float] | None = None,
    precision: float = 1.1,
    within: float | None = None,
) -> Largest:
    """The largest budget, or radius, for which each statement is proved.

    Every certification answers all statements at once, and its verdicts narrow all brackets: the
    next value halves the bracket that most of the open statements share.

    Args:
        certify: the run, for instance ``lambda threat: agt.certify(model, data, training, threat)``.
        threat: the threat whose budget or radius is replaced.
        holds: the statements by name and whether they are proved, for instance
            ``lambda result: {"90 %": result.accuracy(X, y).lower >= 0.9}``; for test points
            :func:`by_point` makes them. Or their verdicts "PROVED", "REFUTED", "OPEN": then brackets say
            from which threat on real poisoned data violate them.
        budgets: smallest and largest count of samples; found exactly.
        radii: smallest (above 0) and largest radius; found up to the factor ``precision``.
        precision: ratio of unproved and proved radius at which the search ends, above 1.
        within: seconds after which no further value is tried; brackets are wider then.

    Raises:
        InvalidInputError: not exactly one of budgets and radii, an empty range, a precision of 1 or less.
    """
    callable_of(certify, "certify", _CERTIFY)
    callable_of(holds, "holds", "give lambda result: {'90 %': result.accuracy(X, y).lower >= 0.9}")
    scale = _scale(budgets, radii, precision)
    tried = Attempts(certify, threat, holds, "budget" if scale.whole else "radius")
    deadline = Deadline.within(within)
    if not all(tried.attempt(scale.high).values()) and scale.low < scale.high:
        tried.attempt(scale.low)
    while True:
        middles = map(scale.middle, tried.brackets.values())
        votes = Counter(value for value in middles if value is not None)
        if not votes or deadline.is_over():
            return tried.found(deadline.missed)
        tried.attempt(votes.most_common(1)[0][0])


class Attempts:
    """Certifications under one threat, each with another budget or radius, and what they prove."""

    def __init__(self, certify: Certify, threat: ThreatModel, holds: Holds, over: str) -> None:
        self._certify, self._threat, self._holds, self._over = certify, threat, holds, over
        self._trials: list[Trial] = []
        self._verdicts: dict[float, Mapping[str, bool]] = {}
        self._refuted: dict[str, float] = {}

    def attempt(self, value: float) -> Mapping[str, bool]:
        """Certify with this budget or radius; which statements that proves."""
        begun = time.perf_counter()
        sizes = (int(value), None) if self._over == "budget" else (None, value)
        found = self._holds(self._certify(resized(self._threat, *sizes)))
        proved = {n: v == "PROVED" if isinstance(v, str) else v for n, v in found.items()}
        for name in (n for n, v in found.items() if isinstance(v, str) and v == "REFUTED"):
            self._refuted[name] = min(value, self._refuted.get(name, value))
        self._verdicts[value] = proved
        self._trials.append(Trial(value, sum(proved.values()), time.perf_counter() - begun))
        return proved

    @property
    def brackets(self) -> dict[str, Bracket]:
        """From all trials: a proof at one value settles all smaller ones."""
        found = {}
        for name in next(iter(self._verdicts.values()), ()):
            proved = max((v for v, held in self._verdicts.items() if held[name]), default=None)
            failed = [v for v, held in self._verdicts.items() if not held[name]]
            above = [v for v in failed if proved is None or v > proved]
            found[name] = Bracket(proved, min(above, default=None), self._refuted.get(name))
        return found

    def found(self, cut_short: bool) -> Largest:
        """All brackets and trials."""
        return Largest(self._over, self.brackets, tuple(self._trials), cut_short)


def by_point(
    name: str, certified: Sequence[bool] | Sequence[str] | npt.NDArray[Any]
) -> dict[str, bool | str]:
    """Statements about test points for :func:`largest`: ``name[0]``, ``name[1]``, ...

    ``name`` is that of the property; ``certified`` says of each point whether it is proved, for instance
    ``result.accuracy(X, y).points.lower == 1``, or its verdict, ``result.accuracy(X, y).points.verdict``.

    Raises:
        TypeError: ``certified`` that is no sequence.
    """
    return {
        f"{name}[{point}]": str(proved) if isinstance(proved, str) else bool(proved)
        for point, proved in enumerate(certified)
    }


@dataclass(frozen=True)
class _Scale:
    """The range of values, and where a bracket is cut."""

    low: float
    high: float
    whole: bool
    precision: float

    def middle(self, bracket: Bracket) -> float | None:
        """A value inside a bracket; None if it is narrow enough, or open at an end."""
        proved, unproved = bracket.proved, bracket.unproved
        if proved is None or unproved is None:
            return None
        if self.whole:
            return (proved + unproved) // 2 if unproved - proved > 1 else None
        return math.sqrt(proved * unproved) if unproved > self.precision * proved else None


def _scale(
    budgets: tuple[int, int] | None, radii: tuple[float, float] | None, precision: float
) -> _Scale:
    asked = "Search the largest certified threat"
    if (budgets is None) == (radii is None):
        raise InvalidInputError(
            asked,
            "neither budgets nor radii" if budgets is None else "both budgets and radii",
            "give one range, for instance budgets=(1, 20) or radii=(1e-4, 0.1)",
        )
    whole = budgets is not None
    ends, kinds = (budgets, int) if whole else (radii, (int, float))
    of_kind(precision, (int, float), "precision", "give a ratio above 1, say 1.1")
    listed(ends, kinds, "The range", "give a smallest and a largest value")
    if ends is None or len(ends) != 2:
        raise InvalidInputError(asked, f"the range {ends!r:.60}", "give two values, both ends")
    low, high = ends
    if not (0 if whole else 5e-324) <= low <= high < math.inf:
        raise InvalidInputError(
            asked,
            f"the range {low} to {high}",
            f"give a smallest value {'>= 0' if whole else '> 0'} and a largest one above it",
        )
    if not precision > 1:
        raise InvalidInputError(asked, f"precision {precision}", "give a ratio above 1, say 1.1")
    return _Scale(low, high, whole, precision)
