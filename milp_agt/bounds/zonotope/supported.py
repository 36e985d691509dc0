"""What hybrid zonotopes are made for, and what is refused by name."""

from __future__ import annotations

from collections.abc import Sequence

from milp_agt.bounds.step import NodeOrder
from milp_agt.bounds.zonotope.kinks import kink_of
from milp_agt.core.graph import Node, Operation
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.errors import UnsupportedOperationError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.linear_map import LinearMap
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.formulations.univariate import Univariate
from milp_agt.threats.poison import Poison
from milp_agt.training.training import Batch


def check_supported(
    schedule: NodeOrder,
    poison: Poison,
    batches: Sequence[Batch],
    restriction: Restriction,
) -> None:
    """Refuse what the engine has no rule for.

    Raises:
        UnsupportedOperationError: a threat or an operation without a rule.
    """
    found = missing(schedule, poison, batches)
    if found is None and restriction is not UNRESTRICTED and restriction != UNRESTRICTED:
        found = f"a restriction {restriction!r}"
    if found is not None:
        raise UnsupportedOperationError(
            "Relaxation 'zonotope' was asked for this run",
            f"{found}, for which it has no rule",
            "use relaxation 'linear'",
        )


def missing(schedule: NodeOrder, poison: Poison, batches: Sequence[Batch]) -> str | None:
    """The part of a threat or of a model that has no rule, in words; None where all have."""
    found = None
    if poison.whole is not None:
        found = f"samples that are {poison.whole.value}"
    elif poison.label_quota is not None:
        found = "budgets of features and of labels apart"
    elif not poison.static:
        found = "an adversary that poisons anew in every step"
    elif poison.per_batch and any(len(batch) < len(poison.features) for batch in batches):
        found = "a budget in each batch, with batches smaller than the data set"
    if found is None:
        for node in (*schedule.before, *schedule.after):
            late = node in schedule.after
            known = isinstance(node.op, LinearMap) or not node.inputs
            if not late:
                known = known or isinstance(node.op, (Einsum, SquaredNorm, SumSamples, Univariate))
                known = known and (node.batched or kink_of(node.op) is None)
            if not known:
                found = f"operation '{node.op.key}' at '{node.name}'"
    return found


def unsupported(op: Operation, node: Node) -> UnsupportedOperationError:
    """The refusal of a node."""
    return UnsupportedOperationError(
        f"Relaxation 'zonotope' was asked for operation '{op.key}'",
        f"node '{node.name}', of which it has no rule yet",
        "use relaxation 'linear', or leave the operation out",
    )
