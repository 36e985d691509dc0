"""The chain of a zonotope beside those of linear forms and programs: its beginning, which of them end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from milp_agt.bounds.step import NodeOrder, State
from milp_agt.bounds.zonotope import ZonotopePass, check_supported
from milp_agt.certification.chain_list import Chains
from milp_agt.certification.planning import Plan
from milp_agt.core.reachable import StepRecord
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Notes
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison
from milp_agt.training.training import Batch, UpdateRule

ZONOTOPE, LINEAR = Relaxation.ZONOTOPE.value, Relaxation.LINEAR.value
# A zonotope ends where other chains reach less than this share of its width.
HOPELESS = 0.5
# Linear forms end beside a zonotope that is narrower than they are by themselves by this share, after some
# steps in which they took less than another share off its width.
WIDER, GAIN, STEPS = 0.05, 1e-4, 5


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
                schedule, start, parameters, poison, None, batches, restriction, plan.memory
            )


def end_hopeless(chains: Chains, widths: Mapping[str, float], index: int, notes: Notes) -> None:
    """End a zonotope that is far wider than the chains after it: its noise only grows."""
    for chain in list(chains)[:-1]:
        if chain.name == ZONOTOPE and min(widths.values()) < HOPELESS * widths[ZONOTOPE]:
            notes.note(
                f"step {index + 1}: the zonotope is left out from here on; linear forms are far tighter"
            )
            chains.end(chain)


def end_idle(
    chains: Chains, alone: Mapping[str, float], records: Sequence[StepRecord], notes: Notes
) -> None:
    """End linear forms that add nothing to a zonotope, where nothing is built on them.

    Args:
        alone: mean widths of the chains by themselves, before the meet, in the last step.
        records: of all steps so far.
    """
    last, recent = chains.tightest, [record.chains for record in records[-STEPS:]]
    if last.name != LINEAR or len(recent) < STEPS or any(ZONOTOPE not in each for each in recent):
        return
    useful = any(each[LINEAR] < (1.0 - GAIN) * each[ZONOTOPE] for each in recent)
    if not useful and alone[LINEAR] >= (1.0 + WIDER) * alone[ZONOTOPE]:
        notes.note(
            f"step {len(records)}: linear forms end here: in {STEPS} steps they have added nothing to the "
            "zonotope, which is narrower"
        )
        chains.end(last)
