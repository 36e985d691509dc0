"""What a data set must be: plain numbers, finite, of shapes that fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.core.numbers import all_finite, numbers_of
from milp_agt.errors import InvalidInputError

Array = npt.NDArray[Any]
EXACT = 2**53


def checked(
    asked: str,
    part: str,
    x: Array,
    y: Array,
    task: str | None,
    names: tuple[str, ...] = (),
    lines: Array | None = None,
) -> tuple[Array, Array]:
    """Features as float64 (n, ...), targets as int64 (n,) or float64 (n,) or (n, outputs).

    Raises:
        InvalidInputError: no numbers, shapes that do not fit, NaN, labels that are no classes.
    """
    for label, array in (("features", x), ("targets", y)):
        if array.dtype.kind not in "fiub":
            raise InvalidInputError(
                asked, f"{label}{part} of type {array.dtype}", "store plain numbers"
            )
    if x.ndim < 2 or x.size == 0 or y.ndim not in (1, 2) or y.size == 0 or len(x) != len(y):
        raise InvalidInputError(
            asked,
            f"features{part} of shape {x.shape} and targets of shape {y.shape}",
            "give features (n, features) and targets (n,) or (n, outputs) with the same n >= 1",
        )
    all_finite(asked, f"the features{part}", x, names, lines)
    all_finite(asked, f"the targets{part}", y, (), lines)
    x = exact(asked, f"features{part}", x)
    if task == "regression" or (task is None and y.dtype.kind == "f"):
        return x, exact(asked, f"targets{part}", y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or (y != np.round(y)).any() or (y < 0).any():
        found = f"values from {y.min()} to {y.max()}"
        remedy = "number the classes 0, 1, 2, ... (0 and 1 for two classes, hinge included)"
        if y.ndim != 1:
            found = f"shape {y.shape}"
            one_hot = bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())
            remedy = "give y.argmax(axis=1)" if one_hot else remedy
        raise InvalidInputError(asked, f"class labels{part} with {found}", remedy)
    return x, y.astype(np.int64, copy=False)


def exact(asked: str, what: str, values: Array) -> Array:
    """The values as float64, where none is rounded by that.

    Raises:
        InvalidInputError: whole numbers beyond 2^53, or floats longer than float64, that would be.
    """
    converted = values.astype(np.float64, copy=False)
    if values.dtype.kind in "iu":
        rounded = (np.abs(converted) >= EXACT) & (converted.astype(object) != values.astype(object))
    elif values.dtype.itemsize > 8:
        rounded = converted != values
    else:
        return converted
    if rounded.any():
        first = tuple(int(i) for i in np.argwhere(rounded)[0])
        raise InvalidInputError(
            asked,
            f"{int(rounded.sum())} {what} that float64 would round, the first at {first}: {values[first]}",
            "drop columns that say who a sample is; scale quantities, or round them to float64 yourself",
        )
    return converted


def copied(values: Any, what: str) -> Array:
    """An own copy of the numbers in an array, a tensor, a DataFrame or lists.

    Raises:
        InvalidInputError: no numbers, missing or masked ones, or a sparse form.
    """
    layout = str(getattr(values, "layout", "torch.strided"))
    if layout != "torch.strided":
        raise InvalidInputError(
            f"{what} must be an array of real numbers",
            f"a sparse tensor ({layout})",
            "give it dense: .to_dense()",
        )
    if callable(getattr(values, "detach", None)):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.double()  # exact, and numpy has no such type
        if not (values.is_nested or values.is_quantized):
            values = values.numpy()
    return np.array(numbers_of(values, what))
