"""A restriction of the adversary's selections: a node of branch and bound."""

from __future__ import annotations

from dataclasses import dataclass

from milp_agt.errors import InvalidInputError


@dataclass(frozen=True)
class Restriction:
    """Which samples are known to be poisoned (``inside``) and which not (``outside``); others are free.

    A bound under a restriction holds for all attacks whose set of poisoned samples contains
    ``inside`` and avoids ``outside``. Samples are indices of the data set. The trivial restriction
    admits every attack.

    With a new selection in every batch (adaptive, budget per batch), an ``inside`` sample is poisoned
    in every batch that contains it, and an ``outside`` sample in none: the two sides then do not cover
    all attacks, so such adversaries are not branched on.
    """

    inside: frozenset[int] = frozenset()
    outside: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        both = self.inside & self.outside
        if both:
            raise InvalidInputError(
                "A restriction fixes each sample once",
                f"samples {sorted(both)[:5]} are both inside and outside",
                "fix each on one side",
            )


UNRESTRICTED = Restriction()
