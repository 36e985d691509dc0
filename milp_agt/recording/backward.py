"""What a pass is made of beside the model: torch's own graph of it, and hooks on the optimiser.

A difference in the operations is a difference for all data, even where it changes nothing on the data
as given: a clamp that is not reached, a second term that is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Node = Any  # torch.autograd.graph.Node, whose attributes torch does not declare

# Between the output of the model and the loss: the same numbers in another shape.
_RESHAPES = (
    *("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "AliasBackward"),
    *("SqueezeBackward", "UnsqueezeBackward", "SelectBackward", "SliceBackward"),
)
_MEANINGS = {
    "Add": "another term was added to the loss (a penalty, or the sum of several losses)",
    "Sub": "another term was taken from the loss",
    "Mul": "the loss was multiplied (a weight, or GradScaler's scale)",
    "Div": "the loss was divided (gradient accumulation, or a weight)",
    "Clamp": "the loss was clamped",
    "ToCopy": "a conversion to another precision (autocast, mixed precision)",
    "NativeDropout": "dropout in training mode",
    "BackwardHook": "a hook on a module's backward pass",
    "NllLoss": "a loss of the user's own (nll_loss)",
    "Neg": "a loss of the user's own (its sign was changed)",
    "Mean": "a loss of the user's own (a mean)",
    "Sum": "a loss of the user's own (a sum)",
}


def meaning(node: Node) -> str:
    """What a node that should not be there stands for, in words: ``AddBackward0`` is an added term."""
    name: str = node.name().rsplit("::", 1)[-1]
    kind = "BackwardHook" if name.startswith("BackwardHook") else name.partition("Backward")[0]
    return _MEANINGS.get(kind, f"an operation that the run is not known to have ({kind})")


def is_reached_by_reshapes(start: Node, end: Node) -> Node | None:
    """None if only changes of shape lie between two nodes, else the first node that is none."""
    node = start
    while node is not end:
        following = [n for n, _ in node.next_functions if n is not None]
        if not node.name().startswith(_RESHAPES) or len(following) != 1:
            return node
        node = following[0]
    return None


def difference(
    found: Node, expected: Node, names: Mapping[int, str], expected_names: Mapping[int, str]
) -> str | None:
    """The first node in which two graphs differ, in words; None if they are the same.

    Args:
        found: where the user's graph begins.
        expected: where the graph of the model alone begins.
        names, expected_names: parameters by ``id``, under the same names for both.
    """
    pairs, seen = [(found, expected)], set()
    while pairs:
        one, other = pairs.pop()
        if (one, other) in seen or one is other is None:
            continue
        seen.add((one, other))
        if one is None or other is None:
            return "a gradient where there should be none, or none where there should be one"
        if one.name() != other.name():
            return meaning(one)
        if hasattr(one, "variable"):
            name = names.get(id(one.variable), "a tensor that is no parameter of the model")
            if name != expected_names.get(id(other.variable)):
                return f"a gradient of {name}"
        if _options(one) != _options(other):
            return f"{meaning(one)}, with other options"
        if len(one.next_functions) != len(other.next_functions):
            return meaning(one)
        following = zip(one.next_functions, other.next_functions, strict=True)
        pairs.extend((a, b) for (a, _), (b, _) in following)
    return None


def _options(node: Node) -> dict[str, object]:
    """The numbers and words that a node keeps for its backward pass: slopes, bounds, axes."""
    kept = {name: getattr(node, name) for name in dir(node) if name.startswith("_saved_")}
    return {n: v for n, v in kept.items() if isinstance(v, (bool, int, float, str, tuple))}


def gradients(model: nn.Module, loss: Tensor, wanted: tuple[str, ...]) -> dict[str, Tensor]:
    """Gradients of a loss in some parameters of a model, 0 where it does not depend on one."""
    parameters = dict(model.named_parameters())
    tensors = {name: parameters[name] for name in wanted}
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(tensors.items(), found, strict=True)
    }


def largest_difference(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[str, float, float]:
    """Name of the tensor that differs most, by how much, and the largest entry of all tensors."""
    worst, most, size = "", -1.0, 0.0
    for name, value in expected.items():
        apart = float((found[name].double() - value.double()).abs().max()) if value.numel() else 0.0
        if not apart <= most:
            worst, most = name, apart
        size = max(size, float(value.abs().max()) if value.numel() else 0.0)
    return worst, most, size


def hooks_of_optimizer(optimizer: Optimizer, own: frozenset[int]) -> Iterator[str]:
    """Every hook on the step of an optimiser itself, and a step that was replaced, in words."""
    for table in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        if set(getattr(optimizer, table)) - own:
            yield "a hook on the optimiser's step"
    step = vars(optimizer).get("step")
    # Schedulers count the steps of their optimiser through a wrapper of this mark.
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        yield "a step of the optimiser that was replaced"


def random_layers(model: nn.Module) -> Iterator[str]:
    """Layers whose training mode draws or updates something in every pass, in words."""
    for path, layer in model.named_modules():
        if layer.training and isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            yield f"{type(layer).__name__}(p={layer.p:g}) in training mode, layer '{path}'"
        if layer.training and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            yield f"{type(layer).__name__} in training mode, layer '{path}'"
