"""Learning-rate schedules: the rate of every step by a formula, fixed before the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, SupportsFloat, get_args

import numpy as np

from milp_agt.core.arguments import listed
from milp_agt.core.option_table import Count, Key, Kinds, NonNegative, Table, check_fields
from milp_agt.errors import InvalidInputError
from milp_agt.training.torch_names import name_of, schedule_remedy

Unit = Literal["step", "epoch"]


class Schedule(Protocol):
    """The learning rate as a function of time, counted in steps or in finished epochs."""

    @property
    def unit(self) -> Unit: ...

    def rate(self, base: float, time: int, end: int) -> float:
        """The rate >= 0 at ``time`` = 0, 1, ..., ``end`` - 1; ``base`` is the training's own rate."""
        ...


UnitKey = Annotated[Unit, Key(Unit, "What time t = 0, 1, 2, ... is counted in.")]
SCHEDULES: Kinds[Table] = Kinds("training.schedule", Table)


class _Checked:
    """Schedules whose keys are checked: an InvalidInputError for a value out of range."""

    def __post_init__(self) -> None:
        check_fields(self)


@SCHEDULES.kind(
    "inverse_time",
    "The rate at time t is `learning_rate / (1 + decay t)`, and never below the floor.",
)
@dataclass(frozen=True)
class InverseTimeDecay(_Checked):
    """``max(lr / (1 + decay * t), floor)`` at time t.

    Attributes:
        decay: how fast the rate falls.
        floor: the least rate.

    Raises:
        InvalidInputError: a value out of range, as in all other schedules.
    """

    decay: Annotated[float, Key(NonNegative)]
    floor: Annotated[float, Key(NonNegative)] = 0.0
    unit: UnitKey = "step"

    def rate(self, base: float, time: int, end: int) -> float:
        return max(base / (1.0 + self.decay * time), self.floor)


