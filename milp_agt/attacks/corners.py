"""Moves that flip a sample's own units: where to start, for every sample by itself.

Most of what poisoning one sample can do is to switch its own units on or off. The moves that do so are
the best admissible ones in the directions ``+- d z_u / d x`` of the pre-activations ``z_u``; for a first
dense layer and the norm inf these are ``e = eps sign(+-W_u)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.attacks.moves import Selector
from milp_agt.attacks.packed import Packed, first_of_each
from milp_agt.attacks.unrolled import Poisoning, State, Unrolled
from milp_agt.core.graph import evaluate
from milp_agt.formulations.univariate import Univariate
from milp_agt.training.tracing import FEATURES, StepGraph

TIMES = 4  # steps at whose parameters directions are taken, the first among them


@dataclass(frozen=True)
class HiddenUnits:
    """The hidden units of a network: inputs of its univariate operations, one after the other."""

    step_graph: StepGraph
    names: tuple[str, ...]

    @staticmethod
    def of(step_graph: StepGraph) -> HiddenUnits:
        nodes = step_graph.graph.needed_for([step_graph.output])
        bent = (n for n in nodes if n.batched and isinstance(n.op, Univariate))
        return HiddenUnits(step_graph, tuple(dict.fromkeys(node.inputs[0] for node in bent)))

    def values(self, state: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Pre-activations (n, units) of samples (n, *shape) at one model (1, *shape) of ``state``."""
        leaves = {n: state[n] for n in self.step_graph.parameters}
        leaves[FEATURES] = features.unsqueeze(0)
        nodes = self.step_graph.graph.needed_for(self.names)
        values = evaluate(nodes, leaves)
        return torch.cat([values[name][0].flatten(1) for name in self.names], 1)

    def slopes(
        self, state: Mapping[str, Tensor], features: Tensor, unit: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One unit of each sample, (n,), and its gradient in the features, (n, *shape)."""
        leaf = features.detach().clone().requires_grad_()
        with torch.enable_grad():
            own = self.values(state, leaf).gather(1, unit[:, None])[:, 0]
            (slope,) = torch.autograd.grad(own.sum(), leaf)
        return own.detach(), torch.nan_to_num(slope, posinf=0.0, neginf=0.0)

    @property
    def bytes_per_sample(self) -> int:
        """Memory of one sample while gradients are taken, about."""
        nodes = self.step_graph.graph.needed_for(self.names)
        return 16 * sum(node.signature.size for node in nodes if node.batched)


@dataclass(frozen=True)
class Corners:
    """Attacks that move one sample each, (attacks,); one place for each span of entries in their data."""

    sample: Tensor
    data: Packed

    def __len__(self) -> int:
        return len(self.sample)


def corners_of(
    selector: Selector, most: int, memory: int, generator: torch.Generator
) -> Corners | None:
    """At most ``most`` moves of single samples that flip (or hold) a unit of theirs, the likeliest first.

    Pairs of a sample and a unit count whose pre-activation comes nearest to 0 in some of :data:`TIMES`
    steps of the run on the data as given, in units of its size over the samples. For each pair the
    moves are the best ones of the set of moves in both directions of the gradient, at each of these
    steps; an adaptive adversary takes in each step that of its parameters. Ranked is by the count of
    steps at which the move flips the unit to first order. Labels stay as they are.

    None where features do not move, samples come, go or are replaced, or the network has no units.
    """
    run, units = selector.unrolled, HiddenUnits.of(selector.unrolled.step_graph)
    still = run.poison.feature_moves is None or run.present is not None or run.middle is not None
    if still or not units.names or not most:
        return None
    most = max(1, min(most, memory // (32 * len(run.spans) * run.poison.features[0].numel())))
    chunk = max(1, memory // units.bytes_per_sample)
    with torch.no_grad():
        states = [run.start(1), *run.path(run.nominal(1))[:-1]]
    index = run.poison.open.nonzero()[:, 0]
    hidden = torch.tensor(sorted(selector.restriction.outside), dtype=index.dtype)
    index = index[~torch.isin(index, hidden.to(index.device))]
    index = index[torch.randperm(len(index), generator=generator)[:most].sort().values]
    steps = torch.linspace(0, len(states) - 1, min(TIMES, len(states))).round().long().tolist()
    some = [states[step] for step in steps]
    sample, unit = _nearest(run, units, some, index, most, chunk)
    if not len(sample):
        return None
    return _flips(run, units, some if run.poison.static else states, sample, unit, chunk, most)


def _nearest(
    run: Unrolled,
    units: HiddenUnits,
    states: Sequence[State],
    samples: Tensor,
    most: int,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Pairs of a sample and a unit with the smallest ``min over steps of |z| / rms(z)``, (pairs,) each."""
    features = run.poison.features
    best, at_sample, at_unit = [], [], []
    with torch.no_grad():
        sizes = [_root_mean_square(units, s, features[samples], chunk) for s in states]
        for part in samples.split(chunk):
            each = [
                units.values(state, features[part]).abs() / size
                for state, size in zip(states, sizes, strict=True)
            ]
            near = torch.nan_to_num(torch.stack(each).amin(0), nan=torch.inf)
            found = near.flatten().topk(min(most, near.numel()), largest=False)
            best.append(found.values)
            at_sample.append(part[found.indices // near.shape[1]])
            at_unit.append(found.indices % near.shape[1])
    order = torch.cat(best).argsort(stable=True)[:most] if best else samples[:0]
    return torch.cat([*at_sample, samples[:0]])[order], torch.cat([*at_unit, samples[:0]])[order]


def _root_mean_square(units: HiddenUnits, state: State, features: Tensor, chunk: int) -> Tensor:
    total = sum(units.values(state, x).square().sum(0) for x in features.split(chunk))
    return (torch.as_tensor(total) / len(features)).sqrt().clamp(min=1e-300)


def _flips(
    run: Unrolled,
    units: HiddenUnits,
    states: Sequence[State],
    sample: Tensor,
    unit: Tensor,
    chunk: int,
    most: int,
) -> Corners:
    """The best moves up and down the slopes of pairs (pairs,) at each state; apart, or in one attack."""
    features, own = run.poison.features, run.poison.feature_moves
    assert own is not None
    pairs = list(zip(sample.split(chunk), unit.split(chunk), strict=True))
    found = [[units.slopes(state, features[s], u) for s, u in pairs] for state in states]
    values = torch.stack([torch.cat([value for value, _ in parts]) for parts in found])
    slopes = torch.stack([torch.cat([g for _, g in parts]).flatten(1) for parts in found])
    taken = own.take(sample)
    moves = torch.stack(
        [taken.maximise(torch.stack([g, -g])) for g in slopes]
    )  # (t, 2, pairs, size)
    if run.poison.static:
        shifts = torch.einsum("tpj,kspj->tksp", slopes, moves)
        worth = _worth(values[:, None, None], shifts).flatten()
        sample, moves = sample.repeat(2 * len(states)), moves.flatten(0, 2)[None]
        kept = _distinct(sample, moves[0])
        kept = kept[worth[kept].argsort(descending=True, stable=True)[:most]]
    else:
        shifts = torch.einsum("tpj,tspj->tsp", slopes, moves)
        worth = _worth(values[:, None], shifts).flatten()
        sample, moves = sample.repeat(2), moves.flatten(1, 2)
        kept = worth.argsort(descending=True, stable=True)[:most]
    sample, moves = sample[kept], moves[:, kept]
    given = run.poison.take(sample)
    labels = given.labels.expand(len(moves), *given.labels.shape)
    x, _ = given.project(given.features + moves.reshape(-1, *given.features.shape), labels)
    place = torch.full((len(features), len(run.spans)), -1, device=sample.device)
    place[run.cover, run.span] = torch.arange(len(run.cover), device=sample.device)
    return Corners(sample, Packed(place[sample], x.transpose(0, 1), labels.transpose(0, 1)))


def _worth(values: Tensor, shifts: Tensor) -> Tensor:
    """In how many steps a shift flips a unit, and below 1 more the nearer it comes; steps lead."""
    after = values + shifts
    flips = ((values > 0) != (after > 0)).to(values).sum(0)
    near = (shifts.abs() / (shifts.abs() + values.abs() + 1e-300)).amax(0)
    return torch.nan_to_num(flips + 0.5 * near)


def _distinct(sample: Tensor, moves: Tensor) -> Tensor:
    """The first of each distinct move (attacks, size) of a sample, as indices."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(moves.shape[1], generator=generator, dtype=torch.float64).to(moves)
    key = torch.stack([sample.to(moves), (moves * weights).sum(1)], 1)
    return first_of_each(key.unique(dim=0, return_inverse=True)[1])


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
