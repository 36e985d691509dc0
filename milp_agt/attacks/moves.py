"""Who is poisoned, within the budget, and how: moves of poisoned data as a whole, and scores of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.unrolled import Poisoning, Unrolled, same
from milp_agt.core.restriction import UNRESTRICTED, Restriction

SCALES = 7.0  # new samples are drawn out to their reach, halved up to so many times


def steepest(unrolled: Unrolled, gradient: Poisoning) -> tuple[Poisoning, Tensor]:
    """Every entry at its best move for a gradient, and what that gains, (attacks, entries, quotas).

    A sample comes, or goes, where that is a gain.
    """
    features, labels, gain = unrolled.moves.steepest(gradient.features, gradient.labels)
    if unrolled.quotas == 1:
        gain = gain.sum(-1, keepdim=True)
    if gradient.there is None or unrolled.given_there is None:
        return Poisoning(features, labels), gain
    present = unrolled.given_there
    slope = gradient.there * (1.0 - 2.0 * present)
    gain = (gain + slope.unsqueeze(-1)).clamp(min=0.0)
    there = torch.where(gain[..., 0] > 0, 1.0 - present, present)
    return Poisoning(features, labels, there), gain


def stepped(unrolled: Unrolled, data: Poisoning, target: Poisoning, stride: float) -> Poisoning:
    """A step of ``stride`` times the moves of ``target``, back on the admissible set; none comes back."""
    own, there = unrolled.moves, data.there
    features, labels = own.project(
        data.features + stride * (target.features - own.features),
        data.labels + stride * (target.labels - own.labels),
    )
    if there is not None and target.there is not None:
        there = torch.where(unrolled.turned(data), there, target.there)
    return Poisoning(features, labels, there)


def random_moves(
    unrolled: Unrolled, mask: Tensor, generator: torch.Generator, corners: bool = True
) -> Poisoning:
    """Random moves of the entries in a mask: extreme ones, or from all over their sets.

    Samples that can come or go do, or, without ``corners``, every other time. New samples lie at all
    distances from the middle.
    """
    there = unrolled.given_there
    if there is not None:
        turned = mask[..., 0]
        if not corners:
            turned = turned & (_uniform(turned.shape, generator) < 0.5).to(turned.device)
        there = torch.where(turned, 1.0 - there, there)
    features, labels = unrolled.moves.sample_moves(generator, mask, corners)
    features = _nearer(unrolled, features, mask[..., 0], generator)
    return _repeated(unrolled, Poisoning(features, labels, there), generator)


def _repeated(unrolled: Unrolled, data: Poisoning, generator: torch.Generator) -> Poisoning:
    """Every other run inserts the samples of its first step in all others, too."""
    if unrolled.given_there is None or unrolled.poison.static:
        return data
    places = len(unrolled.spans), unrolled.poison.budget
    new = (unrolled.given_there == 0).nonzero().reshape(places)
    again = (_uniform((len(data),), generator) < 0.5).to(new.device).nonzero()[:, :, None]

    def copied(values: Tensor) -> Tensor:
        found = values.clone()
        found[again, new] = values[again, new[:1]].expand(-1, *new.shape, *values.shape[2:])
        return found

    return data.map(copied)


def _nearer(unrolled: Unrolled, x: Tensor, new: Tensor, generator: torch.Generator) -> Tensor:
    """New samples (attacks, n, *shape) drawn towards the middle, by factors of all sizes."""
    middle = unrolled.middle
    if middle is None:
        return x
    shape = (*new.shape, *[1] * (x.dim() - 2))
    factor = (2.0 ** (-SCALES * _uniform(new.shape, generator).to(x.device))).reshape(shape)
    return torch.where(new.reshape(shape), middle + factor * (x - middle), x)


def moved(unrolled: Unrolled, data: Poisoning) -> Tensor:
    """The entries that differ from the data as given, (attacks, entries, quotas)."""
    in_x, in_y = unrolled.changed(data)
    return torch.stack([in_x, in_y], -1) if unrolled.quotas > 1 else (in_x | in_y).unsqueeze(-1)


def merged(mask: Tensor, inside: Poisoning, outside: Poisoning) -> Poisoning:
    """``inside`` for the entries in a mask (attacks, entries, quotas), ``outside`` for the others."""

    def at(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if same(a, b):  # features that nobody moves, say: as large as the data set, for each attack
            return a
        return torch.where(mask.reshape(*mask.shape, *[1] * (a.dim() - 2)), a, b)

    there = inside.there
    if there is not None and outside.there is not None:
        there = at(mask[..., 0], there, outside.there)
    return Poisoning(
        at(mask[..., 0], inside.features, outside.features),
        at(mask[..., -1], inside.labels, outside.labels),
        there,
    )


def turned(unrolled: Unrolled, data: Poisoning, generator: torch.Generator) -> Poisoning:
    """Some coordinates of every feature move times a number from -1 (a flipped sign) to 1.

    Between one coordinate and all, at all scales; every other attack flips signs only. Back on the
    admissible set. Labels, and who has come or gone, stay.
    """
    attacks, size = len(data), data.features[0, 0].numel()
    share = size ** -_uniform((attacks, 1, 1), generator)
    drawn = _uniform((*data.features.shape[:2], size), generator)
    chosen = (drawn < share) | (drawn == drawn.amin(-1, keepdim=True))
    scale = 2.0 * _uniform((attacks, 1, 1), generator) - 1.0
    scale[::2] = -1.0
    return _scaled(unrolled, data, torch.where(chosen, scale, 1.0))


def shrunk(unrolled: Unrolled, data: Poisoning, generator: torch.Generator) -> Poisoning:
    """Every feature move times a number between 0 and 1, one for each attack; otherwise likewise."""
    return _scaled(unrolled, data, _uniform((len(data), 1, 1), generator))


def _scaled(unrolled: Unrolled, data: Poisoning, factor: Tensor) -> Poisoning:
    own = unrolled.moves
    move = (data.features - own.features).flatten(2)
    near = own.features + (factor.to(move) * move).reshape(data.features.shape)
    return Poisoning(own.project(near, data.labels)[0], data.labels, data.there)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


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
