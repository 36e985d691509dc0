"""Plain arrays: ``.npz`` files and ``.csv`` tables."""

from __future__ import annotations

import csv
import difflib
import math
import zipfile
from pathlib import Path

import numpy as np

from milp_agt.data.sources.source import Array, Source
from milp_agt.errors import InvalidInputError


def read_npz(asked: str, path: Path) -> Source:
    """Arrays of an ``.npz`` file, without unpickling anything; InvalidInputError if unusable."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise InvalidInputError(asked, f"no file at {path}", "check the path") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidInputError(
            asked, f"a file that numpy cannot read ({error})", "write it with numpy.savez"
        ) from error
    description = path.name
    if {"x_train", "y_train"} <= arrays.keys():
        if ("x_test" in arrays) != ("y_test" in arrays):
            raise InvalidInputError(
                asked, "only one of x_test and y_test", "store both of them, or neither"
            )
        return Source(
            arrays["x_train"],
            arrays["y_train"],
            (),
            description,
            arrays.get("x_test"),
            arrays.get("y_test"),
        )
    if {"X", "y"} <= arrays.keys():
        return Source(arrays["X"], arrays["y"], (), description)
    raise InvalidInputError(
        asked,
        f"the keys {', '.join(sorted(arrays)) or '(none)'}",
        "store x_train, y_train[, x_test, y_test], or X and y",
    )


def read_csv(asked: str, path: Path, target: str | None) -> Source:
    """Columns of a ``.csv`` file; a target column of whole numbers is read as class labels."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except FileNotFoundError as error:
        raise InvalidInputError(asked, f"no file at {path}", "check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(
            asked, f"a file that cannot be read ({error})", "store it as comma-separated UTF-8 text"
        ) from error
    if len(rows) < 2:
        raise InvalidInputError(
            asked, f"{len(rows)} rows", "give a header row and at least one sample"
        )
    header, body = [cell.strip() for cell in rows[0]], rows[1:]
    duplicates = sorted({name for name in header if header.count(name) > 1})
    if duplicates:
        raise InvalidInputError(
            asked, f"the column '{duplicates[0]}' more than once", "give each column its own name"
        )
    if target is None or target not in header:
        near = difflib.get_close_matches(target or "", header, 1)
        raise InvalidInputError(
            asked,
            ("no target column named" if target is None else f"no column '{target}'")
            + f" among {', '.join(header)}",
            f"did you mean '{near[0]}'?" if near else "name the target column with target=",
        )
    values = _parse_cells(asked, header, body)
    j = header.index(target)
    y: Array = values[:, j]
    if all(_is_integer_text(row[j]) for row in body):
        y = y.astype(np.int64)
    names = tuple(name for name in header if name != target)
    return Source(np.delete(values, j, axis=1), y, names, f"{path.name}, target '{target}'")


_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})


def _is_integer_text(cell: str) -> bool:
    return cell.strip().lstrip("+-").isdecimal()


def _parse_cells(asked: str, header: list[str], body: list[list[str]]) -> Array:
    """The cells as float64 (samples, columns), or one error about all that is not a number."""
    values = np.empty((len(body), len(header)))
    text: dict[str, tuple[int, str]] = {}
    missing: list[tuple[int, str]] = []
    for i, row in enumerate(body):
        if len(row) != len(header):
            raise InvalidInputError(
                asked,
                f"{len(row)} cells in sample {i + 1}, {len(header)} columns in the header",
                "separate the columns with commas and give every sample all of them",
            )
        for j, cell in enumerate(row):
            try:
                values[i, j] = float(cell)
            except ValueError:
                if cell.strip().lower() in _MISSING:
                    missing.append((i + 1, header[j]))
                else:
                    text.setdefault(header[j], (i + 1, cell))
                continue
            if math.isnan(values[i, j]):
                missing.append((i + 1, header[j]))
    if text:
        column, (line, cell) = next(iter(text.items()))
        raise InvalidInputError(
            asked,
            f"text in the columns {', '.join(text)}, for instance '{cell}' in '{column}' "
            f"of sample {line}",
            "encode these columns as numbers (classes as 0, 1, 2, ...) or drop them",
        )
    if missing:
        line, column = missing[0]
        raise InvalidInputError(
            asked,
            f"{len(missing)} missing values, the first in column '{column}' of sample {line}",
            "drop or impute these samples before certifying",
        )
    return values
