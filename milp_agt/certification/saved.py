"""Files of results: arrays with a versioned description, and architectures as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE, replace
from milp_agt.training.layers.builder import layer_rules
from milp_agt.training.plain_calls import CALLS, Forward, Group, unpacked

VERSION = 1
_ABOUT = "about"


def write(path: Path, arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write an .npz file atomically: a half-written file never replaces a good one.

    Raises:
        InvalidInputError: no such folder, or one that cannot be written.
    """
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    text = json.dumps({"version": VERSION, **about})
    if not path.parent.is_dir():
        raise InvalidInputError(
            f"A result was to be saved as {path}", "no such folder", "make the folder first"
        )
    named = {_ABOUT: np.array(text), **arrays}
    try:
        replace(path, lambda stream: np.savez_compressed(stream, allow_pickle=False, **named))
    except OSError as error:
        raise InvalidInputError(
            f"A result was to be saved as {path}",
            error.strerror or str(error),
            "make room, or save it elsewhere; a file that was there is as it was",
        ) from error


def read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Read a file written by :func:`write`.

    Raises:
        InvalidInputError: a missing or damaged file, or another version.
    """
    path = path if path.exists() or path.suffix == ".npz" else path.with_name(path.name + ".npz")
    try:
        with open(path, "rb") as stream:
            stored = np.load(stream, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            arrays = {name: stored[name] for name in stored.files}
        about: dict[str, Any] = json.loads(str(arrays.pop(_ABOUT)))
        if not isinstance(about, dict):
            raise ValueError("a description that is no table")
    except DAMAGE as error:
        raise InvalidInputError(
            f"A saved result was to be read from {path}", str(error), "save the result again"
        ) from None
    if about.get("version") != VERSION:
        raise InvalidInputError(
            f"A saved result of version {VERSION} is needed",
            f"version {about.get('version')} in {path}",
            "certify again with this version of milp_agt",
        )
    return arrays, about


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
