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
from milp_agt.attacks.best import Aim
from milp_agt.attacks.changes import in_words
from milp_agt.attacks.checked import fingerprint, stacked, tightened, train_plainly, violation
from milp_agt.attacks.goals import Goal, MeanLossGoal
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.question_goal import QuestionGoal
from milp_agt.attacks.question_time import QuestionTime
from milp_agt.attacks.replay import ModuleModels, confirm, replay
from milp_agt.attacks.search import Hunt
from milp_agt.attacks.search_settings import Search
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.bounds.listed import Poisoned
from milp_agt.core.deadline import Deadline, shorter
from milp_agt.core.interval import CLEAN
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.properties.answer import Answer
from milp_agt.properties.decisions import Decisions
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
        seconds: that a question without a deadline may take; None for no limit.
    """

    attacker: Attacker
    precision: Precision
    threat: str
    most: int
    seconds: float | None = None

    @staticmethod
    def of(
        attacker: Attacker,
        precision: Precision,
        threat: str,
        thorough: bool,
        seconds: float | None = None,
    ) -> Refuter:
        """Refutations by the search of the attacker, or by a quick one."""
        if thorough:
            return Refuter(attacker, precision, threat, attacker.search.aims, seconds)
        each = attacker.unrolled.bytes_per_attack
        most = max(FEWEST_AIMS, min(AIMS, AIMS * QUICK_WORK // (QUICK_RUNS * max(1, each))))
        quicker = replace(attacker, search=quick(each))
        return Refuter(quicker, precision, threat, int(most), seconds)

    def decide(
        self,
        question: Question,
        known: Answer,
        listed: Sequence[Poisoned] | None = None,
        deadline: Deadline | None = None,
    ) -> Decisions | None:
        """Attack the open points of an answer; None where there are none, or no time for a few runs.

        Where the worst data sets are ``listed``, they are trained on and nothing is searched. What does not
        end before the ``deadline`` is left out, and it says that it was missed.

        Every run that counts was trained again in plain torch. A point is refuted only by data that are
        admissible exactly, trained on batch by batch in the precision of the run, with a margin below zero
        by more than rounding.

        Raises:
            SoundnessError: plain torch does not confirm a run, or one lies outside the bounds.
        """
        points = known.points
        open_ = ~(points.score_lower > 0)
        if not open_.any():
            return None
        goal = QuestionGoal(question)
        near = np.flatnonzero(open_ & (points.score_nominal > 0))
        near = near[np.argsort(points.score_nominal[near], kind="stable")][: self.most]
        # Where all open points are wrong on the data as given, there is nothing left to attack.
        time = self._time(deadline)
        fits = time.fits(len(near) + 1 if listed is None else len(listed))
        if not fits:
            return None
        aims = np.append(near[: fits - 1], len(points)) if len(near) else near
        runs = (
            self._hunt(goal, np.sort(aims), time)
            if listed is None
            else self._trained(listed[:fits])
        )
        margins = self._margins(goal, runs)
        _check_inside(points.score_lower, margins.amin(0))
        slack = self._slack(question, runs)
        check = _Checks(self, goal, runs, slack, points.score_lower, time)
        chosen, of_point, exact = _cover(check, margins < -slack)
        worst = check.worst((margins < -slack).sum(1))
        share = None
        if worst is not None:
            unsafe, count = int((worst.margins < -slack).sum()), len(points)
            share = (unsafe if question.counts_harm else count - unsafe) / count
        return Decisions(
            lower=points.score_lower,
            upper=points.score_upper,
            reached=torch.minimum(exact, margins.amin(0)).cpu().numpy(),
            witness=of_point.cpu().numpy(),
            witnesses=tuple(chosen),
            mean=share,
            shown=None if worst is None else worst.witness,
        )

    def worst_loss(
        self, question: MeanLoss, known: Answer, deadline: Deadline | None = None
    ) -> tuple[float, Witness] | None:
        """The largest mean loss that attacks reach, by data that are admissible exactly."""
        if known.upper - known.lower <= BEYOND_ROUNDING[self.precision.name] * known.upper:
            return None
        time = self._time(deadline)
        if not time.fits(1):
            return None
        features = question.on_outputs.inputs.lower[CLEAN]
        goal = MeanLossGoal(question.loss, features, question.encoded)
        runs = self._hunt(goal, np.zeros(1, dtype=np.int64), time)
        values = torch.cat([goal.values(part)[:, 0] for part in self._parts(runs)])
        values = torch.where(torch.isfinite(values), values, -torch.inf)
        for run in values.argsort(descending=True).tolist():
            found = self.train(runs, run)
            if found is None:
                continue
            data, module, models = found
            loss = float(goal.values(models)[0, 0])
            if not known.lower <= loss <= known.upper:
                raise SoundnessError(
                    "What an attack reached must lie within the certified bounds of the loss",
                    f"{loss} in [{known.lower}, {known.upper}]",
                    "do not use this certificate; please report this run",
                )
            return loss, self.witness(data, module, (), ())
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

    def _time(self, deadline: Deadline | None) -> QuestionTime:
        return QuestionTime.of(self.attacker.unrolled, self.seconds, deadline)

    def _hunt(self, goal: Goal, aims: npt.NDArray[np.int64], time: QuestionTime) -> Runs:
        """The data as given, then the best run for each aim, trained again in plain torch."""
        unrolled = self.attacker.unrolled
        nominal = Packed.of(unrolled.nominal(1), unrolled)
        if not len(aims):
            return self.attacker.trained_again(nominal, 1)
        quantity = torch.from_numpy(aims).to(unrolled.poison.features.device)
        aim = Aim(quantity, torch.ones_like(quantity, dtype=torch.float64))
        limit = shorter(self.attacker.search.time_limit, time.of_search(len(aims)))
        hunt = Hunt(unrolled, goal, aim, replace(self.attacker.search, time_limit=limit))
        best = hunt.run()
        time.ends.missed |= hunt.deadline.missed
        data = Packed.cat([nominal, best.data.rows(best.first_of_each_run())])
        return self.attacker.trained_again(data, hunt.chunk)

    def _trained(self, listed: Sequence[Poisoned]) -> Runs:
        """The data as given, then each listed data set, trained on in plain torch."""
        unrolled = self.attacker.unrolled
        found = [Packed.of(unrolled.nominal(1), unrolled)]
        for each in listed:
            there = (each.kept.to(torch.float64)[None],) if unrolled.present is not None else ()
            data = Poisoning((each.features[None],), (each.labels[None],), there)
            found.append(Packed.of(data, unrolled))
        return self.attacker.trained_again(Packed.cat(found), 256)

    def _parts(self, runs: Runs) -> list[ModuleModels]:
        return [runs.part(part) for part in torch.arange(len(runs)).split(256)]

    def _margins(self, goal: QuestionGoal, runs: Runs) -> Tensor:
        """Of every run at every point, (runs, n)."""
        return torch.cat([goal.margins(part).detach() for part in self._parts(runs)])

    def _slack(self, question: Question, runs: Runs) -> Tensor:
        """Below minus this a margin is surely negative, (n,)."""
        features = question.forms[-1].inputs.centre[CLEAN]
        with torch.no_grad():
            parts = [part.outputs(features).abs().amax((0, 2)) for part in self._parts(runs)]
        size = torch.nan_to_num(torch.stack(parts).amax(0))
        return BEYOND_ROUNDING[self.precision.name] * (1.0 + size)

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
            features=tuple(x[0].cpu().numpy().copy() for x in data.features),
            labels=tuple(unrolled.decoded(y[0]) for y in data.labels),
            there=tuple((t[0] > 0).cpu().numpy() for t in data.there),
            state_dict={n: v.detach().cpu().numpy() for n, v in module.state_dict().items()},
            data=fingerprint(unrolled),
            threat=self.threat,
        )

    def _data_of(self, witness: Witness) -> Poisoning:
        """The data of a witness as those of one run.

        Raises:
            InvalidInputError: data of another run, or of other shapes.
        """
        unrolled = self.attacker.unrolled
        nominal = unrolled.nominal(1)
        kinds = (witness.features, witness.labels, witness.there)
        fits = [len(kind) for kind in kinds] == [
            len(leaves) for leaves in (nominal.features, nominal.labels, nominal.there)
        ]
        same = fits and all(
            x.shape == given.shape[1:]
            for x, given in zip(witness.features, nominal.features, strict=True)
        )
        if witness.data != fingerprint(unrolled) or not same:
            raise InvalidInputError(
                "Replay a witness of this training run",
                "one of other data, batches, initial parameters or another kind of threat",
                "give a witness that result.witness(answer, point) of this run returned",
            )
        device = unrolled.poison.features.device

        def on_device(array: npt.NDArray[Any]) -> Tensor:
            return torch.as_tensor(np.asarray(array, dtype=np.float64), device=device)[None]

        return Poisoning(
            tuple(map(on_device, witness.features)),
            tuple(unrolled.encoded(y)[None].to(device) for y in witness.labels),
            tuple(map(on_device, witness.there)),
        )


@dataclass(frozen=True)
class _Checked:
    """A run that stood up to every check: its margins at all points, (n,), and its data."""

    margins: Tensor
    witness: Witness


class _Checks:
    """Trains the runs that matter once more, on data that are admissible exactly; each at most once."""

    def __init__(
        self,
        refuter: Refuter,
        goal: QuestionGoal,
        runs: Runs,
        slack: Tensor,
        lower: npt.NDArray[np.float64],
        time: QuestionTime,
    ) -> None:
        self._refuter, self._goal, self._runs, self._time = refuter, goal, runs, time
        self.slack, self._lower = slack, lower
        self._known: dict[int, _Checked | None] = {}

    def of(self, run: int) -> _Checked | None:
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
        _check_inside(self._lower, margins)
        wrong = margins < -self.slack
        points = tuple(self._goal.question.index[wrong].tolist())
        witness = self._refuter.witness(data, module, points, tuple(margins[wrong].tolist()))
        return _Checked(margins, witness)

    def worst(self, unsafe: Tensor) -> _Checked | None:
        """The first that stands up, by falling counts of unsafe points, (runs,)."""
        found = (self.of(run) for run in unsafe.argsort(descending=True, stable=True).tolist())
        return next((each for each in found if each is not None), None)


def _cover(check: _Checks, wrong: Tensor) -> tuple[list[Witness], Tensor, Tensor]:
    """Few runs that refute all points that any refutes; which refutes each point, and by what margin.

    The run that refutes most of the points left, (runs, n) in ``wrong``, is checked next.
    """
    of_point = torch.full_like(check.slack, -1, dtype=torch.int64)
    exact = torch.full_like(check.slack, torch.inf)
    found: list[Witness] = []
    while bool(wrong.any()):
        run = int(wrong.sum(1).argmax())
        checked = check.of(run)
        wrong[run] = False
        if checked is None:
            continue
        refuted = (checked.margins < -check.slack) & (of_point < 0)
        if bool(refuted.any()):
            of_point = torch.where(refuted, len(found), of_point)
            exact = torch.where(refuted, checked.margins, exact)
            found.append(checked.witness)
            wrong[:, refuted] = False
    return found, of_point, exact


def _check_inside(lower: npt.NDArray[np.float64], margins: Tensor) -> None:
    """See that margins of trained models are at least what is certified, without any tolerance.

    Raises:
        SoundnessError: they are not.
    """
    count = len(lower)
    Decisions(
        lower=lower,
        upper=np.full(count, np.inf),
        reached=margins.cpu().numpy(),
        witness=np.full(count, -1),
    )
