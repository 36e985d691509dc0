"""Rules made one per cent too tight, or that forget something, and whether a check notices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from draws import TOL, make_boxes
from instances import Instance
from torch import Tensor

from milp_agt.certification import listing
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression
from milp_agt.core.interval import Interval
from milp_agt.errors import MilpAgtError

SHARE = TOL.mutant
SEEDS = range(6)


def is_caught(check: Callable[[int], object], seeds: Iterable[int] = SEEDS) -> bool:
    """Does the check raise for one of the seeds?"""
    for seed in seeds:
        try:
            check(seed)
        except (AssertionError, MilpAgtError):
            return True
    return False


def shrunk(box: Interval, ends: str = "both") -> Interval:
    """The box with one or both ends moved inwards by one per cent of its width."""
    move = SHARE * box.width
    return Interval(
        box.lower + move if ends != "upper" else box.lower,
        box.upper - move if ends != "lower" else box.upper,
    )


Check = Callable[[int], object]
# Makes the wrong rule of the right one.
Wrong = Callable[[Any], Any]
Rules = tuple[tuple[Any, str], ...]


@dataclass(frozen=True)
class Mutant:
    """Rules (where they stand, and by what name), what is wrong with them, and who notices.

    ``check`` takes a seed and raises where it sees a bound that does not hold.
    """

    name: str
    rules: Rules
    wrong: Wrong
    check: Check
    seeds: int = 6


def times(factor: float) -> Wrong:
    """Boxes, tensors and numbers that are nearer to 0 than they should be."""

    def wrong(honest: Any) -> Any:
        def rule(*given: Any, **named: Any) -> Any:
            found = honest(*given, **named)
            if isinstance(found, Interval):
                return Interval(factor * found.lower, factor * found.upper)
            return factor * found

        return rule

    return wrong


def shrink(honest: Any) -> Any:
    return lambda *given: shrunk(honest(*given))


def nothing(honest: Any) -> Any:
    return lambda *given: torch.zeros_like(honest(*given))


def one_less(honest: Any) -> Any:
    """A budget that is smaller by one."""
    return lambda hurt, budget: honest(hurt, budget - 1)


def unlisted(check: Check) -> Check:
    """The check where finite threats are bounded as those whose data sets are too many for a list."""

    def checked(seed: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(listing.listed, "count_choices", lambda *_: float("inf"))
            check(seed)

    return checked


def moderate(instance: Instance, states: str, seed: int) -> tuple[Interval, ...]:
    rng = np.random.default_rng(seed)
    boxes = make_boxes(instance, ("straddle",), (states,), rng)
    if instance.domain == "exponent":
        boxes = tuple(Interval(0.2 * b.lower, 0.2 * b.upper) for b in boxes)
    return boxes


@dataclass(frozen=True)
class MutantPlanes:
    """Linear bounds with one thing wrong."""

    planes: Any
    kind: str

    @property
    def magnitude(self) -> Tensor:
        return self.planes.magnitude

    def _offset(self, end: str) -> Tensor | None:
        lower, upper = self.planes.lower, self.planes.upper
        if lower is None or upper is None:
            return None
        offset = lower if end == "lower" else upper
        if self.kind == "charge":
            return offset[:1].expand(offset.shape)
        if self.kind != end:
            return offset
        gap = upper - lower
        gap = torch.where(gap > 1e-6 * self.magnitude, gap, self.magnitude)
        return offset + SHARE * gap if end == "lower" else offset - SHARE * gap

    @property
    def lower(self) -> Tensor | None:
        return self._offset("lower")

    @property
    def upper(self) -> Tensor | None:
        return self._offset("upper")

    def backward(self, coefficients: Tensor) -> tuple[Tensor, ...]:
        pulled = self.planes.backward(coefficients)
        if self.kind == "slope":
            return ((1.0 + SHARE) * pulled[0], *pulled[1:])
        return pulled


class MutantEncoder(Encoder):
    """An encoder that makes one thing one per cent too tight, once ``armed``."""

    armed = False

    def __init__(self, exact_phases: bool, kind: str, only: int | None = None) -> None:
        super().__init__(exact_phases)
        self.kind, self.only, self.calls = kind, only, 0

    def columns(self, lower: Array, upper: Array, integer: bool = False) -> Expression:
        if self.armed and self.kind == "columns":
            move = SHARE * (np.asarray(upper) - np.asarray(lower))
            lower, upper = np.asarray(lower) + move, np.asarray(upper) - move
        return super().columns(lower, upper, integer)

    def rows(
        self, expression: Expression, lower: Array | float, upper: Array | float, lazy: bool = False
    ) -> None:
        if self.armed and self.kind == "rows":
            self.calls += 1
            if self.only in (None, self.calls):
                move = SHARE * self._reach(expression)
                lower, upper = lower + move, upper - move
        super().rows(expression, lower, upper, lazy)

    def at_least(self, expression: Expression, offsets: Tensor, lazy: bool = False) -> None:
        dropped = self.armed and self.kind == "charge"
        super().at_least(expression, offsets[:1] if dropped else offsets, lazy)

    def with_slack(self, expression: Expression, offsets: Interval) -> Expression:
        if self.armed and self.kind == "charge":
            offsets = offsets.clean
        elif self.armed and self.kind == "slack":
            offsets = shrunk(offsets)
        return super().with_slack(expression, offsets)

    def _reach(self, expression: Expression) -> Array:
        """How far the expression can move within the bounds of its columns."""
        width = np.concatenate(self._upper) - np.concatenate(self._lower)
        matrix = abs(sp.csr_matrix(expression.matrix))
        return (matrix @ width[: matrix.shape[1]]).reshape(expression.shape)
