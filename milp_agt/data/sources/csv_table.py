"""Tables as text: ``.csv`` and ``.tsv`` files with a header, read strictly."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from milp_agt.data.sources.delimited import (
    DECIMAL_COMMA,
    EXACT,
    GROUPED,
    TRUTH,
    check_header,
    header_and_lines,
    is_infinite,
    is_missing,
    is_whole,
    number,
    opened,
    place,
    wide,
)
from milp_agt.data.sources.source import Array, Reading, Source, refused

UNNAMED = re.compile(r"|Unnamed: \d+(?:_level_\d+)?")  # as pandas writes and reads an index
# Names of columns that number samples rather than describe them.
NUMBERING = re.compile(
    r"(?:index|idx|row|rows|nr|no|rownames|row_names|#)|(?:.*[ _.-])?(?:id|uid|uuid|guid)",
    re.IGNORECASE,
)
CAMEL_ID = re.compile(r".*[a-z]I[dD]")
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{2,4}\b")
LEADING_ZERO = re.compile(r"0\d+")
SENTINELS = frozenset({"-999", "-9999", "-99999", "-999.0", "-9999.0"})


def read_csv(path: Path, reading: Reading) -> Source:
    """Columns of a text table; a target column of whole numbers is read as class labels.

    Columns are separated by commas, semicolons, tabs or bars, whichever splits every line alike. Every
    line is as wide as the header, and every cell a number. Decimal commas are read where no cell can
    mean anything else. ``reading.id`` names the column that says who a sample is; it is no feature.

    Raises:
        InvalidInputError: whatever is missing, ambiguous, or no number.
    """
    with opened(path) as stream:
        separator, (_, first), lines = header_and_lines(stream)
        header = [cell.strip() for cell in first]
        body = list(wide(lines, header, separator))
    if not header or not body:
        count = len(body) + bool(header)
        raise refused(f"{count} rows", "give a header row and at least one sample")
    table = _Table([line for _, line, _ in body])
    table.notes += check_header(header)
    for j, name in enumerate(header):
        table.add(name, j, [cells[j].strip() for _, _, cells in body])
    if reading.id is not None and reading.id == reading.target:
        raise refused(f"'{reading.id}' both as id and as target", "name two columns")
    ids = None if reading.id is None else table.ids(reading.id)
    target = table.named(reading.target, "target")
    table.look_for_numbering(target)
    values = table.numbers()
    names, own = list(table.columns), table.columns[target]
    y: Array = values[:, names.index(target)]
    if all(is_whole(cell) or cell.lower() in TRUTH for cell in own):
        y = y.astype(np.int64)
    return Source(
        np.delete(values, names.index(target), axis=1),
        y,
        tuple(name for name in names if name != target),
        f"{path.name}, target '{reading.target}'",
        notes=tuple(table.notes),
        ids=ids,
        lines=np.array(table.lines),
    )


class _Table:
    """Cells by the name of their column, the line of each row in the file, and what is to be said of them."""

    def __init__(self, lines: list[int]) -> None:
        self.lines = lines
        self.columns: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._odd: dict[str, list[int]] = {}  # rows whose cell is no plain number, by column

    def _at(self, name: str, row: int) -> str:
        return f"column '{name}' of {place(row, self.lines[row])}"

    def add(self, name: str, j: int, cells: list[str]) -> None:
        """A column; one without a name that numbers the rows, or is empty, is left out."""
        numbers_rows = all(map(is_whole, cells)) and len(set(cells)) == len(cells)
        if name in self.columns:
            raise refused(f"the column '{name}' more than once", "give each column its own name")
        if not UNNAMED.fullmatch(name):
            self.columns[name] = cells
        elif not any(cells):
            self.notes.append(f"column {j + 1}, which is empty and has no name, was left out")
        elif numbers_rows:
            told = f"column {j + 1}, which has no name and numbers the rows, was left out"
            self.notes.append(f"{told} ('{cells[0]}', ...)")
        else:
            raise refused(
                f"column {j + 1} without a name, which does not number the rows either: "
                f"{', '.join(cells[:4]):.60}",
                "name it in the header, or take it out of the file",
            )

    def named(self, wanted: str | None, option: str) -> str:
        """The column that an option names."""
        if wanted is not None and wanted in self.columns:
            return wanted
        lower = {name.lower(): name for name in self.columns}
        near = [lower[n] for n in difflib.get_close_matches((wanted or "").lower(), lower, 1)]
        only = next(iter(self.columns), "")
        if len(self.columns) == 1 and len(only.split()) > 1:
            remedy = "separate the columns with commas, semicolons or tabs"
            raise refused(f"a single column, '{only:.60}'", remedy)
        raise refused(
            (f"no {option} column named" if wanted is None else f"no column '{wanted}'")
            + f" among {', '.join(self.columns)}",
            f"did you mean '{near[0]}'?" if near else f"name the {option} column with {option}=",
        )

    def ids(self, wanted: str) -> Array:
        """Who each sample is: a column that is none of the table then."""
        cells = self.columns.pop(self.named(wanted, "id"))
        for row, cell in enumerate(cells):
            if is_missing(cell):
                found = f"no '{wanted}' in {place(row, self.lines[row])}"
                raise refused(found, f"give every sample its '{wanted}'")
        return np.array(cells, dtype=np.str_)

    def look_for_numbering(self, target: str) -> None:
        """Features that seem to number the samples: refused by their name, else a note."""
        for name, cells in self.columns.items():
            distinct = len(cells) > 1 and len(set(cells)) == len(cells) and name != target
            if not distinct or not (all(map(is_whole, cells)) or number(cells[0]) is None):
                continue
            if NUMBERING.fullmatch(name) or CAMEL_ID.fullmatch(name):
                raise refused(
                    f"a column '{name}' with another value in each of {len(cells)} rows, which seems to "
                    "say who a sample is",
                    f"name it with id='{name}', so that it is no feature; rename it to train on it",
                )
            counts = [str(i) for i in range(len(cells) + 1)]
            if cells in (counts[:-1], counts[1:]) and len(cells) > 9:
                self.notes.append(f"column '{name}' counts the rows, and is a feature")

    def numbers(self) -> Array:
        """The cells as float64 (samples, columns), or one error about all that is not a number."""
        values = np.empty((len(self.lines), len(self.columns)))
        truths = []
        for j, (name, cells) in enumerate(self.columns.items()):
            read = [number(cell) for cell in cells]
            self._odd[name] = [row for row, value in enumerate(read) if value is None]
            if self._odd[name] and all(cell.lower() in TRUTH for cell in cells):
                truths.append(name)
                read, self._odd[name] = [TRUTH[cell.lower()] for cell in cells], []
            values[:, j] = [np.nan if value is None else value for value in read]
        if truths:
            self.notes.append(f"true and false in {_listed(truths)} were read as 1 and 0")
        if self._has_decimal_commas():
            self.notes.append("decimal commas were read as points")
            for j, (name, cells) in enumerate(self.columns.items()):
                commas = [row for row in self._odd[name] if DECIMAL_COMMA.fullmatch(cells[row])]
                values[commas, j] = [float(cells[row].replace(",", ".")) for row in commas]
                self._odd[name] = [row for row in self._odd[name] if row not in set(commas)]
        self._refuse_odd()
        self._check_exact(values)
        codes = [n for n, cells in self.columns.items() if any(map(LEADING_ZERO.fullmatch, cells))]
        if codes:
            told = "were dropped: they were read as numbers"
            self.notes.append(f"leading zeros in {_listed(codes)} {told}")
        marked = [name for name, cells in self.columns.items() if SENTINELS & set(cells)]
        if marked:
            told = "were read as numbers, not as missing"
            self.notes.append(f"-999 and the like in {_listed(marked)} {told}")
        return values

    def _has_decimal_commas(self) -> bool:
        """Whether the commas in cells can only be decimal ones.

        Refused where they may group thousands, or stand beside decimal points.
        """
        cells = [(n, row, self.columns[n][row]) for n, rows in self._odd.items() for row in rows]
        found = [e for e in cells if DECIMAL_COMMA.fullmatch(e[2]) or GROUPED.fullmatch(e[2])]
        if not found:
            return False
        pointed = (
            c for own in self.columns.values() for c in own if "." in c and number(c) is not None
        )
        several = (c for _, _, c in found if c.count(",") > 1)
        other = next(pointed, None) or next(several, None)
        if other is None and not all(GROUPED.fullmatch(c) for _, _, c in found):
            return True
        name, row, cell = found[0]
        beside = f", and '{other}' elsewhere" if other else ""
        raise refused(
            f"'{cell}' in {self._at(name, row)}{beside}: a comma that may be a decimal one or group "
            "thousands",
            "write decimals with a point and thousands without a mark",
        )

    def _refuse_odd(self) -> None:
        """One error about all cells that are text, missing or infinite."""
        kinds: dict[str, dict[str, list[int]]] = {"text": {}, "missing": {}, "infinite": {}}
        for name, rows in self._odd.items():
            for row in rows:
                cell = self.columns[name][row]
                kind = (
                    "missing" if is_missing(cell) else "infinite" if is_infinite(cell) else "text"
                )
                kinds[kind].setdefault(name, []).append(row)
        if text := kinds.pop("text"):
            name, rows = next(iter(text.items()))
            cell = self.columns[name][rows[0]]
            remedy = "encode these columns as numbers (classes as 0, 1, 2, ...) or drop them"
            if DATE.match(cell):
                remedy = "give dates as numbers, for instance of days since the first; or drop the columns"
            elif not cell.strip("0123456789+-_.,%$€ \u00a0\u202f"):
                remedy = "write plain numbers: digits, a point, perhaps an exponent"
            raise refused(
                f"text in the columns {', '.join(text)}, for instance '{cell}' in '{name}' of "
                f"{place(rows[0], self.lines[rows[0]])}",
                remedy,
            )
        for what, found in kinds.items():
            if not found:
                continue
            name, rows = min(found.items(), key=lambda item: item[1][0])
            where = f"the first in {self._at(name, rows[0])}"
            if len(found) == 1:
                first = place(rows[0], self.lines[rows[0]])
                where = f"all in column '{name}', the first in {first}"
            whole = [n for n, own in found.items() if len(own) == len(self.lines)]
            raise refused(
                f"{sum(map(len, found.values()))} {what} values, {where}",
                f"drop {_listed(whole)}, which has none at all, and impute the rest"
                if whole and what == "missing"
                else "drop or impute these samples before certifying",
            )

    def _check_exact(self, values: Array) -> None:
        """Whole numbers that float64 would round are names, not quantities."""
        for row, j in np.argwhere(np.abs(values) >= EXACT).tolist():
            name = list(self.columns)[j]
            cell = self.columns[name][row]
            if is_whole(cell) and int(values[row, j]) != int(cell):
                raise refused(
                    f"'{cell}' in {self._at(name, row)}, more digits than float64 has",
                    "drop the column if it says who a sample is, or name it with id=; else scale it",
                )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return f"column{'s' if len(names) > 1 else ''} {shown}{', ...' if len(names) > 5 else ''}"
