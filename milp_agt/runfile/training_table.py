"""[training] of a RUN.toml: gradient descent with its batches, schedule and clipping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from milp_agt.core.option_table import WRONG, OneOf, Positive, Table, table_of
from milp_agt.errors import MilpAgtError, Problem
from milp_agt.training.groups import ParameterGroup
from milp_agt.training.schedules import SCHEDULES
from milp_agt.training.training import Training

# Options that are judged beside each other.
_TOGETHER = (
    {"nesterov", "momentum"},
    {"clip", "clip_mode", "class_weights"},
    {"clip_total", "l1"},
    {"loss", "label_smoothing", "class_weights", "positive_weight"},
    {"batches", "epochs", "batch_size", "shuffle_seed", "schedule"},
)
GROUP: Any = table_of(
    ParameterGroup,
    Table,
    "Parameters with options of their own; what is left out is as for all others.",
)


class TrainingKeys(Table):
    """The keys of which others are tables."""

    schedule: list[Positive] | Annotated[Table, OneOf(SCHEDULES)] | None = Field(
        default=None,
        description="Learning rates: one for each step, or a rule whose `kind` says how the rate "
        "falls; constant unless given.",
    )
    group: list[GROUP] = Field(
        default=[],
        description="`[[training.group]]`: parameters with a rate, momentum or decay of their own.",
    )

    @classmethod
    def refusals(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        dropped = {
            key for key, value in given.items() if value is WRONG or key in ("schedule", "group")
        }
        for together in _TOGETHER:
            if together & dropped:
                dropped |= together
        plain = {key: value for key, value in given.items() if key not in dropped}
        # Whether these are there is another question.
        options: dict[str, Any] = {"loss": "mse", "learning_rate": 1.0} | plain
        try:
            Training(**options)
        except MilpAgtError as error:
            yield from error.problems

    def build(self) -> Training:
        """The run.

        Raises:
            InvalidInputError: options that contradict each other.
            UnsupportedOperationError: an optimiser that has no rule.
        """
        given, groups = self.arguments(), tuple(group.build() for group in self.group)
        if isinstance(self.schedule, Table):
            given["schedule"] = self.schedule.build()
        if given.get("projection") is not None:
            given["projection"] = tuple(given["projection"])
        return Training(**given, groups=groups)


if TYPE_CHECKING:

    class TrainingTable(TrainingKeys):
        """As below, for checkers of types."""

        loss: str
else:
    TrainingTable = table_of(
        Training,
        TrainingKeys,
        "Gradient descent on the mean loss, as `torch.optim.SGD` runs it.",
    )
