"""Real training runs on admissible data: states that the programs of a certification may never exclude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.attacks.goals import TrainedModels
from milp_agt.attacks.moves import Selector, merged, random_poisoning, steepest
from milp_agt.attacks.proposed import packed_of
from milp_agt.attacks.unrolled import Poisoning, State, Unrolled
from milp_agt.bounds.program import Incumbents, Witness
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction

CORNERS = 4  # random runs at full strength
ENDS = 64  # signed parameters, each the target of one run
ASCENTS = 2  # how often the gradient chooses the poisoned samples and their moves
MEMORY = 2**28  # bytes of one pass


class Witnesses:
    """A few runs, advanced step by step; chosen again whenever their length has doubled.

    One is the run on the data as given, some are random, some follow the gradient of single signed
    parameters, and the others follow the adversary's choices in the last programs. They use no bound,
    and no bound depends on them.
    """

    def __init__(
        self, unrolled: Unrolled, restriction: Restriction, initial: Mapping[str, Interval]
    ) -> None:
        self.unrolled, self.restriction = unrolled, restriction
        self.initial = {name: box for name, box in initial.items() if bool((box.width > 0).any())}
        self.ends = max(2, min(ENDS, MEMORY // max(1, unrolled.bytes_per_attack)))
        self._generator = torch.Generator().manual_seed(0)
        self._selector = Selector(unrolled, restriction)
        self._step = -1
        self._own: Poisoning
        self._data: Poisoning
        self._after: State
        self._proposed: Poisoning | None = None

    def after(self, step: int) -> Witness:
        """States of the runs after a step, counted from 0, without the runs that skip this step."""
        if step != self._step:
            self._advance(step)
        return self._witness(step)

    def propose(self, step: int, programs: Sequence[Sequence[Incumbents]]) -> Witness:
        """States of the runs, now including runs on the adversary's choices in some programs.

        They stay until programs of a later step are proposed. Choices are taken evenly from all points.
        """
        found = packed_of(self._selector, programs, self.ends)
        assert found is not None
        chosen = torch.linspace(0, len(found) - 1, min(len(found), self.ends)).round().long()
        self._proposed = found.rows(chosen).unpacked(self.unrolled)
        if step != self._step:
            self._advance(step)
        self._data = Poisoning.cat([self._own, self._proposed])
        own = len(self._own)
        new = self._run(self._proposed, step + 1)
        self._after = {n: torch.cat([v[:own], new[n]]) for n, v in self._after.items()}
        return self._witness(step)

    def _witness(self, step: int) -> Witness:
        kept = torch.stack([torch.isfinite(v).flatten(1).all(1) for v in self._after.values()])
        *_, present = self.unrolled.batch(self._data, step)
        if present is not None:
            kept = kept & (present.sum(1) > 0)
        mask = kept.all(0)
        states = {name: value[mask] for name, value in self._after.items()}
        return Witness(states, self.unrolled.updates[step].projection)

    def _advance(self, step: int) -> None:
        steps, last = step + 1, step + 1 == len(self.unrolled.batches)
        known = step == self._step + 1 and self._step >= 0
        if not known or last or steps & (steps - 1) == 0:
            self._begin(steps)
        else:
            self._after = self._moved(self._data, self._after, step)
        self._step = step

    def _moved(self, data: Poisoning, state: State, step: int) -> State:
        with torch.no_grad():
            return self.unrolled.stepped(state, step, self.unrolled.batch(data, step))

    def _begin(self, steps: int) -> None:
        """Choose runs: their data for the whole run, and their states after some steps."""
        run, generator = self.unrolled, self._generator
        parts = [random_poisoning(self._selector, CORNERS, generator, True)]
        if self.restriction is UNRESTRICTED or run.present is None:
            parts.append(run.nominal(1))
        if not run.poison.is_clean and not (self.restriction.inside and run.present is not None):
            parts.append(self._aimed(steps))
        self._data = self._own = Poisoning.cat(parts)
        if self._proposed is not None:
            self._data = Poisoning.cat([self._own, self._proposed])
        self._after = self._run(self._data, steps)

    def _run(self, data: Poisoning, steps: int) -> State:
        """States after some steps from the start."""
        state = self._start(len(data))
        for step in range(steps):
            state = self._moved(data, state, step)
        return state

    def _start(self, runs: int) -> State:
        """Initial states: as given, or corners of their box."""
        state = self.unrolled.start(runs)
        for name, box in self.initial.items():
            coin = torch.rand(state[name].shape, generator=self._generator) < 0.5
            state[name] = torch.where(coin.to(box.lower.device), box.lower, box.upper)
        return state

    def _aimed(self, steps: int) -> Poisoning:
        """Data that push signed parameters outwards after some steps, to first order."""
        whole = self.unrolled
        run = replace(whole, batches=whole.batches[:steps], updates=whole.updates[:steps])
        both = 2 * whole.step_graph.parameter_count
        ends = torch.linspace(0, both - 1, min(both, self.ends)).round().long()
        ends = ends.to(whole.poison.features.device)
        entry = torch.div(ends, 2, rounding_mode="floor")
        sign = 1.0 - 2.0 * (ends % 2)

        def score(state: State) -> Tensor:
            flat = TrainedModels(run.step_graph, state).parameters
            return sign * flat.gather(1, entry[:, None])[:, 0]

        # One poisoned set for the run must respect the budgets of later batches, too.
        selector = Selector(whole if whole.poison.static else run, self.restriction)
        nominal = run.nominal(len(ends))
        data, start = nominal, self._start(len(ends))
        for _ in range(ASCENTS):
            _, gradient = run.gradient(data, score, start)
            best, gains = steepest(run, gradient)
            data = merged(selector.choose(gains), best, nominal)
        rest = slice(len(run.cover), None)  # an adaptive adversary has entries of later steps
        later = whole.nominal(len(ends)).map(lambda tensor: tensor[:, rest])
        return Poisoning.cat([data, later], dim=1)
