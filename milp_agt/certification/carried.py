"""The chain of a zonotope beside those of linear forms and programs: its beginning, its worth, its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from milp_agt.bounds.step import NodeOrder, State
from milp_agt.bounds.zonotope import ZonotopePass, check_supported
from milp_agt.certification.chain_list import Chains
from milp_agt.certification.chains import ENUMERATED
from milp_agt.certification.planning import Plan
from milp_agt.core.reachable import StepRecord
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Notes
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison
from milp_agt.training.training import Batch, UpdateRule

ZONOTOPE, LINEAR = Relaxation.ZONOTOPE.value, Relaxation.LINEAR.value
# Linear forms that make boxes narrower than the zonotope does by less than this share gain nothing.
GAIN = 0.01
# A zonotope ends where other chains reach less than this share of its width.
HOPELESS = 0.5
# Every so many steps listed selections that were not asked for have to gain as much over it: they take
# twice or three times its time.
TRIAL, LISTED_GAIN = 5, 0.05


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


def beats_linear(chains: Chains, records: Sequence[StepRecord]) -> bool:
    """Whether linear forms gained nothing over the zonotope beside them in the last step."""
    if not records:
        return True
    if not {LINEAR, ZONOTOPE} <= {chain.name for chain in chains}:
        return False
    last = records[-1].chains
    return last[LINEAR] >= (1.0 - GAIN) * last[ZONOTOPE]


def end_listing(chains: Chains, widths: Mapping[str, float], index: int, notes: Notes) -> None:
    """End listed selections after a step on trial in which they gained little over the zonotope."""
    if (index + 1) % TRIAL or not {ENUMERATED, ZONOTOPE} <= {chain.name for chain in chains}:
        return
    if widths[ENUMERATED] >= (1.0 - LISTED_GAIN) * widths[ZONOTOPE]:
        chains.end(next(chain for chain in chains if chain.name == ENUMERATED))
        notes.note(
            f"step {index + 1}: selections are not listed from here on, which gained less than "
            f"{LISTED_GAIN:.0%} over the zonotope; ask for selections='enumerated' to have them listed"
        )


def list_again(chains: Chains, records: Sequence[StepRecord]) -> None:
    """Begin again with listed selections that ended on trial, when the zonotope that beat them has ended."""
    names = {chain.name for chain in chains}
    listed = [record for record in records if ENUMERATED in record.chains][-1:]
    ended = [r for r in listed if r.step % TRIAL == 0 and ZONOTOPE in r.chains]
    if ended and not {ENUMERATED, ZONOTOPE} & names:
        chains.list_again()


def end_hopeless(chains: Chains, widths: Mapping[str, float], index: int, notes: Notes) -> None:
    """End a zonotope that is far wider than the chains after it: its noise only grows."""
    for chain in list(chains)[:-1]:
        if chain.name == ZONOTOPE and min(widths.values()) < HOPELESS * widths[ZONOTOPE]:
            notes.note(
                f"step {index + 1}: the zonotope is left out from here on; linear forms are far tighter"
            )
            chains.end(chain)
