"""Arguments of the wrong kind get one error in three parts, before anything is done with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError


def of_kind(value: object, kind: type | tuple[type, ...], what: str, remedy: str) -> None:
    """See that an argument is what it is called.

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
    """See that an argument can be called.

    Raises:
        InvalidInputError: an object that cannot.
    """
    if not callable(value):
        raise InvalidInputError(
            f"{what} must be a function", f"{type(value).__name__} {value!r:.60}", remedy
        )


def listed(value: object, kind: type | tuple[type, ...], what: str, remedy: str) -> None:
    """See that an argument is a list (or another series, no text) of things of a kind.

    Raises:
        InvalidInputError: an object that is none, or an entry of another kind.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InvalidInputError(
            f"{what} must be a list", f"{type(value).__name__} {value!r:.60}", remedy
        )
    for entry in value:
        of_kind(entry, kind, f"An entry of {what}", remedy)


def is_at_least(value: object, lowest: float, *, whole: bool = False) -> bool:
    """Whether this is a real number (whole, if it counts) that is not too small; NaN never is."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    return fits and bool(value >= lowest)  # type: ignore[operator]


def at_least(value: object, lowest: float, what: str, remedy: str, *, whole: bool = False) -> None:
    """See that an argument is a real number (infinity included) that is not too small.

    Raises:
        InvalidInputError: no number, a truth value, NaN, a fraction where it counts, or less.
    """
    if not is_at_least(value, lowest, whole=whole):
        wanted = "a whole number" if whole else "a number"
        raise InvalidInputError(
            f"{what} must be {wanted} >= {lowest:g}",
            f"{type(value).__name__} {value!r:.60}",
            remedy,
        )


def array_of(value: object, what: str, remedy: str) -> npt.NDArray[Any]:
    """An argument as an array of numpy.

    Raises:
        InvalidInputError: rows of several lengths, or what torch does not hand over.
    """
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{what} must be an array", str(error), remedy) from None


def real_array(value: object, what: str, remedy: str) -> npt.NDArray[Any]:
    """Features or labels as an array of numpy, where nothing of them is lost on the way.

    Arrays, nested lists, tensors on any device, and DataFrames of numbers and truth values.

    Raises:
        InvalidInputError: masked entries, sparse storage, columns of text or with missing values,
            complex numbers, dates, or what is no array at all.
    """
    _refuse_storage(value, what)
    if callable(getattr(value, "detach", None)):
        value = value.detach().cpu()  # type: ignore[attr-defined]
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":
            value = value.double()  # type: ignore[attr-defined]  # exact; numpy has no such type
    elif hasattr(value, "columns") and hasattr(value, "dtypes"):
        value = _of_frame(value, what)
    found = np.asanyarray(array_of(value, what, remedy))
    if found.dtype == object:
        found = _of_objects(found, what)
    if found.dtype.kind not in "fiub":
        words = {"U": "text", "S": "bytes", "c": "complex numbers", "M": "dates", "m": "time spans"}
        kind = words.get(found.dtype.kind, f"type {found.dtype}")
        remedies = {
            "M": "give numbers of days or seconds: (dates - dates.min()) / np.timedelta64(1, 'D')",
            "U": "convert text columns to numbers (classes as 0, 1, 2, ...) or drop them",
        }
        raise InvalidInputError(
            f"{what} must be an array of numbers",
            f"{kind}, shape {found.shape}",
            remedies.get(found.dtype.kind, "give real numbers"),
        )
    return np.asarray(found)


def _refuse_storage(value: object, what: str) -> None:
    """Masked and sparse arrays, whose plain numbers are not what they mean."""
    if isinstance(value, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(value)
        if masked.any():
            first = tuple(int(i) for i in np.argwhere(masked)[0])
            raise InvalidInputError(
                f"{what} must be whole",
                f"a masked array with {int(masked.sum())} missing values, the first at {first}",
                "impute them, or drop these samples: x[~np.ma.getmaskarray(x).any(axis=1)]",
            )
    layout = str(getattr(value, "layout", "torch.strided"))
    if layout != "torch.strided" or getattr(value, "is_nested", False):
        raise InvalidInputError(
            f"{what} must be a dense array", f"a tensor of layout {layout}", "give x.to_dense()"
        )
    if callable(getattr(value, "toarray", None)) and hasattr(value, "nnz"):
        raise InvalidInputError(
            f"{what} must be a dense array",
            f"{type(value).__name__} of shape {getattr(value, 'shape', ())}",
            "give x.toarray()",
        )


def _of_frame(value: Any, what: str) -> npt.NDArray[Any]:
    """A DataFrame as numbers; truth values as 0 and 1."""
    columns, text, missing = [], [], []
    for name in value.columns:
        column = value[name]
        if len(getattr(column, "shape", (0,))) != 1:
            raise InvalidInputError(
                f"{what} must have a column for each name", f"'{name}' more than once", "rename one"
            )
        if getattr(getattr(column, "dtype", None), "kind", "O") in "fiub" and not hasattr(
            column.dtype, "na_value"
        ):
            columns.append(np.asarray(column))
            continue
        entries = list(column)
        absent = [_is_absent(each) for each in entries]
        odd = [e for e, gone in zip(entries, absent, strict=True) if not gone and not _is_real(e)]
        if odd:
            text.append((str(name), odd[0]))
        elif any(absent):
            missing.append((str(name), absent.index(True)))
        else:
            columns.append(np.array(entries))
    if text:
        name, entry = text[0]
        raise InvalidInputError(
            f"{what} must be an array of numbers",
            f"a DataFrame with other columns: {', '.join(n for n, _ in text):.80} ('{entry}' in '{name}', "
            "for instance)",
            "encode these columns as numbers (classes as 0, 1, 2, ...) or drop them",
        )
    if missing:
        name, row = missing[0]
        raise InvalidInputError(
            f"{what} must be whole",
            f"a DataFrame with missing values in {', '.join(n for n, _ in missing):.80}, the first in "
            f"'{name}' at position {row}",
            "impute these columns, or drop these rows",
        )
    return np.column_stack(columns) if columns else np.empty((len(value), 0))


def _of_objects(values: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    """An array of Python objects that are all numbers."""
    flat = values.reshape(-1).tolist()
    odd = next((each for each in flat if not _is_real(each)), "")
    if odd == "" and flat:
        return np.array(flat).reshape(values.shape)
    raise InvalidInputError(
        f"{what} must be an array of numbers",
        f"objects, for instance {type(odd).__name__} {odd!r:.40}",
        "drop or impute missing values" if _is_absent(odd) else "convert text columns to numbers",
    )


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating, np.bool_))


def _is_absent(value: object) -> bool:
    """None, NaN, and what pandas writes for a missing value or date."""
    nan = isinstance(value, (float, np.floating)) and value != value
    return value is None or bool(nan) or type(value).__name__ in ("NAType", "NaTType")


def columns_of(value: object) -> tuple[str, ...]:
    """The names of the columns of a DataFrame; none for anything else."""
    columns = getattr(value, "columns", None)
    if columns is None or not hasattr(value, "dtypes"):
        return ()
    return tuple(str(name) for name in columns)
