"""Checks of norms and radii given by users."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.errors import InvalidThreatModelError

Array = npt.NDArray[np.float64]
Numbers = float | Sequence[float] | Array
Radius = float | Sequence[float] | Sequence[Sequence[float]] | Array
Rows = tuple[Sequence[Sequence[float]] | Array, Sequence[float] | Array]
NORMS = {"inf": math.inf, "2": 2.0, "1": 1.0, "0": 0.0}


def norm_of(name: str, given: str | float) -> float:
    """The order of a norm: inf, 2, 1 or 0, given as a number or a string.

    Raises:
        InvalidThreatModelError: any other value.
    """
    known = given if isinstance(given, (str, int, float)) and not isinstance(given, bool) else None
    for word, order in NORMS.items():
        if known in (word, order):
            return order
    raise InvalidThreatModelError(
        f"{name} in norm {given!r}", "no such norm", "use norm 'inf', 2, 1 or 0"
    )


def radii(
    name: str, given: Radius, like: Tensor, may_be_infinite: bool, what: str = "feature"
) -> Tensor:
    """A radius for each entry of ``like`` (N, *shape), from one, one per entry, per sample, or for both.

    The same radius for all samples is stored once, as a view.

    Raises:
        InvalidThreatModelError: not numbers, below 0, NaN, or a shape that fits nowhere or is ambiguous.
    """
    asked = f"{name} needs one radius, or one for each {what} or sample"
    count, shape = len(like), tuple(like.shape[1:])
    known = f"shape {shape}, ({count},) or ({count}, {', '.join(map(str, shape))})"
    try:
        values = torch.from_numpy(np.array(given, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InvalidThreatModelError(asked, str(error), f"give a number, or {known}") from None
    per_sample = (count, *[1] * len(shape))
    found = tuple(values.shape)
    if found == shape == (count,) and count > 1:
        raise InvalidThreatModelError(
            asked,
            f"shape {found}, with as many samples as {what}s",
            f"give shape {per_sample} for samples, ({count}, {count}) for {what}s",
        )
    if found not in ((), shape, (count,), per_sample, tuple(like.shape)):
        raise InvalidThreatModelError(asked, f"shape {found}", f"give {known}")
    finite = torch.isfinite(values) | (values == torch.inf) & may_be_infinite
    if not bool((finite & (values >= 0)).all()):
        raise InvalidThreatModelError(
            f"{name} needs finite radii >= 0", f"radius = {given}", "give numbers >= 0"
        )
    if found == (count,) and found != shape:
        values = values.reshape(per_sample)
    return values.expand(like.shape)


def is_whole(value: object) -> bool:
    """Whether this is an integer, and not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether this is a real number, and not a bool."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def radius_text(radius: Radius) -> str:
    """A radius in words."""
    if np.ndim(radius) == 0:
        return f"{float(radius):g}"  # type: ignore[arg-type]
    values = np.asarray(radius)
    return f"a radius between {values.min():g} and {values.max():g}"
