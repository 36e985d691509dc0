"""What is decided of each test point: bounds on one side, real poisoned runs on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.bounds.listed import ListedData, Poisoned
from milp_agt.core.deadline import Deadline
from milp_agt.core.reachable import Bounds
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.properties.answer import Answer, GroupName
from milp_agt.properties.decision import DecisionQuestion
from milp_agt.properties.functional import FunctionalQuestion
from milp_agt.properties.mean_loss import MeanLoss
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.question import Question
from milp_agt.properties.witness import Witness

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Decisions:
    """What real poisoned runs reach at the test points of an answer.

    A point is PROVED where the lower bound of its margin (``score_lower``) is above 0, REFUTED where it has a
    witness, else OPEN.

    Attributes:
        reached: the least margin of a real training run on admissible data, (n,); inf where none was tried.
        witness: which of ``witnesses`` refutes the point, (n,); -1 for none.
        witnesses: the poisoned data.
        worst: the worst mean over the points that one real run shows, with its data; None for none tried.
        of_groups: the same for subgroups, by name.

    Raises:
        SoundnessError: a witness of a point that it does not get wrong.
    """

    reached: Array
    witness: npt.NDArray[np.int64]
    witnesses: tuple[Witness, ...] = ()
    worst: tuple[float, Witness] | None = None
    of_groups: Mapping[GroupName, tuple[float, Witness]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = self.witness >= 0
        if (self.reached[named] >= 0).any() or (self.witness[named] >= len(self.witnesses)).any():
            raise SoundnessError(
                "A witness refutes a point by a margin below zero",
                "a point with a witness and a margin that is not",
                "please report this run",
            )


def check_reached(lower: Array, reached: Array) -> None:
    """See that margins of real runs are at least what is certified, (n,) each, without any tolerance.

    Raises:
        SoundnessError: one is not.
    """
    if not (reached >= lower).all():
        worst = int(np.argmin(reached - lower))
        raise SoundnessError(
            "A replayed attack must stay within the certificate of every test point",
            f"point {worst}: a margin of {reached[worst]!r} reached, at least {lower[worst]!r} certified",
            "do not use this certificate; please report this run",
        )


class Decider(Protocol):
    """Attacks test points, losses and functionals that bounds of the reachable models leave open.

    Where nothing is open, or no time is left, the answer is None. ``attacks.refute.Refuter`` is one.
    """

    def decide(
        self,
        question: Question,
        known: Answer,
        listed: Sequence[Poisoned] | None = None,
        deadline: Deadline | None = None,
    ) -> Decisions | None:
        """``listed``: the data sets that are worst for open points, where all are known."""
        ...

    def worst_loss(
        self, question: MeanLoss, known: Answer, deadline: Deadline | None = None
    ) -> tuple[float, Witness] | None:
        """The largest mean loss that a real run reaches, and its data."""
        ...

    def worst_functional(
        self,
        question: FunctionalQuestion,
        known: Bounds,
        low: bool,
        deadline: Deadline | None = None,
    ) -> tuple[float, Witness] | None:
        """The least or largest value of a functional that a real run reaches, and its data."""
        ...

    def replay(self, witness: Witness) -> Mapping[str, Tensor]:
        """The parameters after plain training on the data of a witness; inadmissible data are refused."""
        ...


def decided(answer: Answer, decisions: Decisions | None, counts_harm: bool) -> Answer:
    """The answer with what real runs reach beside its bounds; one outside of them is a SoundnessError."""
    if decisions is None:
        return answer
    check_reached(answer.points.score_lower, decisions.reached)

    def within(value: float, bounds: Bounds) -> float:
        # A margin within rounding of zero counts as safe on this side.
        return max(value, bounds.lower) if counts_harm else min(value, bounds.upper)

    groups = dict(answer.groups)
    for name, (value, _) in decisions.of_groups.items():
        groups[name] = replace(groups[name], reached=within(value, groups[name]))
    worst = decisions.worst
    return replace(
        answer,
        points=replace(answer.points, reached=decisions.reached, witness=decisions.witness),
        reached=None if worst is None else within(worst[0], answer),
        shown=None if worst is None else worst[1],
        groups=groups,
        shown_in={name: witness for name, (_, witness) in decisions.of_groups.items()},
        witnesses=decisions.witnesses,
    )


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
