"""Optimisation-based bound tightening: ranges inside the newest step of a window, by linear programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.interval.bound_propagation import Ranges
from milp_agt.bounds.linear.intermediate import targets
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.program.solves import Objectives, SolveOptions, minimise
from milp_agt.bounds.program.window import EncodedSteps, affords_envelopes, encode_steps, origin_of
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, Index, add, stacked
from milp_agt.core.graph import Node
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.restriction import Restriction
from milp_agt.formulations.univariate import Univariate
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import StepGraph

GAINED = 1e-9  # share of a range; a smaller gain does not count as tightened
Relax = Callable[[Ranges], LinearizedStep]


@dataclass(frozen=True)
class Tightening:
    """Counts of bound tightening in one step: solves, tightened ends, fixed phases, limits reached."""

    solves: int = 0
    tightened: int = 0
    fixed: int = 0
    limited: int = 0

    def plus(self, other: Tightening) -> Tightening:
        return Tightening(
            self.solves + other.solves,
            self.tightened + other.tightened,
            self.fixed + other.fixed,
            self.limited + other.limited,
        )


@dataclass(frozen=True)
class Tightener:
    """Tightens the last step of a window in rounds, one node per round.

    Each round encodes the window as a linear program (phases and selection relaxed), bounds the
    elements of one node on which a function is not yet linear, those nearest to it first, and
    propagates the gain through the rest of the step by intervals. Bounds are safe dual bounds, so a
    round may stop at any time.
    """

    step_graph: StepGraph
    schedule: NodeOrder
    poison: Poison
    restriction: Restriction
    adversary: AdversaryModel
    past: Sequence[LinearizedStep]

    def tighten(
        self, window: Sequence[LinearizedStep], relax: Relax, options: SolveOptions
    ) -> tuple[LinearizedStep, Tightening]:
        """The last step of ``window`` on tighter ranges, until the deadline of the options.

        Args:
            relax: linearises the step on the new ranges.

        Raises:
            EncodingError: an infeasible program.
            SoundnessError: an empty meet of two bounds.
        """
        done, last = Tightening(), window[-1]
        for node in targets(self.schedule):
            if options.deadline is not None and time.monotonic() >= options.deadline:
                break
            box = last.ranges.boxes[node.name]
            element = self._worth(node, box)
            if not element.size:
                continue
            found, did = self._bounded([*window[:-1], last], node, element, options)
            done = done.plus(did)
            if not did.tightened:
                continue
            met = box.expand_states(len(found.lower)).meet(
                found, f"'{node.name}' by linear forms and by programs"
            )
            settled = self._worth(node, met).size
            done = replace(done, fixed=done.fixed + element.size - settled)
            ranges = bound_propagation.narrowed(
                self.schedule, last.step, self.adversary, last.ranges, {node.name: met}
            )
            last = relax(ranges)
        return last, done

    def _worth(self, node: Node, box: Interval) -> Index:
        """Elements of a node, flat over samples and units, on which some reading function is not linear."""
        hull = box.hull()
        settled = torch.ones_like(hull.lower, dtype=torch.bool)
        for reader in self.schedule.before:
            if node.name in reader.inputs and isinstance(reader.op, Univariate):
                settled &= reader.op.is_linear_on(hull)
        return np.flatnonzero(~settled.flatten().cpu().numpy())

    def _bounded(
        self, window: Sequence[LinearizedStep], node: Node, element: Index, options: SolveOptions
    ) -> tuple[Interval, Tightening]:
        """Bounds of some elements of a node of the last step, -inf and inf elsewhere."""
        envelopes = affords_envelopes(self.schedule, window)
        encoder = Encoder(False, envelopes=envelopes)
        steps = encode_steps(
            self.step_graph,
            self.schedule,
            window,
            self.poison,
            self.restriction,
            encoder,
            self.past,
        )
        box = window[-1].ranges.boxes[node.name]
        encoder.origin = origin_of(window[-1], node)
        forms, charge = _conditional(steps, node, element, box)
        hull = box.hull()
        low, high = (end.flatten().cpu().numpy()[element] for end in (hull.lower, hull.upper))
        objectives = Objectives.of(encoder.finish(), forms, np.tile(_urgency(low, high), 2))
        solved = minimise(objectives, options)
        found = _spread(solved.bounds, charge, element, box)
        tightened = _gained(solved.bounds, box, element)
        did = Tightening(solved.solves, tightened, limited=solved.limited)
        return self._possible(found, window[-1]), did

    def _possible(self, found: Interval, last: LinearizedStep) -> Interval:
        """Drop bounds of states that a restriction rules out, because these could be empty."""
        if len(found.lower) == 1:
            return found
        lower, upper = found.lower.clone(), found.upper.clone()
        samples = last.step.samples.tolist()
        inside = torch.tensor([sample in self.restriction.inside for sample in samples])
        outside = torch.tensor([sample in self.restriction.outside for sample in samples])
        for state in range(len(lower)):
            ruled_out = inside if state == CLEAN else outside
            for bit, quota in enumerate(last.step.poison.quotas):
                if state >> bit & 1:
                    closed = torch.full_like(quota.open, quota.budget == 0) | ~quota.open
                    ruled_out = ruled_out | closed.cpu()
            lower[state, ruled_out], upper[state, ruled_out] = -torch.inf, torch.inf
        return Interval(lower, upper)


def _urgency(low: Array, high: Array) -> Array:
    """How near a range is to one side of 0: its width over its smaller part beyond 0."""
    width = np.maximum(high - low, 1e-300)
    out = np.minimum(-low, high)
    return np.where(out > 0.0, width / np.maximum(out, 1e-12 * width), width)


def _conditional(
    steps: EncodedSteps, node: Node, element: Index, box: Interval
) -> tuple[Expression, Array]:
    """``z + c . s_i`` and ``-z + c . s_i``, whose minima bound all states of z at once, and c.

    c is the difference between the known bounds of CLEAN and of each other state: with
    ``z + c . s >= b`` the clean range begins at b and that of state k at ``b - c_k``. Its shape is
    (states, 2 * elements), with zeros for CLEAN.
    """
    own = steps.known[node.name].take(element)
    charge = np.zeros((len(box.lower), 2 * element.size))
    both = stacked([own.below, own.above.scale(-1.0)], (-1,))
    if steps.selection is None or len(box.lower) == 1:
        return both, charge
    low, high = (end.flatten(1).cpu().numpy()[:, element] for end in (box.lower, box.upper))
    charge = np.maximum(0.0, np.concatenate([low[CLEAN] - low, high - high[CLEAN]], axis=1))
    size = box.lower[0].numel() // steps.selection.size
    selected = steps.selection.take(np.tile(element // size, 2)).states
    paid = [s.scale(c) for s, c in zip(selected, charge[1:], strict=True)]
    return add([both, *paid]), charge


def _spread(bounds: Array, charge: Array, element: Index, box: Interval) -> Interval:
    """Bounds of some elements as a box over all elements and states."""
    states = len(box.lower)
    lower = np.full((states, box.lower[0].numel()), -np.inf)
    upper = np.full_like(lower, np.inf)
    low, high = np.split(bounds, 2)
    paid_low, paid_high = np.split(charge, 2, axis=1)
    # Differences are rounded to the safe side.
    lower[:, element] = np.nextafter(low - paid_low, -np.inf)
    upper[:, element] = -np.nextafter(high - paid_high, -np.inf)
    shape = box.lower.shape
    return Interval(
        torch.from_numpy(lower).to(box.lower).reshape(shape),
        torch.from_numpy(upper).to(box.lower).reshape(shape),
    )


def _gained(bounds: Array, box: Interval, element: Index) -> int:
    """How many ends were tightened."""
    low = box.lower[CLEAN].flatten().cpu().numpy()[element]
    high = box.upper[CLEAN].flatten().cpu().numpy()[element]
    ends = np.concatenate([low, -high])
    least = GAINED * np.tile(np.maximum(high - low, 0.0), 2)
    return int((bounds > ends + least).sum())
