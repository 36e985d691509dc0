"""Checks of arguments: one error in three parts, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError


def of_kind(value: object, kind: type | tuple[type, ...], what: str, remedy: str) -> None:
    """Check the type of an argument.

    Raises:
        InvalidInputError: an object of another kind.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(each.__name__ for each in kinds)
        raise InvalidInputError(
            f"{what} must be of type {names}", f"{type(value).__name__} {value!r:.60}", remedy
        )


def callable_of(value: object, what: str, remedy: str) -> None:
    """Check that an argument is callable.

    Raises:
        InvalidInputError: an object that is not.
    """
    if not callable(value):
        raise InvalidInputError(
            f"{what} must be a function", f"{type(value).__name__} {value!r:.60}", remedy
        )


def listed(value: object, kind: type | tuple[type, ...], what: str, remedy: str) -> None:
    """Check that an argument is a list (or another iterable, but not text) of objects of a kind.

    Raises:
        InvalidInputError: another object, or an entry of another kind.
    """
    none = isinstance(value, (str, bytes)) or getattr(value, "ndim", 1) == 0
    if none or not isinstance(value, Iterable):
        raise InvalidInputError(
            f"{what} must be a list", f"{type(value).__name__} {value!r:.60}", remedy
        )
    for entry in value:
        of_kind(entry, kind, f"An entry of {what}", remedy)


def is_at_least(value: object, lowest: float, *, whole: bool = False) -> bool:
    """Whether this is a real number (an integer if ``whole``) >= ``lowest``; False for NaN."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    return fits and bool(value >= lowest)  # type: ignore[operator]


def at_least(value: object, lowest: float, what: str, remedy: str, *, whole: bool = False) -> None:
    """Check that an argument is a real number (an integer if ``whole``; infinity allowed) >= ``lowest``.

    Raises:
        InvalidInputError: not a number, a bool, NaN, a fraction if ``whole``, or a smaller number.
    """
    if not is_at_least(value, lowest, whole=whole):
        asked = f"{what} must be {'a whole' if whole else 'a'} number >= {lowest:g}"
        raise InvalidInputError(asked, f"{type(value).__name__} {value!r:.60}", remedy)


def array_of(value: object, what: str, remedy: str) -> npt.NDArray[Any]:
    """An argument as a numpy array.

    Raises:
        InvalidInputError: rows of several lengths, or a tensor that torch cannot convert.
    """
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{what} must be an array", str(error), remedy) from None


def same_rows(features: object, labels: object, asked: str) -> None:
    """See that the rows of two tables of pandas carry the same labels in the same order.

    Raises:
        InvalidInputError: other labels; by position they would be joined to the wrong samples.
    """
    first: Any = getattr(features, "index", None)
    second: Any = getattr(labels, "index", None)
    if not hasattr(first, "equals") or not hasattr(second, "equals") or len(first) != len(second):
        return
    if not first.equals(second):
        at = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        raise InvalidInputError(
            asked,
            f"features and labels whose indices differ: {first[at]!r} and {second[at]!r} at position {at}",
            "give y.loc[X.index] if rows of one name belong together, y.to_numpy() if those in one place do",
        )


def columns_of(value: object) -> tuple[str, ...]:
    """The names of the columns of a DataFrame; none for anything else."""
    columns = getattr(value, "columns", None)
    if columns is None or not hasattr(value, "dtypes"):
        return ()
    return tuple(str(name) for name in columns)
