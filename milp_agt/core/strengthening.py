"""What may make programs tighter at further cost."""

from __future__ import annotations

from dataclasses import dataclass

from milp_agt.core.arguments import at_least


@dataclass(frozen=True)
class Strengthening:
    """Work that the programs of ``lp`` and above do beyond their plain encoding.

    Any choice gives sound bounds. By default none of it is done: it gained little on the instances of
    ``solvers/README.md``.

    Attributes:
        pieces: pieces of the range of one operand of a chosen product, each with McCormick envelopes of
            its own and a binary (``milp`` and ``miqp``; Bergamini et al. 2005); 1 for none.
        pieced: how many products of a window are chosen: those with the largest gap.
        obbt_seconds: seconds that every step of ``lp`` and above may spend on tightening the ranges
            inside the step by linear programs (optimisation-based bound tightening), before it is
            bounded itself; 0 for none. What is done in that time depends on the machine.

    Raises:
        InvalidInputError: a count below 1, negative seconds.
    """

    pieces: int = 1
    pieced: int = 8
    obbt_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("pieces", "pieced"):
            what = f"{name} of a strengthening"
            at_least(getattr(self, name), 1, what, "give 1 to leave pieces out", whole=True)
        what = "obbt_seconds of a strengthening"
        at_least(self.obbt_seconds, 0.0, what, "give 0 to leave ranges as they are")


DEFAULT = Strengthening()
