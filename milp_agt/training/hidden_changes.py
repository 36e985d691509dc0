"""What changes a gradient or a call and stands in no layer, found on the caller's own model.

A graph holds what the layers compute. Hooks, replaced methods, parametrisations and shared memory
change the run without a trace in the layers, and a deep copy of the model drops some of them: the
model is looked at before it is copied.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.nn.modules import module as torch_modules
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.optim import optimizer as torch_optimizers

from milp_agt.errors import UnsupportedOperationError


class Hidden(NamedTuple):
    """One thing that the graph cannot see: where it is, what it is, and what to do about it."""

    place: str
    found: str
    remedy: str


_REMOVE = (
    "call remove() on the handle that registering it gave you (or build the model anew, and load its "
    "state_dict()), and train without it"
)
_OF_MODULES = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}
_OF_PARAMETERS = {
    "_backward_hooks": "a gradient hook (register_hook)",
    "_post_accumulate_grad_hooks": "a hook after its gradient (register_post_accumulate_grad_hook)",
}
# Methods by which a call, the trained parameters or a copy of the model are made.
_CALLS = (
    *("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__"),
    *("parameters", "named_parameters", "modules", "named_modules", "__deepcopy__"),
)
# What layers, losses and steps are computed by.
_FUNCTIONS: tuple[tuple[str, object, str], ...] = (
    ("torch.nn.functional", functional, "linear relu leaky_relu sigmoid tanh conv2d batch_norm"),
    ("torch.nn.functional", functional, "dropout max_pool2d avg_pool2d adaptive_avg_pool2d"),
    ("torch.nn.functional", functional, "mse_loss cross_entropy binary_cross_entropy_with_logits"),
    ("torch", torch, "relu sigmoid tanh"),
    ("torch.Tensor", Tensor, "backward flatten"),
    ("torch.autograd", torch.autograd, "backward grad"),
    ("torch.optim.SGD", torch.optim.SGD, "step zero_grad"),
)


def refuse_hidden_changes(model: nn.Module) -> None:
    """See that nothing outside the layers changes what the model computes or how it is trained. Raises
    UnsupportedOperationError: all that does, each with its place and what to do."""
    found = [*_everywhere(), *_in_modules(model)] or list(_in_tensors(model))
    places: dict[tuple[str, str], list[str]] = {}
    for each in found:
        places.setdefault((each.found, each.remedy), []).append(each.place)
    if found:
        raise UnsupportedOperationError.of(
            "A certificate is about what the layers of the model compute and how SGD trains them",
            [(f"{_listed(at)}: {what}", remedy) for (what, remedy), at in places.items()],
        )


def hooks_on(model: nn.Module, own: frozenset[int]) -> Iterator[Hidden]:
    """Hooks and replaced methods that act on a model and its parameters, but for hooks of keys ``own``."""
    yield from _everywhere()
    for name, module in model.named_modules():
        place = f"layer '{name}'" if name else "the model"
        yield from _hooked(module, place, own)
        yield from _replaced(module, place)
    for name, parameter in model.named_parameters():
        yield from _hooked_tensor(parameter, f"parameter '{name}'")


def _listed(places: list[str]) -> str:
    """The first few places, and how many more there are."""
    shown = list(dict.fromkeys(places))
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")


def _everywhere() -> Iterator[Hidden]:
    """Hooks and replaced functions that act on every model of this process."""
    for attribute, what in _OF_MODULES.items():
        for hook in _hooks(torch_modules, f"_global{attribute}"):
            yield Hidden("all modules", f"{what} for every module, {_called(hook)}", _REMOVE)
    for attribute in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"):
        for hook in _hooks(torch_optimizers, attribute):
            yield Hidden("all optimisers", f"a hook on every step, {_called(hook)}", _REMOVE)
    replaced = [
        f"{where}.{name}"
        for where, home, names in _FUNCTIONS
        for name in names.split()
        if not _of_torch(getattr(home, name))
    ]
    if replaced:
        found = f"{', '.join(replaced)} replaced by other code"
        yield Hidden("torch", found, "put torch's own functions back")


def _in_modules(model: nn.Module) -> Iterator[Hidden]:
    skipped: list[str] = []
    for name, module in model.named_modules():
        if any(f"{name}.".startswith(f"{path}.") for path in skipped):
            continue
        place = f"layer '{name}'" if name else "the model"
        wrapped = _wrapper(module)
        if wrapped is not None:
            yield Hidden(place, *wrapped)
            if not name:
                return
            skipped.append(name)
        elif parametrize.is_parametrized(module):
            skipped.append(f"{name}.parametrizations" if name else "parametrizations")
            for tensor, chain in module.parametrizations.items():
                how = ", ".join(type(each).__name__ for each in chain)
                found = f"'{tensor}' is computed anew in every call (parametrized by {how})"
                remedy = f"torch.nn.utils.parametrize.remove_parametrizations(layer, '{tensor}')"
                yield Hidden(place, found, f"{remedy}, and train the plain parameter")
        else:
            yield from _hooked(module, place)
            yield from _replaced(module, place)


def _wrapper(module: nn.Module) -> tuple[str, str] | None:
    """What hides the layers of a module, and what to hand over instead."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "a scripted or traced module (torch.jit), which does not show its layers",
            "give the nn.Module that it was made of; load_state_dict(scripted.state_dict()) takes the "
            "parameters over",
        )
    if kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo"):
        return "a module compiled by torch.compile", "give the module inside, model._orig_mod"
    if isinstance(module, torch.fx.GraphModule):
        return "a graph made by torch.fx, with code of its own", "give the module that was traced"
    if kind.__name__ in ("DataParallel", "DistributedDataParallel"):
        return f"a module inside {kind.__name__}", "give the module inside, model.module"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "a lazy layer without weights yet", "run one batch through the model first"
    return None


