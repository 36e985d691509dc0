"""Household power: minutes as the UCI repository gives them, or hourly means of the same columns."""

from __future__ import annotations

import array
import gzip
import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO

import numpy as np

from milp_agt.data.sources.source import Source
from milp_agt.errors import InvalidInputError

TARGET = "Global_active_power"
# Global_intensity is left out: it is nearly the target (active power = voltage x current).
MEASUREMENTS = (
    *("Global_reactive_power", "Voltage"),
    *("Sub_metering_1", "Sub_metering_2", "Sub_metering_3"),
)
TIME = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def is_household_power(path: Path) -> bool:
    """Whether the first line of a file names the columns of the set; False if it cannot be read."""
    try:
        with _open(path) as stream:
            return TARGET in stream.readline(1000)
    except (OSError, EOFError, UnicodeDecodeError):
        return False


@dataclass(frozen=True)
class _Layout:
    """Where the columns are, and which character parts them."""

    separator: str
    columns: tuple[int, ...]  # the target, then the measurements
    date: int
    time: int | None  # None: date and time in one column

    @staticmethod
    def of(asked: str, header: str) -> _Layout:
        separator = ";" if ";" in header else ","
        names = header.strip().split(separator)
        stamp = ["Date", "Time"] if "Date" in names else ["date_time"]
        missing = [n for n in (*stamp, TARGET, *MEASUREMENTS) if n not in names]
        if missing:
            raise InvalidInputError(
                asked,
                f"no column '{missing[0]}' among {', '.join(names)}",
                "use the file of the UCI repository, or hourly means with the same columns",
            )
        columns = tuple(names.index(n) for n in (TARGET, *MEASUREMENTS))
        time = names.index("Time") if "Time" in names else None
        return _Layout(separator, columns, names.index(stamp[0]), time)


def read_household_power(asked: str, path: Path) -> Source:
    """Active power in kW from five measurements, hour of the day and day of the week.

    Hebrail and Berard, *Individual Household Electric Power Consumption*, UCI (2012),
    doi 10.24432/C58K54. Features: :data:`MEASUREMENTS`, then sine and cosine of the hour of the day
    (2 pi h / 24) and of the weekday (2 pi d / 7, Monday 0). Rows with a missing value (``?`` or
    nothing) are left out.

    Raises:
        InvalidInputError: an unreadable file, a missing column, a cell that is no number or date.
    """
    values, stamps = array.array("d"), array.array("d")
    skipped = 0
    try:
        with _open(path) as stream:
            layout = _Layout.of(asked, stream.readline())
            clock = _Clock(asked)
            for number, line in enumerate(stream, 2):
                cells = line.rstrip("\n").split(layout.separator)
                row = _numbers(asked, number, cells, layout)
                if row is None:
                    skipped += 1
                    continue
                stamp = cells[layout.date]
                time = stamp[11:] if layout.time is None else cells[layout.time]
                hour, weekday = clock.read(number, stamp[:10], time)
                values.extend(row)
                stamps.append(hour)
                stamps.append(weekday)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            asked, f"a file that cannot be read ({error})", "download it again"
        ) from error
    table = np.frombuffer(values, dtype=np.float64).reshape(-1, 1 + len(MEASUREMENTS))
    time_of = np.frombuffer(stamps, dtype=np.float64).reshape(-1, 2)
    angles = 2.0 * math.pi * time_of / np.array([24.0, 7.0])
    cyclic = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(-1, len(TIME))
    notes = ["Global_intensity was left out: it is nearly the target"]
    if skipped:
        notes.append(f"{skipped} rows with missing values were left out")
    return Source(
        np.concatenate([table[:, 1:], cyclic], 1),
        table[:, 0].copy(),
        (*MEASUREMENTS, *TIME),
        f"household power ({path.name}): {len(table)} rows, target {TARGET} in kW",
        notes=tuple(notes),
    )


def _numbers(asked: str, number: int, cells: list[str], layout: _Layout) -> list[float] | None:
    """Target and measurements of a row; None where one is missing."""
    try:
        picked = [cells[j] for j in layout.columns]
        row = [float(cell) for cell in picked]
    except IndexError:
        if cells == [""]:
            return None
        raise InvalidInputError(
            asked, f"only {len(cells)} cells in line {number}", "download it again"
        ) from None
    except ValueError:
        bad = [c for c in picked if c.strip() not in ("", "?") and not _is_number(c)]
        if not bad:
            return None
        raise InvalidInputError(
            asked, f"'{bad[0]}' in line {number}, where a number is due", "correct the file"
        ) from None
    return row if all(map(math.isfinite, row)) else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class _Clock:
    """Hours and weekdays from text; every text is parsed once."""

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self._weekdays: dict[str, float] = {}
        self._hours: dict[str, float] = {}

    def read(self, number: int, day: str, time: str) -> tuple[float, float]:
        """Hour of the day with its fraction, and weekday from Monday 0."""
        try:
            if day not in self._weekdays:
                self._weekdays[day] = float(_date(day).weekday())
            if time not in self._hours:
                hour, minute = time.split(":")[:2]
                self._hours[time] = int(hour) + int(minute) / 60.0
        except ValueError:
            raise InvalidInputError(
                self._asked,
                f"'{day} {time}' in line {number}, where date and time are due",
                "write 16/12/2006 and 17:24:00, or 2006-12-16 17:00:00",
            ) from None
        return self._hours[time], self._weekdays[day]


def _date(text: str) -> date:
    if "/" in text:
        day, month, year = map(int, text.split("/"))
        return date(year, month, day)
    return date.fromisoformat(text)
