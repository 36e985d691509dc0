"""How ``milp-agt certify`` spends a time limit: steps, questions, what is left, files and report."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from milp_agt.core.deadline import Deadline
from milp_agt.errors import InvalidInputError

if TYPE_CHECKING:
    from milp_agt.attacks import Search
    from milp_agt.certification.result import Result
    from milp_agt.experiments.still_proved import StillProved
    from milp_agt.runfile.run_file import LoadedRun
    from milp_agt.runfile.verdicts import Verdict

# Shares of a time limit that steps leave: to the properties (more where the tree of `auto` may decide points
# that all other bounds leave open), to smaller threats, to the certificate, to files and the page, to attacks
# if asked for.
QUESTIONS_SHARE, TREE_SHARE = 0.12, 0.4
SMALLER_SHARE, CERTIFICATE_SHARE, REPORT_SHARE, ATTACKS_SHARE = 0.08, 0.08, 0.05, 0.25
AFTER = CERTIFICATE_SHARE + REPORT_SHARE
OVERRUN = 1.0  # seconds by which a search may miss its end


def steps_of(run: LoadedRun, attacks: bool) -> LoadedRun:
    """The run with its steps in their share of the time limit."""
    limit = run.options.time_limit
    if limit is None:
        return run
    questions = TREE_SHARE if _may_have_tree(run) else QUESTIONS_SHARE
    taken = AFTER + SMALLER_SHARE + questions * bool(run.properties)
    share = 1.0 - taken - ATTACKS_SHARE * attacks
    return run._replace(options=run.options.changed({"time_limit": share * limit}))


def _may_have_tree(run: LoadedRun) -> bool:
    """Whether `auto` has a tree for runs of this size."""
    from milp_agt.bounds.cells.plan import MOST_COORDINATES

    moved = run.dataset.x_train[0].size * getattr(run.threat, "budget", MOST_COORDINATES + 1)
    return run.options.relaxation == "auto" and bool(moved <= MOST_COORDINATES)


def search_of(run: LoadedRun) -> Search:
    """The search with its share of the time limit: one for the parameters and one for each property."""
    if run.options.time_limit is None:
        return run.search
    share = ATTACKS_SHARE * run.options.time_limit / (1 + len(run.properties))
    return run.search.within(share)


def judged(run: LoadedRun, result: Result, begun: float) -> tuple[Result, list[Verdict]]:
    """The verdicts, each property in its share of the time that is left; what follows has no time left.

    A fallback says where the time limit cut questions short.
    """
    from milp_agt.runfile.verdicts import judge

    limit, missed = run.options.time_limit, False
    verdicts: list[Verdict] = []
    for number, asked in enumerate(run.properties):
        if limit is not None:
            ends = begun + (1.0 - SMALLER_SHARE - AFTER) * limit
            share = (ends - monotonic()) / (len(run.properties) - number)
            result = _until(result, monotonic() + share)
        verdicts += judge(result, run.dataset, asked)
        missed |= result.models.deadline is not None and result.models.deadline.missed
    if missed:
        line = (
            "time limit: test points that were still open were bounded from the boxes of the parameters "
            "alone, not through training, or not attacked; give more time, fewer properties or fewer test "
            "points"
        )
        result = replace(result, fallbacks=(*result.fallbacks, line), limit_reached=True)
    return result if limit is None else _until(result, begun + limit), verdicts


def searched(
    run: LoadedRun, result: Result, verdicts: list[Verdict], begun: float
) -> tuple[Result, StillProved | None]:
    """What smaller threats prove of what is open; then a box narrowed by the tree of `auto`.

    Both take what is left of a time limit; without one the search takes a share of the run, and no box is
    narrowed.
    """
    from milp_agt.experiments.still_proved import seconds_without_limit, still_proved
    from milp_agt.runfile.verdicts import judge

    limit = run.options.time_limit
    if limit is None:
        seconds = seconds_without_limit(result)
    else:
        seconds = begun + (1.0 - AFTER) * limit - monotonic() - OVERRUN
    ends = monotonic() + seconds

    def judged_in_time(smaller: Result) -> list[Verdict]:
        late = _until(smaller, ends)
        return [v for asked in run.properties for v in judge(late, run.dataset, asked)]

    found = still_proved(run, result, verdicts, judged_in_time, seconds)
    if found is not None:
        result = replace(result, helps=(*result.helps, *found.words))
    left, tree = ends - monotonic(), result.models.tree
    if limit is not None and result.relaxation == "auto" and tree is not None and left > OVERRUN:
        with suppress(InvalidInputError):  # a zonotope that ended has left nothing to search
            result = result.narrowed(left)
    return result, found


def for_certificate(run: LoadedRun, begun: float) -> float | None:
    """Seconds that a time limit leaves to the certificate; None without one."""
    limit = run.options.time_limit
    return None if limit is None else max(0.0, begun + (1.0 - REPORT_SHARE) * limit - monotonic())


def _until(result: Result, at: float) -> Result:
    """The result with questions that end by a time of ``time.monotonic``."""
    return replace(result, models=replace(result.models, deadline=Deadline(at)))
