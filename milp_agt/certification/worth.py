"""What a result is worth: until which step its boxes say something about the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from milp_agt.core.reachable import StepRecord

LISTED = "listed"  # what records call a step that trained on every data set of the adversary
EXACT = (
    "a smaller threat or fewer steps, and no setting: the boxes are the hull of all runs there are"
)


class Worth(Enum):
    """What the boxes at the end say; a word for programs that read ``result.json``."""

    USEFUL = "useful"  # the mean width is at most the mean size of the parameters
    WIDE = "wide"  # finite, and wider than the parameters are large
    VACUOUS = "vacuous"  # some parameter has no bound at all


@dataclass(frozen=True)
class BoxWorth:
    """The worth of the boxes of a run.

    Attributes:
        worth: of the boxes after the last finished step.
        useful_until: the last step of the first ones whose mean width is at most ``mean_size``, the mean
            of |theta| at the end of the nominal run; 0 if there is none.
        bounded_until: the last step of the first ones with finite boxes; 0 if there is none.
        steps: finished steps.
        helps: settings that would help, in words.
    """

    worth: Worth
    useful_until: int
    bounded_until: int
    steps: int
    helps: Sequence[str] = ()

    @staticmethod
    def of(steps: Sequence[StepRecord], mean_size: float, helps: Sequence[str] = ()) -> BoxWorth:
        """From the records of a run."""
        bounded = _first(steps, lambda record: math.isfinite(record.max_width))
        useful = _first(steps, lambda record: record.mean_width <= mean_size)
        last = len(steps)
        found = Worth.USEFUL if useful == last else Worth.WIDE
        if not helps and useful < last and steps[-1].relaxation == LISTED:
            helps = (EXACT,)
        return BoxWorth(Worth.VACUOUS if bounded < last else found, useful, bounded, last, helps)

    @property
    def words(self) -> str:
        """One sentence or two; of useful boxes only what would help, if anything is known to."""
        if self.worth is Worth.USEFUL:
            return self._help if self.helps else ""
        until = f"after step {self.useful_until}" if self.useful_until else "at any step"
        wide = f"the boxes are wider than the parameters are large {until}"
        if self.worth is Worth.WIDE:
            return f"{wide}; properties may still be proved. {self._help}"
        lost = f"after step {self.bounded_until} of {self.steps} some parameters have no bound"
        return f"vacuous: {lost}, and {wide}. {self._help}"

    @property
    def _help(self) -> str:
        if self.helps:
            return f"What would help: {'; or '.join(self.helps)}"
        return (
            "What helps: fewer steps or a smaller learning rate, larger batches, a smaller budget or radius, "
            "or relaxation='linear' with a longer window and more time and memory"
        )


def _first(steps: Sequence[StepRecord], holds: Callable[[StepRecord], bool]) -> int:
    """How many of the first steps meet a condition, without a break."""
    return next((i for i, record in enumerate(steps) if not holds(record)), len(steps))
