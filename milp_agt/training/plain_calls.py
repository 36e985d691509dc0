"""Calls of a traced forward as plain data, which JSON keeps."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, fx

from milp_agt.training.layers.builder import Unknown

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
        whole = not value.dtype.is_floating_point
        return {"tensor": value.tolist(), "whole": whole}
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
