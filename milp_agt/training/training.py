"""The training run that is certified: optimiser, batches and schedule, all fixed in advance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from milp_agt.core.arguments import of_kind
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.training.schedules import Schedule, rates_of

# Steps that divide by the size of past gradients.
_ADAPTIVE = (
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw"),
    *("lamb", "lars", "nadam", "radam", "rmsprop", "rprop", "sparseadam"),
)
Batch = npt.NDArray[np.int64]
ClipMode = Literal["norm", "clamp"]
# The square of a clipping norm must not underflow.
SMALLEST_CLIP = 1e-100


@dataclass(frozen=True)
class Clipping:
    """How the gradient ``g_i`` of each sample is clipped before the mean over the batch.

    ``norm``: ``g_i * min(1, bound / |g_i|_2)`` with the norm over all trainable parameters together;
    ``clamp``: every coordinate to [-bound, bound].
    """

    bound: float
    mode: ClipMode = "norm"


@dataclass(frozen=True)
class UpdateRule:
    """One optimiser step, for ``g`` = mean gradient over the batch (torch.optim.SGD).

    ``v' = momentum * v + g + weight_decay * theta`` and ``theta' = theta - rate * d`` with ``d = v'``,
    or ``d = g + weight_decay * theta + momentum * v'`` for Nesterov. Without momentum ``d`` is
    ``g + weight_decay * theta`` and there is no v. The first velocity is 0, so that v' is the
    gradient, as torch's first buffer.

    With ``dampening`` tau, v' is ``momentum * v + (1 - tau) (g + weight_decay * theta)``; torch does not
    dampen the first step of a run, whose rule has tau = 0.

    With an ``l1`` penalty, ``l1 * sign(theta)`` is part of g (sign(0) = 0, as torch differentiates
    ``l1 * theta.abs().sum()``). With a ``projection`` (low, high), every entry of theta' is clamped to it
    at the end of the step; velocities are not.
    """

    rate: float
    momentum: float
    weight_decay: float
    nesterov: bool
    l1: float = 0.0
    projection: tuple[float, float] | None = None
    dampening: float = 0.0

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
        """Absolute sums of the terms that each scalar of ``theta_from`` adds up.

        The run never forms ``1 - rate * weight_decay``: it rounds both terms, however much cancels.
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


def _is_real(value: object) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and value >= 1  # type: ignore[operator]


def _refused(name: str, value: object, wanted: str) -> InvalidInputError:
    return InvalidInputError(
        f"Training needs {name} to be {wanted}", f"{name} = {value!r}", f"change {name}"
    )


def _check_projection(box: Sequence[object]) -> None:
    pair = isinstance(box, Sequence) and len(box) == 2 and all(_is_real(end) for end in box)
    if not pair or not box[0] < box[1]:  # type: ignore[operator]
        raise _refused("projection", box, "a pair (low, high) of numbers with low < high, or None")


def check_optimizer(name: object) -> None:
    """Refuse all but gradient descent, and say why.

    Raises:
        UnsupportedOperationError: another optimiser.
    """
    if name == "sgd":
        return
    asked = f"Training was asked for with optimizer = {name!r}"
    found = "no rule for its step"
    if str(name).lower() in _ADAPTIVE:
        found = (
            "a step that divides by the size of past gradients, sqrt(v): where a gradient may be near 0, "
            "the first step is the learning rate with either sign however small the poison, so that "
            "bounds on it grow by about the learning rate in every step and prove nothing"
        )
    if str(name).lower() == "lbfgs":
        found = "a line search, whose number of evaluations depends on the data"
    raise UnsupportedOperationError(
        asked, found, "use optimizer = 'sgd' with momentum, a schedule and clip="
    )


