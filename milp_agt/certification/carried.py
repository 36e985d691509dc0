"""The chain of a zonotope beside those of linear forms and programs: its beginning, its worth, its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from milp_agt.bounds.step import NodeOrder, State
from milp_agt.bounds.zonotope import ZonotopePass, check_supported
from milp_agt.certification.chain_list import Chains
from milp_agt.certification.planning import Plan
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Notes
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison
from milp_agt.training.training import Batch, UpdateRule

ZONOTOPE, LINEAR = Relaxation.ZONOTOPE.value, Relaxation.LINEAR.value
# A zonotope ends where other chains reach less than this share of its width.
HOPELESS = 0.5


def begin(
    chains: Chains,
    schedule: NodeOrder,
    start: State,
    parameters: Sequence[str],
    poison: Poison,
    batches: Sequence[Batch],
    restriction: Restriction,
    plan: Plan,
    updates: Sequence[UpdateRule],
) -> None:
    """The set before the first step, for the chain of a zonotope, if there is one.

    Raises:
        UnsupportedOperationError: it was asked for, and has no rule for the run.
    """
    for chain in chains:
        if chain.level is Relaxation.ZONOTOPE:
            (part,) = chain.parts
            if plan.relaxation is Relaxation.ZONOTOPE:
                check_supported(schedule, poison, restriction, updates)
            part.forward = ZonotopePass.begin(
                schedule, start, parameters, poison, None, batches, restriction
            )


def end_hopeless(chains: Chains, widths: Mapping[str, float], index: int, notes: Notes) -> None:
    """End a zonotope that is far wider than the chains after it: its noise only grows."""
    for chain in list(chains)[:-1]:
        if chain.name == ZONOTOPE and min(widths.values()) < HOPELESS * widths[ZONOTOPE]:
            notes.note(
                f"step {index + 1}: the zonotope is left out from here on; linear forms are far tighter"
            )
            chains.end(chain)
