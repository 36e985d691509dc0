"""Bounds of forms that know who is poisoned, for questions about all test points at once."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.adversary.two_budgets import worst_sum
from milp_agt.bounds.linear.window_bounds import bound_by_sample, forms_of_outputs
from milp_agt.bounds.passes import in_passes
from milp_agt.properties.last_forms import by_sample_of_forms
from milp_agt.properties.models import OutputForms, ReachableModels, Reached


def sample_influences(models: ReachableModels, forms: OutputForms) -> tuple[Tensor, Tensor] | None:
    """Lower bounds that know who is poisoned: ``form >= base - sum_{i in S} dev_i`` for every set S
    of samples that the adversary may choose.

    Returns:
        ``base`` (n, forms) and ``dev`` (n, forms, N), of each form the pair that proves most; None where
        all is bounded selection by selection, selections are made anew in every batch or have two
        budgets, or no forms are kept.
    """
    known = [r for r in models.everywhere if isinstance(r.adversary, Joint) and r.keeps_forms]
    poison = models.poison
    if not known or poison.is_clean or poison.label_quota is not None or poison.per_batch:
        return None
    best: tuple[Tensor, Tensor] | None = None
    for reached in known:
        pieces = [_piece(models, reached, forms.part(p)) for p in models.parts(forms)]
        base, dev = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        if best is not None:
            least = [b - worst_sum(d.movedim(-1, 0), poison.budget) for b, d in ((base, dev), best)]
            wins = least[0] > least[1]
            base = torch.where(wins, base, best[0])
            dev = torch.where(wins.unsqueeze(-1), dev, best[1])
        best = base, dev
    return best


def _piece(models: ReachableModels, reached: Reached, forms: OutputForms) -> tuple[Tensor, Tensor]:
    turned = forms.coefficients.transpose(0, 1)
    own = forms_of_outputs(
        models.step_graph,
        models.forward,
        reached.state,
        forms.inputs,
        turned,
    )
    own.constant = own.constant + forms.constant.T.unsqueeze(-1)
    own.magnitude = own.magnitude + forms.constant.T.abs()

    def bound(rows: Tensor) -> tuple[Tensor, Tensor]:
        if reached.forward is not None:
            some = own.rows(rows.to(turned.device), reached.state)
            return by_sample_of_forms(reached.forward, some, reached.state)
        return bound_by_sample(
            models.schedule,
            reached.window,
            own.rows(rows.to(turned.device), reached.state),
            reached.adversary,
        )

    size = models.rows_at_once(reached.window)
    found = in_passes(own.magnitude.numel(), size, bound)
    base, dev = torch.cat([b for b, _ in found]), torch.cat([d for _, d in found])
    points = len(forms)
    return base.reshape(-1, points).T, dev.reshape(-1, points, dev.shape[1]).transpose(0, 1)
