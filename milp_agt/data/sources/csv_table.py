"""Tables as text: ``.csv`` and ``.tsv`` files with a header, read strictly."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from milp_agt.data.sources.cells import (
    DECIMAL_COMMA,
    EXACT,
    GROUPED,
    TRUTH,
    is_infinite,
    is_missing,
    is_whole,
    number,
    place,
)
from milp_agt.data.sources.delimited import check_header, header_and_lines, opened, wide
from milp_agt.data.sources.source import Array, Reading, Source
from milp_agt.errors import InvalidInputError

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


def read_csv(asked: str, path: Path, reading: Reading) -> Source:
    """Columns of a text table; a target column of whole numbers is read as class labels.

    Columns are separated by commas, semicolons, tabs or bars, whichever splits every line alike. Every
    line is as wide as the header, and every cell a number. Decimal commas are read where no cell can
    mean anything else. ``reading.id`` names the column that says who a sample is; it is no feature.

    Raises:
        InvalidInputError: whatever is missing, ambiguous, or no number.
    """
    with opened(asked, path) as stream:
        separator, (_, first), lines = header_and_lines(asked, stream)
        header = [cell.strip() for cell in first]
        body = list(wide(asked, lines, header, separator))
    if not header or not body:
        count = len(body) + bool(header)
        raise InvalidInputError(asked, f"{count} rows", "give a header row and at least one sample")
    notes = list(check_header(asked, header))
    lines_of = [line for _, line, _ in body]
    columns = {j: [cells[j].strip() for _, _, cells in body] for j in range(len(header))}
    notes += _leave_out_unnamed(asked, header, columns)
    _check_names(asked, [header[j] for j in columns])
    names = {header[j]: j for j in columns}
    ids = None
    if reading.id is not None and reading.id == reading.target:
        raise InvalidInputError(
            asked, f"'{reading.id}' both as id and as target", "name two columns"
        )
    if reading.id is not None:
        ids = _ids(
            asked, columns.pop(_column(asked, names, reading.id, "id")), lines_of, reading.id
        )
        names.pop(reading.id)
    target = _column(asked, names, reading.target, "target")
    notes += _numbering(asked, {n: columns[j] for n, j in names.items() if j != target})
    values, said = _parse(asked, {n: columns[j] for n, j in names.items()}, lines_of)
    position = list(names.values()).index(target)
    y: Array = values[:, position]
    if all(is_whole(cell) or cell.lower() in TRUTH for cell in columns[target]):
        y = y.astype(np.int64)
    return Source(
        np.delete(values, position, axis=1),
        y,
        tuple(n for n, j in names.items() if j != target),
        f"{path.name}, target '{reading.target}'",
        notes=(*notes, *said),
        ids=ids,
        lines=np.array(lines_of),
    )


def _leave_out_unnamed(
    asked: str, header: Sequence[str], columns: dict[int, list[str]]
) -> list[str]:
    """Take columns without a name that number the rows, or are empty, out of ``columns``."""
    notes = []
    for j, name in enumerate(header):
        if not UNNAMED.fullmatch(name):
            continue
        cells = columns[j]
        if not any(cells):
            notes.append(f"column {j + 1}, which is empty and has no name, was left out")
        elif all(map(is_whole, cells)) and len(set(cells)) == len(cells):
            notes.append(
                f"column {j + 1}, which has no name and numbers the rows, was left out "
                f"('{cells[0]}', ...)"
            )
        else:
            raise InvalidInputError(
                asked,
                f"column {j + 1} without a name, which does not number the rows either: "
                f"{', '.join(cells[:4]):.60}",
                "name it in the header, or take it out of the file",
            )
        del columns[j]
    return notes


def _check_names(asked: str, names: Sequence[str]) -> None:
    duplicates = sorted({name for name in names if list(names).count(name) > 1})
    if duplicates:
        raise InvalidInputError(
            asked, f"the column '{duplicates[0]}' more than once", "give each column its own name"
        )


def _column(asked: str, names: dict[str, int], wanted: str | None, option: str) -> int:
    """Where a column is that an option names."""
    if wanted is not None and wanted in names:
        return names[wanted]
    lower = {name.lower(): name for name in names}
    near = [lower[n] for n in difflib.get_close_matches((wanted or "").lower(), lower, 1)]
    only = next(iter(names), "")
    if len(names) == 1 and len(only.split()) > 1:
        raise InvalidInputError(
            asked,
            f"a single column, '{only:.60}'",
            "separate the columns with commas, semicolons or tabs",
        )
    raise InvalidInputError(
        asked,
        (f"no {option} column named" if wanted is None else f"no column '{wanted}'")
        + f" among {', '.join(names)}",
        f"did you mean '{near[0]}'?" if near else f"name the {option} column with {option}=",
    )


def _ids(asked: str, cells: list[str], lines: list[int], name: str) -> Array:
    empty = [row for row, cell in enumerate(cells) if is_missing(cell)]
    if empty:
        raise InvalidInputError(
            asked,
            f"no '{name}' in {place(empty[0], lines[empty[0]])}",
            f"give every sample its '{name}'",
        )
    return np.array(cells, dtype=np.str_)


def _numbering(asked: str, columns: dict[str, list[str]]) -> list[str]:
    """Columns that seem to number the samples: refused by their name, else a note.

    Raises:
        InvalidInputError: a column called id, index and the like, with another value in each row.
    """
    notes = []
    for name, cells in columns.items():
        distinct = len(cells) > 1 and len(set(cells)) == len(cells)
        if not distinct or not (all(map(is_whole, cells)) or number(cells[0]) is None):
            continue
        if NUMBERING.fullmatch(name) or CAMEL_ID.fullmatch(name):
            raise InvalidInputError(
                asked,
                f"a column '{name}' with another value in each of {len(cells)} rows, which seems to say "
                "who a sample is",
                f"name it with id='{name}', so that it is no feature; rename it to train on it",
            )
        counts = [str(i) for i in range(len(cells) + 1)]
        if cells in (counts[:-1], counts[1:]) and len(cells) > 9:
            notes.append(f"column '{name}' counts the rows, and is a feature")
    return notes


def _parse(
    asked: str, columns: dict[str, list[str]], lines: list[int]
) -> tuple[Array, tuple[str, ...]]:
    """The cells as float64 (samples, columns), or one error about all that is not a number."""
    values = np.empty((len(lines), len(columns)))
    notes: list[str] = []
    odd: dict[str, list[int]] = {}  # rows whose cell is no plain number, by column
    for j, (name, cells) in enumerate(columns.items()):
        read = [number(cell) for cell in cells]
        odd[name] = [row for row, value in enumerate(read) if value is None]
        values[:, j] = [np.nan if value is None else value for value in read]
    truths = [n for n, rows in odd.items() if rows and all(c.lower() in TRUTH for c in columns[n])]
    for name in truths:
        values[:, list(columns).index(name)] = [TRUTH[cell.lower()] for cell in columns[name]]
        odd[name] = []
    if truths:
        notes.append(f"true and false in {_listed(truths)} were read as 1 and 0")
    if _has_decimal_commas(asked, columns, odd, lines):
        notes.append("decimal commas were read as points")
        for j, (name, cells) in enumerate(columns.items()):
            for row in [row for row in odd[name] if DECIMAL_COMMA.fullmatch(cells[row])]:
                values[row, j] = float(cells[row].replace(",", "."))
            odd[name] = [row for row in odd[name] if not DECIMAL_COMMA.fullmatch(cells[row])]
    _refuse_odd(asked, columns, odd, lines)
    _check_exact(asked, columns, values, lines)
    codes = [n for n, cells in columns.items() if any(map(LEADING_ZERO.fullmatch, cells))]
    if codes:
        notes.append(f"leading zeros in {_listed(codes)} were dropped: they were read as numbers")
    marked = [name for name, cells in columns.items() if SENTINELS & set(cells)]
    if marked:
        notes.append(f"-999 and the like in {_listed(marked)} were read as numbers, not as missing")
    return values, tuple(notes)


def _has_decimal_commas(
    asked: str, columns: dict[str, list[str]], odd: dict[str, list[int]], lines: list[int]
) -> bool:
    """Whether the commas in cells can only be decimal ones.

    Raises:
        InvalidInputError: they may group thousands, or stand beside decimal points.
    """
    found = [
        (name, row, columns[name][row])
        for name, rows in odd.items()
        for row in rows
        if DECIMAL_COMMA.fullmatch(columns[name][row]) or GROUPED.fullmatch(columns[name][row])
    ]
    if not found:
        return False
    name, row, cell = found[0]
    pointed = next(
        (c for cells in columns.values() for c in cells if "." in c and number(c) is not None), None
    )
    grouped = all(GROUPED.fullmatch(c) for _, _, c in found)
    several = next((c for _, _, c in found if c.count(",") > 1), None)
    if pointed is None and not grouped and several is None:
        return True
    other = f", and '{pointed or several}' elsewhere" if pointed or several else ""
    raise InvalidInputError(
        asked,
        f"'{cell}' in column '{name}' of {place(row, lines[row])}{other}: a comma that may be a decimal "
        "one or group thousands",
        "write decimals with a point and thousands without a mark",
    )


def _refuse_odd(
    asked: str, columns: dict[str, list[str]], odd: dict[str, list[int]], lines: list[int]
) -> None:
    """One error about all cells that are text, missing or infinite."""
    missing = {n: [r for r in rows if is_missing(columns[n][r])] for n, rows in odd.items()}
    endless = {n: [r for r in rows if is_infinite(columns[n][r])] for n, rows in odd.items()}
    text = {n: sorted({*rows} - {*missing[n]} - {*endless[n]}) for n, rows in odd.items()}
    text, missing, endless = ({n: r for n, r in d.items() if r} for d in (text, missing, endless))
    if text:
        name, rows = next(iter(text.items()))
        remedy = "encode these columns as numbers (classes as 0, 1, 2, ...) or drop them"
        if DATE.match(columns[name][rows[0]]):
            remedy = (
                "give dates as numbers, for instance of days since the first; or drop the columns"
            )
        elif not columns[name][rows[0]].strip("0123456789+-_.,%$€ \u00a0\u202f"):
            remedy = "write plain numbers: digits, a point, perhaps an exponent"
        raise InvalidInputError(
            asked,
            f"text in the columns {', '.join(text)}, for instance '{columns[name][rows[0]]}' in "
            f"'{name}' of {place(rows[0], lines[rows[0]])}",
            remedy,
        )
    for what, found in (("missing", missing), ("infinite", endless)):
        if not found:
            continue
        count = sum(map(len, found.values()))
        name, rows = min(found.items(), key=lambda item: item[1][0])
        whole = [n for n, own in found.items() if len(own) == len(lines)]
        first = place(rows[0], lines[rows[0]])
        where = f"the first in column '{name}' of {first}"
        if len(found) == 1:
            where = f"all in column '{name}', the first in {first}"
        raise InvalidInputError(
            asked,
            f"{count} {what} values, {where}",
            f"drop {_listed(whole)}, which has none at all, and impute the rest"
            if whole and what == "missing"
            else "drop or impute these samples before certifying",
        )


def _check_exact(
    asked: str, columns: dict[str, list[str]], values: Array, lines: list[int]
) -> None:
    """Whole numbers that float64 would round are names, not quantities."""
    for row, j in np.argwhere(np.abs(values) >= EXACT).tolist():
        name = list(columns)[j]
        cell = columns[name][row]
        if is_whole(cell) and int(values[row, j]) != int(cell):
            raise InvalidInputError(
                asked,
                f"'{cell}' in column '{name}' of {place(row, lines[row])}, more digits than float64 has",
                "drop the column if it says who a sample is, or name it with id=; else scale it",
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return f"column{'s' if len(names) > 1 else ''} {shown}{', ...' if len(names) > 5 else ''}"
