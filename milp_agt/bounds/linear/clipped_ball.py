"""Backward passes through exchanged gradients that were clipped by their norm: a ball, not a box."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.interval import CLEAN, POISONED
from milp_agt.core.rounding import gamma
from milp_agt.formulations.exchange import Substitute
from milp_agt.training.tracing import SELECTION


def regained(
    schedule: NodeOrder, relaxed: LinearizedStep, on_terms: Mapping[str, Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """How much less an exchanged gradient can lower forms than its box allows.

    For coefficients c on the gradients of a sample, of all parameters together, the intercepts of a box
    ``[-b, b]`` allow ``-s_i b |c|_1``; the ball of radius b allows at most ``-s_i b |c|_2``. The
    coefficients are the same for all samples of the batch, because only the sums read the terms.

    Returns:
        An amount to add to the constants of the forms, (rows, cases), and one to subtract from the
        charges of the samples, (rows, n, 1); None for 0.
    """
    nodes = [n for n in schedule.before if isinstance(n.op, Substitute) and n.op.ball]
    flat = [on_terms[n.name].flatten(1) for n in nodes if n.name in on_terms]
    if not flat:
        return None, None
    op = nodes[0].op
    assert isinstance(op, Substitute)
    coefficients = torch.cat(flat, 1)
    longest = coefficients.abs().sum(1)
    gap = longest - torch.linalg.vector_norm(coefficients, dim=1)
    rounding = gamma(8 * coefficients.shape[1] + 64) * longest
    saved = (op.bound * (gap - rounding)).clamp(min=0.0)
    chosen = relaxed.ranges.boxes[SELECTION].upper.squeeze(-1)
    cases = len(next(iter(relaxed.state.values())).lower)
    if cases > 1 or len(chosen) == 1:
        # The sum of the shares of n samples, rounded down.
        share = chosen.sum(1) * (1.0 - gamma(chosen.shape[1] + 8))
        return saved.unsqueeze(1) * share, None
    charged = (chosen[POISONED] - chosen[CLEAN]).clamp(min=0.0)
    return None, (saved.unsqueeze(1) * charged).unsqueeze(-1)
