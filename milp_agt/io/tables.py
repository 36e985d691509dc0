"""Tables as plain text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def format_table(headers: Sequence[str], rows: Iterable[Sequence[object]], digits: int = 6) -> str:
    """Columns as wide as their widest cell; columns of numbers to the right.

    Fractions are shown with so many significant digits, what is None as a dash.
    """
    shown = [[_cell(cell, digits) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(headers, *shown, strict=True)]
    numeric = [
        bool(shown) and all(_is_number(row[j]) for row in shown) for j in range(len(headers))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headers), rule, *(line(row) for row in shown)])


def _cell(value: object, digits: int) -> str:
    return format_number(value, digits) if value is None or isinstance(value, float) else str(value)


def format_number(value: float | None, digits: int = 6) -> str:
    """``value`` with so many significant digits; a dash for None."""
    return "-" if value is None else f"{value:.{digits}g}"


def csv_text(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as comma-separated text with a header; an absent value is empty, other keys are left out."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def json_text(document: Mapping[str, Any]) -> str:
    """A JSON document; numbers that JSON cannot hold are the texts "inf", "-inf" and "nan"."""
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value with JSON's own types only."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == "-"
    return True
