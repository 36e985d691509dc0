"""[training] of a RUN.toml: gradient descent with its batches, schedule and clipping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from milp_agt.core.option_table import KIND, WRONG, Count, Index, NonNegative, Positive, Table
from milp_agt.errors import MilpAgtError, Problem
from milp_agt.training.schedules import (
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    Milestones,
    Schedule,
    StepDecay,
)
from milp_agt.training.training import ParameterGroup, Training
from milp_agt.training.training_checks import SMALLEST_TOTAL


class _ScheduleTable(Table):
    unit: Literal["step", "epoch"] = Field(
        default="step", description="What time t = 0, 1, 2, ... is counted in."
    )


class InverseTimeTable(_ScheduleTable):
    """The rate at time t is `learning_rate / (1 + decay t)`, and never below the floor."""

    kind: Literal["inverse_time"] = Field(description=KIND)
    decay: NonNegative = Field(description="How fast the rate falls.")
    floor: NonNegative = Field(default=0.0, description="The least rate.")

    def build(self) -> Schedule:
        return InverseTimeDecay(self.decay, self.floor, self.unit)


class StepTable(_ScheduleTable):
    """The rate at time t is `learning_rate * factor^floor(t / every)`, as torch's StepLR."""

    kind: Literal["step"] = Field(description=KIND)
    every: Count = Field(description="Steps, or epochs, from one drop to the next.")
    factor: NonNegative = Field(
        default=0.1, description="What the rate is multiplied by at each drop."
    )

    def build(self) -> Schedule:
        return StepDecay(self.every, self.factor, self.unit)


class MilestonesTable(_ScheduleTable):
    """The rate is multiplied by `factor` at each milestone, as by torch's MultiStepLR."""

    kind: Literal["milestones"] = Field(description=KIND)
    at: list[Count] = Field(description="The times of the drops.")
    factor: NonNegative = Field(
        default=0.1, description="What the rate is multiplied by at each drop."
    )

    def build(self) -> Schedule:
        return Milestones(self.at, self.factor, self.unit)


class ExponentialTable(_ScheduleTable):
    """The rate at time t is `learning_rate * factor^t`, as torch's ExponentialLR."""

    kind: Literal["exponential"] = Field(description=KIND)
    factor: NonNegative = Field(
        description="What the rate is multiplied by after every step, or epoch."
    )

    def build(self) -> Schedule:
        return ExponentialDecay(self.factor, self.unit)


class CosineTable(_ScheduleTable):
    """The rate at time t is `floor + (learning_rate - floor) (1 + cos(pi t / period)) / 2`, then `floor`."""

    kind: Literal["cosine"] = Field(description=KIND)
    floor: NonNegative = Field(default=0.0, description="The last rate.")
    period: Count | None = Field(
        default=None,
        description="Steps, or epochs, after which the floor is reached; the whole run unless given.",
    )

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


def _with_losses(schema: dict[str, Any]) -> None:
    """The names of the registry, which torch takes a while to fill."""
    from milp_agt.formulations.loss import losses

    schema["enum"] = list(losses())


class GroupTable(Table):
    """Parameters with options of their own; what is left out is as for all others."""

    names: Annotated[list[str], Field(min_length=1)] = Field(
        description='Names as in `named_parameters()`, or patterns: `["0.*", "*.bias"]`.'
    )
    learning_rate: Positive | None = Field(
        default=None, description="Their base rate; a `schedule` acts on it as on the other."
    )
    momentum: NonNegative | None = Field(default=None, description="Their momentum.")
    weight_decay: NonNegative | None = Field(default=None, description="Their weight decay.")
    nesterov: bool | None = Field(default=None, description="Their kind of momentum.")

    def build(self) -> ParameterGroup:
        return ParameterGroup(
            self.names, self.learning_rate, self.momentum, self.weight_decay, self.nesterov
        )


# Options that are judged beside each other.
_TOGETHER = (
    {"nesterov", "momentum"},
    {"clip", "clip_mode", "class_weights"},
    {"clip_total", "l1"},
    {"loss", "label_smoothing", "class_weights", "positive_weight"},
    {"batches", "epochs", "batch_size", "shuffle_seed", "schedule"},
)


class TrainingTable(Table):
    """Gradient descent on the mean loss, as `torch.optim.SGD` runs it."""

    loss: str = Field(
        description="What training minimises; `mse` for real targets, the others for classes.",
        json_schema_extra=_with_losses,
    )
    learning_rate: Positive = Field(description="The base rate, which a `schedule` changes.")
    epochs: Count = Field(default=1, description="Passes over the data.")
    batch_size: Count | None = Field(
        default=None,
        description="Samples in a batch, all of them unless given; an incomplete last batch is used "
        "with its own size.",
    )
    batches: list[list[Index]] | list[list[list[Index]]] | None = Field(
        default=None,
        description="Recorded batches, the samples of each step by position, in place of `epochs`, "
        "`batch_size` and `shuffle_seed`; or a list of such lists, one for each epoch, which a schedule "
        "by epochs needs.",
    )
    shuffle_seed: Index | None = Field(
        default=None,
        description="Seed of a new order of the samples in each epoch; unless given, they keep the order "
        "of the data.",
    )
    momentum: NonNegative = Field(default=0.0, description="Momentum, without dampening.")
    nesterov: bool = Field(
        default=False, description="Nesterov momentum, which needs `momentum` above 0."
    )
    weight_decay: NonNegative = Field(
        default=0.0,
        description="This times the parameters is added to the gradient, after clipping.",
    )
    schedule: list[Positive] | Annotated[_AnySchedule, Field(discriminator="kind")] | None = Field(
        default=None,
        description="Learning rates: one for each step, or a rule whose `kind` says how the rate "
        "falls; constant unless given.",
    )
    clip: Positive | None = Field(
        default=None,
        description="Largest gradient of every single sample before the mean over the batch, as "
        "`clip_mode` measures it; no clipping unless given.",
    )
    clip_mode: Literal["norm", "clamp"] = Field(
        default="norm",
        description="`norm` scales a gradient down to the 2-norm `clip`, over all trainable parameters; "
        "`clamp` cuts each coordinate off at `-clip` and `clip`.",
    )
    clip_total: Annotated[float, Field(ge=SMALLEST_TOTAL)] | None = Field(
        default=None,
        description="Largest 2-norm of the gradient of a batch over all trained parameters, as torch's "
        "`clip_grad_norm_` clips it; no such clipping unless given.",
    )
    optimizer: str = Field(
        default="sgd",
        description="Gradient descent; others are refused with the reason.",
        json_schema_extra={"enum": ["sgd"]},
    )
    l1: NonNegative = Field(
        default=0.0,
        description="Weight of the penalty, the sum of the absolute values of all trainable parameters.",
    )
    projection: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="Lowest and highest value, to which every trainable parameter is clamped after each "
        "step.",
    )

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="Label smoothing of `cross_entropy`, as torch has it."
    )
    class_weights: list[Positive] | None = Field(
        default=None,
        description="Weight of each class in `cross_entropy`, as torch has it, for threats that leave labels "
        "alone.",
    )
    positive_weight: Positive | None = Field(
        default=None, description="Weight of class 1 in `bce`, pos_weight of torch."
    )
    group: list[GroupTable] = Field(
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
            clip_total=self.clip_total,
            optimizer=self.optimizer,
            l1=self.l1,
            projection=None if box is None else (box[0], box[1]),
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            positive_weight=self.positive_weight,
            groups=[group.build() for group in self.group],
        )
