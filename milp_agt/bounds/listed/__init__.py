"""Finite threats: every choice of the adversary is one data set, and one training run with its rounding."""

from milp_agt.bounds.listed.choices import (
    ListedChoices,
    ListedData,
    Poisoned,
    count_choices,
    list_choices,
)
from milp_agt.bounds.listed.runs import ListedRuns, begin, hull, net_of, refitted

__all__ = [
    "ListedChoices",
    "ListedData",
    "ListedRuns",
    "Poisoned",
    "begin",
    "count_choices",
    "hull",
    "list_choices",
    "net_of",
    "refitted",
]
