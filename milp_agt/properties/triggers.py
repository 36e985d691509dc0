"""Triggers: what may be done to a test input at the time of prediction, as a box of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.core.arguments import array_of
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.errors import InvalidInputError

Values = float | Sequence[Any] | npt.NDArray[Any] | Tensor
Coordinates = Sequence[Any] | npt.NDArray[Any] | Tensor


class Trigger(Protocol):
    """A set of inputs that the adversary may present in place of each test input."""

    def inputs(self, features: Tensor) -> Interval:
        """The smallest box around the set, (1, n, *shape), for features (n, *shape)."""
        ...


def check_trigger(trigger: object) -> None:
    """Refuse what is no trigger."""
    if isinstance(trigger, type) or not callable(getattr(trigger, "inputs", None)):
        raise InvalidInputError(
            "A trigger says what may be done to a test input",
            f"{type(trigger).__name__} {trigger!r:.60}",
            "give agt.BallTrigger(radius), for instance",
        )


@dataclass(frozen=True)
class BallTrigger:
    """Every coordinate may move by at most ``radius``: one number, or one for each coordinate.

    With ``low`` and ``high`` the triggered input stays in this domain as well (each one number or
    one for each coordinate); the test inputs themselves must lie in it.

    Raises:
        InvalidInputError: when it is applied: a radius below 0, inputs outside the domain, shapes.
    """

    radius: Values
    low: Values | None = None
    high: Values | None = None

    def inputs(self, features: Tensor) -> Interval:
        what = "The radius of a ball trigger"
        radius = _spread(self.radius, features, what)
        if not bool((torch.isfinite(radius) & (radius >= 0)).all()):
            asked = f"{what} is a finite number >= 0"
            raise InvalidInputError(asked, _range(radius), "give numbers >= 0")
        # x + e is rounded to nearest, so that the ends are moved outwards by one float.
        down, up = features - torch.inf, features + torch.inf
        lower = torch.where(radius > 0, torch.nextafter(features - radius, down), features)
        upper = torch.where(radius > 0, torch.nextafter(features + radius, up), features)
        if self.low is not None:
            lower = torch.maximum(lower, _spread(self.low, features, "The low end of the domain"))
        if self.high is not None:
            upper = torch.minimum(upper, _spread(self.high, features, "The high end of the domain"))
        inside = (lower <= features) & (features <= upper)
        if not bool(inside.all()):
            raise InvalidInputError(
                "The test inputs must lie in the domain of the trigger",
                f"{int((~inside).sum())} coordinates outside [low, high]",
                "widen the domain, or correct the inputs",
            )
        return _box(lower, upper)


@dataclass(frozen=True)
class FreeTrigger:
    """Some coordinates may take any value in [low, high]; the others stay as they are.

    Attributes:
        coordinates: a mask of bools of the shape of one input, or (for flat inputs) their positions.
        low, high: one number, or one for each coordinate of the input.
    """

    coordinates: Coordinates
    low: Values
    high: Values

    def inputs(self, features: Tensor) -> Interval:
        mask = _mask(self.coordinates, features)
        low = _spread(self.low, features, "The low end of a free trigger")
        high = _spread(self.high, features, "The high end of a free trigger")
        if not bool((torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all()):
            raise InvalidInputError(
                "A free trigger needs finite ends with low <= high",
                f"low in {_range(low)}, high in {_range(high)}",
                "correct the ends",
            )
        return _box(torch.where(mask, low, features), torch.where(mask, high, features))


@dataclass(frozen=True)
class PatchTrigger:
    """Some coordinates are overwritten by fixed values; the others stay as they are.

    Attributes:
        coordinates: a mask of bools of the shape of one input, or (for flat inputs) their positions.
        values: one number, or one for each coordinate of the input (those outside the mask do not
            count).
    """

    coordinates: Coordinates
    values: Values

    def inputs(self, features: Tensor) -> Interval:
        mask = _mask(self.coordinates, features)
        values = _spread(self.values, features, "The values of a patch")
        if not bool(torch.isfinite(values[:, mask]).all()):
            asked = "The values of a patch must be finite"
            raise InvalidInputError(asked, _range(values), "correct the values")
        patched = torch.where(mask, values, features)
        return _box(patched, patched)


def descended(
    margin: Callable[[Tensor], Tensor], start: Tensor, box: Interval, parts: Sequence[float]
) -> Tensor:
    """Inputs in a box with small margins: signed gradient steps from ``start``, the best of each point.

    Each step is the width of the box by one of ``parts``; ``margin`` is of inputs (..., n, *shape).
    """
    low, high = box.lower[CLEAN], box.upper[CLEAN]
    best = current = start
    smallest: Tensor | None = None
    for part in (*parts, None):
        leaf = current.detach().clone().requires_grad_()
        with torch.enable_grad():
            found = margin(leaf)
            (slope,) = torch.autograd.grad(found.sum(), leaf)
        found = found.detach()
        if smallest is None:
            smallest = torch.full_like(found, torch.inf)
        better = (found < smallest).reshape(*found.shape, *[1] * (current.dim() - found.dim()))
        smallest, best = torch.minimum(found, smallest), torch.where(better, current, best)
        if part is not None:
            moved = current - (high - low) / part * torch.sign(torch.nan_to_num(slope))
            current = torch.minimum(torch.maximum(moved, low), high)
    return best.detach()


def _box(lower: Tensor, upper: Tensor) -> Interval:
    return Interval(lower.unsqueeze(0), upper.unsqueeze(0))


def _spread(values: Values, features: Tensor, what: str) -> Tensor:
    """One number, or one for each coordinate, as (n, *shape)."""
    shape = tuple(features.shape[1:])
    try:
        array = torch.as_tensor(np.asarray(values, dtype=np.float64)).to(features)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{what} needs numbers", str(error), f"give one number, or an array {shape}"
        ) from None
    if array.dim() and tuple(array.shape) != shape:
        raise InvalidInputError(
            f"{what} needs one number, or one for each coordinate {shape}",
            f"shape {tuple(array.shape)}",
            "match the shape of one test input",
        )
    return array.expand(features.shape)


def _mask(coordinates: Coordinates, features: Tensor) -> Tensor:
    """Mask of one input, (*shape)."""
    shape, what = tuple(features.shape[1:]), "The coordinates of a trigger"
    remedy = "match the shape of one test input"
    array = array_of(coordinates, what, remedy)
    if array.dtype == np.bool_ and array.shape == shape:
        mask = torch.from_numpy(array.copy())
    elif array.dtype.kind in "iu" and array.ndim == 1 and len(shape) == 1:
        bad = [int(c) for c in array if not 0 <= c < shape[0]]
        if bad:
            asked = f"{what} are positions 0..{shape[0] - 1}"
            raise InvalidInputError(asked, f"{bad[:5]}", "correct the positions")
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[array.astype(np.int64)] = True
    else:
        raise InvalidInputError(
            f"{what} are a mask of bools of shape {shape}"
            + (", or a list of positions" if len(shape) == 1 else ""),
            f"shape {array.shape} of type {array.dtype}",
            remedy,
        )
    if not bool(mask.any()):
        asked = "A trigger needs at least one coordinate"
        raise InvalidInputError(asked, "none", "name the coordinates")
    return mask.to(features.device)


def _range(values: Tensor) -> str:
    return f"[{float(values.min()):g}, {float(values.max()):g}]"


def in_words(values: Values) -> str:
    """One number, or the least and the largest."""
    if isinstance(values, (int, float)):
        return f"{values:g}"
    array = np.asarray(values, dtype=np.float64)
    return f"{array.min():g} to {array.max():g}"