@dataclass(frozen=True)
class Training:
    """Gradient descent on the mean loss, as ``torch.optim.SGD`` runs it.

    Attributes:
        loss: name of a registered loss: mse, bce, cross_entropy or hinge.
        learning_rate: base rate, > 0.
        epochs: passes over the data, >= 1.
        batch_size: samples in a batch; None is the full data set. An incomplete last batch is used
            with its own size.
        batches: recorded batches (indices of the samples of each step) instead of epochs and
            batch_size.
        shuffle_seed: a new order in each epoch, one ``permutation`` after the other of one
            ``numpy.random.default_rng(seed)``, cut as torch's DataLoader cuts (drop_last=False); None
            keeps the order of the data. The order of a DataLoader is recorded by iterating one over
            ``range(n)`` and passing what it gives as ``batches``.
        momentum, nesterov, weight_decay: as in torch.optim.SGD, without dampening.
        clip, clip_mode: per-sample gradient clipping, see :class:`Clipping`; None does not clip. Weight
            decay is added after it.
        l1: weight of the penalty ``l1 * sum |theta|`` on all trainable parameters, added to the loss.
        projection: (low, high), to which every trainable parameter is clamped after each step.
        optimizer: "sgd"; Adam and others that divide by the size of past gradients are refused.
        schedule: None (constant), one learning rate for each step, or a :class:`Schedule` of
            :mod:`milp_agt.training.schedules`: InverseTimeDecay, StepDecay, Milestones, ExponentialDecay,
            CosineDecay, counted in steps or in epochs.

    Raises:
        InvalidInputError: a value out of range, or options that contradict each other.
        UnsupportedOperationError: another optimizer than "sgd".
    """

    loss: str
    learning_rate: float = 0.1
    epochs: int = 1
    batch_size: int | None = None
    batches: Sequence[Sequence[int]] | npt.NDArray[np.int64] | None = None
    shuffle_seed: int | None = None
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Schedule | Sequence[float] | None = None
    clip: float | None = None
    clip_mode: ClipMode = "norm"
    optimizer: str = "sgd"
    l1: float = 0.0
    projection: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, kind, say in (
            ("loss", str, "give 'cross_entropy', for instance"),
            ("optimizer", str, "use 'sgd'"),
            ("clip_mode", str, "use 'norm' or 'clamp'"),
            ("nesterov", bool, "give True or False"),
        ):
            of_kind(getattr(self, name), kind, f"{name} of a training", say)
        check_optimizer(self.optimizer)
        for name, lowest in (("momentum", 0.0), ("weight_decay", 0.0), ("l1", 0.0)):
            value = getattr(self, name)
            if not _is_real(value) or value < lowest:
                raise _refused(name, value, f"a number >= {lowest:g}")
        if not _is_real(self.learning_rate) or self.learning_rate <= 0:
            raise _refused("learning_rate", self.learning_rate, "a number > 0")
        if not _is_count(self.epochs):
            raise _refused("epochs", self.epochs, "a whole number >= 1")
        if self.batch_size is not None and not _is_count(self.batch_size):
            wanted = "a whole number >= 1, or None for the full data set"
            raise _refused("batch_size", self.batch_size, wanted)
        seed = self.shuffle_seed
        if seed is not None and not (
            isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and seed >= 0
        ):
            raise _refused("shuffle_seed", seed, "a whole number >= 0, or None for no shuffling")
        if self.clip is not None and not (_is_real(self.clip) and self.clip >= SMALLEST_CLIP):
            raise _refused("clip", self.clip, "a number > 0, or None for no clipping")
        if self.projection is not None:
            _check_projection(self.projection)
        if self.clip_mode not in get_args(ClipMode):
            raise _refused("clip_mode", self.clip_mode, "'norm' or 'clamp'")
        if self.clip is None and self.clip_mode != "norm":
            raise InvalidInputError(
                f"Gradients were to be clipped with clip_mode = '{self.clip_mode}'",
                "clip = None",
                "say how far with clip=, or leave clip_mode out",
            )
        if self.nesterov and self.momentum == 0:
            raise InvalidInputError(
                "Nesterov momentum was asked for", "momentum = 0", "set momentum > 0"
            )
        if self.batches is not None and (
            self.batch_size is not None or self.shuffle_seed is not None or self.epochs != 1
        ):
            raise InvalidInputError(
                "Batches are either recorded or made from epochs, batch_size and shuffle_seed",
                "batches= together with one of the others",
                "leave out the others",
            )

    @property
    def clipping(self) -> Clipping | None:
        """What is done to the gradient of each sample; None for nothing."""
        return None if self.clip is None else Clipping(float(self.clip), self.clip_mode)

    def batch_order(self, samples: int) -> tuple[Batch, ...]:
        """Indices of the samples of each step, in the order of the run.

        Raises:
            InvalidInputError: recorded batches that are empty, repeat a sample within a batch, or
                point outside the data.
        """
        if self.batches is not None:
            if not isinstance(self.batches, (Sequence, np.ndarray)):
                raise _refused("batches", self.batches, "a list of lists of indices, or None")
            given = tuple(np.asarray(b) for b in self.batches)
            if not given:
                raise InvalidInputError(
                    "Recorded batches need at least one step", "an empty list", "leave out batches="
                )
            for t, batch in enumerate(given):
                whole = batch.ndim == 1 and np.issubdtype(batch.dtype, np.integer)
                if (
                    not whole
                    or batch.size == 0
                    or batch.min() < 0
                    or batch.max() >= samples
                    or np.unique(batch).size != batch.size
                ):
                    raise InvalidInputError(
                        f"Batch {t} must hold distinct indices of the {samples} samples",
                        f"shape {batch.shape}, values {batch.reshape(-1)[:5].tolist()} ...",
                        "correct batches=",
                    )
            return tuple(batch.astype(np.int64) for batch in given)
        size = samples if self.batch_size is None else min(self.batch_size, samples)
        generator = None if self.shuffle_seed is None else np.random.default_rng(self.shuffle_seed)
        order_list: list[Batch] = []
        for _ in range(self.epochs):
            indices = np.arange(samples) if generator is None else generator.permutation(samples)
            order_list.extend(indices[i : i + size] for i in range(0, samples, size))
        return tuple(order_list)

    def update_rules(self, steps: int) -> tuple[UpdateRule, ...]:
        """The optimiser step of each of the steps of the run.

        Raises:
            InvalidInputError: see :func:`milp_agt.training.schedules.rates_of`.
        """
        rates = rates_of(self.schedule, float(self.learning_rate), steps, self.epochs)
        box = self.projection
        ends = None if box is None else (float(box[0]), float(box[1]))
        # Scalars of numpy would round what is computed with them to their own precision.
        momentum, decay, l1 = float(self.momentum), float(self.weight_decay), float(self.l1)
        return tuple(
            UpdateRule(float(rate), momentum, decay, bool(self.nesterov), l1, ends)
            for rate in rates
        )
