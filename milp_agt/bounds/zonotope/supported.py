"""What hybrid zonotopes are made for, and what is refused by name."""

from __future__ import annotations

from collections.abc import Sequence

from milp_agt.bounds.step import NodeOrder
from milp_agt.bounds.zonotope.kinks import kink_of
from milp_agt.core.restriction import Restriction
from milp_agt.core.rounding import FLOAT64
from milp_agt.errors import UnsupportedOperationError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.exchange import Exchange
from milp_agt.formulations.linear_map import LinearMap
from milp_agt.formulations.rounding_error import RoundingError
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.univariate import Univariate
from milp_agt.threats.poison import Poison
from milp_agt.training.training import UpdateRule

KNOWN = (Einsum, Exchange, RoundingError, RunRounding, SquaredNorm, SumSamples, Univariate)


def check_supported(
    schedule: NodeOrder,
    poison: Poison,
    restriction: Restriction,
    updates: Sequence[UpdateRule],
) -> None:
    """Refuse what the engine has no rule for.

    Raises:
        UnsupportedOperationError: a threat or an operation without a rule.
    """
    found = refusal(schedule, poison, restriction, updates)
    if found is not None:
        raise UnsupportedOperationError(
            "Relaxation 'zonotope' was asked for this run",
            f"{found}, for which it has no rule",
            "use relaxation 'linear'",
        )


def refusal(
    schedule: NodeOrder,
    poison: Poison,
    restriction: Restriction,
    updates: Sequence[UpdateRule],
) -> str | None:
    """What of a run the engine has no rule for, in words; None if it has rules for all of it."""
    total = any(update.clip_total is not None for update in updates)
    if total and schedule.precision != FLOAT64:
        return f"clipping of the total norm (clip_total) in a run in {schedule.precision.name}"
    if poison.per_batch and restriction.inside:
        return "samples that are known to be poisoned, with a budget in each batch"
    for node in (*schedule.before, *schedule.after):
        known = isinstance(node.op, (LinearMap, RunRounding)) or not node.inputs
        if node not in schedule.after:
            known = known or isinstance(node.op, KNOWN)
            known = known and (node.batched or kink_of(node.op) is None)
        if not known:
            return f"operation '{node.op.key}' at '{node.name}'"
    return None
