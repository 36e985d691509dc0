"""Programs choice by choice: exact branching on the selection, the loosest choice first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from milp_agt.bounds.adversary.enumerated import Enumerated, ListedSelections
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.interval.bound_propagation import Ranges
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.program.incumbents import Incumbents, incumbents_of
from milp_agt.bounds.program.solves import Evidence, Objectives, Solved, SolveOptions, minimise
from milp_agt.bounds.step import NodeOrder, State
from milp_agt.core.expression import Array
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison, Quota

KEPT = 64  # programs kept for further objectives


@dataclass(frozen=True)
class Leaf:
    """One choice of the adversary: a selection, and the steps under it.

    Attributes:
        poison: the moves that remain after the choice; labels of listed moves are data.
        restriction: the members, which are known to be poisoned.
        window: the steps of a program, with one state in every box.
    """

    poison: Poison
    restriction: Restriction
    window: tuple[LinearizedStep, ...]

    @staticmethod
    def of(
        schedule: NodeOrder,
        adversary: Enumerated,
        case: int,
        window: Sequence[LinearizedStep],
        outer: Sequence[State],
    ) -> Leaf:
        """Case ``case`` of an enumeration, with the ranges of all nodes.

        Args:
            window: the steps with a box for every case.
            outer: for each step a state that contains those of all cases; boxes are met with it.
        """
        own = _alone(adversary, case)
        poison = _poison_of(own)
        steps = [
            _step_of(schedule, own, poison, case, relaxed, state)
            for relaxed, state in zip(window, outer, strict=True)
        ]
        members = own.mask[0] | own.label_mask[0]
        inside = frozenset(members.nonzero()[:, 0].tolist())
        return Leaf(poison, Restriction(inside=inside), tuple(steps))


def _alone(adversary: Enumerated, case: int) -> Enumerated:
    listed, row = adversary.listed, slice(case, case + 1)
    return Enumerated(
        adversary.poison,
        ListedSelections(
            listed.members[row],
            None if listed.label_moves is None else listed.label_moves[row],
            None if listed.label_members is None else listed.label_members[row],
        ),
    )


def _poison_of(own: Enumerated) -> Poison:
    """The moves of the members of the only case, all within the budgets."""
    poison, mask, label_mask = own.movable, own.mask[0], own.label_mask[0]
    if own.listed.label_moves is not None:
        every = torch.arange(len(poison.labels), device=mask.device)
        poison = replace(poison, labels=own.labels(every)[0])
    quota = poison.label_quota
    if quota is not None:
        quota = Quota(label_mask, int(label_mask.sum()))
    if poison.feature_moves is None and poison.label_moves is None and poison.whole is None:
        mask = torch.zeros_like(mask)  # nothing is left to choose
    return replace(poison, open=mask, budget=int(mask.sum()), label_quota=quota)


def _step_of(
    schedule: NodeOrder,
    own: Enumerated,
    poison: Poison,
    case: int,
    relaxed: LinearizedStep,
    outer: State,
) -> LinearizedStep:
    def of(box: Interval) -> Interval:
        row = slice(case, case + 1) if len(box.lower) > 1 else slice(0, 1)
        return Interval(box.lower[row], box.upper[row])

    state = {
        name: of(box).meet(outer[name], f"'{name}' of one choice and of all")
        for name, box in relaxed.state.items()
    }
    boxes = {name: of(box) for name, box in relaxed.ranges.boxes.items()}
    known = Ranges(boxes, relaxed.ranges.sums)
    whole = bound_propagation.completed(schedule, state, relaxed.step, own, known)
    step = replace(relaxed.step, poison=poison.take(relaxed.step.samples))
    ranges = Ranges({**boxes, **whole.boxes}, whole.sums)
    return replace(relaxed, step=step, state=state, ranges=ranges)


@dataclass(frozen=True)
class Branched:
    """Lower bounds over all choices, with counts of solves; see :class:`Solved`.

    Attributes:
        bounds: of each choice, (choices, objectives).
        evidence: the solved programs, each with the multipliers of its objectives and the number of its
            choice; the other choices keep their known bounds.
        incumbents: for each of these programs the data of the points found by its solver, step by step.
    """

    bounds: Array
    solves: int
    skipped: int
    limited: int
    lost: int
    evidence: tuple[Evidence, ...]
    incumbents: tuple[Sequence[Incumbents], ...] = ()

    @property
    def least(self) -> Array:
        """Lower bounds that hold for all choices, (objectives,)."""
        found: Array = self.bounds.min(0)
        return found


def minimise_leaves(
    known: Array, gain: Array, build: Callable[[int], Objectives], options: SolveOptions
) -> Branched:
    """``min over choices of max(known, dual bound)`` for every objective, in as few solves as possible.

    The bound of an objective is that of its worst choice. So the worst choice is solved first, then the
    next worst, until the worst one is already solved: all others have better known bounds and need no
    program. With a limit of any kind, some choices keep their known bounds.

    Args:
        known: lower bounds already proved, (choices, objectives).
        gain: the most that the bound of each objective may gain, (objectives,).
        build: the program of a choice with all objectives, in their order.

    Raises:
        EncodingError: the program of a choice is infeasible, although the nominal run or an attacked
            one is feasible.
    """
    bounds, every = known.copy(), np.arange(gain.size)
    done = np.zeros(known.shape, dtype=np.bool_)
    wanted = gain > options.worth
    program_of = lru_cache(maxsize=KEPT)(build)
    evidence: list[Evidence] = []
    done_by: list[Solved] = []
    while True:
        worst = bounds.argmin(0)
        left = wanted & ~done[worst, every]
        late = options.deadline is not None and time.monotonic() >= options.deadline
        if late or not left.any():
            break
        leaf = int(np.bincount(worst[left]).argmax())
        own = left & (worst == leaf)
        # Objectives whose worst choice is another one are not worth a solve here.
        asked = replace(program_of(leaf), gain=np.where(own, gain, -np.inf))
        solved = minimise(asked, options)
        bounds[leaf, own] = np.maximum(bounds[leaf, own], solved.bounds[own])
        done[leaf, own] = True
        evidence.append(Evidence(leaf, asked, solved.multipliers))
        done_by.append(solved)
    return Branched(
        bounds,
        sum(solved.solves for solved in done_by),
        int((~wanted).sum()),
        sum(solved.limited for solved in done_by) + int(left.sum()),
        sum(solved.lost for solved in done_by),
        tuple(evidence),
        tuple(
            incumbents_of(own.objectives.batches, solved.points)
            for own, solved in zip(evidence, done_by, strict=True)
        ),
    )
