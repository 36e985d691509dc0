"""Search for the worst poisoned data: a pool of runs, gradient ascent, and swaps of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.attacks.corners import Corners, SingleGains, corners_of
from milp_agt.attacks.goals import Goal, TrainedModels
from milp_agt.attacks.moves import (
    Selector,
    merged,
    moved,
    random_poisoning,
    shrunk,
    steepest,
    stepped,
    turned,
)
from milp_agt.attacks.packed import Aim, Best, Packed
from milp_agt.attacks.search_settings import Search
from milp_agt.attacks.unrolled import Pace, Poisoning, State, Unrolled
from milp_agt.bounds.listed import count_choices, list_choices
from milp_agt.core.deadline import Deadline
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.threats.poison import Whole
from milp_agt.training import inputs

LARGEST_CHUNK = 4096  # attacks in one pass
ENTERING, LEAVING = 4, 2  # candidates of an exchange by gradient
GRADIENT = 3.0  # runs that one with its gradient is as dear as
SHARE = 0.25  # of the time that is left, for one pass
TEAMS = 4  # of the best single samples, for each aim
# Local moves of each kind in a round: for each aim, for all of them.
VARIANTS, FEWEST_VARIANTS = 5, 64


class _TimeIsOver(Exception):
    """Ends a search; what it has met is kept."""


class Hunt:
    """One search: the pool first, then ascents and swaps for every aim."""

    def __init__(
        self,
        unrolled: Unrolled,
        goal: Goal,
        aim: Aim,
        search: Search,
        restriction: Restriction = UNRESTRICTED,
    ) -> None:
        self.unrolled, self.goal, self.search = unrolled, goal, search
        self.selector = Selector(unrolled, restriction)
        self.generator = torch.Generator().manual_seed(search.seed)
        each = unrolled.bytes_per_attack + unrolled.bytes_of_outputs(goal.points) + 16 * len(aim)
        self.chunk = max(1, min(inputs.bytes_of(search.memory) // each, LARGEST_CHUNK))
        nominal = Packed.of(unrolled.nominal(1), unrolled).rows(torch.zeros_like(aim.quantity))
        lowest = torch.full_like(aim.sign, -torch.inf)
        self.best = Best(aim, lowest, nominal, torch.zeros_like(aim.quantity))
        self.exhaustive, self.halved = False, False
        self.deadline = Deadline.within(search.time_limit)
        self.pace: Pace | None = None  # measured where there is a time limit
        self.slower = 1.0  # than the pace says, in the newest pass

    def run(self, known: Packed | None = None) -> Best:
        """The best run for every aim that is met in time; ``known`` runs are tried in any case."""
        self._train(self.unrolled.nominal(1))
        if math.isfinite(self.deadline.at):
            self.pace = self.unrolled.pace()
        with suppress(_TimeIsOver):
            self.exhaustive = self.unrolled.poison.is_clean or self._enumerated()
        if self.exhaustive:
            return self.best
        if known is not None:
            for part in torch.arange(len(known)).split(self.chunk):
                self._train(known.rows(part).unpacked(self.unrolled))
        with suppress(_TimeIsOver):
            self._search()
        return self.best

    def _search(self) -> None:
        """Everything that takes time, in the order of what it gains for it."""
        corners = corners_of(
            self.selector, self.search.corners, inputs.bytes_of(self.search.memory), self.generator
        )
        self.halved = corners is not None
        for index in torch.arange(self._less(self.search.pool)).split(self.chunk):
            for extreme in (False, True):
                count = (len(index) + extreme) // 2
                self._evaluate(random_poisoning(self.selector, count, self.generator, extreme))
        aims = torch.randperm(len(self.best.aim), generator=self.generator)[: self.search.aims]
        aims = aims.sort().values.to(self.best.value.device)
        table = self._together(corners, aims)
        trials = torch.arange(self._less(self.search.restarts), device=aims.device)
        pairs = torch.cartesian_prod(aims, trials)
        for part in pairs.split(self.chunk) if len(pairs) else ():
            self._ascend(part[:, 0], part[:, 1])
        for turn in range(self.search.rounds):
            for part in aims.split(self.chunk):
                self._exchange(part, turn)
                self._refine(part, turn)
            if table is not None:
                self._vary(table, aims)

    def _less(self, count: int) -> int:
        """Half of a count, rounded up, where corners are tried as well."""
        return (count + 1) // 2 if self.halved else count

    def _enumerated(self) -> bool:
        """Whether every admissible poisoning was tried, where they are finitely many and few."""
        run, known = self.unrolled, self.selector.restriction
        poison = run.poison
        if run.present is not None and run.middle is None:
            poison = replace(poison, whole=Whole.REMOVED)
        apart = poison.label_quota is not None and known.inside
        if apart or count_choices(poison, known) > self.search.enumerate:
            return False
        choices = list_choices(poison, known)
        for first in range(1, len(choices), self.chunk):  # 0 are the data as given
            part = slice(first, first + self.chunk)
            labels = choices.labels(part, run.cover)
            features = choices.features(part, run.cover)
            features = features.expand(len(labels), *poison.features.shape)
            there = choices.present(part, run.cover)
            self._evaluate(Poisoning(*run.moves.project(features, labels), there))
        return True

    def _together(self, corners: Corners | None, aims: Tensor) -> SingleGains | None:
        """Train every corner alone, then the best of them together; what each gains for the aims."""
        if corners is None or not len(aims):
            return None
        table = SingleGains.of(self.unrolled, corners, aims)
        before = self._scored(self.unrolled.nominal(1), aims)
        for part in torch.arange(len(corners), device=aims.device).split(self.chunk):
            moved = corners.data.rows(part).unpacked(self.unrolled)
            alone = self.selector.choose(table.alone(part))
            data = merged(alone, moved, self.unrolled.nominal(len(part)))
            table.note(part, self._scored(data, aims) - before)
        for part in torch.arange(len(aims), device=aims.device).repeat(TEAMS).split(self.chunk):
            worth = table.worth(part)
            chosen = self.selector.choose(worth * (1.0 + self._noise(worth)))
            self._evaluate(merged(chosen, table.at_best(part), self.unrolled.nominal(len(part))))
        return table

    def _scored(self, poisoning: Poisoning, aims: Tensor) -> Tensor:
        """What attacks reach for some aims, (aims, attacks), by the scores of the goal."""
        found = []
        for part in self._in_time(len(poisoning)):
            some = _rows(poisoning, part)
            with torch.no_grad():
                state = self.unrolled.run(some)
                found.append(self.goal.scores(TrainedModels(self.unrolled.step_graph, state)))
            self._offer(state, some)
        return (torch.cat(found)[:, self.best.aim.quantity[aims]] * self.best.aim.sign[aims]).T

    def _vary(self, table: SingleGains, aims: Tensor) -> None:
        """Swap a poisoned sample of each best run, give it another corner, flip its signs, shrink it."""
        again = max(VARIANTS, FEWEST_VARIANTS // len(aims))
        for part in torch.arange(len(aims), device=aims.device).repeat(again).split(self.chunk):
            data = self.best.data.rows(aims[part]).unpacked(self.unrolled)
            kept, worth = moved(self.unrolled, data), table.worth(part)
            worth = worth * self._noise(worth)
            self._try_exchange(data, table.at_best(part), kept, worth, 0, 0, 0)
            one = self._in_one_span(self._scores(kept, self._noise(kept), None, 0, 0) < 0)
            corner = table.drawn(len(part), self.generator).features
            self._evaluate(merged(one, replace(data, features=corner), data))
            self._evaluate(merged(one, turned(self.unrolled, data, self.generator), data))
            self._evaluate(merged(one, shrunk(self.unrolled, data, self.generator), data))

    def _evaluate(self, poisoning: Poisoning) -> None:
        for part in self._in_time(len(poisoning)):
            self._train(_rows(poisoning, part))

    def _in_time(self, attacks: int, runs: float = 1.0) -> Iterator[Tensor]:
        """Attacks in pieces, each predicted to take at most a share of the time that is left.

        Each is as dear as so many ``runs``. Where not even one is predicted to end in time, the search ends.
        """
        first, device = 0, self.best.value.device
        while first < attacks:
            if self.deadline.is_over():
                raise _TimeIsOver
            count = attacks - first
            if self.pace is not None:
                left = self.deadline.left / (runs * self.slower)
                if self.pace.seconds(1) > left:
                    self.deadline.missed = True
                    raise _TimeIsOver
                count = min(count, self.pace.runs(SHARE * left))
            before = self.deadline.left
            yield torch.arange(first, first + count, device=device)
            if self.pace is not None:
                predicted = runs * self.pace.seconds(count)
                self.slower = max(1.0, (before - self.deadline.left) / max(predicted, 1e-9))
            first += count

    def _train(self, poisoning: Poisoning) -> None:
        if not len(poisoning):
            return
        with torch.no_grad():
            state = self.unrolled.run(poisoning)
        self._offer(state, poisoning)

    def _offer(self, state: State, poisoning: Poisoning) -> None:
        with torch.no_grad():
            values = self.goal.values(TrainedModels(self.unrolled.step_graph, state))
        self.best.offer(values, poisoning, self.unrolled)

    def _gradient(self, data: Poisoning, aims: Tensor, trials: Tensor) -> Poisoning:
        """Gradient of the surrogate of each aim; the run is offered to all aims on the way."""
        aim, found = self.best.aim, []
        for part in self._in_time(len(data), GRADIENT):

            def score(state: State, part: Tensor = part) -> Tensor:
                models, own = TrainedModels(self.unrolled.step_graph, state), aims[part]
                return self.goal.surrogate(models, aim.quantity[own], aim.sign[own], trials[part])

            some = _rows(data, part)
            state, gradient = self.unrolled.gradient(some, score)
            self._offer(state, some)
            found.append(gradient)
        return found[0] if len(found) == 1 else Poisoning.cat(found)

    def _ascend(self, aims: Tensor, trials: Tensor) -> None:
        """Samples and moves that the gradient favours, again and again, from several starts."""
        nominal = self.unrolled.nominal(len(aims))
        drawn = random_poisoning(self.selector, len(aims), self.generator, corners=True)
        best = self.best.data.rows(aims).unpacked(self.unrolled)
        data = merged(self._whole(trials == 1), best, drawn)
        data = merged(self._whole(trials == 0), nominal, data)
        for _ in range(self._less(self.search.iterations)):
            target, gain = steepest(self.unrolled, self._gradient(data, aims, trials))
            data = merged(self.selector.choose(gain), target, nominal)
        self._evaluate(data)

    def _refine(self, aims: Tensor, turn: int) -> None:
        """Projected gradient steps of falling length from the best run of each aim."""
        iterations = self._less(self.search.iterations)
        data = self.best.data.rows(aims).unpacked(self.unrolled)
        nominal = self.unrolled.nominal(len(aims))
        for iteration in range(iterations):
            gradient = self._gradient(data, aims, torch.full_like(aims, turn))
            target, gain = steepest(self.unrolled, gradient)
            kept = moved(self.unrolled, data)  # and the best others while the budget lasts
            chosen = self.selector.choose(gain + torch.where(kept, torch.inf, 0.0))
            stride = 2.0 ** (1.0 - 6.0 * iteration / iterations)
            data = merged(chosen, stepped(self.unrolled, data, target, stride), nominal)
        self._evaluate(data)

    def _exchange(self, aims: Tensor, turn: int) -> None:
        """Exchange a poisoned sample that matters little for one that may matter more."""
        data = self.best.data.rows(aims).unpacked(self.unrolled)
        gradient = self._gradient(data, aims, torch.full_like(aims, turn))
        target, gain = steepest(self.unrolled, gradient)
        kept = moved(self.unrolled, data)
        for leaving in range(LEAVING):
            for entering in range(ENTERING):
                for quota in range(self.unrolled.quotas):
                    noisy = gain * (1.0 + turn * self._noise(gain))
                    self._try_exchange(data, target, kept, noisy, entering, leaving, quota)

    def _in_one_span(self, mask: Tensor) -> Tensor:
        """The mask of one span of each attack, drawn at random: an adaptive run is changed in one step."""
        if len(self.unrolled.spans) == 1:
            return mask
        drawn = torch.randint(len(self.unrolled.spans), (len(mask),), generator=self.generator)
        return mask & (drawn.to(mask.device)[:, None] == self.unrolled.span)[..., None]

    def _try_exchange(
        self,
        data: Poisoning,
        target: Poisoning,
        kept: Tensor,
        worth: Tensor,
        entering: int,
        leaving: int,
        quota: int,
    ) -> None:
        """Exchange, by rank of worth, the one that leaves and the one that enters at its target."""
        masks = self.selector.choose(self._scores(kept, worth, entering, leaving, quota))
        mixed = merged(masks & ~kept, target, data)
        self._evaluate(merged(masks, mixed, self.unrolled.nominal(len(data))))

    def _scores(
        self, kept: Tensor, worth: Tensor, entering: int | None, leaving: int, quota: int
    ) -> Tensor:
        """Scores of an exchange in each span: the leaving one below 0, kept ones above 2, entering above 4.

        Both are within one quota; the choice for the others stays as it is.
        """
        scores = []
        rows = torch.arange(len(kept), device=kept.device)
        for span in self.unrolled.spans:
            all_worth = worth[:, span] / (worth[:, span].amax(1, keepdim=True) + 1e-300)
            score = all_worth + 2.0 * kept[:, span]
            keep, value, own = kept[:, span, quota], all_worth[..., quota], score[..., quota]
            inside = torch.where(keep, value, torch.inf).argsort(1)[:, leaving % keep.shape[1]]
            own[rows, inside] -= torch.where(keep[rows, inside], 4.0, 0.0)
            if entering is not None:
                outside = torch.where(keep, -torch.inf, value).argsort(1, descending=True)
                own[rows, outside[:, entering % keep.shape[1]]] += 4.0
            scores.append(score)
        return torch.cat(scores, 1)

    def _noise(self, like: Tensor) -> Tensor:
        drawn = torch.rand(like.shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(like.device)

    def _whole(self, attacks: Tensor) -> Tensor:
        """All entries of the attacks in a mask."""
        run = self.unrolled
        return attacks[:, None, None].expand(-1, len(run.cover), run.quotas)


def _rows(data: Poisoning, part: Tensor) -> Poisoning:
    """Some attacks of all; without a copy where these are all."""
    return data if len(part) == len(data) else data.rows(part)
