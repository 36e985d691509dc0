"""Hooks and replaced methods: code that runs inside a step and that the graph does not know."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules import module as modules

_OF_MODULES = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
_GLOBAL = {
    "_global_forward_hooks": "a forward hook",
    "_global_forward_pre_hooks": "a forward pre-hook",
    "_global_backward_hooks": "a backward hook",
    "_global_backward_pre_hooks": "a backward pre-hook",
}


def hooks_of(model: nn.Module, own: frozenset[int] = frozenset()) -> Iterator[str]:
    """Every hook on a model, its parameters and all modules of the process, in words.

    Args:
        model: all of its modules are looked at.
        own: keys of hooks that the recording itself has set.
    """
    for path, layer in model.named_modules():
        for table, kind in _OF_MODULES.items():
            if set(getattr(layer, table)) - own:
                yield f"{kind} on layer '{path or 'model'}'"
        if "forward" in vars(layer):
            yield f"a forward of layer '{path or 'model'}' that was replaced"
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_backward_hooks", None):
            yield f"a gradient hook on parameter '{name}'"
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            yield f"a post-accumulate-grad hook on parameter '{name}'"
    for table, kind in _GLOBAL.items():
        if getattr(modules, table):
            yield f"{kind} on all modules (torch.nn.modules.module)"


def hooks_of_optimizer(
    optimizer: torch.optim.Optimizer, own: frozenset[int] = frozenset()
) -> Iterator[str]:
    """Every hook on the step of an optimiser, and a step that was replaced, in words."""
    from torch.optim import optimizer as optimizers

    for table in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        if set(getattr(optimizer, table)) - own:
            yield "a hook on the optimiser's step"
    if optimizers._global_optimizer_pre_hooks or optimizers._global_optimizer_post_hooks:
        yield "a hook on the steps of all optimisers (torch.optim.optimizer)"
    step = vars(optimizer).get("step")
    # Schedulers count the steps of their optimiser through a wrapper of this mark.
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        yield "a step of the optimiser that was replaced"


def random_layers(model: nn.Module) -> Iterator[str]:
    """Layers whose training mode draws or updates something in every pass, in words."""
    for path, layer in model.named_modules():
        if not layer.training:
            continue
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            yield f"{type(layer).__name__}(p={layer.p:g}) in training mode, layer '{path}'"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            yield f"{type(layer).__name__} in training mode, layer '{path}'"
