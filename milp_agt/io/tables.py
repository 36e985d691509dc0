"""Tables as plain text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from milp_agt.io.files import replace_text


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


class Exported(ABC):
    """A table that is kept as ``NAME.csv`` and ``NAME.json`` as well."""

    columns: ClassVar[Sequence[str]]

    @abstractmethod
    def lines(self) -> Iterable[Mapping[str, Any]]:
        """The rows, with all columns among their keys."""

    @abstractmethod
    def document(self) -> Mapping[str, Any]:
        """The rows, and what is to be said beside them."""

    def to_csv(self) -> str:
        """The columns as comma-separated text with a header; an absent value is empty."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self.columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.lines())
        return stream.getvalue()

    def to_json(self) -> str:
        """The document; infinite or undefined numbers as "inf" and "nan"."""
        return json_text(self.document())

    def save(self, folder: Path, name: str) -> list[Path]:
        """Both files, each replaced as a whole."""
        paths = [folder / f"{name}.csv", folder / f"{name}.json"]
        for path, text in zip(paths, (self.to_csv(), self.to_json()), strict=True):
            replace_text(path, text)
        return paths


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
