"""Chooses how selections are bounded: listed one by one, or jointly."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from milp_agt.bounds.adversary.enumerated import count_cases
from milp_agt.certification import sizes as rates
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.sizes import Sizes
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
    options: CertifyOptions,
    poison: Poison,
    restriction: Restriction,
    seconds: float,
    zonotope: bool,
) -> tuple[Selections, Remarks]:
    """The requested selections; by default listed if that is predicted to take at most so many ``seconds``.

    Beside a ``zonotope`` they are joint by default, unless labels flip: it turns each flip into noise.

    Where they are not listed for that reason, ``window`` of the result is the longest of the halved
    windows over which they would be. Raises InvalidInputError: a kind that this run cannot have.
    """
    asked = options.selections == "enumerated"
    if asked and not level.walks:
        raise InvalidInputError(
            "Selections that are told apart need linear forms",
            f"relaxation '{level.value}'",
            "use relaxation 'linear' or above",
        )
    flat = zonotope and not isinstance(poison.label_moves, Vertices)
    if options.selections == "joint" or not level.walks or (flat and not asked):
        return Selections(), Remarks()
    cases = count_cases(poison, restriction)
    if asked and math.isinf(cases):
        raise InvalidInputError(
            "Selections can be enumerated where one of them holds for the whole run",
            "a budget in each batch, or nothing that can be poisoned",
            "use scope='dataset', or selections='joint'",
        )
    work = _Work(sizes, sizes.window, options.inner_bounds, cases, seconds)
    listed, remarks = work.listed(asked)
    if listed.groups:
        return listed, remarks
    window = sizes.window // 2
    while window and not replace(work, window=window).listed(False)[0].groups:
        window //= 2
    return replace(listed, window=window), remarks


@dataclass(frozen=True)
class _Work:
    """Predicts seconds and memory of many cases at once, over a window."""

    sizes: Sizes
    window: int
    inner_bounds: str | None
    cases: float
    seconds: float

    @property
    def groups(self) -> int:
        """Groups whose boxes and intercepts of every step in the window fit into memory."""
        one = 2 * rates.FLOAT * rates.LIVE_CASE_BOXES * self.sizes.boxes * self.window
        fitting = max(1, int(self.sizes.memory // one))
        return -(-int(min(self.cases, 1e9)) // min(fitting, MOST_CASES))

    @property
    def kept(self) -> int:
        """Bytes of the boxes and planes of cases in every step of the window.

        All groups are carried from step to step, so all of them count, however the work is cut.
        """
        return self.window * self.sizes.kept(int(self.cases))

    def listing(self, linear_inner: bool) -> float:
        """Seconds for all cases; those of a group share their backward passes."""
        sizes, cases = self.sizes, self.cases
        boxes = rates.LISTED_WORK * sizes.boxes * cases * sizes.steps / rates.BOUNDED_PER_SECOND
        walks = sum(min(t + 1, self.window) for t in range(sizes.steps))
        rows = 2 * sizes.state + rates.SETTLED * sizes.inner_rows * linear_inner
        flops = 4.0 * rows * sizes.walked * walks * cases
        walking = self.groups * rows * sizes.walked * walks / rates.WALKED_PER_SECOND
        return boxes + (flops / rates.CASES_PER_SECOND + walking)

    def listed(self, asked: bool) -> tuple[Selections, Remarks]:
        """Listed selections, if requested or cheap."""
        cases, memory = self.cases, self.sizes.memory
        if math.isinf(cases):
            return Selections(), Remarks()
        dear = self.listing(True) > self.seconds
        if asked:
            inner = self.inner_bounds == "linear" or (self.inner_bounds is None and not dear)
            return self._listed(inner), Remarks()
        bare = self.listing(False)
        if bare > self.seconds or cases > MOST_LISTED:
            note = (
                f"selections are not listed: {cases:.3g} of them one by one would take about "
                f"{bare:.3g} s, more than {self.seconds:g} s; ask for selections='enumerated' to "
                "have them"
            )
            return Selections(), Remarks(notes=(note,) if cases <= MOST_LISTED else ())
        if 2 * self.kept > memory - rates.BASELINE:
            note = (
                f"selections are not listed: {cases:.3g} of them would hold "
                f"{self.kept / 2**20:.4g} MiB through a window of {self.window} steps, more than "
                f"half of memory {memory / 2**20:.4g} MiB beside the libraries; give more "
                "memory or a shorter window, or ask for selections='enumerated' to have them all the same"
            )
            return Selections(), Remarks(notes=(note,))
        remarks = Remarks()
        if self.inner_bounds == "linear" and dear:
            note = (
                f"selections have inner bounds by intervals: linear ones would take about "
                f"{self.listing(True):.3g} s; ask for selections='enumerated' to have them"
            )
            remarks = Remarks(fallbacks=(note,))
        return self._listed(self.inner_bounds != "interval" and not dear), remarks

    def _listed(self, inner: bool) -> Selections:
        seconds = self.listing(inner)
        return Selections(self.groups, inner, kept=self.kept, seconds=seconds)
