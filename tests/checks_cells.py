"""Real trainings beside trees over cells: what they do, and the leaf that each must end in."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from attacks import Problem, Replay
from torch import Tensor

from milp_agt.bounds.cells.goals import Asked
from milp_agt.bounds.cells.passing import Run
from milp_agt.bounds.cells.search import Decided, Limits, Search
from milp_agt.bounds.cells.training_step import sources_of
from milp_agt.bounds.cells.tree import Kind, Leaf
from milp_agt.bounds.step import NodeOrder, initial_state
from milp_agt.core.graph import evaluate
from milp_agt.core.interval import Interval
from milp_agt.training import inputs
from milp_agt.training.tracing import FEATURES, LABELS

# What the checks here may be off by: sums of many terms in another order.
ROUNDING = 1e-11


def run_of(case: Problem) -> Run:
    replay = Replay(case)
    graph = replay.step_graph
    start = initial_state(graph, inputs.initial_box(graph, None), case.training.momentum > 0)
    batches = [torch.as_tensor(batch) for batch in replay.batches]
    schedule = NodeOrder.of(graph)
    return Run.of(graph, schedule, start, replay.poison, batches, replay.updates)


def selections_of(run: Run) -> Tensor:
    open_ = run.poison.open.nonzero()[:, 0].tolist()
    return torch.tensor(list(itertools.combinations(open_, min(run.poison.budget, len(open_)))))


def drawn(run: Run, selections: Tensor, each: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Selections and moves: random ones, corners, and the centre."""
    generator = torch.Generator().manual_seed(seed)
    samples = selections.repeat_interleave(each, 0)
    lower, upper = run.moves.ranges(samples)
    share = torch.rand(lower.shape, generator=generator, dtype=torch.float64)
    share[::3] = share[::3].round()
    moves = lower + share * (upper - lower)
    features, labels = run.moves.data(run.poison, samples, moves)
    at = torch.arange(len(samples))[:, None]
    moved = torch.cat([features.flatten(2), labels.flatten(2)], 2) - torch.cat(
        [run.poison.features.flatten(1), run.poison.labels.flatten(1)], 1
    )
    return samples, moved[at, samples][..., run.moves.columns].flatten(1)


@dataclass
class Kept(Search):
    """A search that keeps every node that it has bounded, and the numbers of those that it counted."""

    leaves: dict[int, Leaf] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)

    def _close(self, leaf: Leaf) -> None:
        super()._close(leaf)
        self.counted.add(leaf.number)

    def _bounded(self, leaves: Any) -> list[Leaf]:
        found = super()._bounded(leaves)
        self.leaves |= {leaf.number: leaf for leaf in found}
        return found


def asked_of(run: Run, inputs_: Tensor) -> Asked:
    """That the nominal prediction stays; for a regression that the first output stays above its half."""
    samples, moves = drawn(run, selections_of(run)[:1], 1)
    nominal = run.trained(samples, 0.0 * moves)
    out = run.outputs(nominal, inputs_)[0]
    count = out.shape[1]
    if count == 1:
        coefficients = torch.sign(out)[:, :, None]
    else:
        eye = torch.eye(count, dtype=torch.float64)
        best = out.argmax(1)
        others = torch.stack([torch.tensor([k for k in range(count) if k != b]) for b in best])
        coefficients = eye[best][:, None] - eye[others]

    def margin(box: Interval) -> Interval:
        return Interval(box.lower.amin(-1), box.upper.amin(-1))

    return Asked(inputs_, coefficients, coefficients.new_zeros(coefficients.shape[:2]), margin)


def searched(
    run: Run, points: Tensor, limits: Limits, kind: type[Kept] = Kept
) -> tuple[Kept, Decided]:
    search = kind(run, asked_of(run, points), selections_of(run), limits)
    return search, search.run()


