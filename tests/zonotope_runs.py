"""Zonotopes of small runs, held against real runs generator by generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from attacks import Attacks, Problem, Replay
from torch import Tensor

from milp_agt.attacks.unrolled import Poisoning, State
from milp_agt.bounds.step import NodeOrder, Step, initial_state
from milp_agt.bounds.zonotope import Effort, ZonotopePass
from milp_agt.bounds.zonotope.kinks import kink_of
from milp_agt.core.graph import evaluate
from milp_agt.training import inputs
from milp_agt.training.tracing import FEATURES, LABELS

# What the checks here may be off by: sums of many terms in another order.
ROUNDING = 1e-11


@dataclass(frozen=True)
class Passed:
    """A run passed forward: the set before the first step, and after each step."""

    replay: Replay
    sets: Sequence[ZonotopePass]

    @staticmethod
    def of(case: Problem, effort: Effort | None = None) -> Passed:
        replay = Replay(case)
        graph, training = replay.step_graph, case.training
        schedule = NodeOrder.of(graph)
        box = inputs.initial_box(graph, case.initial)
        start = initial_state(graph, box, training.momentum > 0)
        own_batches, limits = replay.batches, case.restriction
        sets = [
            ZonotopePass.begin(
                schedule, start, graph.parameters, replay.poison, effort, own_batches, limits
            )
        ]
        for index, batch in enumerate(replay.batches):
            own = torch.as_tensor(batch)
            step = Step(
                index, own, replay.poison.take(own), replay.updates[index], training.momentum > 0
            )
            sets.append(sets[-1].advanced(step, last=index + 1 == len(replay.batches)))
        return Passed(replay, sets)

    @property
    def last(self) -> ZonotopePass:
        return self.sets[-1]


def attacks_of(passed: Passed, seed: int = 0, attacks: int = 64) -> Iterator[Attacks]:
    """Random, corner and gradient attacks, and every sample at the corners of each unit."""
    replay, case = passed.replay, passed.replay.problem
    generator = torch.Generator().manual_seed(seed)
    test, labels = case.features[:4], case.labels[:4]
    yield from replay.all(generator, test, labels, attacks, 3)
    if replay.poison.feature_moves is not None and "0.weight" in replay.step_graph.parameters:
        yield corners_of_units(replay)


def corners_of_units(replay: Replay) -> Attacks:
    """Every sample by itself moved as far as it can along or against the weights of each unit."""
    poison = replay.poison
    weights = replay.step_graph.initial["0.weight"]
    moves = poison.feature_moves
    assert moves is not None
    rows = torch.cat([weights, -weights])
    best = moves.maximise(rows[:, None].expand(-1, len(poison.features), -1))
    count = len(poison.features)
    features = poison.features.expand(len(rows), count, count, -1).clone()
    at = torch.arange(count)
    features[:, at, at] += best
    features = features.flatten(0, 1)
    labels = poison.labels.expand(len(features), *poison.labels.shape)
    start = replay.start(len(features), torch.Generator().manual_seed(0))
    return Attacks(replay.unrolled, Poisoning(features, labels), start)


def assert_in_boxes(passed: Passed, attacks: Attacks) -> None:
    """No run leaves any box, without any tolerance."""
    for number, state in enumerate(passed.replay.run(attacks)):
        boxes = passed.sets[number + 1].state()
        for name, value in state.items():
            box = boxes[name]
            out = torch.maximum(box.lower - value, value - box.upper).max()
            assert out <= 0, f"step {number + 1}: '{name}' by {float(out):.3e}"


@dataclass(frozen=True)
class Generators:
    """What the generators of the last set are in real runs.

    Attributes:
        path: states before the first step and after each.
        moves, chosen: of each sample generator, (attacks, m, width), and whether it moves, (attacks, m).
        beyond: y of each flip, (attacks, f); happens and bends are its phi and rho.
    """

    path: Sequence[State]
    moves: Tensor
    chosen: Tensor
    beyond: Tensor
    happens: Tensor
    bends: Tensor

    @staticmethod
    def of(passed: Passed, attacks: Attacks) -> Generators:
        replay, last = passed.replay, passed.last
        samples, flips = last.zonotope.samples, last.zonotope.flips
        features, labels = attacks.poisoning.features, attacks.poisoning.labels
        parts = []
        if samples.poison.feature_moves is not None:
            parts.append((features - replay.poison.features).flatten(2))
        if samples.poison.label_moves is not None:
            parts.append(labels - replay.poison.labels)
        moves = torch.cat(parts, -1)[:, samples.columns]
        moves = moves * (samples.reach > 0)  # of two parts, each has its own coordinates
        chosen = (moves != 0).any(-1).to(moves)
        path = [attacks.start, *replay.run(attacks)]
        beyond = _beyond(passed, path, features, labels)  # (attacks, f)
        happens = torch.where(flips.sign > 0, beyond > 0, beyond >= 0).to(beyond)
        return Generators(path, moves, chosen, beyond, happens, beyond.clamp(min=0.0))


def assert_generators(passed: Passed, attacks: Attacks) -> None:
    """With the generators that a run has, its states, its flips and all rows are what the set says."""
    own = Generators.of(passed, attacks)
    moves, chosen, happens, bends = own.moves, own.chosen, own.happens, own.bends
    _assert_rows(passed, moves, chosen, own.beyond, happens, bends)
    for number, reached in enumerate(own.path):
        zonotope = passed.sets[number].zonotope
        count, met = zonotope.flips.count, zonotope.samples.count
        value = torch.cat([reached[name].flatten(1) for name in passed.last.layout.slices], 1)
        form = zonotope.centre + torch.einsum("pmw,amw->ap", zonotope.on_moves, moves[:, :met])
        form = (
            form + happens[:, :count] @ zonotope.on_phase.T + bends[:, :count] @ zonotope.on_bend.T
        )
        if zonotope.squares.shape[-1]:
            units = moves[:, :met] / zonotope.samples.reach
            pairs = (units.unsqueeze(-1) * units.unsqueeze(-2)).flatten(2)
            form = form + torch.einsum("pmv,amv->ap", zonotope.squares, pairs)
        noise = zonotope.noise
        low = noise.below[:, None] + torch.einsum("gpm,am->gap", noise.down, chosen[:, :met])
        high = noise.above[:, None] + torch.einsum("gpm,am->gap", noise.up, chosen[:, :met])
        charge = torch.einsum("gpf,af->gap", noise.charge, happens[:, zonotope.flips.column])
        low, high = low + charge, high + charge
        onto, back = noise.onto.clamp(min=0.0), (-noise.onto).clamp(min=0.0)
        above = torch.einsum("gpq,gaq->ap", onto, high) + torch.einsum("gpq,gaq->ap", back, low)
        below = torch.einsum("gpq,gaq->ap", onto, low) + torch.einsum("gpq,gaq->ap", back, high)
        assert (value - form <= above + ROUNDING).all(), f"above at step {number}"
        assert (form - value <= below + ROUNDING).all(), f"below at step {number}"


def _assert_rows(
    passed: Passed, moves: Tensor, chosen: Tensor, beyond: Tensor, happens: Tensor, bends: Tensor
) -> None:
    flips = passed.last.zonotope.flips
    assert (beyond <= flips.largest + ROUNDING).all()
    own = torch.where(flips.own >= 0, chosen[:, flips.own], 0.0)
    if_clean = flips.alone & (own == 0.0)
    assert not (if_clean & (happens > 0)).any()
    form = torch.einsum("fmw,amw->af", flips.on_moves, moves) - flips.margin
    form = form + happens @ flips.on_phase.T + bends @ flips.on_bend.T
    assert (happens[:, flips.limited] <= chosen @ flips.threshold.T + ROUNDING).all()
    beyond, happens = beyond[:, flips.column], happens[:, flips.column]
    charge = happens @ flips.charge.T
    assert (beyond - form <= flips.above + chosen @ flips.up.T + charge + ROUNDING).all()
    assert (form - beyond <= flips.below + chosen @ flips.down.T + charge + ROUNDING).all()
    assert (-flips.least - ROUNDING <= beyond).all()
    if_clean = if_clean[:, flips.column]
    assert (beyond[if_clean] >= (-flips.quiet - ROUNDING).expand_as(beyond)[if_clean]).all()


def _beyond(passed: Passed, path: Sequence[State], features: Tensor, labels: Tensor) -> Tensor:
    """How far beyond its kink each flip of the last set is in each run, and no other phase flips."""
    flips, replay = passed.last.zonotope.flips, passed.replay
    schedule = passed.last.schedule
    sources = list(
        dict.fromkeys(
            n.inputs[0] for n in schedule.before if n.batched and kink_of(n.op) is not None
        )
    )
    out = features.new_zeros(len(features), flips.count)
    alone = replay.start(1, torch.Generator())
    nominal = [alone, *replay.unrolled.path(replay.unrolled.nominal(1), alone)]
    for number, batch in enumerate(replay.batches if sources else ()):
        own = torch.as_tensor(batch)
        z = _arguments(passed, sources, path[number], features[:, own], labels[:, own])
        data = replay.poison.features[None, own], replay.poison.labels[None, own]
        centre = _arguments(passed, sources, nominal[number], *data)
        at = (flips.place[:, 0] == number).nonzero()[:, 0]
        sample = (own[None, :] == flips.place[at, 1][:, None]).to(torch.int64).argmax(1)
        slot = flips.place[at, 2]
        out[:, at] = flips.sign[at] * z[:, sample, slot]
        changed = (z > 0) != (centre > 0)
        changed[:, sample, slot] = False
        assert not changed.any(), f"a phase flips at step {number + 1} that no flip stands for"
    return out


def _arguments(
    passed: Passed, sources: Sequence[str], state: State, features: Tensor, labels: Tensor
) -> Tensor:
    """Arguments of all functions with a kink, (attacks, n, slots)."""
    leaves = dict(state) | {FEATURES: features, LABELS: labels}
    values = evaluate(passed.last.schedule.before, leaves)
    return torch.cat([values[name].flatten(2) for name in sources], 2)
