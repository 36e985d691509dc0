"""The options of a training run: each is checked for itself and beside the others, all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from milp_agt.core.arguments import listed, of_kind
from milp_agt.errors import InvalidInputError, MilpAgtError, UnsupportedOperationError
from milp_agt.training.groups import ParameterGroup
from milp_agt.training.schedules import check_schedule
from milp_agt.training.torch_names import is_of_torch, loss_remedy, name_of, optimizer_remedy

# A Training, whose module imports this one.
Options = Any
ClipMode = Literal["norm", "clamp"]
# Steps that divide by the size of past gradients.
_ADAPTIVE = (
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw"),
    *("lamb", "lars", "nadam", "radam", "rmsprop", "rprop", "sparseadam"),
)
# What every step is made of, beside its rate.
_SCALARS = ("momentum", "weight_decay", "l1", "nesterov", "projection")
# The square of a clipping norm must not underflow.
SMALLEST_CLIP = 1e-100
# Ten times what torch adds to a norm before it divides by it.
SMALLEST_TOTAL = 1e-5


def check_training(training: Options) -> None:
    """See that the options of a run are what they are called and go together.

    Raises:
        InvalidInputError: a value out of range, or options that contradict each other; all of them.
        UnsupportedOperationError: an optimiser or a loss without a rule, if that is all.
    """
    failed = {
        name: error
        for name, check in _ALONE.items()
        if (error := _failure(check, training)) is not None
    }
    # What goes together is asked of values that are right for themselves.
    beside = [_failure(check, training) for check, of in _BESIDE if not of & failed.keys()]
    errors = [*failed.values(), *(error for error in beside if error is not None)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        problems = [(f"{error.asked}: {error.found}", error.remedy) for error in errors]
        raise InvalidInputError.of("The options of a training run", problems)


def _failure(check: Callable[[Options], None], training: Options) -> MilpAgtError | None:
    try:
        check(training)
    except MilpAgtError as error:
        return error
    return None


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
        f"Training needs {name} to be {wanted}", f"{name} = {value!r:.80}", f"change {name}"
    )


def _loss(training: Options) -> None:
    from milp_agt.formulations.loss import losses

    given: object = training.loss
    known = tuple(losses())
    if isinstance(given, str) and given in known:
        return
    if isinstance(given, str):
        raise UnsupportedOperationError(
            f"Loss '{given}' was asked for", "no such loss", loss_remedy(given, known)
        )
    shown = name_of(given) if is_of_torch(given) else f"{type(given).__name__} {given!r:.60}"
    raise InvalidInputError(
        "The loss of a training is named by a text", shown, loss_remedy(given, known)
    )


def _optimizer(training: Options) -> None:
    """Refuse all but gradient descent, and say why."""
    given: object = training.optimizer
    if isinstance(given, str) and given == "sgd":
        return
    name = name_of(given) if is_of_torch(given) else given
    if not isinstance(given, str) and is_of_torch(given) and name == "SGD":
        raise InvalidInputError(
            "The optimizer of a training is named by a text",
            f"an object or a class of torch, {name_of(given)}",
            optimizer_remedy(given),
        )
    of_kind(name, str, "optimizer of a training", "use 'sgd'")
    if str(name).lower() == "sgd":
        raise InvalidInputError("Optimisers are named in lower case", f"{name!r}", "use 'sgd'")
    raise no_rule_for(str(name))


def no_rule_for(name: str) -> UnsupportedOperationError:
    """Why an optimiser of this name is not certified."""
    asked = f"Training was asked for with optimizer = {name!r}"
    found = "no rule for its step"
    if name.lower() in _ADAPTIVE:
        found = (
            "a step that divides by the size of past gradients, sqrt(v): where a gradient may be near 0, "
            "the first step is the learning rate with either sign however small the poison, so that "
            "bounds on it grow by about the learning rate in every step and prove nothing"
        )
    if name.lower() == "lbfgs":
        found = "a line search, whose number of evaluations depends on the data"
    return UnsupportedOperationError(
        asked, found, "use optimizer = 'sgd' with momentum, a schedule and clip="
    )


def _at_least_zero(name: str) -> Callable[[Options], None]:
    def check(training: Options) -> None:
        value = getattr(training, name)
        if not _is_real(value) or value < 0:
            raise _refused(name, value, "a number >= 0")

    return check


def _learning_rate(training: Options) -> None:
    if not _is_real(training.learning_rate) or training.learning_rate <= 0:
        raise _refused("learning_rate", training.learning_rate, "a number > 0")


def _nesterov(training: Options) -> None:
    of_kind(training.nesterov, bool, "nesterov of a training", "give True or False")


def _epochs(training: Options) -> None:
    if not _is_count(training.epochs):
        raise _refused("epochs", training.epochs, "a whole number >= 1")


def _batch_size(training: Options) -> None:
    if training.batch_size is not None and not _is_count(training.batch_size):
        wanted = "a whole number >= 1, or None for the full data set"
        raise _refused("batch_size", training.batch_size, wanted)


def _seed(training: Options) -> None:
    seed: object = training.shuffle_seed
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if seed is not None and not (whole and seed >= 0):  # type: ignore[operator]
        raise _refused("shuffle_seed", seed, "a whole number >= 0, or None for no shuffling")


def _clip(training: Options) -> None:
    clip = training.clip
    if clip is not None and not (_is_real(clip) and clip >= SMALLEST_CLIP):
        raise _refused("clip", clip, "a number > 0, or None for no clipping")


def _clip_total(training: Options) -> None:
    clip = training.clip_total
    if clip is None:
        return
    if not _is_real(clip) or clip < SMALLEST_TOTAL:
        raise _refused(
            "clip_total", clip, f"a number >= {SMALLEST_TOTAL:g}, or None for no clipping"
        )


def _total_with_penalty(training: Options) -> None:
    if training.clip_total is not None and training.l1:
        raise InvalidInputError(
            "The norm of the gradient of a batch was to be clipped (clip_total)",
            f"l1 = {training.l1!r}, whose gradient would count in the norm",
            "leave one of them out",
        )


def _clip_mode(training: Options) -> None:
    mode: object = training.clip_mode
    of_kind(mode, str, "clip_mode of a training", "use 'norm' or 'clamp'")
    if mode not in get_args(ClipMode):
        raise InvalidInputError(
            "Training needs clip_mode to be 'norm' or 'clamp', both of the gradient of each sample",
            f"clip_mode = {mode!r}",
            "use one of these, or clip_total= for clip_grad_norm_ of the whole batch; clip_grad_value_ is "
            "not supported",
        )


def _projection(training: Options) -> None:
    box: object = training.projection
    if box is None:
        return
    pair = isinstance(box, Sequence) and len(box) == 2 and all(_is_real(end) for end in box)
    if not pair or not box[0] < box[1]:  # type: ignore[index]
        raise _refused("projection", box, "a pair (low, high) of numbers with low < high, or None")


def _schedule(training: Options) -> None:
    check_schedule(training.schedule)


def _recorded(training: Options) -> None:
    training.recorded_epochs  # noqa: B018 - reads the batches, and refuses what cannot be read


def _mode_without_clip(training: Options) -> None:
    if training.clip is None and training.clip_mode != "norm":
        raise InvalidInputError(
            f"Gradients were to be clipped with clip_mode = '{training.clip_mode}'",
            "clip = None",
            "say how far with clip=, or leave clip_mode out",
        )


def _nesterov_without_momentum(training: Options) -> None:
    if training.nesterov and training.momentum == 0:
        raise InvalidInputError(
            "Nesterov momentum was asked for", "momentum = 0", "set momentum > 0"
        )


def _recorded_or_made(training: Options) -> None:
    made = (
        training.batch_size is not None or training.shuffle_seed is not None or training.epochs != 1
    )
    if training.batches is not None and made:
        raise InvalidInputError(
            "Batches are either recorded or made from epochs, batch_size and shuffle_seed",
            "batches= together with one of the others",
            "leave out the others; for several epochs, give batches as a list of epochs: "
            "[[batch, ...], [batch, ...], ...]",
        )


def _rates_of_recorded(training: Options) -> None:
    """Where batches are recorded, the count of the steps is known, and so are the rates."""
    if training.recorded_steps is not None:
        training.update_rules(training.recorded_steps)


def _groups(training: Options) -> None:
    listed(
        training.groups,
        ParameterGroup,
        "groups of a training",
        "give groups=[ParameterGroup(['*.bias'], weight_decay=0)]",
    )
    for group in training.groups:
        momentum = training.momentum if group.momentum is None else group.momentum
        nesterov = training.nesterov if group.nesterov is None else group.nesterov
        if nesterov and momentum == 0:
            raise InvalidInputError(
                "Nesterov momentum was asked for",
                f"momentum = 0 of {', '.join(group.names)}",
                "set momentum > 0",
            )


def _label_smoothing(training: Options) -> None:
    if not _is_real(training.label_smoothing) or not 0 <= training.label_smoothing < 1:
        raise _refused("label_smoothing", training.label_smoothing, "a number in [0, 1)")


def _class_weights(training: Options) -> None:
    weights: object = training.class_weights
    if weights is None:
        return
    listed_ones = isinstance(weights, (tuple, list, np.ndarray)) and len(weights) > 0
    if not listed_ones or not all(_is_real(w) and w > 0 for w in weights):  # type: ignore[attr-defined]
        raise _refused("class_weights", weights, "a number > 0 for each class, or None")
    if training.clip is not None:
        raise InvalidInputError(
            "The gradients of single samples were to be clipped (clip)",
            "class_weights, which divide a batch by the weights of all its labels",
            "leave one of them out",
        )


def _positive_weight(training: Options) -> None:
    weight = training.positive_weight
    if weight is not None and (not _is_real(weight) or weight <= 0):
        raise _refused("positive_weight", weight, "a number > 0, or None")


def _options_of_loss(training: Options) -> None:
    training.objective  # noqa: B018 - refuses options that the loss does not have


_ALONE: dict[str, Callable[[Options], None]] = {
    "loss": _loss,
    "optimizer": _optimizer,
    "schedule": _schedule,
    "clip_mode": _clip_mode,
    "nesterov": _nesterov,
    "batches": _recorded,
    "momentum": _at_least_zero("momentum"),
    "weight_decay": _at_least_zero("weight_decay"),
    "l1": _at_least_zero("l1"),
    "learning_rate": _learning_rate,
    "epochs": _epochs,
    "batch_size": _batch_size,
    "shuffle_seed": _seed,
    "clip": _clip,
    "clip_total": _clip_total,
    "projection": _projection,
    "groups": _groups,
    "label_smoothing": _label_smoothing,
    "class_weights": _class_weights,
    "positive_weight": _positive_weight,
}
# Checks of several options, and which.
_BESIDE: tuple[tuple[Callable[[Options], None], frozenset[str]], ...] = (
    (
        _options_of_loss,
        frozenset({"loss", "label_smoothing", "class_weights", "positive_weight"}),
    ),
    (_total_with_penalty, frozenset({"clip_total", "l1"})),
    (_mode_without_clip, frozenset({"clip", "clip_mode"})),
    (_nesterov_without_momentum, frozenset({"nesterov", "momentum"})),
    (_recorded_or_made, frozenset({"batches", "epochs", "batch_size", "shuffle_seed"})),
    (_rates_of_recorded, frozenset({"batches", "schedule", "learning_rate", *_SCALARS})),
)
