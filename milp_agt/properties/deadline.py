"""The time limit of a run where questions are asked after it."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic


@dataclass
class Deadline:
    """When questions stop going back through training; what they have then are bounds from boxes.

    Attributes:
        at: a time of ``time.monotonic``.
        missed: whether a question was cut short.
    """

    at: float
    missed: bool = False

    def is_over(self) -> bool:
        """Whether the time is over; whoever asks is cut short then."""
        over = monotonic() >= self.at
        self.missed |= over
        return over
