"""Text files of rows and columns: encoding, separator, quotes, and the width of every row.

The module ``csv`` of Python splits rows, in its strict mode. What it leaves open (which character
separates columns, whether all rows are as wide as the header) is checked here and never guessed.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NoReturn, TextIO

from milp_agt.data.sources.source import refused

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT = 200  # lines by which the separator is found; all other lines are held against it
Line = tuple[int, list[str]]  # its number in the file from 1, and its cells


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A text file in UTF-8 (or UTF-16 that says so), plain or packed as .gz.

    Raises:
        InvalidInputError: no such file, another encoding, quotes that do not close.
    """
    try:
        packed = path.suffix.lower() == ".gz"
        with gzip.open(path, "rb") if packed else path.open("rb") as raw:
            start = raw.read(2)
        wide = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if wide else "utf-8-sig"
        if packed:
            with gzip.open(path, "rt", encoding=encoding, newline="") as stream:
                yield stream
        else:
            with path.open(encoding=encoding, newline="") as stream:
                yield stream
    except FileNotFoundError as error:
        raise refused(f"no file at {path}", "check the path") from error
    except (OSError, EOFError, UnicodeError, csv.Error, zlib.error) as error:
        raise refused(
            f"a file that cannot be read ({error})",
            "store it as text in UTF-8 (in Excel: CSV UTF-8), with quotes that close, or download it again",
        ) from error


def separator_of(lines: Sequence[str]) -> str:
    """The character that splits all lines into equally many columns, at least 2.

    Where none does, the one that splits the header into the most, so that the lines that are out of
    step can be named; a comma for a single column.

    Raises:
        InvalidInputError: more than one does, with different columns.
    """
    widths = {each: _widths(lines, each) for each in SEPARATORS}
    fits = [each for each, found in widths.items() if len(set(found)) == 1 and found[0] > 1]
    if len(fits) > 1:
        ways = " or ".join(f"{widths[each][0]} columns by {SEPARATORS[each]}" for each in fits)
        raise refused(
            f"lines that may be {ways}",
            "use one separator, and put quotes around cells that hold another",
        )
    if fits:
        return fits[0]
    return max(SEPARATORS, key=lambda each: widths[each][0] if widths[each] else 0)


def _widths(lines: Sequence[str], separator: str) -> list[int]:
    """Cells of each line, as far as quotes close."""
    found = []
    try:
        for cells in csv.reader(lines, delimiter=separator, strict=True):
            if cells:
                found.append(len(cells))
    except csv.Error:  # a quoted cell may go on after the lines that are looked at
        pass
    return found


def header_and_lines(stream: TextIO) -> tuple[str, Line, Iterator[Line]]:
    """The separator, the first line, and all others; lines without any character are left out.

    A first line ``sep=;``, which Excel writes, names the separator.
    """
    first = list(islice(stream, LOOKED_AT))
    _refuse_other_files(first[0].lstrip() if first else "")
    named = re.fullmatch(r'"?sep=(.)"?\s*', first[0]) if first else None
    skipped = 1 if named else 0
    separator = named[1] if named else separator_of(first)

    def text() -> Iterator[str]:
        yield from first[skipped:]
        yield from stream

    lines = _split(text(), separator, skipped)
    return separator, next(lines, (1, [])), lines


def _refuse_other_files(first: str) -> None:
    """Files under the name of a table that hold something else."""
    kinds = {
        "version https://git-lfs": ("a pointer of Git LFS", "fetch the file: git lfs pull"),
        "<": ("a web page", "download the file itself, not the page about it"),
        "{": ("JSON", "store it as a table: pandas.read_json(path).to_csv(..., index=False)"),
        "@relation": ("ARFF", "store it as a table with a header, columns separated by commas"),
        "PK": ("an archive or a workbook", "unpack it, or save the sheet as CSV"),
    }
    for start, (found, remedy) in kinds.items():
        if first.lower().startswith(start.lower()):
            raise refused(f"{found} in place of a table", remedy)


def _split(text: Iterable[str], separator: str, before: int) -> Iterator[Line]:
    reader = csv.reader(text, delimiter=separator, strict=True)
    for cells in reader:
        if len(cells) > 1 or (cells and cells[0].strip()):
            yield before + reader.line_num, cells


