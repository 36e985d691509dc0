"""A time after which work is ended early; what is finished by then counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic

from milp_agt.core.arguments import of_kind
from milp_agt.errors import InvalidInputError


@dataclass
class Deadline:
    """When to end.

    Attributes:
        at: a time of ``time.monotonic``; infinite for never.
        missed: whether anything was ended early.
    """

    at: float
    missed: bool = False

    @staticmethod
    def within(seconds: float | None) -> Deadline:
        """So many seconds from now; None for never.

        Raises:
            InvalidInputError: a negative number, or none at all.
        """
        if seconds is None:
            return Deadline(math.inf)
        of_kind(seconds, (int, float), "A time limit", "give seconds, or None")
        if not seconds >= 0:
            raise InvalidInputError("A time limit in seconds", f"{seconds}", "give 0 or more")
        return Deadline(monotonic() + seconds)

    def is_over(self, grace: float = 0.0) -> bool:
        """Whether the time, and so many seconds more, are over; whoever asks is ended early then."""
        over = monotonic() >= self.at + grace
        self.missed |= over
        return over

    @property
    def ends(self) -> bool:
        """Whether there is an end at all."""
        return math.isfinite(self.at)

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0; infinite for never."""
        return max(0.0, self.at - monotonic())

    def share(self, parts: int, of_it: float = 1.0) -> float | None:
        """Seconds for one of so many parts that are left, or for a share ``of_it``; None without an end."""
        left = self.left
        return None if math.isinf(left) else of_it * left / max(1, parts)


def shorter(*limits: float | None) -> float | None:
    """The smallest of limits in seconds; None only if none is given."""
    return min((limit for limit in limits if limit is not None), default=None)
