"""The certified training run: optimiser, batches and schedule, all fixed in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from milp_agt.core.option_table import Count, Index, Key, NonNegative, Positive
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.loss import LossFunction, get_loss, losses
from milp_agt.training.batches import Batch as Batch
from milp_agt.training.batches import Recorded
from milp_agt.training.groups import ParameterGroup as ParameterGroup
from milp_agt.training.schedules import Schedule, rates_of
from milp_agt.training.training_checks import SMALLEST_CLIP as SMALLEST_CLIP
from milp_agt.training.training_checks import SMALLEST_TOTAL, check_training
from milp_agt.training.training_checks import ClipMode as ClipMode


@dataclass(frozen=True)
class Clipping:
    """How the gradient ``g_i`` of each sample is clipped before the mean over the batch.

    ``norm``: ``g_i * min(1, bound / |g_i|_2)`` with the norm over all trainable parameters together;
    ``clamp``: every coordinate to [-bound, bound].
    """

    bound: float
    mode: ClipMode = "norm"


# Torch divides by the norm and this.
NORM_SHIFT = 1e-6

# Rounding is bounded for products that underflow before they are scaled by at most this.
LARGEST_RATE = 1e30


@dataclass(frozen=True)
class UpdateRule:
    """One optimiser step, for ``g`` = mean gradient over the batch (torch.optim.SGD).

    ``v' = momentum * v + g + weight_decay * theta`` and ``theta' = theta - rate * d`` with ``d = v'``,
    or ``d = g + weight_decay * theta + momentum * v'`` for Nesterov. Without momentum ``d`` is
    ``g + weight_decay * theta`` and there is no v. The first velocity is 0, so that the first v' is the
    gradient, like torch's first buffer.

    With ``dampening`` tau, v' is ``momentum * v + (1 - tau) (g + weight_decay * theta)``; torch does not
    dampen the first step of a run, whose rule has tau = 0.

    With ``clip_total`` c, g is multiplied by ``min(1, c / (|g| + 1e-6))`` first, with the norm over all
    trained parameters together: torch's ``clip_grad_norm_``.

    With an ``l1`` penalty, ``l1 * sign(theta)`` is part of g (sign(0) = 0, as torch differentiates
    ``l1 * theta.abs().sum()``). With a ``projection`` (low, high), every entry of theta' is clamped to it
    at the end of the step; velocities are not clamped.

    Raises:
        InvalidInputError: ``rate * max(1, momentum)`` beyond ``LARGEST_RATE``.
    """

    rate: float
    momentum: float
    weight_decay: float
    nesterov: bool
    l1: float = 0.0
    projection: tuple[float, float] | None = None
    dampening: float = 0.0
    clip_total: float | None = None
    groups: tuple[tuple[ParameterGroup, UpdateRule], ...] = ()

    def __post_init__(self) -> None:
        if not self.rate * max(1.0, self.momentum) <= LARGEST_RATE:
            raise InvalidInputError(
                f"Rounding is bounded for rates up to {LARGEST_RATE:g}, with momentum or without",
                f"a rate of {self.rate:g} and momentum {self.momentum:g}",
                "give a smaller rate; such a run diverges in any case",
            )

    def of(self, name: str) -> UpdateRule:
        """The rule of one parameter: that of its group, if it is in one."""
        return next((rule for group, rule in self.groups if group.holds(name)), self)

    @property
    def has_momentum(self) -> bool:
        """Whether any parameter has momentum."""
        return self.momentum > 0 or any(rule.momentum > 0 for _, rule in self.groups)

    @property
    def theta_from(self) -> tuple[float, float, float]:
        """``theta' = a theta + b v + c g``: (a, b, c)."""
        lr, mu, wd = self.rate, self.momentum, self.weight_decay
        if self.nesterov:
            return 1.0 - lr * wd * (1.0 + mu), -lr * mu * mu, -lr * (1.0 + mu)
        kept = 1.0 - self.dampening
        return 1.0 - lr * kept * wd, -lr * mu, -lr * kept

    @property
    def theta_sizes(self) -> tuple[float, float, float]:
        """For each scalar of ``theta_from``, the sum of the absolute values of its terms.

        The run never computes ``1 - rate * weight_decay``: it rounds both terms, even if they cancel.
        """
        lr, mu, wd = self.rate, self.momentum, self.weight_decay
        if self.nesterov:
            return 1.0 + lr * wd * (1.0 + mu), lr * mu * mu, lr * (1.0 + mu)
        kept = abs(1.0 - self.dampening)
        return 1.0 + lr * kept * wd, lr * mu, lr * kept

    @property
    def velocity_from(self) -> tuple[float, float, float]:
        """``v' = a theta + b v + c g``: (a, b, c)."""
        kept = 1.0 - self.dampening
        return kept * self.weight_decay, self.momentum, kept


