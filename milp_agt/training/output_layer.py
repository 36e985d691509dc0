"""The last layer against the loss: losses on logits are refused behind what makes probabilities."""

from __future__ import annotations

import torch
from torch import nn

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.linear import Reshape
from milp_agt.formulations.univariate import Univariate

# Where an activation is tried out; what stays within half of it on both sides is bounded.
_FAR = 1e6
# Layers without a rule of their own whose place is the end of a model, and what they are for.
_PROBABILITIES = (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.LogSigmoid, nn.Softmin)
# What each loss does to the outputs, in the words of users of torch.
ON_LOGITS = {
    "bce": "as BCEWithLogitsLoss, it takes the sigmoid of the output itself",
    "cross_entropy": "as CrossEntropyLoss, it takes the softmax of the outputs itself",
    "hinge": "as the hinge loss, it asks for outputs beyond -1 and 1",
}
_PLAIN = {("bce", "Sigmoid"): "BCELoss", ("cross_entropy", "LogSoftmax"): "NLLLoss"}


def check_output(graph: Graph, output: Node, loss: str) -> None:
    """See that no activation at the end of a model contradicts a loss on logits. Raises
    InvalidInputError: an activation of bounded range, or one without negative values before a loss on one
    logit."""
    if loss not in ON_LOGITS:
        return
    node = output
    while isinstance(node.op, Reshape):
        node = graph.inputs(node)[0]
    op = node.op
    if not isinstance(op, Univariate):
        return
    far = torch.full((1, 1), _FAR, dtype=torch.float64)
    reached = op.interval(Interval(-far, far))
    bounded = bool((reached.width < _FAR / 2).all())
    positive = bool((reached.lower > -1e-6).all())
    if bounded or (positive and loss != "cross_entropy"):
        raise _contradiction(loss, {"Relu": "ReLU"}.get(type(op).__name__, type(op).__name__))


def check_last_layer(layer: nn.Module, loss: str) -> None:
    """The same for layers that have no rule: their place, too, is in the loss. Raises InvalidInputError:
    Softmax, LogSoftmax and their like."""
    if loss in ON_LOGITS and isinstance(layer, _PROBABILITIES):
        raise _contradiction(loss, type(layer).__name__)


def last_layer(model: nn.Module) -> nn.Module:
    """The layer that a model of Sequentials ends with; layers that do nothing do not count."""
    idle = (nn.Identity, nn.Flatten, nn.Dropout, type(None))
    while isinstance(model, nn.Sequential):
        children = [each for each in model._modules.values() if not isinstance(each, idle)]
        if not children:
            break
        model = children[-1]
    return model


def _contradiction(loss: str, name: str) -> InvalidInputError:
    remedy = f"take the last {name} off the model"
    if (loss, name) in _PLAIN:
        remedy += f": without it, loss='{loss}' is the run that {_PLAIN[loss, name]} makes with it"
    elif name == "ReLU":
        remedy += ": behind it no output is negative, so that nothing but class 1 is ever predicted"
    else:
        remedy += " and train without it"
        if name not in [kind.__name__ for kind in _PROBABILITIES]:
            remedy += ", or use loss='mse' if that is what the outputs are trained on"
    return InvalidInputError(
        f"Loss '{loss}' is on the logits: {ON_LOGITS[loss]}", f"a model that ends in {name}", remedy
    )
