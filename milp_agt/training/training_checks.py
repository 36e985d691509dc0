"""The options of a training run: each is checked for itself and beside the others, all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

from milp_agt.core.arguments import is_at_least, listed, of_kind
from milp_agt.core.option_table import unfit
from milp_agt.errors import InvalidInputError, MilpAgtError, UnsupportedOperationError
from milp_agt.formulations.loss import losses
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
    """See that the options of a run are what they are called and go together. Raises InvalidInputError: a
    value out of range, or options that contradict each other; all of them; UnsupportedOperationError: an
    optimiser or a loss without a rule, if that is all."""
    own = {name: _failure(partial(check, training)) for name, check in _CHECKS.items()}
    wrong = {**unfit(training), **{name: error for name, error in own.items() if error}}
    # What goes together is asked of values that are right for themselves.
    errors = [*wrong.values(), *_contradictions(training, frozenset(wrong))]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        problems = [(f"{error.asked}: {error.found}", error.remedy) for error in errors]
        raise InvalidInputError.of("The options of a training run", problems)


def _failure(check: Callable[[], object]) -> MilpAgtError | None:
    try:
        check()
    except MilpAgtError as error:
        return error
    return None


def _contradictions(training: Options, wrong: frozenset[str]) -> Iterator[MilpAgtError]:
    def right(*names: str) -> bool:
        return not wrong & set(names)

    if right("loss", "label_smoothing", "class_weights", "positive_weight"):
        error = _failure(lambda: training.objective)  # refuses options that the loss does not have
        yield from [error] if error else []
    if right("class_weights", "clip") and training.class_weights is not None and training.clip:
        yield InvalidInputError(
            "The gradients of single samples were to be clipped (clip)",
            "class_weights, which divide a batch by the weights of all its labels",
            "leave one of them out",
        )
    if right("clip_total", "l1") and training.clip_total is not None and training.l1:
        yield InvalidInputError(
            "The norm of the gradient of a batch was to be clipped (clip_total)",
            f"l1 = {training.l1!r}, whose gradient would count in the norm",
            "leave one of them out",
        )
    if right("clip", "clip_mode") and training.clip is None and training.clip_mode != "norm":
        yield InvalidInputError(
            f"Gradients were to be clipped with clip_mode = '{training.clip_mode}'",
            "clip = None",
            "say how far with clip=, or leave clip_mode out",
        )
    if right("nesterov", "momentum", "groups"):
        for group in (None, *training.groups):
            momentum, nesterov = (
                getattr(training if getattr(group, name, None) is None else group, name)
                for name in ("momentum", "nesterov")
            )
            if nesterov and momentum == 0:
                yield InvalidInputError(
                    "Nesterov momentum was asked for",
                    "momentum = 0" + (f" of {', '.join(group.names)}" if group else ""),
                    "set momentum > 0",
                )
    if right("batches", "epochs", "batch_size", "shuffle_seed"):
        made = (training.epochs, training.batch_size, training.shuffle_seed) != (1, None, None)
        if training.batches is not None and made:
            yield InvalidInputError(
                "Batches are either recorded or made from epochs, batch_size and shuffle_seed",
                "batches= together with one of the others",
                "leave out the others; for several epochs, give batches as a list of epochs: "
                "[[batch, ...], [batch, ...], ...]",
            )
    # Where batches are recorded, the count of the steps is known, and so are the rates.
    if right("batches", "schedule", "learning_rate", *_SCALARS) and training.recorded_steps:
        error = _failure(lambda: training.update_rules(training.recorded_steps))
        yield from [error] if error else []


def _loss(training: Options) -> None:
    given, known = training.loss, tuple(losses())
    if isinstance(given, str) and given not in known:
        raise UnsupportedOperationError(
            f"Loss '{given}' was asked for", "no such loss", loss_remedy(given, known)
        )
    if not isinstance(given, str):
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
        f"Training was asked for with optimizer = {name!r}",
        found,
        "use optimizer = 'sgd' with momentum, a schedule and clip=",
    )


def _clip_mode(training: Options) -> None:
    if not isinstance(training.clip_mode, str) or training.clip_mode not in get_args(ClipMode):
        raise InvalidInputError(
            "Training needs clip_mode to be 'norm' or 'clamp', both of the gradient of each sample",
            f"clip_mode = {training.clip_mode!r:.80}",
            "use one of these, or clip_total= for clip_grad_norm_ of the whole batch; clip_grad_value_ is "
            "not supported",
        )


def _projection(training: Options) -> None:
    box = training.projection
    pair = isinstance(box, Sequence) and len(box) == 2
    finite = pair and all(is_at_least(end, -math.inf) and math.isfinite(end) for end in box)
    if box is not None and not (finite and box[0] < box[1]):
        raise InvalidInputError(
            "Training needs projection to be a pair (low, high) of numbers with low < high, or None",
            f"projection = {box!r:.80}",
            "change projection",
        )


def _groups(training: Options) -> None:
    remedy = "give groups=[ParameterGroup(['*.bias'], weight_decay=0)]"
    listed(training.groups, ParameterGroup, "groups of a training", remedy)


_CHECKS: dict[str, Callable[[Options], object]] = {
    "loss": _loss,
    "optimizer": _optimizer,
    "schedule": lambda training: check_schedule(training.schedule),
    "clip_mode": _clip_mode,
    "batches": lambda training: training.recorded_epochs,  # reads them
    "projection": _projection,
    "groups": _groups,
}
