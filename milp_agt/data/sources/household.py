"""Household power: minutes as the UCI repository gives them, or hourly means of the same columns."""

from __future__ import annotations

import array
import math
import re
from datetime import date
from functools import cache
from pathlib import Path

import numpy as np

from milp_agt.data.sources.delimited import (
    DECIMAL_COMMA,
    header_and_lines,
    is_missing,
    number,
    opened,
    place,
    wide,
)
from milp_agt.data.sources.source import Source, refused
from milp_agt.errors import InvalidInputError

TARGET = "Global_active_power"
# Global_intensity is left out: it is nearly the target (active power = voltage x current).
MEASUREMENTS = (
    *("Global_reactive_power", "Voltage"),
    *("Sub_metering_1", "Sub_metering_2", "Sub_metering_3"),
)
TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.0+)?)?(?:\s*([AaPp][Mm]))?", re.ASCII)
TIME = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")


def is_household_power(path: Path) -> bool:
    """Whether the first line of a file names the columns of the set; False if it cannot be read."""
    try:
        with opened(path) as stream:
            return TARGET in stream.readline(1000)
    except InvalidInputError:
        return False


def _columns(names: tuple[str, ...]) -> dict[str, int]:
    """Where the columns are: date and time (or both in one), then target and measurements."""
    stamp = ["Date", "Time"] if "Date" in names else ["date_time"]
    needed = (*stamp, TARGET, *MEASUREMENTS)
    for name in needed:
        if name not in names:
            raise refused(
                f"no column '{name}' among {', '.join(names)}",
                "use the file of the UCI repository, or hourly means with the same columns",
            )
        if names.count(name) > 1:
            raise refused(f"the column '{name}' more than once", "give each column its own name")
    return {name: names.index(name) for name in needed}


def read_household_power(path: Path) -> Source:
    """Active power in kW from five measurements, hour of the day and day of the week.

    Hebrail and Berard, *Individual Household Electric Power Consumption*, UCI (2012),
    doi 10.24432/C58K54. Features: :data:`MEASUREMENTS`, then sine and cosine of the hour of the day
    (2 pi h / 24) and of the weekday (2 pi d / 7, Monday 0). Rows with a missing value (``?`` or
    nothing) are left out; the others keep their numbers.

    Raises:
        InvalidInputError: an unreadable file, a missing column, a row of another width, a cell that is
            no number, date or time of the day.
    """
    values, stamps, kept = array.array("d"), array.array("d"), array.array("q")
    row = -1
    with opened(path) as stream:
        separator, (_, first), lines = header_and_lines(stream)
        names = tuple(cell.strip() for cell in first)
        at, slashed = _columns(names), False
        for row, line, cells in wide(lines, names, separator):
            found = _numbers(row, line, {name: cells[j] for name, j in at.items()})
            if "Time" in at:
                day, time = cells[at["Date"]].strip(), cells[at["Time"]].strip()
            else:
                day, _, time = cells[at["date_time"]].strip().replace("T", " ").partition(" ")
            slashed |= "/" in day
            try:
                hour, weekday = _hour(time), _weekday(day)
            except ValueError:
                raise refused(
                    f"'{day} {time}' in {place(row, line)}, where date and time are due",
                    "write 16/12/2006 and 17:24:00, or 2006-12-16 17:00:00 (day/month/year, hours 0 to 23 "
                    "or with AM and PM)",
                ) from None
            if found is not None:
                values.extend(found)
                stamps.extend((hour, weekday))
                kept.append(row)
    if not kept:
        raise refused(
            f"{row + 1} rows, none of them without missing values",
            "give a file with measurements in every column",
        )
    table = np.frombuffer(values, dtype=np.float64).reshape(-1, 1 + len(MEASUREMENTS))
    time_of = np.frombuffer(stamps, dtype=np.float64).reshape(-1, 2)
    angles = 2.0 * math.pi * time_of / np.array([24.0, 7.0])
    cyclic = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(-1, len(TIME))
    notes = ["Global_intensity was left out: it is nearly the target"]
    if slashed:
        notes.append("dates with strokes were read as day/month/year")
    skipped = row + 1 - len(table)
    if skipped:
        notes.append(f"{skipped} rows with missing values were left out")
    return Source(
        np.concatenate([table[:, 1:], cyclic], 1),
        table[:, 0].copy(),
        (*MEASUREMENTS, *TIME),
        f"household power ({path.name}): {len(table)} rows, target {TARGET} in kW",
        notes=tuple(notes),
        rows=np.frombuffer(kept, dtype=np.int64),
        total=row + 1,
    )


def _numbers(row: int, line: int, cells: dict[str, str]) -> list[float] | None:
    """Target and measurements of a row; None where one is missing."""
    read = []
    for name in (TARGET, *MEASUREMENTS):
        value = number(cells[name])
        if value is None and not is_missing(cells[name]):
            comma = DECIMAL_COMMA.fullmatch(cells[name].strip())
            raise refused(
                f"'{cells[name]}' in column '{name}' of {place(row, line)}, where a number is due",
                "write decimals with a point (4.216)" if comma else "correct the file",
            )
        read += [] if value is None else [value]
    return read if len(read) == 1 + len(MEASUREMENTS) else None


@cache
def _weekday(text: str) -> float:
    """Of a day as 16/12/2006 or 2006-12-16, from Monday 0; ValueError otherwise."""
    if "/" not in text:
        return float(date.fromisoformat(text).weekday())
    found = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})", text, re.ASCII)
    if found is None:
        raise ValueError(text)
    return float(date(int(found[3]), int(found[2]), int(found[1])).weekday())


@cache
def _hour(text: str) -> float:
    """A time of the day as 17:24, 17:24:00 or 5:24:00 PM, in hours; ValueError otherwise."""
    found = TIME_OF_DAY.fullmatch(text)
    if found is None:
        raise ValueError(text)
    hour, minute, second = (int(part or 0) for part in found.groups()[:3])
    half = (found[4] or "").upper()
    if half:
        if not 1 <= hour <= 12:
            raise ValueError(text)
        hour = hour % 12 + 12 * (half == "PM")
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError(text)
    return hour + minute / 60.0 + second / 3600.0
