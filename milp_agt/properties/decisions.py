"""What decides test points that bounds leave open, and the poisoned data that do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from milp_agt.bounds.listed import ListedData, Poisoned
from milp_agt.core.deadline import Deadline
from milp_agt.core.reachable import Bounds
from milp_agt.errors import InvalidInputError
from milp_agt.properties.answer import Answer
from milp_agt.properties.decision import DecisionQuestion
from milp_agt.properties.functional import FunctionalQuestion
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.question import Question
from milp_agt.properties.witness import Witness


class Decider(Protocol):
    """Attacks test points, losses and functionals that bounds of the reachable models leave open.

    Where nothing is open, or no time is left, the bounds come back as they are.
    ``attacks.refute.Refuter`` is one.
    """

    def decide(
        self,
        question: Question,
        known: Answer,
        listed: Sequence[Poisoned] | None = None,
        deadline: Deadline | None = None,
    ) -> Answer:
        """The answer with what real runs reach, and their data, beside its bounds.

        ``listed``: the data sets that are worst for open points, where all are known.
        """
        ...

    def worst_functional(
        self,
        question: FunctionalQuestion,
        known: Bounds,
        low: bool,
        deadline: Deadline | None = None,
    ) -> Bounds:
        """The bounds of a functional with the least or largest value of a real run, and its data."""
        ...

    def replay(self, witness: Witness) -> Mapping[str, Tensor]:
        """The parameters after plain training on the data of a witness; inadmissible data are refused."""
        ...


def witness_of(answer: Answer, point: int | None) -> Witness:
    """The poisoned data that refute a test point, by its position among those that were given. Without a
    point: the data that show ``answer.reached``. Raises InvalidInputError: a point that was not asked
    about, or is not refuted."""
    if point is None:
        if answer.shown is None:
            raise InvalidInputError(
                "The witness of a mean over test points",
                "an answer that nothing was attacked for: no point is open, or refute is 'none'",
                "ask where answer.reached is a number",
            )
        return answer.shown
    asked = f"The witness of test point {point}"
    rows = np.flatnonzero(answer.points.index == point)
    if not len(rows):
        raise InvalidInputError(
            asked, f"an answer about {len(answer.points)} other points", "give one of points.index"
        )
    verdict = None if answer.points.verdict is None else answer.points.verdict[rows[0]]
    if answer.points.witness is None or answer.points.witness[rows[0]] < 0:
        raise InvalidInputError(
            asked,
            f"a point that is {verdict or 'not judged'}",
            "ask for one whose points.verdict is REFUTED",
        )
    return answer.witnesses[int(answer.points.witness[rows[0]])]


def worst_of_list(
    models: ReachableModels, question: Question, answer: Answer
) -> tuple[Poisoned, ...] | None:
    """The data set with the least margin for each point that is open, and those of most wrong points, of all
    and in each subgroup.

    None where the data sets of the threat are not listed, or inputs may move as well: then nobody knows.
    """
    reached = models.reached[0]
    single = len(models.reached) == 1 and reached.single_runs
    if not single or not isinstance(reached.adversary, ListedData):
        return None
    if not isinstance(question, DecisionQuestion):
        return None
    points = answer.points
    near = np.flatnonzero(~(points.score_lower > 0) & (points.score_nominal > 0))
    if not len(near):
        return ()
    decision = question.decision.part(torch.from_numpy(near).to(question.index.device))
    margins = decision.margin(models.bound(decision.forms)).upper
    names = () if points.groups is None else points.groups[near]
    among = [np.ones(len(near), dtype=bool), *(names == name for name in np.unique(names))]
    parts = torch.from_numpy(np.stack(among)).to(margins)
    most = (parts @ (margins < 0).to(parts).T).argmax(1)
    cases = sorted({*margins.argmin(0).tolist(), *most.tolist()})
    return tuple(reached.adversary.choices.poisoned(case) for case in cases)
