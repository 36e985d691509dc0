"""The width of the parameter box by cause: flips, products, curvature, selection, start box."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.bounds.adversary.enumerated import Enumerated
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.linear.gaps import Account, Gaps, Window
from milp_agt.bounds.passes import in_passes
from milp_agt.core.graph import Cause
from milp_agt.properties.models import ReachableModels, Reached
from milp_agt.threats.poison import Poison


def split(models: ReachableModels) -> dict[Cause, float]:
    """What adds up to the mean width that linear forms prove by the window alone.

    The forms of both ends of every parameter are walked back, each to its best stop, and all that is
    lost on the way is told apart (:mod:`milp_agt.bounds.linear.gaps`):

    - moves: what the poisoned samples of *one fixed* selection do through the operations as they are
      linearised; with flipped labels enumerated, how far that one flipped run ends from the clean one;
    - flips, products, curvature: what the planes of kinks, of bilinear terms and of smooth functions
      lose at the nominal run, and what they lose more for the samples of that selection;
    - selection: what is left of the debt, because every end has poisoned samples of its own. The
      fixed selection is the one that is worth most to all ends together;
    - start box: the spread over the box where a walk stops; forms that go on before the window
      (:class:`milp_agt.bounds.linear.composed.PastStep`) prove more, which is not told apart;
    - rounding: what is subtracted for it, and the planes of linear operations.

    Each is >= 0 up to rounding, and their sum is the mean over the trainable parameters of the distance
    between both bounds. Where the window reaches back to fixed initial parameters, the run that values
    are taken from is the nominal one, and so each end's part is its distance from the nominal value;
    otherwise it starts in the middle of the window's first box.
    """
    found = [_gaps(models, reached) for reached in models.reached]
    if isinstance(models.reached[0].adversary, Enumerated):
        return _of_cases([pieces for pieces, _ in found])
    (pieces, accounts), adversary = found[0], models.reached[0].adversary
    ends = len(pieces.bound)
    total = {cause: float(gap.sum()) for cause, gap in pieces.gaps.items()}
    worst_case = float(pieces.worst_case.sum())
    for account in accounts:
        chosen = _chosen(account, adversary)
        for cause, worth in account.worth.items():
            paid = float(worth[0, chosen].sum())
            total[cause] = total.get(cause, 0.0) + paid
            worst_case -= paid
    total[Cause.SELECTION] = worst_case
    return _means(total, ends)


def _gaps(models: ReachableModels, reached: Reached) -> tuple[Gaps, tuple[Account, ...]]:
    """The gaps of both ends of every parameter, and the accounts summed over them, (1, N) each."""
    window = Window.of(models.step_graph, models.schedule, reached.window, reached.adversary)
    rows = models.parameter_rows(reached)

    def gaps(some: Tensor) -> Gaps:
        found = window.gaps(Forms.start(models.on_parameters(reached, rows[some])))
        return replace(found, accounts=tuple(_summed(account) for account in found.accounts))

    pieces = in_passes(len(rows), models.rows_at_once(window.steps), gaps)
    accounts = list(pieces[0].accounts)
    for number, account in ((n, a) for piece in pieces[1:] for n, a in enumerate(piece.accounts)):
        if number == len(accounts):
            accounts.append(account)
            continue
        known = accounts[number].worth
        for cause, worth in account.worth.items():
            known[cause] = known[cause] + worth if cause in known else worth
    return _joined(pieces), tuple(accounts)


def _summed(account: Account) -> Account:
    """The account of all rows together."""
    sums = {cause: worth.sum(0, keepdim=True) for cause, worth in account.worth.items()}
    return Account(sums, account.groups)


def _joined(pieces: list[Gaps]) -> Gaps:
    causes = list(dict.fromkeys(cause for piece in pieces for cause in piece.gaps))
    return Gaps(
        torch.cat([p.reference for p in pieces]),
        torch.cat([p.bound for p in pieces]),
        torch.cat([p.worst_case for p in pieces]),
        {
            cause: torch.cat([p.gaps.get(cause, torch.zeros_like(p.bound)) for p in pieces])
            for cause in causes
        },
        (),
    )


def _chosen(account: Account, adversary: object) -> Tensor:
    """The samples of the selection that is worth most to all ends together."""
    assert isinstance(adversary, Joint)
    poison: Poison = adversary.poison
    worth = torch.stack(list(account.worth.values())).sum((0, 1))
    worth = torch.where(poison.open, worth, -torch.inf)
    known = adversary.restriction
    worth[sorted(known.outside)] = -torch.inf
    worth[sorted(known.inside)] = torch.inf
    picked = []
    for group in account.groups.unique().tolist():
        members = (account.groups == group).nonzero()[:, 0]
        if group < 0:
            continue
        best = members[worth[members].argsort(descending=True)[: poison.budget]]
        picked.append(best[worth[best] > 0])
    return torch.cat(picked) if picked else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class _GapCase:
    """One case of one group: how far it pushes every end beyond the clean run, (rows,)."""

    group: Gaps
    number: int

    @property
    def drift(self) -> Tensor:
        """How far the run of the case itself ends on the hurting side of the clean run."""
        return self.group.reference[:, 0] - self.group.reference[:, self.number]

    @property
    def distance(self) -> Tensor:
        return self.group.reference[:, 0] - self.group.bound[:, self.number]


def _of_cases(groups: list[Gaps]) -> dict[Cause, float]:
    """Everything is paid in one fixed case, or, for ends that it moves away from, in the clean one."""
    cases = [_GapCase(group, j) for group in groups for j in range(group.bound.shape[1])]
    clean = cases[0]
    worst = torch.stack([case.distance for case in cases]).amax(0)
    fixed = max(cases, key=lambda case: float(torch.maximum(case.distance, clean.distance).sum()))
    hurt = (fixed.drift >= 0) & (fixed.distance >= clean.distance)
    total = {
        cause: _picked(hurt, gap[:, fixed.number], clean.group.gaps[cause][:, 0])
        for cause, gap in fixed.group.gaps.items()
    }
    moves = _picked(
        hurt, fixed.group.worst_case[:, fixed.number] + fixed.drift, clean.group.worst_case[:, 0]
    )
    paid = _picked(hurt, fixed.distance, clean.distance)
    total[Cause.MOVES] = moves
    total[Cause.SELECTION] = float(worst.sum()) - paid
    return _means(total, len(worst))


def _picked(hurt: Tensor, fixed: Tensor, clean: Tensor) -> float:
    return float(torch.where(hurt, fixed, clean).sum())


def _means(total: dict[Cause, float], ends: int) -> dict[Cause, float]:
    """Sums over both ends of all parameters as means over the parameters, every cause named."""
    return {cause: total.get(cause, 0.0) / (ends / 2) for cause in Cause}
