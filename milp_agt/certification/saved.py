"""Files of results, and architectures as plain data in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from milp_agt.io.files import Archive
from milp_agt.training.layers.builder import layer_rules
from milp_agt.training.plain_calls import CALLS, Forward, Group, unpacked

FILE = Archive("A saved result", 1, "give a file that result.save(path) wrote, or save it again")


def describe(model: nn.Module, seen: dict[int, int] | None = None) -> dict[str, Any]:
    """A model of supported layers as plain data; a module that occurs twice is named once."""
    seen = {} if seen is None else seen
    if id(model) in seen:
        return {"type": "Shared", "number": seen[id(model)]}
    seen[id(model)] = len(seen)
    kind = type(model).__name__
    frozen = [n for n, p in model.named_parameters(recurse=False) if not p.requires_grad]
    about: dict[str, Any] = {"type": kind, "frozen": frozen}
    rule = layer_rules().get(type(model))
    if rule is None:
        children = {n: describe(c, seen) for n, c in model._modules.items() if c is not None}
        if type(model).forward is nn.Sequential.forward:
            return about | {"type": "Sequential", "children": children}
        return about | {"type": "Forward", "children": children} | _own(model)
    options = {name: getattr(model, name) for name in rule.saved}
    if "bias" in options:
        options["bias"] = options["bias"] is not None
    return about | {"options": options}


def _own(model: nn.Module) -> dict[str, Any]:
    """Calls, parameters and buffers of a module with a forward of its own, or of a part of one.

    Names that share a parameter are named once; ``ties`` says which are the others.
    """
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    parameters: dict[str, Any] = {}
    for name, parameter in model._parameters.items():
        if parameter is None:
            continue
        if first.setdefault(id(parameter), name) != name:
            ties[name] = first[id(parameter)]
            continue
        parameters[name] = [list(parameter.shape), parameter.requires_grad]
    buffers = {
        name: list(value.shape)
        for name, value in model._buffers.items()
        if value is not None and name not in model._non_persistent_buffers_set
    }
    fixed = {
        name: {"tensor": value.tolist(), "whole": not value.dtype.is_floating_point}
        for name, value in model._buffers.items()
        if value is not None and name in model._non_persistent_buffers_set
    }
    own = {"parameters": parameters, "buffers": buffers, "ties": ties, "fixed": fixed}
    return own | {"calls": getattr(model, CALLS, None)}


def _rebuild_own(about: Mapping[str, Any], seen: list[nn.Module]) -> nn.Module:
    kept = (about["parameters"], about["buffers"])
    model = Group(*kept) if about["calls"] is None else Forward(about["calls"], *kept)
    seen.append(model)
    for name, other in about["ties"].items():
        model.register_parameter(name, model._parameters[other])
    for name, value in about["fixed"].items():
        model.register_buffer(name, unpacked(value, str), persistent=False)
    for name, child in about["children"].items():
        model.add_module(name, rebuild(child, seen))
    return model


def rebuild(about: Mapping[str, Any], seen: list[nn.Module] | None = None) -> nn.Module:
    """The inverse of :func:`describe`: a float64 model with fresh weights."""
    seen = [] if seen is None else seen
    if about["type"] == "Shared":
        shared: nn.Module = seen[about["number"]]
        return shared
    if about["type"] == "Sequential":
        model = nn.Sequential()
        seen.append(model)
        for name, child in about["children"].items():
            model.add_module(name, rebuild(child, seen))
        return model
    if about["type"] == "Forward":
        return _rebuild_own(about, seen)
    kinds: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in layer_rules()}
    # Evaluation mode, because the tracer refuses a training mode that changes anything.
    module = kinds[about["type"]](**about["options"]).eval()
    module.double()
    seen.append(module)
    for name, parameter in module.named_parameters(recurse=False):
        parameter.requires_grad_(name not in about["frozen"])
    return module
