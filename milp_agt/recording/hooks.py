"""Hooks and replaced methods: code that runs inside a step and that the graph does not know."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules import module as modules
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers

from milp_agt.training.hidden_changes import HOOKS_OF_MODULES

_OF_PARAMETERS = {
    "_backward_hooks": "a gradient hook",
    "_post_accumulate_grad_hooks": "a post-accumulate-grad hook",
}


def hooks_of(model: nn.Module, own: frozenset[int] = frozenset()) -> Iterator[str]:
    """Every hook on a model, its parameters and all modules of the process, in words.

    Args:
        model: all of its modules are looked at.
        own: keys of hooks that the recording itself has set.
    """
    for path, layer in model.named_modules():
        for table, kind in HOOKS_OF_MODULES.items():
            if set(getattr(layer, table)) - own:
                yield f"{kind} on layer '{path or 'model'}'"
        if "forward" in vars(layer):
            yield f"a forward of layer '{path or 'model'}' that was replaced"
    for name, parameter in model.named_parameters():
        for table, kind in _OF_PARAMETERS.items():
            if getattr(parameter, table, None):
                yield f"{kind} on parameter '{name}'"
    for table, kind in HOOKS_OF_MODULES.items():
        if getattr(modules, f"_global{table}"):
            yield f"{kind} on all modules (torch.nn.modules.module)"


def hooks_of_optimizer(optimizer: Optimizer, own: frozenset[int] = frozenset()) -> Iterator[str]:
    """Every hook on the step of an optimiser, and a step that was replaced, in words."""
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
        if layer.training and isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            yield f"{type(layer).__name__}(p={layer.p:g}) in training mode, layer '{path}'"
        if layer.training and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            yield f"{type(layer).__name__} in training mode, layer '{path}'"
