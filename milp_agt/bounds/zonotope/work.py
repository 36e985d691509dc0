"""How much is spent on a step: rows of flips and steps of ascent, so that cost stays linear in the net."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from milp_agt.bounds.zonotope.flips import Flips
from milp_agt.bounds.zonotope.state import HybridZonotope

# Multiplications of all elements of a step with all rows, of one ascent, and of the range of a node that
# intervals could bound as well.
PER_STEP, PER_ASCENT, PER_NODE = 2**30, 2**31, 2**31
# Rows that are carried at most; how few are not worth their time; phases that get rows in one step.
MOST_ROWS, FEWEST_ROWS = 640, 96
MOST_NEW, FEWEST_NEW = 192, 8
# The same of the products of two deviations that are bounded by themselves, each twice.
PER_PAIRS = 2**28
# Numbers of all limits.
LIMITS = 2**24
FEWEST_STEPS = 6


@dataclass(frozen=True)
class Work:
    """The limits of a run.

    Attributes:
        numbers: coordinates of the moves of all samples together, and flips twice.
        directions: numbers of a direction: parameters, and rows of flips.
        most_rows: of flips that are carried; 0 for none.
        most_limits: of flips that are carried.
        tells: whether there is time for an ascent with as many.
        samples: that can be poisoned.
        batch: samples of the step.
    """

    numbers: int
    directions: int
    most_rows: int
    most_limits: int
    tells: bool
    samples: int
    batch: int

    @staticmethod
    def of(zonotope: HybridZonotope, elements: int, batch: int) -> Work:
        """``elements`` with a kink in one step, all samples of its batch together."""
        samples, flips = zonotope.samples, zonotope.flips
        moves = max(1, samples.count * samples.width)
        numbers = moves + 2 * flips.count
        fitting = PER_STEP // (moves * max(1, elements))
        most = min(MOST_ROWS, fitting) if fitting >= FEWEST_ROWS else 0
        count = max(1, samples.count)
        fitting = PER_ASCENT // (2 * zonotope.size)
        limits, tells = min(LIMITS, fitting) // count, fitting > LIMITS
        return Work(numbers, zonotope.size + flips.rows, most, limits, tells, count, batch)

    @property
    def kept_rows(self) -> int:
        """How many are left when some go."""
        return self.most_rows * 4 // 5

    def most_new(self, rows: int, steps: int) -> int:
        """Phases of one step that get rows, each of which is ascended three times on ``rows``."""
        if not self.most_rows:
            return 0
        fitting = PER_ASCENT // (3 * max(1, steps) * max(1, rows) * self.numbers)
        return max(FEWEST_NEW, min(MOST_NEW, max(1, self.most_rows // 2), fitting))

    def room(self, share: float, limits: int) -> int:
        """How many more phases get a C3 by the end of a part of the step: twice as many as are carried where
        an ascent can tell which are worth it."""
        most = self.most_limits * (2 if self.tells else 1)
        return max(0, ceil(share * most) - limits)

    def fits(self, elements: int) -> bool:
        """Whether a node with so many elements for each sample is worth bounding as directions."""
        return self.batch * elements * self.numbers * self.directions <= PER_NODE

    @property
    def pairs(self) -> int:
        """How many products of two deviations are worth a bound of their own."""
        return PER_PAIRS // (2 * max(1, self.numbers) * max(1, self.directions))

    def steps(self, wanted: int, directions: int, flips: Flips) -> int:
        """Steps of an ascent of many directions on many rows and limits; none where two are too many."""
        each = flips.rows * self.numbers + flips.limits * self.samples
        fitting = PER_ASCENT // max(1, directions * each)
        return max(min(wanted, FEWEST_STEPS), min(wanted, fitting)) if fitting > 1 else 0
