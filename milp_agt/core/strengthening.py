"""Options that tighten programs at additional cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from milp_agt.core.arguments import at_least

_GONE = "it gained nothing that was worth its cost, and programs do without it"
_ALWAYS = "programs always do it"
# Switches of older run files, and the current behaviour.
REMOVED = {
    **dict.fromkeys(("cuts", "phases", "rlt", "symmetry", "selection_first"), _GONE),
    **dict.fromkeys(("on_off", "influence", "by_choice"), _ALWAYS),
    "identity": "'qcqp' always does it, the other levels never",
}


@dataclass(frozen=True)
class Strengthening:
    """Work of the programs of `lp` and above beyond their plain encoding.

    Any choice gives sound bounds. By default all of it is off: it gained little on the instances of
    ``solvers/README.md``.

    Attributes:
        pieces: of each chosen product (``milp`` and ``miqp``; Bergamini et al. 2005).
        pieced: how many products of a window are chosen.
        obbt_seconds: of optimisation-based bound tightening in every step. How much is done in that
            time depends on the machine.

    Raises:
        InvalidInputError: a count below 1, negative seconds.
    """

    # A table in a file is not an object of this class yet, so only its numbers are strict.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    pieces: Annotated[
        int,
        Field(
            ge=1,
            strict=True,
            description="Pieces of the range of one operand of a chosen product, each with McCormick "
            "envelopes and a binary of its own (`milp` and `miqp`); 1 for none.",
        ),
    ] = 1
    pieced: Annotated[
        int,
        Field(
            ge=1,
            strict=True,
            description="Products of a window that are cut into `pieces`: those with the largest gap.",
        ),
    ] = 8
    obbt_seconds: Annotated[
        float,
        Field(
            ge=0,
            strict=True,
            description="Time in which every step of `lp` and above may tighten the ranges inside it by "
            "linear programs before it is bounded itself; 0 for none.",
            json_schema_extra={"x-unit": "seconds"},
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        for name in ("pieces", "pieced"):
            what = f"{name} of a strengthening"
            at_least(getattr(self, name), 1, what, "give 1 to leave pieces out", whole=True)
        what = "obbt_seconds of a strengthening"
        at_least(self.obbt_seconds, 0.0, what, "give 0 to leave ranges as they are")


DEFAULT = Strengthening()
