"""Refutations: for test points that bounds leave open, poisoned data that make the model get them wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from milp_agt.attacks.attacker import Attacker, Runs
from milp_agt.attacks.changes import in_words
from milp_agt.attacks.checked import fingerprint, stacked, tightened, train_plainly, violation
from milp_agt.attacks.goals import Goal, MeanLossGoal
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.question_goal import QuestionGoal
from milp_agt.attacks.replay import ModuleModels
from milp_agt.attacks.search import Aim, Hunt, Search
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.core.interval import CLEAN
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.errors import InvalidInputError
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

    def decide(self, question: Question, known: Answer) -> Decisions | None:
        """Attack the open points of an answer; None where there are none.

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
        aims = torch.from_numpy(np.sort(np.append(near, len(points))))
        runs = self._hunt(goal, aims)
        margins = self._margins(goal, runs)
        reached = margins.amin(0)
        _check_inside(points.score_lower, reached)
        slack = self._slack(question, runs)
        chosen, of_point, exact = self._witnesses(goal, runs, margins, slack, known)
        reached = torch.where(of_point >= 0, exact, reached)
        wrong = (margins < -slack).to(torch.float64).mean(1)
        worst = float(wrong.max()) if question.counts_harm else float(1.0 - wrong.max())
        return Decisions(
            lower=points.score_lower,
            upper=points.score_upper,
            reached=reached.cpu().numpy(),
            witness=of_point.cpu().numpy(),
            witnesses=tuple(chosen),
            mean=worst,
        )

    def worst_loss(self, question: MeanLoss, known: Answer) -> float | None:
        """The largest mean loss that attacks reach, confirmed in plain torch."""
        features = question.on_outputs.inputs.lower[CLEAN]
        goal = MeanLossGoal(question.loss, features, question.encoded)
        runs = self._hunt(goal, torch.zeros(1, dtype=torch.int64))
        values = torch.cat([goal.values(part)[:, 0] for part in self._parts(runs)])
        worst = float(values[torch.isfinite(values)].max()) if len(values) else known.nominal
        return max(worst, known.lower)

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

    def _hunt(self, goal: Goal, aims: Tensor) -> Runs:
        """The data as given, then the best run for each aim, trained again in plain torch."""
        unrolled = self.attacker.unrolled
        nominal = Packed.of(unrolled.nominal(1), unrolled)
        aims = aims.to(unrolled.poison.features.device)
        aim = Aim(aims, torch.ones_like(aims, dtype=torch.float64))
        hunt = Hunt(unrolled, goal, aim, self.attacker.search)
        best = hunt.run()
        data = Packed.cat([nominal, best.data.rows(best.first_of_each_run())])
        return self.attacker.trained_again(data, hunt.chunk)

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

    def _witnesses(
        self, goal: QuestionGoal, runs: Runs, margins: Tensor, slack: Tensor, known: Answer
    ) -> tuple[list[Witness], Tensor, Tensor]:
        """Few runs that refute all the points that any refutes; which refutes each point, and by what margin.

        The run that refutes most of the points left is checked next.
        """
        unrolled = self.attacker.unrolled
        wrong = margins < -slack
        of_point = torch.full_like(slack, -1, dtype=torch.int64)
        exact = torch.full_like(slack, torch.inf)
        found: list[Witness] = []
        while bool(wrong.any()):
            run = int(wrong.sum(1).argmax())
            data = runs.data.rows(torch.tensor([run])).unpacked(unrolled)
            nearer = tightened(unrolled, data, self._dtype)
            refuted = torch.zeros_like(wrong[run])
            if nearer is not None:
                module = train_plainly(unrolled, nearer, self._dtype)
                state = stacked(unrolled, module)
                with torch.no_grad():
                    values = goal.margins(ModuleModels(unrolled.step_graph, state))[0].detach()
                _check_inside(known.points.score_lower, values)
                refuted = (values < -slack) & (of_point < 0)
                if bool(refuted.any()):
                    of_point = torch.where(refuted, len(found), of_point)
                    exact = torch.where(refuted, values, exact)
                    found.append(self._witness(goal, nearer, refuted, values, module))
            wrong[run] = False
            wrong[:, refuted] = False
        return found, of_point, exact

    def _witness(
        self,
        goal: QuestionGoal,
        data: Poisoning,
        refuted: Tensor,
        margins: Tensor,
        module: torch.nn.Module,
    ) -> Witness:
        unrolled, origin = self.attacker.unrolled, self.attacker.origin
        rows, words = in_words(unrolled, data, origin)
        return Witness(
            points=tuple(goal.question.index[refuted].tolist()),
            margins=tuple(margins[refuted].tolist()),
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

        def on_device(array: np.ndarray) -> Tensor:
            return torch.as_tensor(np.asarray(array, dtype=np.float64), device=device)[None]

        return Poisoning(
            tuple(map(on_device, witness.features)),
            tuple(unrolled.encoded(y)[None].to(device) for y in witness.labels),
            tuple(map(on_device, witness.there)),
        )


def _check_inside(lower: np.ndarray, margins: Tensor) -> None:
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