def _hooked(module: nn.Module, place: str, own: frozenset[int] = frozenset()) -> Iterator[Hidden]:
    anew = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}
    for attribute, what in _OF_MODULES.items():
        for hook in _hooks(module, attribute, own):
            kind, tensor = type(hook).__name__, getattr(hook, "name", "weight")
            found, remedy = f"{what}, {_called(hook)}", _REMOVE
            if isinstance(hook, BasePruningMethod):
                tensor = getattr(hook, "_tensor_name", "weight")
                found = f"'{tensor}' is pruned by a mask ({kind})"
                remedy = (
                    f"torch.nn.utils.prune.remove(layer, '{tensor}'), and train without the mask"
                )
            elif kind in anew:
                found = f"'{tensor}' is computed anew in every call ({kind})"
                remedy = f"torch.nn.utils.{anew[kind]}(layer), and train the plain parameter"
            yield Hidden(place, found, remedy)


def _replaced(module: nn.Module, place: str) -> Iterator[Hidden]:
    """Methods of the instance or of its class that are not those the layer came with."""
    kind, code = type(module), (FunctionType, classmethod, staticmethod)
    of_class = {n: v for home in reversed(kind.__mro__) for n, v in vars(home).items()}
    own = [name for name in vars(module) if isinstance(of_class.get(name), code)]
    if own:
        yield Hidden(
            place,
            f"a replaced {', '.join(own)}() on the instance",
            "delete the attribute, and write what it does as layers of the model",
        )
    if getattr(module, "_compiled_call_impl", None) is not None:
        found = "a call compiled in place by .compile()"
        yield Hidden(place, found, "give the model before compile()")
    for home in (each for each in kind.__mro__ if each not in (object, nn.Module)):
        if home.__module__.startswith("torch."):
            names: tuple[str, ...] = ("forward", "_conv_forward", *_CALLS)
            foreign = [n for n in names if n in vars(home) and not _of_torch(vars(home)[n])]
            found = f"{home.__name__}.{', '.join(foreign)} of torch replaced by other code"
            remedy = "put torch's own method back, or use a class of your own"
        else:
            names = (*_CALLS, *(["__iter__"] if issubclass(home, nn.Sequential) else []))
            foreign = [name for name in names if name in vars(home)]
            found = f"class {home.__name__} with a {', '.join(foreign)} of its own"
            remedy = (
                "leave the method out: freeze parameters by requires_grad_(False), and write what a call "
                "does as forward or as layers"
            )
        if foreign:
            yield Hidden(place, found, remedy)
    patched = [n for n in _CALLS if n in vars(nn.Module) and not _of_torch(vars(nn.Module)[n])]
    if patched:
        found = f"nn.Module.{', '.join(patched)} replaced by other code"
        yield Hidden("torch", found, "put torch's own back")


def _in_tensors(model: nn.Module) -> Iterator[Hidden]:
    parameters: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        place = f"parameter '{name}'"
        if type(parameter) is not nn.Parameter:
            found = f"a tensor of type {type(parameter).__name__}, which may compute in its own way"
            yield Hidden(place, found, "store it as a plain torch.nn.Parameter")
            continue
        odd = _odd(parameter)
        if odd is not None:
            yield Hidden(place, *odd)
        yield from _hooked_tensor(parameter, place)
        parameters[name] = parameter
    for name, what, remedy in hooked_accumulators(parameters):
        yield Hidden(f"parameter '{name}'", what, remedy)
    yield from _overlapping(parameters, dict(model.named_buffers()))


def _hooked_tensor(parameter: Tensor, place: str) -> Iterator[Hidden]:
    for attribute, what in _OF_PARAMETERS.items():
        for hook in _hooks(parameter, attribute):
            yield Hidden(place, f"{what}, {_called(hook)}", _REMOVE)


