"""The time limit of a run: time for all steps of cheap levels is reserved before costly ones use it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

# A forecast from counts of elements, or from a first step, may be this many times too long.
DOUBT = 4.0
# Intervals go on after a deadline if that takes at most so many seconds, or this share of the limit.
GRACE = (1.0, 0.05)


@dataclass
class TimeLimit:
    """Decides which chains still fit into a time limit, from their measured seconds.

    A chain may bound step t if its predicted seconds for that step, and those of all cheaper chains
    for all steps after t, fit into the remaining time. So programs end first, then listed
    selections, then linear bounds; intervals stay. Predictions are the last measured seconds of a
    chain, averaged with those before. Those of chains that walk back through the window grow in
    proportion to the steps of their backward passes, ``min(t + 1, window)``; a step of all others costs
    the same at any time. The reserve for cheaper chains counts in full from the third step on.

    Attributes:
        deadline: a time of ``time.monotonic``; None for no limit.
        steps: of the whole run.
        window: longest backward pass, in steps.
        flat: names of the chains without backward passes: intervals and zonotopes.
        forecast: seconds of a first step of chains by the plan; used, divided by ``DOUBT``, until a
            step of the chain is measured.
        measured: the last step that each chain bounded, and its seconds.
        limit: seconds of the whole run.
    """

    deadline: float | None
    steps: int
    window: int
    flat: Collection[str] = ()
    forecast: Mapping[str, float] = field(default_factory=dict)
    measured: dict[str, tuple[int, float]] = field(default_factory=dict)
    limit: float = 0.0

    def is_over(self) -> bool:
        """Whether the deadline is over."""
        return self.deadline is not None and monotonic() >= self.deadline

    def is_lost(self, cheapest: str, step: int) -> bool:
        """Whether the deadline is over, and the steps from this one on take more than the grace even so."""
        needed = sum(self.predicted(cheapest, t) for t in range(step, self.steps))
        return self.is_over() and needed > max(GRACE[0], GRACE[1] * self.limit)

    def note(self, chain: str, step: int, seconds: float) -> None:
        """Note what a step took; half of what is predicted next comes from the steps before."""
        if chain in self.measured and self.measured[chain][0] > 0:
            seconds = (seconds + self.predicted(chain, step)) / 2.0
        self.measured[chain] = (step, seconds)

    def predicted(self, chain: str, step: int) -> float:
        """Predicted seconds of a chain for a step; 0 if nothing was measured or forecast yet."""
        if chain not in self.measured:
            return self.forecast.get(chain, 0.0) / DOUBT
        last, seconds = self.measured[chain]
        if chain in self.flat:
            return seconds
        return seconds * min(step + 1, self.window) / min(last + 1, self.window)

    def left(self, cheaper: Sequence[str], step: int, doubt: float = 1.0) -> float:
        """Seconds until the deadline, minus those that cheaper chains need for all steps after ``step``.

        These may be ``doubt`` times too long.
        """
        if self.deadline is None:
            return float("inf")
        rest = range(step + 1, self.steps)
        reserved = sum(self.predicted(chain, t) for chain in cheaper for t in rest)
        return self.deadline - monotonic() - reserved / doubt

    def spend_until(self, cheaper: Sequence[str], step: int) -> float | None:
        """The deadline of solves in a step; None for no limit."""
        return None if self.deadline is None else monotonic() + self.left(cheaper, step)

    def refusal(
        self, chain: str, cheaper: Sequence[str], step: int, done: int | None = None
    ) -> str | None:
        """The reason why a chain must not bound a step; None if it may.

        Cheaper chains have bounded the step ``done``: this one, unless given.
        """
        # The first step of a process is slow: alone it is no measure of what cheaper chains need.
        doubt = DOUBT if step < 2 else 1.0
        left = self.left(cheaper, step if done is None else done, doubt)
        needed = self.predicted(chain, step)
        if left > 0.0 and needed <= left:
            return None
        after = f" beside what {', '.join(cheaper)} need for the steps to come" if left > 0 else ""
        return (
            f"step {step + 1}: time limit, '{chain}' left out from here on: about {needed:.3g} s "
            f"for the step, {max(0.0, left):.3g} s left{after}"
        )
