"""Which samples an attack poisons: the largest scores within the budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.unrolled import Unrolled
from milp_agt.core.restriction import UNRESTRICTED, Restriction

Masks = tuple[Tensor, ...]  # the poisoned samples of each leaf, (attacks, samples of the leaf)


@dataclass(frozen=True)
class Selector:
    """Chooses poisoned samples by score; every choice is within the budget.

    Where the budget counts in each batch of a static run, the batches of different epochs overlap:
    there samples are taken greedily by falling score. Otherwise the choice is the best one.
    """

    unrolled: Unrolled
    restriction: Restriction = UNRESTRICTED

    def choose(self, scores: Masks) -> Masks:
        """Poisoned samples from scores (attacks, samples of the leaf); -inf is never chosen."""
        run = self.unrolled
        if not run.poison.static and run.poison.per_batch:
            return tuple(
                self._top(score, cover) for score, cover in zip(scores, run.covers, strict=True)
            )
        everyone = torch.arange(len(run.poison.features), device=scores[0].device)
        if run.poison.static:
            total = scores[0]
        else:
            total = scores[0].new_zeros(len(scores[0]), len(everyone))
            for score, cover in zip(scores, run.covers, strict=True):
                total = total.index_add(1, cover, score)
        if run.poison.per_batch:
            chosen = self._greedy(self._allowed(total, everyone))
        else:
            chosen = self._top(total, everyone)
        return tuple(chosen[:, cover] for cover in run.covers)

    def random(self, attacks: int, generator: torch.Generator) -> Masks:
        """Random choices that use the budget up."""
        device = self.unrolled.poison.features.device
        return self.choose(
            tuple(
                torch.rand(attacks, len(c), generator=generator, dtype=torch.float64).to(device)
                for c in self.unrolled.covers
            )
        )

    def _allowed(self, scores: Tensor, samples: Tensor) -> Tensor:
        """Scores with samples that must be poisoned at +inf, and those that cannot be at -inf."""
        closed = ~self.unrolled.poison.open[samples]
        for fixed, value in (
            (self.restriction.outside, -torch.inf),
            (self.restriction.inside, torch.inf),
        ):
            if fixed:
                index = torch.tensor(sorted(fixed), device=samples.device)
                scores = scores.masked_fill(torch.isin(samples, index), value)
        return scores.masked_fill(closed, -torch.inf)

    def _top(self, scores: Tensor, samples: Tensor) -> Tensor:
        scores = self._allowed(scores, samples)
        best = scores.topk(min(self.unrolled.poison.budget, scores.shape[1]), dim=1)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        return mask.scatter(1, best.indices, best.values > -torch.inf)

    def _greedy(self, scores: Tensor) -> Tensor:
        budget, batches = self.unrolled.poison.budget, self.unrolled.batches
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