def _odd(parameter: Tensor) -> tuple[str, str] | None:
    if parameter.layout is not torch.strided or parameter.is_quantized or parameter.is_nested:
        return f"a tensor of layout {parameter.layout}", "store it dense"
    if parameter.is_meta:
        return "no values (device 'meta')", "initialise the model on the CPU"
    if not parameter.is_floating_point():
        if parameter.requires_grad or parameter.is_complex():
            return f"values of type {parameter.dtype}", "store real numbers"
    elif parameter.dtype.itemsize < 4:
        return (
            f"half precision ({parameter.dtype}), whose rounding no bound covers",
            "train in float64 or float32, and give the model in it",
        )
    return None


def _overlapping(
    parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> Iterator[Hidden]:
    """Trained tensors whose memory is written through another name as well.

    A parameter that is registered twice is one parameter, and no overlap.
    """
    homes: dict[int, list[tuple[int, int, str, bool]]] = {}
    of_model = [(n, p, p.requires_grad) for n, p in parameters.items()]
    for name, tensor, trained in [*of_model, *((n, b, False) for n, b in buffers.items())]:
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.numel() == 0:
            continue
        axes = list(zip(tensor.shape, tensor.stride(), strict=True))
        if trained and any(n > 1 and s == 0 for n, s in axes):
            yield Hidden(
                f"parameter '{name}'",
                "entries that share one place in memory (expand)",
                "store a copy: nn.Parameter(value.clone())",
            )
        begin, extent = tensor.data_ptr(), sum((n - 1) * s for n, s in axes)
        end = begin + (extent + 1) * tensor.element_size()
        others = homes.setdefault(tensor.untyped_storage().data_ptr(), [])
        for low, high, other, known in others:
            if (trained or known) and begin < high and low < end:
                yield Hidden(
                    f"'{other}' and '{name}'",
                    "memory that both share, so that a step on one moves the other",
                    "use the very same nn.Parameter in both places, or store a copy with clone()",
                )
        others.append((begin, end, name, trained))


def _hooks(holder: object, attribute: str, own: frozenset[int] = frozenset()) -> Iterable[object]:
    hooks = getattr(holder, attribute, None)
    found = hooks.items() if isinstance(hooks, Mapping) else ()
    return [hook for key, hook in found if key not in own]


def _called(hook: object) -> str:
    """The name of a hook, for people."""
    name = getattr(hook, "__qualname__", None) or type(hook).__name__
    return f"'{name.rpartition('<locals>.')[2].removeprefix('<listcomp>.')}'"


def _of_torch(function: object) -> bool:
    """Whether this is code of torch, whatever name it gives itself."""
    if isinstance(function, (classmethod, staticmethod)):
        function = function.__func__
    if not isinstance(function, FunctionType):
        # Builtins of torch; anything else that can be called was put there by somebody.
        return type(function).__name__ in ("builtin_function_or_method", "method_descriptor")
    home = str(function.__globals__.get("__name__", ""))
    return home == "torch" or home.startswith("torch.")


# Nodes of torch's graph that put gradients into parameters live as long as somebody holds them, and their
# hooks act on every later backward pass. Torch lists them nowhere; the garbage collector knows them.
_ALIVE = "milp_agt: alive"


def hooked_accumulators(parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """Parameters on whose nodes hooks are, or may be: name, what was found, what to do.

    Of a node that Python alone holds the hooks can be seen. One that hangs on the graph of an earlier
    computation hides them; it is suspicious if there are hooks that nobody in Python holds.
    """
    hidden = []
    for name, parameter in parameters.items():
        if not parameter.requires_grad or not parameter.is_leaf or parameter.is_inference():
            continue  # has no node
        node = _node(parameter)
        own = parameter._backward_hooks or {}
        found = [t for t in _tables(gc.get_referents(node)) if t is not own]
        if found:
            what = f"a hook on the node that takes its gradient, {_first(found)}"
            yield name, what, "remove it, and train without it"
            continue
        # A node that nobody holds is made anew for every question.
        node.metadata[_ALIVE] = True
        del node
        if _node(parameter).metadata.pop(_ALIVE, False):
            hidden.append(name)
    loose = list(_loose()) if hidden else []
    if loose:
        yield (
            hidden[0],
            "an earlier computation whose graph hangs on it, and hooks on nodes of some graph, "
            f"{_first(loose)}",
            "delete what is left of earlier computations (del loss, output), and leave such hooks out",
        )


def _node(parameter: Tensor) -> Any:
    with torch.inference_mode(False), torch.enable_grad():
        return get_gradient_edge(parameter).node


def _tables(objects: Iterable[object]) -> Iterator[OrderedDict[int, Any]]:
    """What looks like a table of hooks of torch."""
    for each in objects:
        if type(each) is OrderedDict and each and all(type(k) is int for k in each):
            yield each


def _loose() -> Iterator[OrderedDict[int, Any]]:
    """Tables of hooks that no object of Python holds, so that a node does."""
    tables = list(_tables(gc.get_objects()))
    for index in range(len(tables)):
        holders = [each for each in gc.get_referrers(tables[index]) if each is not tables]
        if not holders:
            yield tables[index]


def _first(tables: list[OrderedDict[int, Any]]) -> str:
    return _called(next(iter(tables[0].values())))
