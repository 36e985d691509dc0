"""Of a listed threat, the data sets that are worst for test points."""

from __future__ import annotations

import numpy as np
import torch

from milp_agt.bounds.listed import ListedData, Poisoned
from milp_agt.properties.answer import Answer
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.question import Decides, Question


def worst_of_list(
    models: ReachableModels, question: Question, answer: Answer
) -> tuple[Poisoned, ...] | None:
    """The data set with the least margin for each point that is open, and that of most wrong points.

    None where the data sets of the threat are not listed, or inputs may move as well: then nobody knows.
    """
    reached = models.reached[0]
    single = len(models.reached) == 1 and reached.single_runs
    if not single or not isinstance(reached.adversary, ListedData):
        return None
    if not isinstance(question, Decides):
        return None
    points = answer.points
    near = np.flatnonzero(~(points.score_lower > 0) & (points.score_nominal > 0))
    if not len(near):
        return ()
    decision = question.decision.part(torch.from_numpy(near).to(question.index.device))
    margins = decision.margin(models.bound(decision.forms)).upper
    most = (margins < 0).sum(1).argmax()
    cases = sorted({*margins.argmin(0).tolist(), int(most)})
    return tuple(reached.adversary.choices.poisoned(case) for case in cases)
