"""The largest budget and radius for which a run still proves something, by a search of a few cheap runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.certification.result import Result
from milp_agt.certification.verdicts import Verdict
from milp_agt.certification.worth import Worth
from milp_agt.core.deadline import Deadline
from milp_agt.core.relaxation import Relaxation
from milp_agt.experiments.sweep import Attempts, Bracket, Largest, largest
from milp_agt.io.tables import format_number
from milp_agt.properties.reached import Reached
from milp_agt.runfile.run_file import LoadedRun
from milp_agt.threats import SeparatePoisoning, ThreatModel
from milp_agt.threats.poison import Whole
from milp_agt.threats.sets import Vertices

# Radii are tried down to this share of the given one, up to this factor.
SMALLEST, FACTOR = 1e-4, 2.0
# Seconds of a search without a time limit: this share of those of the run, within these bounds.
SHARE, LEAST, MOST = 0.25, 0.5, 20.0
EACH = 0.7  # of the time that is left, for one run
EARLIER = 0.3  # the same, for the questions about the run after an earlier step
NARROW = 0.1  # width of bounds that say something, beside the number itself or 1
BOXES = "boxes that are narrower than the parameters are large"


# The verdicts of a result, within some seconds.
Judged = Callable[[Result, float], Sequence[Verdict]]


class _TimeIsOver(Exception):
    """Ends a run between two steps."""


@dataclass(frozen=True)
class StillProved:
    """What smaller threats still prove of what a run left open.

    Attributes:
        relaxation: the level of the runs that were tried, a cheap one: others may prove more.
        searches: a bracket for each statement over the budget, the radius, and the steps of the run itself;
            without what the threat cannot have smaller, and what there was no time for.
    """

    relaxation: str
    searches: tuple[Largest, ...]

    @property
    def words(self) -> Sequence[str]:
        """The settings that were found, one for each statement and number."""
        return tuple(
            f"{search.what} = {format_number(bracket.proved)}, which proves {name}"
            for search in self.searches
            for name, bracket in search.brackets.items()
            if bracket.proved
        )

    @property
    def in_vain(self) -> Sequence[str]:
        """What not even the smallest threat that was tried proves, in words."""
        found = []
        for search in self.searches:
            names = [name for name, bracket in search.brackets.items() if bracket.proved is None]
            if names and search.trials:
                least = format_number(min(trial.value for trial in search.trials))
                tried = f"smaller threats by '{self.relaxation}': {search.what} = {least}"
                found.append(f"{tried} does not prove {', '.join(names)} either")
        return tuple(found)

    def plain(self) -> dict[str, Any]:
        """For ``result.json``."""
        found: dict[str, Any] = dict.fromkeys(("budget", "radius", "steps"))
        for search in self.searches:
            brackets = search.brackets.items()
            found[search.what] = {
                n: {"proved": b.proved, "unproved": b.unproved} for n, b in brackets
            }
        return {"relaxation": self.relaxation, **found}


def seconds_without_limit(result: Result) -> float:
    """What the search may take where the run has no time limit."""
    return min(MOST, max(LEAST, SHARE * sum(step.seconds for step in result.steps)))


def still_proved(
    run: LoadedRun,
    result: Result,
    verdicts: Sequence[Verdict],
    judged: Judged,
    seconds: float,
    earlier: Sequence[Result] = (),
) -> StillProved | None:
    """The largest budget and the largest radius that prove what the result leaves open; None if nothing is.

    Statements are that the boxes are useful (:attr:`Result.worth`), that each threshold holds, and of
    properties without one that their bounds say something. Runs are of the cheapest level that reached
    the last step: a zonotope if that did, else intervals; of a finite threat the list of all its data sets,
    where there is time. Each run has a share of the time that is left as its limit. ``earlier`` are results
    of the run after some of its steps: what they prove of a model that is trained no longer is told as well.
    """
    wanted = [name for name, holds in _statements(result, verdicts).items() if not holds]
    if not wanted or seconds <= 0.0:
        return None
    level, poison = Relaxation.INTERVAL, result.models.poison
    if isinstance(poison.label_moves, Vertices) or poison.whole is Whole.REMOVED:
        level = Relaxation.LINEAR
    elif result.steps and Relaxation.ZONOTOPE.value in result.steps[-1].chains:
        level = Relaxation.ZONOTOPE
    deadline = Deadline.within(seconds)

    def certify(threat: ThreatModel) -> Result:
        """Up to the last step, or to the first one after the time is over."""
        own = {"relaxation": level.value, "time_limit": max(0.1, EACH * deadline.left)}
        plain = {"selections": None, "solver": None, "refute": "none", "tree": 0.0}
        smaller, found = run._replace(options=run.options.changed(own | plain)), list[Result]()

        def on_step(result: Result, _step: int, _steps: int) -> None:
            found[:] = [result]
            if deadline.is_over():
                raise _TimeIsOver

        try:
            return smaller.certify(threat, on_step=on_step)
        except _TimeIsOver:
            return found[0]

    def holds(found: Result) -> dict[str, bool | str]:
        if len(found.steps) < found.total_steps:
            return dict.fromkeys(wanted, False)
        known = _statements(found, judged(found, deadline.left))
        return {name: known[name] for name in wanted}

    vacuous = {verdict.name for verdict in verdicts if verdict.is_vacuous}
    steps = _earlier(result, earlier, wanted, vacuous, judged, deadline)
    budget: Largest | None = None
    radius: Largest | None = None
    most, farthest = _size(run.threat)
    if isinstance(most, int) and most > 1:
        tried, count = Attempts(certify, run.threat, holds, "budget"), 1
        while count < most and not deadline.is_over() and any(tried.attempt(count).values()):
            count *= 2  # small ones are cheap
        budget = tried.found(deadline.missed)
    if isinstance(farthest, float) and farthest > 0.0 and not deadline.is_over():
        radii = SMALLEST * farthest, farthest / FACTOR
        radius = largest(
            certify, run.threat, holds, radii=radii, precision=FACTOR, within=deadline.left
        )
    searches = tuple(filter(None, (budget, radius, steps)))
    return StillProved(level.value, searches) if searches else None


def _earlier(
    result: Result,
    earlier: Sequence[Result],
    wanted: Sequence[str],
    vacuous: set[str],
    judged: Judged,
    deadline: Deadline,
) -> Largest | None:
    """After which earlier step, the latest first, each statement about test points was proved, and properties
    that are ``vacuous`` at the end had narrow bounds."""
    known: dict[str, Bracket] = {}
    # Of two after one step the first knows most.
    asked = {
        len(each.steps): each for each in reversed(earlier) if len(each.steps) < result.total_steps
    }
    for step in sorted(asked, reverse=True):
        left = [n for n in wanted if n != BOXES and not (n in known and known[n].proved)]
        if not (left or vacuous) or deadline.is_over():
            break
        verdicts = judged(asked[step], EARLIER * deadline.left)
        held = _statements(asked[step], verdicts)
        for verdict in (each for each in verdicts if each.name in vacuous):
            if verdict.upper - verdict.lower <= NARROW * max(1.0, abs(verdict.nominal)):
                vacuous = vacuous - {verdict.name}
                ends = f"[{format_number(verdict.lower)}, {format_number(verdict.upper)}]"
                known[f"{verdict.name} in {ends}"] = Bracket(step, result.total_steps)
        for name in left:
            before = known.get(name, Bracket(None, result.total_steps))
            known[name] = Bracket(step, before.unproved) if held[name] else Bracket(None, step)
    return Largest("steps", known, (), deadline.missed) if known else None


def in_boxes(result: Result) -> Result:
    """The same with one box of the parameters alone, which takes little memory."""
    known = result.models
    reached = Reached(known.state, (), Joint(known.poison))
    models = replace(known, reached=(reached,), beside=None, program=None, box=None)
    return replace(result, models=models)


def _size(threat: ThreatModel) -> tuple[Any, Any]:
    """Budget and radius as :func:`resized` replaces them; None for what a threat does not have."""
    if isinstance(threat, SeparatePoisoning):
        budgets = [each.budget for each in (threat.features, threat.labels) if each.budget]
        return min(budgets, default=0), threat.features.radius
    known = getattr(threat, "__dataclass_fields__", {})
    budget, radius = (getattr(threat, n) if n in known else None for n in ("budget", "radius"))
    return budget, radius


def _statements(result: Result, verdicts: Sequence[Verdict]) -> dict[str, bool]:
    """What a run may prove, by name, and whether it does."""
    found = {BOXES: result.worth.worth is Worth.USEFUL}
    for verdict in verdicts:
        if verdict.status == "REPORTED":
            found[f"something of {verdict.name}"] = not verdict.is_vacuous
        else:
            found[f"{verdict.name} {verdict.threshold}"] = verdict.status == "PROVED"
    return found
