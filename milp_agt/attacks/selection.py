"""Which samples an attack poisons: the largest scores within the budget; random poisonings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.moves import random_moves
from milp_agt.attacks.unrolled import Poisoning, Unrolled
from milp_agt.core.restriction import UNRESTRICTED, Restriction


@dataclass(frozen=True)
class Selector:
    """Chooses poisoned samples by score; every choice is within the budget.

    Where the budget counts in each batch of a static run, the batches of different epochs overlap:
    there samples are taken greedily by falling score. Otherwise the choice is the best one.
    """

    unrolled: Unrolled
    restriction: Restriction = UNRESTRICTED

    def choose(self, scores: Tensor) -> Tensor:
        """Masks of poisoned entries from scores, both (attacks, entries, quotas); -inf is never chosen.

        Quotas are one, or one for the features and one for the labels where these have budgets apart.
        """
        quotas = range(self.unrolled.quotas)
        return torch.stack([self._chosen(scores[..., quota], quota) for quota in quotas], -1)

    def _chosen(self, scores: Tensor, quota: int) -> Tensor:
        run, poison = self.unrolled, self.unrolled.poison
        if not poison.static and poison.per_batch:
            spans = run.spans
            return torch.cat([self._top(scores[:, s], run.cover[s], quota) for s in spans], 1)
        everyone = torch.arange(len(poison.features), device=scores.device)
        total = scores
        if not poison.static:
            total = scores.new_zeros(len(scores), len(everyone)).index_add(1, run.cover, scores)
        pick = self._greedy if poison.per_batch else self._top
        return pick(total, everyone, quota)[:, run.cover]

    def random(self, attacks: int, generator: torch.Generator) -> Tensor:
        """Random choices that use the budget up."""
        run = self.unrolled
        shape = attacks, len(run.cover), run.quotas
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        return self.choose(drawn.to(run.cover.device))

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

    def _greedy(self, scores: Tensor, samples: Tensor, quota: int) -> Tensor:
        scores = self._allowed(scores, samples, quota)
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


def random_poisoning(
    selector: Selector, attacks: int, generator: torch.Generator, corners: bool
) -> Poisoning:
    """Random admissible data: moves at full strength, or from all over the sets of moves."""
    mask = selector.random(attacks, generator)
    return random_moves(selector.unrolled, mask, generator, corners)
