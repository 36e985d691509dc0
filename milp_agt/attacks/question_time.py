"""The time that attacks have, those of a question say, and what fits into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from milp_agt.attacks.unrolled import Pace, Unrolled
from milp_agt.core.deadline import Deadline

# What checks take, in runs of the search: all again by graph and torch, each witness by itself in torch.
CHECKED, ALONE, WITNESSES = 4.0, 4.0, 8


@dataclass(frozen=True)
class QuestionTime:
    """The time for the attacks of one question, and what a run is predicted to take of it."""

    ends: Deadline
    pace: Pace | None  # None without a limit
    witnesses: int = WITNESSES  # runs that are trained by themselves

    @staticmethod
    def of(unrolled: Unrolled, deadline: Deadline | None) -> QuestionTime:
        """Until the deadline of the question, if there is one."""
        ends = Deadline.within(None) if deadline is None else deadline
        return QuestionTime(ends, unrolled.pace() if math.isfinite(ends.at) else None)

    def _checking(self, runs: int) -> float:
        """Seconds to train so many runs again in plain torch, at once and then by themselves."""
        if self.pace is None:
            return 0.0
        alone = ALONE * self.pace.first * min(runs, self.witnesses)
        return CHECKED * self.pace.seconds(1 + runs) + alone

    def fits(self, runs: int) -> int:
        """How many runs there is time for, if as long again is searched for them; 0 for none."""
        if self.pace is None:
            return runs
        if 2 * self._checking(1) > self.ends.left:
            self.ends.missed = True
            return 0
        while runs > 1 and 2 * self._checking(runs) > self.ends.left:
            runs, self.ends.missed = runs // 2, True
        return runs

    def of_search(self, runs: int) -> float | None:
        """Seconds of the search for so many runs; None for no limit."""
        return None if self.pace is None else max(0.0, self.ends.left - self._checking(runs))

    def for_one_more(self) -> bool:
        """Whether a run may be trained by itself."""
        if self.pace is None or ALONE * self.pace.first <= self.ends.left:
            return True
        self.ends.missed = True
        return False
