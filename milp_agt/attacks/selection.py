"""Which samples an attack poisons: the largest scores within the budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.unrolled import Unrolled
from milp_agt.core.restriction import UNRESTRICTED, Restriction

# The poisoned samples of each leaf, (attacks, samples of the leaf, quotas): one column, or one for the
# features and one for the labels where these have budgets apart.
Masks = tuple[Tensor, ...]


@dataclass(frozen=True)
class Selector:
    """Chooses poisoned samples by score; every choice is within the budget.

    Where the budget counts in each batch of a static run, the batches of different epochs overlap:
    there samples are taken greedily by falling score. Otherwise the choice is the best one.
    """

    unrolled: Unrolled
    restriction: Restriction = UNRESTRICTED

    def choose(self, scores: Masks) -> Masks:
        """Poisoned samples from scores (attacks, samples of the leaf, quotas); -inf is never chosen."""
        quotas = range(len(self.unrolled.poison.quotas))
        chosen = [self._chosen(tuple(s[..., p] for s in scores), p) for p in quotas]
        return tuple(torch.stack(leaf, -1) for leaf in zip(*chosen, strict=True))

    def _chosen(self, scores: tuple[Tensor, ...], quota: int) -> tuple[Tensor, ...]:
        """The choice for one quota."""
        run = self.unrolled
        if not run.poison.static and run.poison.per_batch:
            return tuple(
                self._top(score, cover, quota)
                for score, cover in zip(scores, run.covers, strict=True)
            )
        everyone = torch.arange(len(run.poison.features), device=scores[0].device)
        if run.poison.static:
            total = scores[0]
        else:
            total = scores[0].new_zeros(len(scores[0]), len(everyone))
            for score, cover in zip(scores, run.covers, strict=True):
                total = total.index_add(1, cover, score)
        if run.poison.per_batch:
            chosen = self._greedy(self._allowed(total, everyone, quota), quota)
        else:
            chosen = self._top(total, everyone, quota)
        return tuple(chosen[:, cover] for cover in run.covers)

    def random(self, attacks: int, generator: torch.Generator) -> Masks:
        """Random choices that use the budget up."""
        poison, kind = self.unrolled.poison, torch.float64
        return self.choose(
            tuple(
                torch.rand(attacks, len(c), len(poison.quotas), generator=generator, dtype=kind).to(
                    poison.features.device
                )
                for c in self.unrolled.covers
            )
        )

    def _allowed(self, scores: Tensor, samples: Tensor, quota: int) -> Tensor:
        """Scores with samples that must be poisoned at +inf, and those that cannot be at -inf.

        A sample that must be poisoned takes its place in the first quota that is open to it.
        """
        quotas = self.unrolled.poison.quotas
        taken = torch.zeros_like(samples, dtype=torch.bool)
        for earlier in quotas[:quota]:
            taken |= earlier.open[samples]
        for fixed, value in (
            (self.restriction.outside, -torch.inf),
            (self.restriction.inside, torch.inf),
        ):
            if fixed:
                index = torch.tensor(sorted(fixed), device=samples.device)
                among = torch.isin(samples, index)
                among = among if value < 0 else among & ~taken
                scores = scores.masked_fill(among, value)
        return scores.masked_fill(~quotas[quota].open[samples], -torch.inf)

    def _top(self, scores: Tensor, samples: Tensor, quota: int) -> Tensor:
        scores = self._allowed(scores, samples, quota)
        budget = self.unrolled.poison.quotas[quota].budget
        best = scores.topk(min(budget, scores.shape[1]), dim=1)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        return mask.scatter(1, best.indices, best.values > -torch.inf)

    def _greedy(self, scores: Tensor, quota: int) -> Tensor:
        batches = self.unrolled.batches
        budget = self.unrolled.poison.quotas[quota].budget
        members = torch.zeros(len(batches), scores.shape[1], dtype=torch.int64)
        for group, batch in zip(members, batches, strict=True):
            group[batch.cpu()] = 1
        members = members.unique(dim=0).to(scores.device)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        counts = torch.zeros(len(scores), len(members), dtype=torch.int64, device=scores.device)
        rows = torch.arange(len(scores), device=scores.device)
        value, order = scores.sort(dim=1, descending=True)
        for sample, worth in zip(order.unbind(1), value.unbind(1), strict=True):
            groups = members[:, sample].T
            fits = ((counts + groups <= budget) | (groups == 0)).all(1) & (worth > -torch.inf)
            counts += groups * fits[:, None]
            chosen[rows, sample] = fits
        return chosen