@SCHEDULES.kind(
    "step", "The rate at time t is `learning_rate * factor^floor(t / every)`, as torch's StepLR."
)
@dataclass(frozen=True)
class StepDecay(_Checked):
    """``lr * factor^floor(t / every)``, as torch's StepLR(step_size=every, gamma=factor).

    Attributes:
        every: steps, or epochs, from one drop to the next.
        factor: what the rate is multiplied by at each drop.
    """

    every: Annotated[int, Key(Count)]
    factor: Annotated[float, Key(NonNegative)] = 0.1
    unit: UnitKey = "step"

    def rate(self, base: float, time: int, end: int) -> float:
        return base * _power(self.factor, time // self.every)


@SCHEDULES.kind(
    "milestones", "The rate is multiplied by `factor` at each milestone, as by torch's MultiStepLR."
)
@dataclass(frozen=True)
class Milestones(_Checked):
    """``lr * factor^(milestones <= t)``, as torch's MultiStepLR(milestones=at, gamma=factor).

    Attributes:
        at: the times of the drops.
        factor: what the rate is multiplied by at each drop.
    """

    at: Annotated[Sequence[int], Key(list[Count])]
    factor: Annotated[float, Key(NonNegative)] = 0.1
    unit: UnitKey = "step"

    def __post_init__(self) -> None:
        remedy = "give steps or epochs, (30, 60), say"
        listed(self.at, (int, np.integer), "The times of Milestones, at,", remedy)
        object.__setattr__(self, "at", tuple(int(time) for time in self.at))
        check_fields(self)

    def rate(self, base: float, time: int, end: int) -> float:
        return base * _power(self.factor, sum(milestone <= time for milestone in self.at))


@SCHEDULES.kind(
    "exponential", "The rate at time t is `learning_rate * factor^t`, as torch's ExponentialLR."
)
@dataclass(frozen=True)
class ExponentialDecay(_Checked):
    """``lr * factor^t``, as torch's ExponentialLR(gamma=factor).

    Attributes:
        factor: what the rate is multiplied by after every step, or epoch.
    """

    factor: Annotated[float, Key(NonNegative)]
    unit: UnitKey = "step"

    def rate(self, base: float, time: int, end: int) -> float:
        return base * _power(self.factor, time)


@SCHEDULES.kind(
    "cosine",
    "The rate at time t is `floor + (learning_rate - floor) (1 + cos(pi t / period)) / 2`, then `floor`.",
)
@dataclass(frozen=True)
class CosineDecay(_Checked):
    """``floor + (lr - floor) (1 + cos(pi t / T)) / 2`` for t < T, then ``floor``.

    T is ``period``, or the whole run; as torch's CosineAnnealingLR(T_max=T, eta_min=floor) up to T
    (Loshchilov and Hutter 2017).

    Attributes:
        floor: the last rate.
        period: steps, or epochs, after which the floor is reached; the whole run unless given.
    """

    floor: Annotated[float, Key(NonNegative)] = 0.0
    period: Annotated[int | None, Key(Count)] = None
    unit: UnitKey = "step"

    def rate(self, base: float, time: int, end: int) -> float:
        share = min(time / (self.period or end), 1.0)
        return self.floor + (base - self.floor) * 0.5 * (1.0 + math.cos(math.pi * share))


def check_schedule(schedule: object) -> None:
    """See that this says the rate of every step, before anything is asked of it. Raises
    InvalidInputError: anything but a list of numbers, a :class:`Schedule` or None."""
    listed_rates = isinstance(schedule, (Sequence, np.ndarray))
    by_rule = (
        not isinstance(schedule, type)
        and callable(getattr(schedule, "rate", None))
        and getattr(schedule, "unit", None) in get_args(Unit)
    )
    if isinstance(schedule, (str, bytes)) or not (schedule is None or listed_rates or by_rule):
        raise InvalidInputError(
            "A schedule is a list of rates, or one of milp_agt.training.schedules",
            f"{name_of(schedule)} {schedule!r:.60}",
            schedule_remedy(schedule),
        )


def rates_of(
    schedule: Schedule | Sequence[float] | None,
    base: float,
    steps: int,
    epochs: int | Sequence[int] | None,
) -> list[float]:
    """The rate of each of ``steps`` steps.

    ``epochs`` is the count of epochs, all of one length; or the steps of each; or None where recorded
    batches do not say which steps make an epoch. Raises InvalidInputError: a list of another length, or
    with a rate <= 0; a schedule by epochs for steps that are no whole epochs; a rate that is negative or
    not finite.
    """
    check_schedule(schedule)
    if schedule is None:
        return [base] * steps
    if isinstance(schedule, (Sequence, np.ndarray)):
        return _listed(schedule, steps, epochs)
    times, end = list(range(steps)), steps
    if schedule.unit == "epoch":
        lengths = _lengths(schedule, steps, epochs)
        times = [epoch for epoch, length in enumerate(lengths) for _ in range(length)]
        end = len(lengths)
    rates = [schedule.rate(base, time, end) for time in times]
    bad = [rate for rate in rates if not (math.isfinite(rate) and rate >= 0)]
    if bad:
        raise InvalidInputError(
            "A schedule needs finite rates >= 0",
            f"{type(schedule).__name__} gave {bad[0]}",
            "change its options",
        )
    return rates


def _lengths(schedule: Schedule, steps: int, epochs: int | Sequence[int] | None) -> Sequence[int]:
    """Steps of each epoch."""
    name = type(schedule).__name__
    if epochs is None:
        raise InvalidInputError(
            f"{name} was to change the rate after each epoch (unit='epoch')",
            f"{steps} recorded batches that do not say which of them make an epoch",
            "give them epoch by epoch, batches=[[batch, ...], [batch, ...], ...], or count in steps "
            "(unit='step')",
        )
    if not isinstance(epochs, int):
        return epochs
    if epochs < 1 or steps % epochs:
        raise InvalidInputError(
            f"{name} was to change the rate after each of {epochs} epochs",
            f"{steps} steps, which are no {epochs} epochs of one length",
            "count in steps (unit='step'), or run whole epochs",
        )
    return [steps // epochs] * epochs


def _listed(
    schedule: Sequence[float], steps: int, epochs: int | Sequence[int] | None
) -> list[float]:
    numbers = [
        isinstance(r, SupportsFloat) and not isinstance(r, (bool, np.bool_)) for r in schedule
    ]
    rates = [float(r) if real else math.nan for r, real in zip(schedule, numbers, strict=True)]
    remedy = "give a rate for each step"
    count = epochs if isinstance(epochs, int) or epochs is None else len(epochs)
    if len(rates) == count != steps:
        remedy = (
            "these look like one rate for each epoch: repeat each as often as its epoch has steps"
        )
    elif len(rates) != steps:
        remedy = "extend the list or use fewer epochs" if len(rates) < steps else "cut the list"
    if len(rates) != steps or not all(math.isfinite(r) and r > 0 for r in rates):
        raise InvalidInputError(
            f"A schedule needs a rate > 0 for each of {steps} steps",
            f"{len(rates)} rates: {rates[:5]}{' ...' if len(rates) > 5 else ''}",
            remedy,
        )
    return rates


def _power(factor: float, count: int) -> float:
    try:
        return float(factor**count)
    except OverflowError:
        return math.inf
