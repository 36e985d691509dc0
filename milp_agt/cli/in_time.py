"""How ``milp-agt certify`` spends a time limit: steps, questions, what is left, files and report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic, process_time
from typing import TYPE_CHECKING

from milp_agt.core.deadline import Deadline
from milp_agt.errors import InvalidInputError

if TYPE_CHECKING:
    from milp_agt.attacks import Search
    from milp_agt.certification.result import Result
    from milp_agt.certification.verdicts import Verdict
    from milp_agt.experiments.still_proved import StillProved
    from milp_agt.runfile.run_file import LoadedRun

# Shares of a time limit that steps leave: to the properties (more where the tree of `auto` may decide points
# that all other bounds leave open), to smaller threats, to the certificate, to files and the page, to attacks
# if asked for.
QUESTIONS_SHARE, TREE_SHARE = 0.12, 0.4
SMALLER_SHARE, CERTIFICATE_SHARE, REPORT_SHARE, ATTACKS_SHARE = 0.08, 0.08, 0.05, 0.25
# Files, the page and the end of the process take about so many seconds, however short the run is; of a short
# limit at most this share is kept for them.
REPORT_SECONDS, MOST_FOR_REPORT = 4.0, 0.25
OVERRUN = 1.0  # seconds by which a search may miss its end


@dataclass(frozen=True)
class CommandTime:
    """The time limit of the whole command, reading and starting it among it.

    Attributes:
        run: with its own options.
        begun: a time of ``time.monotonic``: when the process began.
        spent: seconds that finished steps took before that.
    """

    run: LoadedRun
    begun: float
    spent: float = 0.0

    @property
    def limit(self) -> float | None:
        return self.run.options.time_limit

    @property
    def _report(self) -> float:
        """Seconds that are kept for files and the page, more where others use the processor as well."""
        limit = self.limit or 0.0
        waited = max(1.0, (monotonic() - self.begun) / max(process_time(), 1e-3))
        return max(REPORT_SHARE * limit, min(REPORT_SECONDS * waited, MOST_FOR_REPORT * limit))

    def _until(self, *kept: float) -> float:
        """When to end so that some shares of the limit are left, and files and the page have their time."""
        assert self.limit is not None
        return self.begun - self.spent + (1.0 - sum(kept)) * self.limit - self._report

    def steps(self, attacks: bool) -> LoadedRun:
        """The run with its steps, which are counted from ``begun`` on, in their share of the limit."""
        if self.limit is None:
            return self.run
        questions = TREE_SHARE if _may_have_tree(self.run) else QUESTIONS_SHARE
        kept = SMALLER_SHARE, CERTIFICATE_SHARE, questions * bool(self.run.properties)
        seconds = max(0.0, self._until(*kept, ATTACKS_SHARE * attacks) - self.begun)
        return self.run._replace(options=self.run.options.changed({"time_limit": seconds}))

    def search(self) -> Search:
        """The search with its share of the limit: one for the parameters and one for each property."""
        if self.limit is None:
            return self.run.search
        share = ATTACKS_SHARE * self.limit / (1 + len(self.run.properties))
        return self.run.search.within(share)

    def judged(self, result: Result) -> tuple[Result, list[Verdict]]:
        """The verdicts, each property in its share of the time that is left; what follows has no time left.

        A fallback says where the time limit cut questions short.
        """
        from milp_agt.certification.verdicts import judge

        run, missed = self.run, False
        verdicts: list[Verdict] = []
        for number, asked in enumerate(run.properties):
            if self.limit is not None:
                left = self._until(SMALLER_SHARE, CERTIFICATE_SHARE) - monotonic()
                left = max(0.0, left) / (len(run.properties) - number)
                result = result.within(Deadline.within(left))
            verdicts += judge(result, run.dataset, asked)
            missed |= result.models.deadline is not None and result.models.deadline.missed
        if missed:
            line = (
                "time limit: test points that were still open were bounded from the boxes of the parameters "
                "alone, not through training, or not attacked; give more time, fewer properties or fewer "
                "test points"
            )
            result = replace(result, fallbacks=(*result.fallbacks, line), limit_reached=True)
        return result if self.limit is None else result.within(Deadline(self._until())), verdicts

    def searched(
        self, result: Result, verdicts: list[Verdict], earlier: Sequence[Result] = ()
    ) -> tuple[Result, StillProved | None]:
        """What smaller threats and ``earlier`` steps prove of what is open; then a box that a tree narrows.

        Both take what is left of a time limit; without one the search takes a share of the run, and no box
        is narrowed.
        """
        from milp_agt.certification.verdicts import judge
        from milp_agt.experiments.still_proved import seconds_without_limit, still_proved

        run = self.run
        if self.limit is None:
            seconds = seconds_without_limit(result)
        else:
            seconds = self._until(CERTIFICATE_SHARE) - monotonic() - OVERRUN
        ends = monotonic() + seconds

        def judged_in_time(smaller: Result, within: float) -> list[Verdict]:
            late = smaller.within(Deadline.within(max(0.0, within)))
            return [v for asked in run.properties for v in judge(late, run.dataset, asked)]

        found = still_proved(run, result, verdicts, judged_in_time, seconds, earlier)
        if found is not None:
            result = replace(result, helps=(*result.helps, *found.words))
        left, tree = ends - monotonic(), result.models.tree
        in_tree = result.relaxation == "auto" and tree is not None and left > OVERRUN
        if self.limit is not None and in_tree:
            with suppress(InvalidInputError):  # a zonotope that ended has left nothing to search
                result = result.narrowed(left)
        return result, found

    def for_certificate(self) -> float | None:
        """Seconds that a limit leaves to the certificate; None without one."""
        return None if self.limit is None else max(0.0, self._until() - monotonic())


def _may_have_tree(run: LoadedRun) -> bool:
    """Whether `auto` has a tree for runs of this size."""
    from milp_agt.bounds.cells.plan import MOST_COORDINATES

    moved = run.dataset.x_train[0].size * getattr(run.threat, "budget", MOST_COORDINATES + 1)
    return run.options.relaxation == "auto" and bool(moved <= MOST_COORDINATES)
