"""Refutations: for test points that bounds leave open, poisoned data that make the model get them wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from milp_agt.attacks.attacker import Attacker, Runs
from milp_agt.attacks.changes import in_words
from milp_agt.attacks.checked import fingerprint, stacked, tightened, train_plainly, violation
from milp_agt.attacks.goals import Goal, LinearForm, MeanLossGoal, QuestionGoal
from milp_agt.attacks.packed import Aim, Packed
from milp_agt.attacks.question_time import QuestionTime
from milp_agt.attacks.replay import ModuleModels, confirm, replay
from milp_agt.attacks.search import Hunt
from milp_agt.attacks.search_settings import Search
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.bounds.listed import Poisoned
from milp_agt.core.deadline import Deadline
from milp_agt.core.interval import CLEAN
from milp_agt.core.reachable import Bounds
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.properties.answer import Answer, check_reached
from milp_agt.properties.functional import AttackedFunctional, FunctionalQuestion
from milp_agt.properties.mean_loss import MeanLoss
from milp_agt.properties.question import Question
from milp_agt.properties.witness import Witness

# A margin counts as below zero only beyond this, times 1 + the largest output: far beyond the rounding of
# training, so that other orders of summation see the same sign.
BEYOND_ROUNDING = {"float64": 1e-8, "float32": 1e-3}

QUICK_WORK = 2**31  # bytes of all runs of a quick search, about: some seconds of a core
QUICK_RUNS = 2048  # about what a quick search trains for AIMS points
AIMS, FEWEST_AIMS = 64, 4


def quick(bytes_per_run: int) -> Search:
    """A search that costs about as much as bounding a small run, whatever the size of the run."""
    share = min(1.0, QUICK_WORK / (QUICK_RUNS * max(1, bytes_per_run)))
    few = max(8, int(128 * share))
    return Search(pool=few, corners=few, enumerate=8 * few, restarts=2, rounds=1, iterations=4)


@dataclass(frozen=True)
class Refuter:
    """Attacks the points that an answer leaves open, and keeps what stands up to every check.

    Attributes:
        attacker: the training run, and how much is tried.
        precision: of the run that is certified, in which witnesses are trained.
        threat: in words.
        most: test points that are aimed at, those nearest to being wrong first.
    """

    attacker: Attacker
    precision: Precision
    threat: str
    most: int

    @staticmethod
    def of(attacker: Attacker, precision: Precision, threat: str, thorough: bool) -> Refuter:
        """Refutations by the search of the attacker, or by a quick one."""
        if thorough:
            return Refuter(attacker, precision, threat, attacker.search.aims)
        each = attacker.unrolled.bytes_per_attack
        most = max(FEWEST_AIMS, min(AIMS, AIMS * QUICK_WORK // (QUICK_RUNS * max(1, each))))
        quicker = replace(attacker, search=quick(each))
        return Refuter(quicker, precision, threat, int(most))

    def decide(
        self,
        question: Question,
        known: Answer,
        listed: Sequence[Poisoned] | None = None,
        deadline: Deadline | None = None,
    ) -> Answer:
        """Attack what an answer leaves open; the answer itself where that is nothing, or for want of time.

        Where the worst data sets are ``listed``, they are trained on and nothing is searched. Those that
        a tree tried come first: what they show to be wrong is not searched for. What does not end before
        the ``deadline`` is left out, and it says that it was missed.

        Every run that counts was trained again in plain torch. A point is refuted only by data that are
        admissible exactly, trained on batch by batch in the precision of the run, with a margin below
        zero by more than rounding. Raises SoundnessError: plain torch does not confirm a run, or one lies
        outside the bounds.
        """
        if isinstance(question, MeanLoss):
            return self._worst_loss(question, known, deadline)
        points = known.points
        open_ = ~(points.score_lower > 0)
        if not open_.any():
            return known
        near = np.flatnonzero(open_ & (points.score_nominal > 0))
        near = near[np.argsort(points.score_nominal[near], kind="stable")][: self.most]
        # Where all open points are wrong on the data as given, there is nothing left to attack.
        time = QuestionTime.of(self.attacker.unrolled, deadline)
        first = known.tried if listed is None else listed
        fits = time.fits(len(first) + (len(near) + 1 if listed is None else 0))
        if not fits:
            return known
        goal = QuestionGoal(question)
        runs = self._trained(first[:fits])
        check = _Checks(self, goal, runs, points.score_lower, time)
        if listed is None:
            wrong = (check.margins < -check.slack).any(0).cpu().numpy()
            near = near[~wrong[near]][: max(0, fits - len(first) - 1)]
            if len(near):
                aims = np.sort(np.append(near, len(points)))
                runs = self._hunt(goal, aims, time, runs.data)
                check = _Checks(self, goal, runs, points.score_lower, time)
        chosen, of_point, exact = check.cover()
        least = torch.minimum(exact, check.margins.amin(0)).cpu().numpy()
        answer = replace(
            known, points=replace(points, reached=least, witness=of_point.cpu().numpy())
        )

        def within(value: float, bounds: Bounds) -> float:
            # A margin within rounding of zero counts as safe on this side.
            harm = question.counts_harm
            return max(value, bounds.lower) if harm else min(value, bounds.upper)

        groups, shown_in = dict(known.groups), {}
        for name, own in known.groups.items():
            worst = check.worst(np.asarray(points.groups == name))
            if worst is not None:
                groups[name] = replace(own, reached=within(worst[0], own))
                shown_in[name] = worst[1]
        worst = check.worst(np.ones(len(points), dtype=bool))
        return replace(
            answer,
            reached=None if worst is None else within(worst[0], known),
            shown=None if worst is None else worst[1],
            groups=groups,
            shown_in=shown_in,
            witnesses=tuple(chosen),
        )

    def _worst_loss(self, question: MeanLoss, known: Answer, deadline: Deadline | None) -> Answer:
        """With the largest mean loss that attacks reach, by data that are admissible exactly."""
        if known.upper - known.lower <= BEYOND_ROUNDING[self.precision.name] * known.upper:
            return known
        features = question.on_outputs.inputs.lower[CLEAN]
        goal = MeanLossGoal(question.loss, features, question.encoded)
        worst = self._worst(goal, 1.0, known, deadline)
        return known if worst is None else replace(known, reached=worst[0], shown=worst[1])

    def worst_functional(
        self,
        question: FunctionalQuestion,
        known: Bounds,
        low: bool,
        deadline: Deadline | None = None,
    ) -> Bounds:
        """With the least (``low``) or largest value that attacks reach, likewise."""
        sign, flat = -1.0 if low else 1.0, question.flat(self.attacker.unrolled.step_graph)
        goal = LinearForm("c . theta", sign * flat, sign * float(question.constant))
        worst = self._worst(goal, sign, known, deadline)
        if worst is None:
            return known
        ends = known.lower, known.nominal, known.upper
        return AttackedFunctional(*ends, reached=worst[0], shown=worst[1])

    def _worst(
        self, goal: Goal, sign: float, known: Bounds, deadline: Deadline | None
    ) -> tuple[float, Witness] | None:
        """``sign`` times the largest value of a goal of one quantity; None where no run has time."""
        time = QuestionTime.of(self.attacker.unrolled, deadline)
        if not time.fits(1):
            return None
        nominal = Packed.of(self.attacker.unrolled.nominal(1), self.attacker.unrolled)
        runs = self._hunt(goal, np.zeros(1, dtype=np.int64), time, nominal)
        values = torch.cat([goal.values(part)[:, 0] for part in runs.parts(256)])
        values = torch.where(torch.isfinite(values), values, -torch.inf)
        for run in values.argsort(descending=True).tolist():
            found = self.train(runs, run)
            if found is None:
                continue
            data, module, models = found
            value = sign * float(goal.values(models)[0, 0])
            slack = goal.rounding(models)
            if not known.lower - slack <= value <= known.upper + slack:
                raise SoundnessError(
                    "What an attack reached must lie within its certified bounds",
                    f"{value} in [{known.lower}, {known.upper}]",
                    "do not use this certificate; please report this run",
                )
            inside = min(max(value, known.lower), known.upper)
            return inside, self.witness(data, module, (), ())
        return None

    def replay(self, witness: Witness) -> Mapping[str, Tensor]:
        """The ``state_dict()`` of plain training on the data of a witness, which is checked first."""
        data = self._data_of(witness)
        unrolled = self.attacker.unrolled
        wrong = violation(unrolled, data)
        if wrong:
            raise InvalidInputError(
                "Replay a witness whose poisoned data the threat admits",
                wrong,
                "give a witness of this run, as it was saved",
            )
        return train_plainly(unrolled, data, self._dtype).state_dict()

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == FLOAT64 else torch.float32

    def _hunt(
        self, goal: Goal, aims: npt.NDArray[np.int64], time: QuestionTime, first: Packed
    ) -> Runs:
        """Runs that are known, then the best one for each aim, trained again in plain torch."""
        unrolled = self.attacker.unrolled
        quantity = torch.from_numpy(aims).to(unrolled.poison.features.device)
        aim = Aim(quantity, torch.ones_like(quantity, dtype=torch.float64))
        hunt = Hunt(unrolled, goal, aim, self.attacker.search.within(time.of_search(len(aims))))
        best = hunt.run()
        time.ends.missed |= hunt.deadline.missed
        data = Packed.cat([first, best.data.rows(best.first_of_each_run())])
        return self.attacker.trained_again(data, hunt.chunk)

    def _trained(self, listed: Sequence[Poisoned]) -> Runs:
        """The data as given, then each listed data set, trained on in plain torch."""
        unrolled = self.attacker.unrolled
        found = [unrolled.nominal(1)]
        for each in listed:
            there = each.kept.to(torch.float64)[None] if unrolled.present is not None else None
            found.append(Poisoning(each.features[None], each.labels[None], there))
        packed = Packed.cat([Packed.of(data, unrolled) for data in found])
        return self.attacker.trained_again(packed, 256)

    def train(self, runs: Runs, run: int) -> tuple[Poisoning, nn.Module, ModuleModels] | None:
        """One run on data that are admissible exactly, batch by batch; None where rounding forbids that."""
        unrolled = self.attacker.unrolled
        data = runs.data.rows(torch.tensor([run])).unpacked(unrolled)
        nearer = tightened(unrolled, data, self._dtype)
        if nearer is None:
            return None
        module = train_plainly(unrolled, nearer, self._dtype)
        state = stacked(unrolled, module)
        if self.precision == FLOAT64:
            *_, final = replay(unrolled, nearer)
            confirm(state, final)
        return nearer, module, ModuleModels(unrolled.step_graph, state)

    def witness(
        self,
        data: Poisoning,
        module: nn.Module,
        points: tuple[int, ...],
        margins: tuple[float, ...],
    ) -> Witness:
        """What one run changed, and what came of it."""
        unrolled = self.attacker.unrolled
        rows, words = in_words(unrolled, data, self.attacker.origin)
        return Witness(
            points=points,
            margins=margins,
            poisoned=rows,
            changes=words,
            features=tuple(data.features[0, s].cpu().numpy().copy() for s in unrolled.spans),
            labels=tuple(unrolled.decoded(data.labels[0, s]) for s in unrolled.spans),
            there=()
            if data.there is None
            else tuple((data.there[0, s] > 0).cpu().numpy() for s in unrolled.spans),
            state_dict={n: v.detach().cpu().numpy() for n, v in module.state_dict().items()},
            data=fingerprint(unrolled),
            threat=self.threat,
        )

    def _data_of(self, witness: Witness) -> Poisoning:
        """The data of a witness as those of one run; one of another run is refused."""
        unrolled = self.attacker.unrolled
        graph, spans = unrolled.step_graph, unrolled.spans
        shape = unrolled.poison.features.shape[1:]
        sizes = [(s.stop - s.start, *shape) for s in spans]
        fits = [x.shape for x in witness.features] == sizes and len(witness.labels) == len(spans)
        fits = fits and len(witness.there) == (0 if unrolled.present is None else len(spans))
        if witness.data != fingerprint(unrolled) or not fits:
            raise InvalidInputError(
                "Replay a witness of this training run",
                "one of other data, batches, initial parameters or another kind of threat",
                "give a witness that result.witness(answer, point) of this run returned",
            )

        def joined(arrays: Sequence[npt.NDArray[Any] | Tensor]) -> Tensor:
            whole = np.concatenate([np.asarray(a, dtype=np.float64) for a in arrays])
            return torch.from_numpy(whole).to(unrolled.cover.device)[None]

        return Poisoning(
            joined(witness.features),
            joined([graph.loss.encode(torch.from_numpy(y), graph.outputs) for y in witness.labels]),
            joined(witness.there) if witness.there else None,
        )


_Checked = tuple[Tensor, Witness]  # margins at all points, (n,), and the data of a run


class _Checks:
    """The runs of a question, trained once more where they matter, on data that are admissible exactly.

    Attributes:
        margins: of every run at every point, (runs, n).
        slack: below minus this a margin is surely negative, (n,).
    """

    def __init__(
        self,
        refuter: Refuter,
        goal: QuestionGoal,
        runs: Runs,
        lower: npt.NDArray[np.float64],
        time: QuestionTime,
    ) -> None:
        self._refuter, self._goal, self._runs, self._time = refuter, goal, runs, time
        self._lower, self._known = lower, dict[int, _Checked | None]()
        parts = list(runs.parts(256))
        self.margins = torch.cat([goal.margins(part).detach() for part in parts])
        check_reached(lower, self.margins.amin(0).cpu().numpy())
        features = goal.question.forms[-1].inputs.centre[CLEAN]
        with torch.no_grad():
            sizes = [part.outputs(features).abs().amax((0, 2)) for part in parts]
        size = torch.nan_to_num(torch.stack(sizes).amax(0))
        self.slack = BEYOND_ROUNDING[refuter.precision.name] * (1.0 + size)

    def _of(self, run: int) -> _Checked | None:
        """A run with its data; None where no data near its own are admissible exactly, or in time."""
        if run not in self._known:
            self._known[run] = self._checked(run) if self._time.for_one_more() else None
        return self._known[run]

    def _checked(self, run: int) -> _Checked | None:
        found = self._refuter.train(self._runs, run)
        if found is None:
            return None
        data, module, models = found
        margins = self._goal.margins(models)[0].detach()
        check_reached(self._lower, margins.cpu().numpy())
        wrong = margins < -self.slack
        points = tuple(self._goal.question.index[wrong].tolist())
        witness = self._refuter.witness(data, module, points, tuple(margins[wrong].tolist()))
        return margins, witness

    def worst(self, among: npt.NDArray[np.bool_]) -> tuple[float, Witness] | None:
        """The mean over some points of the first run that stands up, by falling counts of unsafe ones."""
        mask = torch.from_numpy(among).to(self.margins.device)
        unsafe = ((self.margins < -self.slack) & mask).sum(1)
        found = map(self._of, unsafe.argsort(descending=True, stable=True).tolist())
        first = next((each for each in found if each is not None), None)
        if first is None:
            return None
        count, wrong = int(mask.sum()), int(((first[0] < -self.slack) & mask).sum())
        share = (wrong if self._goal.question.counts_harm else count - wrong) / count
        return share, first[1]

    def cover(self) -> tuple[list[Witness], Tensor, Tensor]:
        """Few runs that refute all points that any refutes; which refutes each point, and by what margin."""
        wrong = self.margins < -self.slack
        of_point = torch.full_like(self.slack, -1, dtype=torch.int64)
        exact = torch.full_like(self.slack, torch.inf)
        found: list[Witness] = []
        while bool(wrong.any()):
            run = int(wrong.sum(1).argmax())
            checked = self._of(run)
            wrong[run] = False
            if checked is None:
                continue
            margins, witness = checked
            refuted = (margins < -self.slack) & (of_point < 0)
            if bool(refuted.any()):
                of_point = torch.where(refuted, len(found), of_point)
                exact = torch.where(refuted, margins, exact)
                found.append(witness)
                wrong[:, refuted] = False
        return found, of_point, exact
