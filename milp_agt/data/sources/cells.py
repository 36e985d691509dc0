"""Cells of text files: what is a number, what stands for a missing value, which row it is in."""

from __future__ import annotations

import re

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
