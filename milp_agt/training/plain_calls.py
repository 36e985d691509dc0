"""Calls of a traced forward as plain data, which JSON keeps, and a module that runs them again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, fx, nn

from milp_agt.training.layers.builder import Unknown
from milp_agt.training.layers.functions import FUNCTIONS

# The attribute of a traced module under which its calls are kept.
CALLS = "_traced_calls"
Call = dict[str, Any]


def packed(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, slice):
        return {"slice": [packed(v) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, EllipsisType):
        return {"ellipsis": True}
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "whole": not value.dtype.is_floating_point}
    if isinstance(value, (tuple, list)):
        return {"items": [packed(v) for v in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"unknown": str(value)}


def unpacked(value: Any, get: Callable[[str], Any]) -> Any:
    """An argument from its plain form; ``get`` gives the value of an earlier call."""
    if not isinstance(value, dict):
        return value
    if "node" in value:
        return get(value["node"])
    if "slice" in value:
        return slice(*(unpacked(v, get) for v in value["slice"]))
    if "items" in value:
        return tuple(unpacked(v, get) for v in value["items"])
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=torch.int64 if value["whole"] else torch.float64)
    if "ellipsis" in value:
        return ...
    return Unknown(value["unknown"])


def arguments(call: Call, get: Callable[[str], Any]) -> tuple[list[Any], dict[str, Any]]:
    """Those of a call, by place and by name."""
    named = {name: unpacked(value, get) for name, value in call["kwargs"].items()}
    return [unpacked(value, get) for value in call["args"]], named


def attribute(root: nn.Module, path: str) -> Any:
    """What stands at a path of names below a module."""
    return operator.attrgetter(path)(root)


class Group(nn.Module):
    """Parameters and layers under their names, without a forward."""

    def __init__(self, parameters: Mapping[str, Any], buffers: Mapping[str, Any]) -> None:
        super().__init__()
        for name, (shape, trains) in parameters.items():
            empty = torch.zeros(shape, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=trains))
        for name, shape in buffers.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))


class Forward(Group):
    """Runs recorded calls one after the other."""

    def __init__(
        self, calls: Sequence[Call], parameters: Mapping[str, Any], buffers: Mapping[str, Any]
    ) -> None:
        super().__init__(parameters, buffers)
        setattr(self, CALLS, list(calls))

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {}
        *calls, output = getattr(self, CALLS)
        for call in calls:
            values[call["name"]] = x if call["op"] == "placeholder" else self._run(call, values)
        result: Tensor = unpacked(output["args"][0], values.__getitem__)
        return result

    def _run(self, call: Call, values: dict[str, Any]) -> Any:
        if call["op"] == "get_attr":
            return attribute(self, call["target"])
        if call["op"] == "constant":
            return unpacked(call["value"], values.__getitem__)
        args, kwargs = arguments(call, values.__getitem__)
        if call["op"] == "call_module":
            return self.get_submodule(call["target"])(*args, **kwargs)
        return FUNCTIONS[call["target"]].run(*args, **kwargs)
