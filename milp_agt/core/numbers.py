"""Arrays of real numbers out of what people hand in: numpy, torch, pandas, lists; nothing is guessed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError

Array = npt.NDArray[Any]
_MISSING = "drop or impute the missing values before training"
_TEXT = "give numbers: a code for each category, or leave text columns out"
SHOWN = 8  # columns, or samples, that are named
_KINDS = {"U": "text", "S": "text", "M": "dates", "m": "spans of time", "c": "complex numbers"}


def numbers_of(values: object, what: str) -> Array:
    """``values`` as an array of booleans, whole numbers or floats, in native byte order.

    The entries are those of ``values``; memory is shared where the form allows. Columns of a data
    frame, and entries of an array of objects, may be of several kinds of numbers.

    Raises:
        InvalidInputError: text, dates, missing or masked values, a sparse form, rows of several
            lengths, each with where it stands.
    """
    asked = f"{what} must be an array of real numbers"
    name = type(values).__name__
    if _is_of_torch(values):
        values = _dense(values, asked)
    elif isinstance(values, (list, tuple)) and values and _is_of_torch(values[0]):
        values = [_dense(each, asked) if _is_of_torch(each) else each for each in values]
    if _is_sparse(values):
        raise InvalidInputError(
            asked, f"a sparse {name}", "give it dense: .toarray(), or .to_dense() in torch"
        )
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        if mask.any():
            found = f"{int(mask.sum())} masked values, the first at {_first(mask)}"
            raise InvalidInputError(asked, found, _MISSING)
        return _plain(np.asarray(values.data), asked, name)
    if hasattr(values, "columns") and hasattr(values, "dtypes"):
        return _frame(values, asked)
    if hasattr(values, "to_numpy") and hasattr(values, "name"):
        return _column(values, asked, f"column '{values.name}'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.VisibleDeprecationWarning)
            array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        remedy = "give an array of numpy or torch"
        if isinstance(values, (list, tuple)):
            remedy = "give rows of one length, with a number in every place"
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(asked, f"{name}: {text}", remedy) from None
    return _plain(array, asked, name)


def _is_of_torch(values: object) -> bool:
    """Whether this is a tensor; torch need not be imported to know."""
    return callable(getattr(values, "detach", None))


def _dense(tensor: Any, asked: str) -> Array:
    """The entries of a tensor that has one in every place of memory."""
    sparse = not tensor.is_nested and str(tensor.layout) != "torch.strided"
    nested = "a nested tensor, of rows of several lengths"
    for odd, found, remedy in (
        (tensor.is_nested, nested, "give rows of one length"),
        (sparse, f"a sparse tensor ({tensor.layout})", "give it dense: .to_dense()"),
        (tensor.is_quantized, f"a quantised tensor ({tensor.dtype})", "give .dequantize()"),
        (tensor.is_meta, "a tensor without values (device 'meta')", "give the data themselves"),
    ):
        if odd:
            raise InvalidInputError(asked, found, remedy)
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if str(plain.dtype).startswith(("torch.bfloat16", "torch.float8")):
        plain = plain.double()  # exact, and numpy has no such types
    array: Array = plain.numpy()
    return array


def _is_sparse(values: object) -> bool:
    if callable(getattr(values, "toarray", None)) and hasattr(values, "nnz"):
        return True
    dtypes = getattr(values, "dtypes", None)
    if isinstance(values, np.ndarray) or dtypes is None or not isinstance(dtypes, Iterable):
        return False
    return any(type(dtype).__name__ == "SparseDtype" for dtype in dtypes)


def _first(mask: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _frame(frame: Any, asked: str) -> Array:
    """The columns of a data frame of pandas side by side, each of numbers."""
    texts: dict[str, list[str]] = {}
    columns = []
    for position, name in enumerate(frame.columns):
        try:
            columns.append(_column(frame.iloc[:, position], asked, f"column '{name}'"))
        except InvalidInputError as error:
            texts.setdefault(error.remedy, []).append(error.found)
    if texts:
        raise InvalidInputError(
            asked, "; ".join(f for each in texts.values() for f in each), "; ".join(texts)
        )
    if not columns:
        raise InvalidInputError(asked, "a table without columns", "give at least one column")
    return np.stack(columns, axis=1)


def _column(series: Any, asked: str, where: str) -> Array:
    kind = str(getattr(series, "dtype", ""))
    if kind == "category":
        raise InvalidInputError(asked, f"{where} of categories", _TEXT)
    array = series.to_numpy()
    if array.dtype.kind == "O" and hasattr(series, "isna"):
        gaps = np.flatnonzero(np.asarray(series.isna()))
        if len(gaps):
            raise InvalidInputError(
                asked, f"{where}: {len(gaps)} missing values, the first in row {gaps[0]}", _MISSING
            )
    return _plain(array, asked, where)


def _plain(array: Array, asked: str, where: str) -> Array:
    kind = array.dtype.kind
    if kind == "O":
        return _objects(array, asked, where)
    if array.dtype.names is not None:
        raise InvalidInputError(
            asked,
            f"{where} with the named columns {', '.join(array.dtype.names)}",
            "stack them: np.stack([data[name] for name in data.dtype.names], axis=1)",
        )
    if kind not in "biuf":
        found = _KINDS.get(kind, f"entries of type {array.dtype}")
        remedy = _TEXT if kind in "US" else "give real numbers"
        raise InvalidInputError(asked, f"{where}: {found}", remedy)
    if kind == "f" and array.dtype.itemsize > 8:
        raise InvalidInputError(
            asked,
            f"{where}: entries of type {array.dtype}, more precise than float64",
            "round them yourself: data.astype(np.float64)",
        )
    native = array.dtype.newbyteorder("=")
    reversed_axes = any(stride < 0 for stride in array.strides)
    if array.dtype != native or reversed_axes or not array.flags.writeable:
        return np.array(array, dtype=native, order="C")
    return array


def _objects(array: Array, asked: str, where: str) -> Array:
    """An array of Python objects that are all numbers or truth values."""
    if array.ndim == 0:
        found = f"{type(array.item()).__name__} {array.item()!r:.40}"
        raise InvalidInputError(asked, found, "give an array of numpy or torch, or a list")
    flat = array.reshape(-1).tolist()
    wrong = [not isinstance(v, (bool, int, float, np.bool_, np.integer, np.floating)) for v in flat]
    if not any(wrong):
        return np.array(flat, dtype=np.float64).reshape(array.shape)
    bad = np.array(wrong).reshape(array.shape)
    at = _first(bad)
    value = array[at]
    found = f"{where}: {int(bad.sum())} entries that are no numbers, "
    if array.ndim == 2:
        found += f"in {_columns(np.flatnonzero(bad.any(0)), ())}, "
    missing = value is None or type(value).__name__ == "NAType"
    raise InvalidInputError(
        asked, f"{found}the first {value!r:.40} at {at}", _MISSING if missing else _TEXT
    )


def all_finite(
    asked: str, what: str, values: Array, names: tuple[str, ...] = (), lines: Array | None = None
) -> None:
    """See that all numbers of (n, ...) are finite.

    The error names columns and samples, first those columns that are empty in every sample.

    Args:
        asked, what: for the message.
        names: of the columns; they are counted from 0 where there are none.
        lines: of each sample in its file.

    Raises:
        InvalidInputError: a NaN or an infinity.
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    flat = bad.reshape(len(bad), -1)
    whole = flat.all(0) & (flat.shape[1] > 1)
    kind = "NaN" if np.isnan(values[bad]).all() else "NaN or infinite"
    found, remedy = [], "drop or impute these samples before training"
    if whole.any():
        found = [f"in {_columns(np.flatnonzero(whole), names)} of every sample"]
        remedy = (
            "leave these columns out, or see why they are empty (a division by 0, a failed join)"
        )
    rest = flat & ~whole
    if rest.any():
        columns, rows = _columns(np.flatnonzero(rest.any(0)), names), np.flatnonzero(rest.any(1))
        shown = ", ".join(map(str, rows[:SHOWN].tolist())) + ", ..." * (len(rows) > SHOWN)
        line = "" if lines is None else f", the first on line {int(lines[rows[0]])}"
        found.append(f"in {columns} of samples {shown} ({len(rows)} of {len(flat)}){line}")
    raise InvalidInputError(
        asked, f"{bad.sum()} {kind} values among {what}, {', '.join(found)}", remedy
    )


def _columns(columns: Array, names: tuple[str, ...]) -> str:
    shown = [f"'{names[c]}'" if names else str(c) for c in columns[:SHOWN].tolist()]
    more = ", ..." if len(columns) > SHOWN else ""
    return f"column{'s' if len(columns) > 1 else ''} {', '.join(shown)}{more}"
