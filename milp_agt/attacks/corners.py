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

from milp_agt.attacks.packed import Packed, PackedLeaf
from milp_agt.attacks.selection import Selector
from milp_agt.attacks.unrolled import State, Unrolled
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
    """Attacks that move one sample each.

    Attributes:
        sample: index of the sample of each attack, (attacks,).
        data: the attacks; one place in each leaf.
    """

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
    places = len(run.covers) * run.poison.features[0].numel()
    most = max(1, min(most, memory // (32 * places)))
    chunk = max(1, memory // units.bytes_per_sample)
    with torch.no_grad():
        nominal = run.nominal(1)
        states = [run.start(1), *run.path(nominal)[:-1]]
    steps = torch.linspace(0, len(states) - 1, min(TIMES, len(states))).round().long().tolist()
    open_ = _open(selector)
    order = torch.randperm(len(open_), generator=generator)[:most].sort().values
    sample, unit = _nearest(run, units, [states[t] for t in steps], open_[order], most, chunk)
    if not len(sample):
        return None
    pairs = _Pairs(run, units, sample, unit, chunk)
    return pairs.static(states, steps, most) if run.poison.static else pairs.adaptive(states, most)


def _open(selector: Selector) -> Tensor:
    """Indices of the samples whose features may be moved."""
    poison = selector.unrolled.poison
    index = poison.open.nonzero()[:, 0]
    hidden = torch.tensor(sorted(selector.restriction.outside), dtype=index.dtype)
    return index[~torch.isin(index, hidden.to(index.device))]


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


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a sample and a unit of it, (pairs,) each."""

    run: Unrolled
    units: HiddenUnits
    sample: Tensor
    unit: Tensor
    chunk: int

    def static(self, states: Sequence[State], steps: Sequence[int], most: int) -> Corners:
        found = [self._slopes(states[step]) for step in steps]
        values = torch.stack([value for value, _ in found])
        slopes = torch.stack([slope for _, slope in found])
        moves = torch.stack([self._moves(slope) for slope in slopes])  # steps, 2, pairs, size
        shifts = torch.einsum("tpj,kspj->tksp", slopes, moves)
        worth = _worth(values[:, None, None], shifts).flatten()
        sample = self.sample.repeat(len(steps) * 2)
        flat = moves.flatten(0, 2)
        kept = _distinct(sample, flat)
        kept = kept[worth[kept].argsort(descending=True, stable=True)[:most]]
        leaf = self._leaf(sample[kept], sample[kept], flat[kept])
        return Corners(sample[kept], Packed((leaf,)))

    def adaptive(self, states: Sequence[State], most: int) -> Corners:
        found = [self._slopes(state) for state in states]
        moves = [self._moves(slope) for _, slope in found]
        shifts = [torch.einsum("pj,spj->sp", s, m) for (_, s), m in zip(found, moves, strict=True)]
        values = torch.stack([value for value, _ in found])
        worth = _worth(values[:, None], torch.stack(shifts)).flatten()
        kept = worth.argsort(descending=True, stable=True)[:most]
        sample = self.sample.repeat(2)[kept]
        leaves = []
        for cover, move in zip(self.run.covers, moves, strict=True):
            place = torch.full_like(self.run.poison.open, -1, dtype=torch.int64)
            place[cover] = torch.arange(len(cover), device=cover.device)
            leaves.append(self._leaf(sample, place[sample], move.flatten(0, 1)[kept]))
        return Corners(sample, Packed(tuple(leaves)))

    def _slopes(self, state: State) -> tuple[Tensor, Tensor]:
        """Pre-activations (pairs,) and their gradients (pairs, size)."""
        features = self.run.poison.features
        found = [
            self.units.slopes(state, features[sample], unit)
            for sample, unit in zip(
                self.sample.split(self.chunk), self.unit.split(self.chunk), strict=True
            )
        ]
        return torch.cat([z for z, _ in found]), torch.cat([g for _, g in found]).flatten(1)

    def _moves(self, slope: Tensor) -> Tensor:
        """The best moves up and down a slope (pairs, size), (2, pairs, size)."""
        moves = self.run.poison.feature_moves
        assert moves is not None
        own = moves.take(self.sample)
        return own.maximise(torch.stack([slope, -slope]))

    def _leaf(self, sample: Tensor, place: Tensor, moves: Tensor) -> PackedLeaf:
        """The samples at their moves (attacks, size), at these places of a leaf."""
        own = self.run.poison.take(sample)
        moved = (own.features + moves.reshape(own.features.shape)).unsqueeze(0)
        features, labels = own.project(moved, own.labels.unsqueeze(0))
        return PackedLeaf(place[:, None], features[0][:, None], labels[0][:, None])


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
    _, group = key.unique(dim=0, return_inverse=True)
    index = torch.arange(len(sample), device=sample.device)
    first = torch.full((int(group.max()) + 1,), len(sample), device=sample.device)
    return first.scatter_reduce(0, group, index, "amin").sort().values
