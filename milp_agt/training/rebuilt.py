"""A forward that was kept as plain data, as a module again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milp_agt.training.layers.functions import FUNCTIONS
from milp_agt.training.plain_calls import CALLS, Call, unpacked


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
        for call in getattr(self, CALLS):
            if call["op"] == "output":
                break
            values[call["name"]] = x if call["op"] == "placeholder" else self._run(call, values)
        result: Tensor = unpacked(call["args"][0], values.__getitem__)
        return result

    def _run(self, call: Call, values: dict[str, Any]) -> Any:
        if call["op"] == "get_attr":
            value: Any = self
            for name in call["target"].split("."):
                value = getattr(value, name)
            return value
        if call["op"] == "constant":
            return unpacked(call["value"], values.__getitem__)
        args = [unpacked(a, values.__getitem__) for a in call["args"]]
        kwargs = {n: unpacked(v, values.__getitem__) for n, v in call["kwargs"].items()}
        if call["op"] == "call_module":
            return self.get_submodule(call["target"])(*args, **kwargs)
        return FUNCTIONS[call["target"]].run(*args, **kwargs)
