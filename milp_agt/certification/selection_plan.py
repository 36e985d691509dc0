"""Chooses how selections are bounded: listed one by one, or jointly."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from milp_agt.bounds.adversary.enumerated import count_cases
from milp_agt.certification.sizes import (
    BASELINE,
    BOUNDED_PER_SECOND,
    CASES_PER_SECOND,
    FLOAT,
    LISTED_WORK,
    LIVE_CASE_BOXES,
    SETTLED,
    WALKED_PER_SECOND,
    Sizes,
)
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Remarks
from milp_agt.core.restriction import Restriction
from milp_agt.errors import InvalidInputError
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Vertices

# Most cases that share a backward pass; most cases that are listed by default.
MOST_CASES = 1024
MOST_LISTED = 1e5


@dataclass(frozen=True)
class Selections:
    """The chains beside the joint bounds.

    Attributes:
        groups: number of groups of listed selections; 0 if selections are not listed.
        enumerated_inner: whether these have linear intermediate bounds.
        data_sets: number of listed data sets of a finite threat, each trained on by itself in place of
            all chains; 0 where they are not listed.
        kept: bytes that the windows of these chains hold from step to step.
        window: over which they could be listed, where there are none of these chains; 0 where over none.
        seconds: predicted for these chains.
    """

    groups: int = 0
    enumerated_inner: bool = False
    data_sets: int = 0
    kept: int = 0
    window: int = 0
    seconds: float = 0.0


def selections_of(
    sizes: Sizes,
    level: Relaxation,
    asked: str | None,
    poison: Poison,
    restriction: Restriction,
    steps: int,
    window: int,
    inner_bounds: str | None,
    memory: int,
    seconds: float,
    zonotope: bool,
) -> tuple[Selections, Remarks]:
    """The requested selections; by default listed if that is predicted to take at most so many ``seconds``.

    Beside a ``zonotope`` they are joint by default, unless labels flip: it turns each flip into noise.

    Where they are not listed for that reason, ``window`` of the result is the longest of the halved windows
    over which they would be.

    Raises:
        InvalidInputError: an unknown word, or a kind that this run cannot have.
    """
    if asked == "enumerated" and not level.walks:
        raise InvalidInputError(
            "Selections that are told apart need linear forms",
            f"relaxation '{level.value}'",
            "use relaxation 'linear' or above",
        )
    flat = zonotope and not isinstance(poison.label_moves, Vertices)
    if asked == "joint" or not level.walks or (flat and asked is None):
        return Selections(), Remarks()
    work = _Work(sizes, steps, window, inner_bounds, memory, seconds)
    cases = count_cases(poison, restriction)
    if asked == "enumerated" and math.isinf(cases):
        raise InvalidInputError(
            "Selections can be enumerated where one of them holds for the whole run",
            "a budget in each batch, or nothing that can be poisoned",
            "use scope='dataset', or selections='joint'",
        )
    listed, remarks = work.listed(cases, asked)
    if listed.groups:
        return listed, remarks
    return replace(listed, window=work.shorter(cases)), remarks


@dataclass(frozen=True)
class _Work:
    """Predicts seconds and memory of many cases at once."""

    sizes: Sizes
    steps: int
    window: int
    inner_bounds: str | None
    memory: int
    seconds: float

    @property
    def fitting(self) -> int:
        """Number of cases whose boxes and intercepts of every step in the window fit into memory."""
        one = 2 * FLOAT * LIVE_CASE_BOXES * self.sizes.boxes * self.window
        return max(1, int(self.memory // one))

    def kept(self, cases: float) -> int:
        """Bytes of the boxes and planes of cases in every step of the window.

        All groups are carried from step to step, so all of them count, however the work is cut.
        """
        return self.window * self.sizes.kept(int(cases))

    def fits(self, cases: float) -> bool:
        """Whether what the cases hold leaves half of the memory beside the libraries for work."""
        return 2 * self.kept(cases) <= self.memory - BASELINE

    def listing(self, cases: float, groups: int, linear_inner: bool) -> float:
        """Seconds for cases in groups; the cases of a group share their backward passes."""
        sizes = self.sizes
        boxes = LISTED_WORK * sizes.boxes * cases * self.steps / BOUNDED_PER_SECOND
        inner_rows = SETTLED * sizes.inner_rows * linear_inner
        return boxes + self._walking(cases, groups, inner_rows, sizes.walked)

    def _walking(self, cases: float, groups: int, inner_rows: float, elements: int) -> float:
        """Seconds of backward passes that charge ``elements`` of a step to each case."""
        sizes = self.sizes
        walks = sum(min(t + 1, self.window) for t in range(self.steps))
        rows = 2 * sizes.state + inner_rows
        flops = 4.0 * rows * elements * walks * cases
        return flops / CASES_PER_SECOND + groups * rows * sizes.walked * walks / WALKED_PER_SECOND

    def shorter(self, cases: float) -> int:
        """The longest of the halved windows over which listing is cheap; 0 if there is none."""
        window = self.window // 2
        while window and not replace(self, window=window).listed(cases, None)[0].groups:
            window //= 2
        return window

    def listed(self, cases: float, asked: str | None) -> tuple[Selections, Remarks]:
        """Listed selections, if requested or cheap."""
        if math.isinf(cases):
            return Selections(), Remarks()
        groups = -(-int(min(cases, 1e9)) // min(self.fitting, MOST_CASES))
        dear = self.listing(cases, groups, True) > self.seconds
        if asked == "enumerated":
            inner = self.inner_bounds == "linear" or (self.inner_bounds is None and not dear)
            return self._listed(cases, groups, inner), Remarks()
        bare = self.listing(cases, groups, False)
        if bare > self.seconds or cases > MOST_LISTED:
            note = (
                f"selections are not listed: {cases:.3g} of them one by one would take about "
                f"{bare:.3g} s, more than {self.seconds:g} s; ask for selections='enumerated' to "
                "have them"
            )
            return Selections(), Remarks(notes=(note,) if cases <= MOST_LISTED else ())
        if not self.fits(cases):
            note = (
                f"selections are not listed: {cases:.3g} of them would hold "
                f"{self.kept(cases) / 2**20:.4g} MiB through a window of {self.window} steps, more than "
                f"half of memory {self.memory / 2**20:.4g} MiB beside the libraries; give more "
                "memory or a shorter window, or ask for selections='enumerated' to have them all the same"
            )
            return Selections(), Remarks(notes=(note,))
        if self.inner_bounds == "linear" and dear:
            note = (
                f"selections have inner bounds by intervals: linear ones would take about "
                f"{self.listing(cases, groups, True):.3g} s; ask for selections='enumerated' to have them"
            )
            return self._listed(cases, groups, False), Remarks(fallbacks=(note,))
        linear = self.inner_bounds != "interval" and not dear
        return self._listed(cases, groups, linear), Remarks()

    def _listed(self, cases: float, groups: int, inner: bool) -> Selections:
        seconds = self.listing(cases, groups, inner)
        return Selections(groups, inner, kept=self.kept(cases), seconds=seconds)