def phases_of(run: Run, samples: Tensor, moves: Tensor) -> tuple[list[tuple[int, ...]], Tensor]:
    """Steps, samples, sources and elements of all phases, and whether each is on, (trainings, phases)."""
    features, labels = run.moves.data(run.poison, samples, moves)
    keys, found = [], []
    for count, step in enumerate(run.steps):
        own, state = step.samples, replace(run, steps=run.steps[:count]).trained(samples, moves)
        values = evaluate(
            run.schedule.before, dict(state) | {FEATURES: features[:, own], LABELS: labels[:, own]}
        )
        for source, name in enumerate(sources_of(run.schedule)):
            on = values[name].flatten(2) > 0
            at = itertools.product(own.tolist(), range(on.shape[2]))
            keys += [(step.index, sample, source, element) for sample, element in at]
            found.append(on.flatten(1))
    return keys, torch.cat(found, 1) if found else torch.zeros(len(samples), 0, dtype=torch.bool)


def at_kinks(run: Run, samples: Tensor, moves: Tensor) -> Tensor:
    """Moves between each given ones and the next, near where the earliest phase that differs changes."""
    low, high = moves, moves.roll(-1, 0)
    same = (samples == samples.roll(-1, 0)).all(1, keepdim=True)
    high = torch.where(same, high, low)
    _, begin = phases_of(run, samples, low)
    _, end = phases_of(run, samples, high)
    which = (begin != end).to(torch.int64).argmax(1) if begin.shape[1] else None
    for _ in range(14 if which is not None else 0):
        middle = 0.5 * low + 0.5 * high
        _, now = phases_of(run, samples, middle)
        row = torch.arange(len(samples))
        stays = (now[row, which] == begin[row, which])[:, None]
        low, high = torch.where(stays, middle, low), torch.where(stays, high, middle)
    return torch.cat([low, high])


def assert_cover(run: Run, search: Kept, decided: Decided, each: int = 40) -> None:
    """Down the tree with every training: a child for its side, its moves in the cell, bounds that hold."""
    samples, moves = drawn(run, search.selections, each)
    moves = torch.cat([moves, at_kinks(run, samples, moves)])
    samples = samples.repeat(3, 1)
    keys, on = phases_of(run, samples, moves)
    phases = {key: on[:, at] for at, key in enumerate(keys)}
    outputs = run.outputs(run.trained(samples, moves), search.asked.inputs)
    forms = torch.einsum("nfo,bno->bnf", search.asked.coefficients, outputs) + search.asked.constant
    children: dict[int, list[int]] = {}
    for number, branch in enumerate(search.tree):
        children.setdefault(branch.parent, []).append(number)
    selections = {
        branch.what: number for number, branch in enumerate(search.tree) if branch.parent < 0
    }
    ends = set()
    for row in range(len(samples)):
        number = selections[tuple(samples[row].tolist())]
        while True:
            leaf = search.leaves.get(number)
            if leaf is not None:
                assert_holds(leaf, moves[row], forms[row])
            below = children.get(number, [])
            if not below:
                ends.add(number)
                break
            first = search.tree[below[0]]
            if first.kind is Kind.PHASE:
                side = int(phases[first.what][row])
            else:
                side = int(moves[row, first.what[0]] > first.value)
            number = next(child for child in below if search.tree[child].side == side)
    assert ends <= search.counted
    lowest = forms.amin(0)
    assert (decided.bounds.lower <= lowest + ROUNDING).all()
    assert (forms.amax(0) <= decided.bounds.upper + ROUNDING).all()
    holds = ~decided.open & ~(decided.reached < 0)
    assert (search.asked.margin(Interval(forms, forms), decided.reached)[:, holds] > 0).all()


def assert_holds(leaf: Leaf, moves: Tensor, forms: Tensor) -> None:
    slack = 1e-9 * (1.0 + moves.abs())
    assert (leaf.cell.lower - slack <= moves).all()
    assert (moves <= leaf.cell.upper + slack).all()
    assert (leaf.cell.normals @ moves <= leaf.cell.offsets + ROUNDING).all()
    assert (leaf.bounds.lower <= forms + ROUNDING).all()
    assert (forms <= leaf.bounds.upper + ROUNDING).all()