def _with_losses(schema: dict[str, Any]) -> None:
    schema["enum"] = list(losses())


@dataclass(frozen=True)
class Training:
    """Gradient descent on the mean loss, as ``torch.optim.SGD`` runs it.

    Each epoch takes one ``permutation`` after the other of one ``numpy.random.default_rng(shuffle_seed)``,
    cut as torch's DataLoader cuts (drop_last=False). The order of a DataLoader is recorded by iterating one
    over ``range(n)``: ``batches=[[b.tolist() for b in loader] for _ in range(epochs)]``. With class weights a
    batch is divided by the weights of its labels. No decay of biases, for instance, is
    ``groups=[ParameterGroup(["*.bias"], weight_decay=0)]``.

    Attributes:
        schedule: None (constant), one learning rate for each step, or a :class:`Schedule`.
        groups: parameters with a rate, momentum or decay of their own, see :class:`ParameterGroup`.
        loss: what training minimises; ``mse`` for real targets, the others for classes.
        learning_rate: the base rate, which a ``schedule`` changes.
        epochs: passes over the data.
        batch_size: samples in a batch, all of them unless given; an incomplete last batch is used with its
            own size.
        batches: recorded batches, the samples of each step by position, in place of ``epochs``,
            ``batch_size`` and ``shuffle_seed``; or a list of such lists, one for each epoch, which a schedule
            by epochs needs.
        shuffle_seed: seed of a new order of the samples in each epoch; unless given, they keep the order of
            the data.
        momentum: momentum, without dampening.
        nesterov: nesterov momentum, which needs ``momentum`` above 0.
        weight_decay: this times the parameters is added to the gradient, after clipping.
        clip: largest gradient of every single sample before the mean over the batch, as ``clip_mode``
            measures it; no clipping unless given.
        clip_mode: ``norm`` scales a gradient down to the 2-norm ``clip``, over all trainable parameters;
            ``clamp`` cuts each coordinate off at ``-clip`` and ``clip``.
        optimizer: gradient descent; others are refused with the reason.
        l1: weight of the penalty, the sum of the absolute values of all trainable parameters.
        projection: lowest and highest value, to which every trainable parameter is clamped after each step.
        label_smoothing: label smoothing of ``cross_entropy``, as torch has it.
        class_weights: weight of each class in ``cross_entropy``, as torch has it, for threats that leave
            labels alone.
        positive_weight: weight of class 1 in ``bce``, pos_weight of torch.
        clip_total: largest 2-norm of the gradient of a batch over all trained parameters, as torch's
            ``clip_grad_norm_`` clips it; no such clipping unless given.

    Raises:
        InvalidInputError: a value out of range, or contradictory options.
        UnsupportedOperationError: an optimizer other than "sgd".
    """

    loss: Annotated[str, Key(Annotated[str, Field(json_schema_extra=_with_losses)])]
    learning_rate: Annotated[float, Key(Positive, required=True)] = 0.1
    epochs: Annotated[int, Key(Count)] = 1
    batch_size: Annotated[int | None, Key(Count)] = None
    batches: Annotated[
        Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]] | npt.NDArray[np.int64] | None,
        Key(list[list[Index]] | list[list[list[Index]]]),
    ] = None
    shuffle_seed: Annotated[int | None, Key(Index)] = None
    momentum: Annotated[float, Key(NonNegative)] = 0.0
    nesterov: Annotated[bool, Key(bool)] = False
    weight_decay: Annotated[float, Key(NonNegative)] = 0.0
    schedule: Schedule | Sequence[float] | None = None
    clip: Annotated[float | None, Key(Annotated[float, Field(ge=SMALLEST_CLIP)])] = None
    clip_mode: Annotated[ClipMode, Key(ClipMode)] = "norm"
    optimizer: Annotated[str, Key(Annotated[str, Field(json_schema_extra={"enum": ["sgd"]})])] = (
        "sgd"
    )
    l1: Annotated[float, Key(NonNegative)] = 0.0
    projection: Annotated[
        tuple[float, float] | None, Key(Annotated[list[float], Field(min_length=2, max_length=2)])
    ] = None
    groups: Sequence[ParameterGroup] = ()
    label_smoothing: Annotated[float, Key(Annotated[float, Field(ge=0.0, lt=1.0)])] = 0.0
    class_weights: Annotated[
        Sequence[float] | None, Key(Annotated[list[Positive], Field(min_length=1)])
    ] = None
    positive_weight: Annotated[float | None, Key(Positive)] = None
    clip_total: Annotated[float | None, Key(Annotated[float, Field(ge=SMALLEST_TOTAL)])] = None

    def __post_init__(self) -> None:
        check_training(self)

    @cached_property
    def _recorded(self) -> Recorded | None:
        return None if self.batches is None else Recorded.of(self.batches)

    @property
    def recorded_epochs(self) -> tuple[int, ...] | None:
        """Steps of each epoch of recorded batches; None where they came without epochs, or are none."""
        return None if self._recorded is None else self._recorded.epochs

    @property
    def recorded_steps(self) -> int | None:
        """Steps of recorded batches; None where batches are made."""
        return None if self._recorded is None else len(self._recorded.batches)

    @property
    def has_momentum(self) -> bool:
        """Whether any parameter has momentum, so that the state of a run holds velocities."""
        return self.momentum > 0 or any((g.momentum or 0.0) > 0 for g in self.groups)

    @property
    def objective(self) -> LossFunction:
        """The loss with its options."""
        weights = self.class_weights
        return get_loss(self.loss).configured(
            label_smoothing=float(self.label_smoothing),
            class_weights=None if weights is None else tuple(map(float, weights)),
            positive_weight=_plain(self.positive_weight),
        )

    @property
    def clips_total(self) -> bool:
        """Whether the norm of the gradient of a batch is clipped in any step."""
        return self.clip_total is not None

    @property
    def clipping(self) -> Clipping | None:
        """How the gradient of each sample is clipped; None for no clipping."""
        return None if self.clip is None else Clipping(float(self.clip), self.clip_mode)

    def batch_order(self, samples: int) -> tuple[Batch, ...]:
        """Indices of the samples of each step, in the order of the run.

        Raises:
            InvalidInputError: recorded batches that are empty, repeat a sample within a batch, or
                point outside the data.
        """
        if self._recorded is not None:
            return self._recorded.within(samples)
        size, seed = min(self.batch_size or samples, samples), self.shuffle_seed
        draw = np.arange if seed is None else np.random.default_rng(seed).permutation
        orders = [draw(samples) for _ in range(self.epochs)]
        return tuple(order[i : i + size] for order in orders for i in range(0, samples, size))

    def update_rules(self, steps: int) -> tuple[UpdateRule, ...]:
        """The optimiser step of each of the steps of the run.

        Raises:
            InvalidInputError: see :func:`milp_agt.training.schedules.rates_of`.
        """
        epochs = self.epochs if self._recorded is None else self._recorded.epochs
        rates = rates_of(self.schedule, float(self.learning_rate), steps, epochs)
        box = self.projection
        # Numpy scalars would round results to their own precision.
        base = UpdateRule(
            rate=0.0,
            momentum=float(self.momentum),
            weight_decay=float(self.weight_decay),
            nesterov=bool(self.nesterov),
            l1=float(self.l1),
            projection=None if box is None else (float(box[0]), float(box[1])),
            clip_total=_plain(self.clip_total),
        )

        def of_group(own: float | None) -> Sequence[float]:
            if own is None:
                return rates
            if not isinstance(self.schedule, (Sequence, np.ndarray)):
                return rates_of(self.schedule, float(own), steps, epochs)
            base_rate = self.learning_rate
            return [own if rate == base_rate else own / base_rate * rate for rate in rates]

        own = [(group, of_group(group.learning_rate)) for group in self.groups]
        found = []
        for step, rate in enumerate(rates):
            groups = tuple((group, _in_group(base, group, each[step])) for group, each in own)
            found.append(replace(base, rate=float(rate), groups=groups))
        return tuple(found)


def _in_group(base: UpdateRule, group: ParameterGroup, rate: float) -> UpdateRule:
    given = {name: getattr(group, name) for name in ("momentum", "weight_decay", "nesterov")}
    own = {n: type(getattr(base, n))(v) for n, v in given.items() if v is not None}
    return replace(base, rate=float(rate), **own)


def _plain(value: float | None) -> float | None:
    return None if value is None else float(value)
