"""The registry of operations, and the elementwise linear bounds that they hand to the walk."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, replace

from torch import Tensor

from milp_agt.core.graph import Operation
from milp_agt.errors import UnsupportedOperationError

_OPERATIONS: dict[str, type[Operation]] = {}


def register(operation: type[Operation]) -> type[Operation]:
    """Class decorator: enter an operation under its key; a key that is taken raises."""
    if operation.key in _OPERATIONS:
        raise UnsupportedOperationError(
            f"Operation '{operation.key}' was registered twice",
            f"{_OPERATIONS[operation.key].__name__} and {operation.__name__}",
            "choose another key",
        )
    _OPERATIONS[operation.key] = operation
    return operation


def operations() -> dict[str, type[Operation]]:
    """Every registered operation by key. All modules of this package are imported first."""
    import milp_agt.formulations as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_OPERATIONS.items()))


@dataclass(frozen=True, slots=True)
class ElementwisePlanes:
    """``slope_lower u + lower[s] <= v <= slope_upper u + upper[s]``, elementwise, u the first input.

    Slopes have the shape of the node, ([samples], *shape), or both are the float 1; offsets have states
    before it. Where both are one object, the pull does not depend on the signs of the coefficients.
    ``others`` are further inputs, which get none.
    """

    slope_lower: Tensor | float
    slope_upper: Tensor | float
    lower: Tensor
    upper: Tensor
    magnitude: Tensor
    others: int = 0

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> tuple[Tensor | None, ...]:
        if isinstance(self.slope_lower, float):
            pulled = coefficients
        elif self.slope_lower is self.slope_upper:
            pulled = coefficients * self.slope_lower
        else:
            positive = coefficients.clamp(min=0.0)
            pulled = positive * self.slope_lower + (coefficients - positive) * self.slope_upper
        return (pulled, *[None] * self.others)

    def narrow(self, axis: int, index: Tensor) -> tuple[ElementwisePlanes, tuple[int | None, ...]]:
        lower = upper = _picked(self.slope_lower, axis, index)
        if self.slope_lower is not self.slope_upper:
            upper = _picked(self.slope_upper, axis, index)
        return replace(self, slope_lower=lower, slope_upper=upper), (axis, *[None] * self.others)


def _picked(slope: Tensor | float, axis: int, index: Tensor) -> Tensor | float:
    return slope if isinstance(slope, float) else slope.index_select(axis, index)
