"""What may stand in place of layers and functions without a rule."""

from __future__ import annotations

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