def wide(
    lines: Iterable[Line], columns: Sequence[str], separator: str
) -> Iterator[tuple[int, int, list[str]]]:
    """Row from 0, line and cells of every line, each as wide as the header.

    Raises:
        InvalidInputError: a line with more or fewer cells.
    """
    for row, (line, cells) in enumerate(lines):
        if len(cells) != len(columns):
            _refuse_width(row, line, cells, columns, separator)
        yield row, line, cells


def _refuse_width(
    row: int, line: int, cells: Sequence[str], columns: Sequence[str], separator: str
) -> NoReturn:
    more = len(cells) - len(columns)
    digits = sum(cell.strip().lstrip("+-").isdecimal() for cell in cells)
    mark = SEPARATORS.get(separator, repr(separator))
    remedy = f"separate the columns with {mark} and give every line all of them"
    names = "give the header a name for every column, the one that numbers the rows included"
    if more == 1 and not cells[-1].strip():
        remedy = (
            "take off the separator at the end of the line, or put one at the end of the header"
        )
    elif more == 1 and number(cells[0]) is None:
        remedy = names
    elif more > 0 and separator == "," and digits > more:
        remedy = (
            "if these are decimal commas, write decimals with a point (0.25), or separate the columns "
            "with semicolons" + (f"; else {names}" if more == 1 else "")
        )
    elif more == 1:
        remedy = names
    raise refused(
        f"{len(cells)} cells in {place(row, line)}, {len(columns)} columns in the header "
        f"({', '.join(columns):.80}): {separator.join(cells):.80}",
        remedy,
    )


def check_header(cells: Sequence[str]) -> tuple[str, ...]:
    """See that the first line names the columns; a note where it does so by numbers.

    Names that are numbers are the mark of a file without a header. Only those by which pandas counts
    columns, 0, 1, 2, ..., are taken for names.

    Raises:
        InvalidInputError: a first line of numbers, or one behind a '#'.
    """
    numbers = [(j, cell) for j, cell in enumerate(cells) if number(cell) is not None]
    shift = 1 if cells and not cells[0] else 0  # a column without a name in front of them
    counted = len(cells) - shift > 2 and all(cell == str(j - shift) for j, cell in numbers)
    if numbers and not counted:
        shown = ", ".join(cells[:6]) + (", ..." if len(cells) > 6 else "")
        raise refused(
            f"a first row that looks like numbers: {shown}: no header?",
            "write a first line with a name for each column, none of them a number",
        )
    if cells and cells[0].startswith("#"):
        raise refused(
            f"a first row behind '#': {', '.join(cells):.80}",
            "take the '#' off if these are the names of the columns, else write such a line",
        )
    if numbers:
        return (f"the first line, {', '.join(cells):.60}, was read as names of columns",)
    return ()


# What programs write where there is no value.
MISSING = frozenset(
    {
        *("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "nat", "null", "#null!", "none"),
        *("?", "-", "--", ".", "missing", "#div/0!", "#value!", "1.#qnan", "-1.#ind"),
    }
)
INFINITE = frozenset({"inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"})
TRUTH = {"true": 1.0, "false": 0.0}
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
# 1,234 may be a thousand or a decimal.
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+")
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
EXACT = 2**53  # whole numbers up to here are float64 without rounding


def number(cell: str) -> float | None:
    """The finite number that a cell writes in plain digits; None for anything else.

    Python alone reads more than files mean: ``1_000``, digits of other scripts, ``nan``.
    """
    if not cell.isascii() or "_" in cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if value - value == 0.0 else None


def is_missing(cell: str) -> bool:
    """Whether a cell stands for a missing value."""
    return cell.strip().lower() in MISSING


def is_infinite(cell: str) -> bool:
    """Whether a cell writes an infinite number, or one beyond the largest of float64."""
    text = cell.strip()
    if text.lower() in INFINITE:
        return True
    try:
        return abs(float(text)) == float("inf")
    except ValueError:
        return False


def is_whole(cell: str) -> bool:
    """Whether a cell writes a whole number, without point or exponent."""
    return WHOLE.fullmatch(cell.strip()) is not None


def place(row: int, line: int) -> str:
    """A row for people: counted from 0 below the header, and its line in the file from 1."""
    return f"row {row} (line {line})"
