"""From bounds and thresholds to verdicts: what was asked of the trained model, and is it proved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from milp_agt.config import PropertyTable
from milp_agt.data import Dataset

if TYPE_CHECKING:
    from milp_agt.result import Result

Status = Literal["PROVED", "NOT PROVED", "REPORTED"]


@dataclass(frozen=True)
class Verdict:
    """One property: its bounds over the reachable set, and whether they meet the threshold.

    ``lower`` and ``upper`` hold for every admissible poisoning, ``nominal`` for the data as given.
    A property without a threshold is REPORTED.
    """

    kind: str
    on: str
    lower: float
    nominal: float
    upper: float
    at_least: float | None
    at_most: float | None
    status: Status

    @property
    def name(self) -> str:
        """The kind and the part of the data, for instance ``accuracy on test``."""
        return f"{self.kind} on {self.on}"

    @property
    def threshold(self) -> str:
        """The threshold with its direction, for instance ``>= 0.9``; a dash without one."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "-"


def judge(result: Result, dataset: Dataset, asked: PropertyTable) -> Verdict:
    """Bound one property and compare it with its threshold; a NaN proves nothing.

    Raises:
        InvalidInputError: the property does not fit the loss or the data.
    """
    on_test = asked.on == "test"
    x = dataset.x_test if on_test else dataset.x_train
    y = dataset.y_test if on_test else dataset.y_train
    if asked.kind == "accuracy":
        bounds = result.accuracy(x, y)
    elif asked.kind == "loss":
        bounds = result.loss(x, y)
    else:
        bounds = result.stable(x)
    return Verdict(
        asked.kind,
        asked.on,
        bounds.lower,
        bounds.nominal,
        bounds.upper,
        asked.at_least,
        asked.at_most,
        decide(bounds.lower, bounds.upper, asked.at_least, asked.at_most),
    )


def decide(lower: float, upper: float, at_least: float | None, at_most: float | None) -> Status:
    """PROVED only if the bound on the right side is a number that meets the threshold."""
    if at_least is not None:
        return "PROVED" if lower >= at_least else "NOT PROVED"
    if at_most is not None:
        return "PROVED" if upper <= at_most else "NOT PROVED"
    return "REPORTED"
