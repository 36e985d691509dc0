"""[training] of a RUN.toml: gradient descent with its batches, schedule and clipping."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from milp_agt.config_table import Count, Index, NonNegative, Positive, Table
from milp_agt.schedules import (
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    Milestones,
    Schedule,
    StepDecay,
)
from milp_agt.training import Training


class _ScheduleTable(Table):
    unit: Literal["step", "epoch"] = "step"


class InverseTimeTable(_ScheduleTable):
    """learning_rate / (1 + decay * time), never below the floor."""

    kind: Literal["inverse_time"]
    decay: NonNegative
    floor: NonNegative = 0.0

    def build(self) -> Schedule:
        return InverseTimeDecay(self.decay, self.floor, self.unit)


class StepTable(_ScheduleTable):
    """learning_rate times ``factor`` after every so many steps or epochs."""

    kind: Literal["step"]
    every: Count
    factor: NonNegative = 0.1

    def build(self) -> Schedule:
        return StepDecay(self.every, self.factor, self.unit)


class MilestonesTable(_ScheduleTable):
    """learning_rate times ``factor`` at each milestone."""

    kind: Literal["milestones"]
    at: list[Count]
    factor: NonNegative = 0.1

    def build(self) -> Schedule:
        return Milestones(self.at, self.factor, self.unit)


class ExponentialTable(_ScheduleTable):
    """learning_rate * factor^time."""

    kind: Literal["exponential"]
    factor: NonNegative

    def build(self) -> Schedule:
        return ExponentialDecay(self.factor, self.unit)


class CosineTable(_ScheduleTable):
    """Half a cosine from learning_rate down to the floor."""

    kind: Literal["cosine"]
    floor: NonNegative = 0.0
    period: Count | None = None

    def build(self) -> Schedule:
        return CosineDecay(self.floor, self.period, self.unit)


_AnySchedule = InverseTimeTable | StepTable | MilestonesTable | ExponentialTable | CosineTable
SCHEDULE_TABLES: dict[str, type[Table]] = {
    "inverse_time": InverseTimeTable,
    "step": StepTable,
    "milestones": MilestonesTable,
    "exponential": ExponentialTable,
    "cosine": CosineTable,
}


class TrainingTable(Table):
    """[training]: gradient descent as torch.optim.SGD does it."""

    loss: str
    learning_rate: Positive
    epochs: Count = 1
    batch_size: Count | None = None
    batches: list[list[Index]] | None = None
    shuffle_seed: Index | None = None
    momentum: NonNegative = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    schedule: list[NonNegative] | Annotated[_AnySchedule, Field(discriminator="kind")] | None = None
    clip: Positive | None = None
    clip_mode: Literal["norm", "clamp"] = "norm"
    optimizer: str = "sgd"
    l1: NonNegative = 0.0
    projection: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None

    def build(self) -> Training:
        """The run.

        Raises:
            InvalidInputError: options that contradict each other.
            UnsupportedOperationError: an optimiser that has no rule.
        """
        schedule, box = self.schedule, self.projection
        return Training(
            loss=self.loss,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            batches=self.batches,
            shuffle_seed=self.shuffle_seed,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            schedule=schedule
            if schedule is None or isinstance(schedule, list)
            else schedule.build(),
            clip=self.clip,
            clip_mode=self.clip_mode,
            optimizer=self.optimizer,
            l1=self.l1,
            projection=None if box is None else (box[0], box[1]),
        )
