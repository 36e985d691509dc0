"""Who goes well together: what single samples gain for every aim, and the best of them as one attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.corners import Corners
from milp_agt.attacks.unrolled import Poisoning, Unrolled


@dataclass
class SingleGains:
    """The best attack on each single sample for every aim.

    Attributes:
        corners: attacks on single samples.
        who: the samples that they move, ascending, (samples,).
        slot: position of the sample of each attack in ``who``, (attacks,).
        gain: what the best of them gains for each aim over the data as given, (aims, samples); -inf
            before any was trained.
        best: the attack that does, (aims, samples).
    """

    unrolled: Unrolled
    corners: Corners
    who: Tensor
    slot: Tensor
    gain: Tensor
    best: Tensor

    @staticmethod
    def of(unrolled: Unrolled, corners: Corners, aims: Tensor) -> SingleGains:
        who, slot = corners.sample.unique(return_inverse=True)
        gain = torch.full((len(aims), len(who)), -torch.inf, dtype=torch.float64, device=who.device)
        best = torch.zeros_like(gain, dtype=torch.int64)
        return SingleGains(unrolled, corners, who, slot, gain, best)

    def note(self, part: Tensor, gains: Tensor) -> None:
        """What the attacks ``part`` (m,) gain for each aim, (aims, m)."""
        slot = self.slot[part].expand(len(gains), -1)
        gains = torch.where(torch.isfinite(gains), gains, -torch.inf)
        self.gain = self.gain.scatter_reduce(1, slot, gains, "amax")
        winner = torch.where(gains == self.gain.gather(1, slot), part.expand(len(gains), -1), -1)
        found = torch.full_like(self.best, -1).scatter_reduce(1, slot, winner, "amax")
        self.best = torch.where(found >= 0, found, self.best)

    def worth(self, aims: Tensor) -> Tensor:
        """What moving each sample gains for some aims, (aims, entries, quotas), >= 0."""
        return self._scores(self.who, self.gain[aims].clamp(min=0.0))

    def alone(self, part: Tensor) -> Tensor:
        """1 for the sample that each of some attacks moves, and 0 for others; likewise."""
        return self._scores(self.corners.sample[part][:, None], self.gain.new_ones(len(part), 1))

    def _scores(self, samples: Tensor, values: Tensor) -> Tensor:
        """Values (rows, k) of samples (k,) or (rows, k) in the quota of the features, 0 elsewhere."""
        run = self.unrolled
        each = values.new_zeros(len(values), len(run.poison.features))
        each.scatter_(1, samples.expand(values.shape), values)
        found = values.new_zeros(len(values), len(run.cover), run.quotas)
        found[..., 0] = each[:, run.cover]
        return found

    def at_best(self, aims: Tensor) -> Poisoning:
        """Every sample as in its best attack for some aims."""
        return self._at(self.best[aims])

    def drawn(self, attacks: int, generator: torch.Generator) -> Poisoning:
        """Every sample as in one of its attacks, drawn anew for each of so many."""
        order = self.slot.argsort(stable=True)
        count = torch.bincount(self.slot, minlength=len(self.who))
        begin = count.cumsum(0) - count
        share = torch.rand(attacks, len(self.who), generator=generator, dtype=torch.float64)
        chosen = (share.to(count.device) * count).long().clamp(max=count - 1)
        return self._at(order[begin + chosen])

    def _at(self, attack: Tensor) -> Poisoning:
        """The samples of ``who`` as in these attacks, (attacks, samples)."""
        run = self.unrolled
        nominal = run.nominal(len(attack))
        slot = torch.full((len(run.poison.features),), -1, device=attack.device)
        slot[self.who] = torch.arange(len(self.who), device=attack.device)
        at = slot[run.cover]
        moved = self.corners.data.features[attack[:, at.clamp(min=0)], run.span]
        known = (at >= 0).reshape(-1, *[1] * (moved.dim() - 2))
        return Poisoning(torch.where(known, moved, nominal.features), nominal.labels, nominal.there)
