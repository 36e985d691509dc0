"""Whether a threat and a run can be searched selection by selection, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.bounds.adversary.enumerated import count_cases, list_selections
from milp_agt.bounds.cells.passing import Run
from milp_agt.bounds.step import NodeOrder, State
from milp_agt.bounds.zonotope.supported import refusal
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.rounding import FLOAT64
from milp_agt.errors import UnsupportedOperationError
from milp_agt.formulations.channel_bias import ChannelBias
from milp_agt.formulations.convolution import Convolution
from milp_agt.formulations.rounding_error import RoundingError
from milp_agt.formulations.unfold import Unfold
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Vertices
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Batch, Training, UpdateRule

# Selections that are listed, and coordinates of the moves of one of them.
MOST_SELECTIONS, MOST_COORDINATES = 20000, 16
# Operations that zonotopes have rules for, and cells have none.
WITHOUT_RULE = (ChannelBias, Convolution, RoundingError, Unfold)


@dataclass(frozen=True)
class TreePlan:
    """Searches that questions may call.

    Attributes:
        cells: the search over selections and cells of their moves; None where it has no rules, or there
            are too many selections. What the run carries as a zonotope is searched in any case.
        seconds: that each question may take.
        workers: processes that directions of zonotopes and selections are dealt out to.
    """

    cells: Cover | None
    seconds: float
    workers: int

    @property
    def branches(self) -> bool:
        """Whether zonotopes are branched on before cells; one sample leaves cells little to list."""
        return self.cells is None or self.cells.selections.shape[1] > 1

    @staticmethod
    def of(
        step_graph: StepGraph,
        schedule: NodeOrder,
        start: State,
        poison: Poison,
        training: Training,
        restriction: Restriction,
        seconds: float,
        carried: bool,
        workers: int,
    ) -> TreePlan:
        """The plan of a run; ``carried`` says whether it is bounded by a zonotope, too.

        Raises:
            UnsupportedOperationError: a threat or a run that has no rules.
        """
        order = training.batch_order(len(poison.features))
        batches = [torch.from_numpy(batch).to(poison.features.device) for batch in order]
        updates = training.update_rules(len(batches))
        found = _missing(schedule, poison, order, updates, restriction)
        remedy = "use tree = 0"
        if found is None:
            run = Run.of(step_graph, schedule, start, poison, batches, updates)
            selections = list_selections(poison, restriction).members[1:]
            if not len(selections):
                selections = torch.zeros(1, 0, dtype=torch.int64, device=selections.device)
            coordinates = selections.shape[1] * run.moves.width
            if coordinates <= MOST_COORDINATES:
                return TreePlan(Cover(run, selections), seconds, workers)
            found = (
                f"{coordinates} coordinates in the moves of one selection, where at most "
                f"{MOST_COORDINATES} are split"
            )
            remedy += ", or a smaller budget"
        if carried:
            return TreePlan(None, seconds, workers)
        raise UnsupportedOperationError(
            "A tree over selections and cells was asked (tree > 0)", found, remedy
        )


@dataclass(frozen=True)
class Cover:
    """A training, and all choices of poisoned samples of the largest size, (S, k)."""

    run: Run
    selections: Tensor


def _missing(
    schedule: NodeOrder,
    poison: Poison,
    batches: Sequence[Batch],
    updates: Sequence[UpdateRule],
    restriction: Restriction,
) -> str | None:
    """What has no rule, in words."""
    found = refusal(schedule, poison, UNRESTRICTED, updates)
    if schedule.precision != FLOAT64:
        found = f"a run in {schedule.precision.name}"
    if any(update.clip_total is not None for update in updates):
        found = "clipping of the total norm (clip_total)"
    if poison.label_quota is not None:
        found = "budgets of features and of labels apart"
    if poison.whole is not None:
        found = f"samples that are {poison.whole.value}"
    if not poison.static:
        found = "an adversary that poisons anew in every step"
    if poison.per_batch and any(len(batch) < len(poison.features) for batch in batches):
        found = "a budget in each batch, with batches smaller than the data set"
    for node in schedule.before:
        if isinstance(node.op, WITHOUT_RULE):
            found = f"operation '{node.op.key}' at '{node.name}'"
    if found is not None:
        return f"{found}, for which it has no rule"
    if poison.features.device.type != "cpu":
        return f"device '{poison.features.device}', while the search runs on the processor"
    if isinstance(poison.label_moves, Vertices):
        return "labels that flip, which have no cells to halve"
    if poison.is_clean:
        return "nothing that can be poisoned"
    rules = [*updates, *(rule for update in updates for _, rule in update.groups)]
    if any(rule.l1 for rule in rules):
        return "an l1 penalty, for which it has no rule"
    if any(rule.projection is not None for rule in rules):
        return "a projection of the parameters, for which it has no rule"
    count = count_cases(poison, restriction)
    if count > MOST_SELECTIONS:
        return f"{count:.3g} selections of poisoned samples, where at most {MOST_SELECTIONS} are listed"
    return None
