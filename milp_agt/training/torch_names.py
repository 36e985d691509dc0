"""What users of torch hand in by its own names, objects and layers, and what to give instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_LOSSES = {
    "crossentropyloss": "cross_entropy",
    "crossentropy": "cross_entropy",
    "ce": "cross_entropy",
    "celoss": "cross_entropy",
    "softmax": "cross_entropy",
    "bcewithlogitsloss": "bce",
    "bcewithlogits": "bce",
    "binarycrossentropywithlogits": "bce",
    "logistic": "bce",
    "logloss": "bce",
    "mseloss": "mse",
    "meansquarederror": "mse",
    "squarederror": "mse",
    "squaredloss": "mse",
    "l2": "mse",
    "l2loss": "mse",
    "hingeloss": "hinge",
}
_ON_PROBABILITIES = {
    "bceloss": ("bce", "Sigmoid"),
    "binarycrossentropy": ("bce", "Sigmoid"),
    "nllloss": ("cross_entropy", "LogSoftmax"),
    "nll": ("cross_entropy", "LogSoftmax"),
}
# Options of torch's losses, and the value at which they change nothing.
_LOSS_OPTIONS = {
    "weight": None,
    "pos_weight": None,
    "label_smoothing": 0.0,
    "reduction": "mean",
    "ignore_index": -100,
}
_EVERY_STEP = (
    "give the rate of every step as a list: append optimizer.param_groups[0]['lr'] to it before each "
    "optimizer.step()"
)


def is_of_torch(value: object) -> bool:
    """Whether this is an object, a class or a function of torch."""
    home = getattr(value, "__module__", None) or type(value).__module__
    return str(home).split(".")[0] == "torch" or type(value).__module__.split(".")[0] == "torch"


def name_of(value: object) -> str:
    """The name of a class, of a function or of the class of an object."""
    return str(getattr(value, "__name__", None) or type(value).__name__)


def loss_remedy(value: object, known: tuple[str, ...]) -> str:
    """What to give for a loss that was named in another way, or handed in as an object."""
    name = value if isinstance(value, str) else name_of(value)
    short = re.sub(r"[^a-z0-9]", "", name.lower())
    found = {} if isinstance(value, (str, type)) else _LOSS_OPTIONS
    changed = [option for option, idle in found.items() if _differs(value, option, idle)]
    options = f", and train without {', '.join(changed)}: no rule for that" if changed else ""
    if short in known:
        return f"give loss='{short}'{options}"
    if short in _LOSSES:
        return f"give loss='{_LOSSES[short]}'{options}"
    if short in _ON_PROBABILITIES:
        loss, layer = _ON_PROBABILITIES[short]
        return f"give loss='{loss}', which is on the logits, and take the last {layer} off the model{options}"
    return f"use one of {', '.join(known)}"


def _differs(loss: object, option: str, idle: object) -> bool:
    value = getattr(loss, option, idle)
    return value is not None if idle is None else bool(value != idle)


def optimizer_remedy(value: object) -> str:
    """What to give for an optimiser that was handed in as an object."""
    defaults = getattr(value, "defaults", None)
    if name_of(value) != "SGD" or not isinstance(defaults, Mapping):
        return "use optimizer='sgd', with learning_rate=, momentum=, nesterov= and weight_decay="
    given = {"learning_rate": defaults.get("lr")}
    given |= {name: defaults.get(name) for name in ("momentum", "weight_decay", "nesterov")}
    shown = ", ".join(f"{name}={option!r}" for name, option in given.items() if option)
    idle = [name for name in ("dampening", "maximize") if defaults.get(name)]
    if len(getattr(value, "param_groups", ())) > 1:
        idle.append("rates of their own for groups of parameters")
    rest = f", and train without {' and '.join(idle)}" if idle else ""
    return f"give Training(optimizer='sgd', {shown}){rest}"


_SCHEDULES: dict[str, Callable[[Any], str]] = {
    "StepLR": lambda s: f"agt.StepDecay({s.step_size}, {s.gamma}, unit='epoch')",
    "MultiStepLR": lambda s: f"agt.Milestones({sorted(s.milestones)}, {s.gamma}, unit='epoch')",
    "ExponentialLR": lambda s: f"agt.ExponentialDecay({s.gamma}, unit='epoch')",
    "CosineAnnealingLR": lambda s: f"agt.CosineDecay({s.eta_min}, {s.T_max}, unit='epoch')",
}


def schedule_remedy(value: object) -> str:
    """What to give for a schedule of torch, or for a function."""
    name = name_of(value)
    if name == "ReduceLROnPlateau":
        return (
            "use a schedule that is fixed before the run: this one looks at measured losses, so that "
            "poisoned data change the rates"
        )
    if name in _SCHEDULES and not isinstance(value, type):
        return (
            f"give {_SCHEDULES[name](value)} where it is stepped after every epoch, unit='step' where "
            "after every step"
        )
    if isinstance(value, type) and callable(getattr(value, "rate", None)):
        return f"give an object, agt.{name}(...), and not the class"
    if is_of_torch(value) or callable(value):
        return _EVERY_STEP
    return "give agt.StepDecay(...), for instance, a list with the rate of every step, or None"


_NORM = "normalise with fixed statistics: nn.BatchNorm1d or 2d, fitted beforehand and in eval()"
_LOGITS = "leave it out: the losses are on logits, and the largest one is the class"
_REPLACEMENTS = {
    "abs": "use relu(x) + relu(-x)",
    "alphadropout": "train without it, or call eval() on nn.Dropout",
    "batch_norm": "use nn.BatchNorm1d or 2d in eval()",
    "bmm": "multiply by a weight: nn.Linear",
    "celu": "use nn.ELU",
    "conv1d": "use nn.Conv2d on images of height 1",
    "conv2d": "use the layer nn.Conv2d",
    "detach": "freeze parameters with requires_grad_(False)",
    "exp": "use softplus or elu",
    "float": "leave it out: runs are in float64",
    "groupnorm": _NORM,
    "hardsigmoid": "use nn.ReLU6 on x + 3, divided by 6",
    "hardswish": "use nn.SiLU",
    "instancenorm2d": _NORM,
    "layer_norm": _NORM,
    "layernorm": _NORM,
    "log_softmax": _LOGITS,
    "logsigmoid": "use -softplus(-x)",
    "logsoftmax": _LOGITS,
    "max": "use torch.clamp, or relu(a - b) + b for the larger of two",
    "maximum": "use relu(a - b) + b",
    "min": "use torch.clamp, or a - relu(a - b) for the smaller of two",
    "minimum": "use a - relu(a - b)",
    "mish": "use nn.SiLU",
    "normalize": _NORM,
    "prelu": "use nn.LeakyReLU",
    "rmsnorm": _NORM,
    "rrelu": "use nn.LeakyReLU",
    "selu": "use nn.ELU",
    "softmax": _LOGITS,
    "softsign": "use nn.Tanh",
    "sqrt": "use softplus, or another function of the list",
    "stack": "use torch.cat",
    "where": "use relu, clamp or leaky_relu",
}


def replacement(name: str) -> str:
    """What may stand in place of a layer or function, or an empty text."""
    return _REPLACEMENTS.get(name.lower().rstrip("_"), "")
