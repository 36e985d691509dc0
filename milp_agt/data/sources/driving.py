"""Logs of a driving simulator: images beside a table of steering angles."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np

from milp_agt.data.sources.delimited import number, opened, place, wide
from milp_agt.data.sources.source import Reading, Source, optional, refused, subset

LOG = "driving_log.csv"
FOLDER = "IMG"
# The input of PilotNet (Bojarski et al. 2016).
IMAGE_SIZE = (66, 200)
# Columns of the simulator, which writes no header.
COLUMNS = ("center", "left", "right", "steering", "throttle", "brake", "speed")
NUMBERS = COLUMNS[3:]


def read_driving_log(path: Path, reading: Reading) -> Source:
    """Frames of the centre camera (n, 3, height, width) in [0, 1], and steering angles (n,).

    ``path`` is the folder, or the log inside it. Images are looked for under the path in the log,
    then by name in the folder ``IMG`` beside the log (the simulator writes absolute paths of the
    machine that recorded). ``reading.crop`` rows are cut off at the top and at the bottom, then the
    image is scaled to ``reading.image_size`` (default: 66 x 200).

    Raises:
        InvalidInputError: a missing log, column or image, an angle that is no number.
        DatasetUnavailableError: Pillow is not installed.
    """
    folder = path if path.is_dir() else path.parent
    recorded = _frames(folder / LOG)
    rows = recorded
    notes = []
    if reading.samples is not None and reading.samples < len(rows):
        rows = [rows[i] for i in subset(len(rows), reading.samples, reading.seed)]
        notes.append(f"a subset of {len(rows)} frames was drawn with seed {reading.seed}")
    image = optional("PIL.Image", "Pillow", "data")
    size = reading.image_size or IMAGE_SIZE
    top, bottom = reading.crop or (0, 0)
    frames = np.empty((len(rows), 3, *size), dtype=np.float64)
    seen: dict[Path, str] = {}
    for index, frame in enumerate(rows):
        file = _find(folder, frame, seen)
        try:
            with image.open(file) as opened:
                pixels = opened.convert("RGB")
                width, height = pixels.size
                if top + bottom >= height:
                    raise refused(
                        f"crop = [{top}, {bottom}] of {file.name}, which has {height} rows",
                        "cut off less",
                    )
                cut = pixels.crop((0, top, width, height - bottom))
                scaled = cut.resize((size[1], size[0]), image.Resampling.BILINEAR)
                frames[index] = np.moveaxis(np.asarray(scaled, dtype=np.float64), -1, 0) / 255.0
        except OSError as error:
            raise refused(
                f"{file.name}, which is no readable image ({error})", "record it again"
            ) from error
    notes.append(
        f"frames were cut by {top} rows at the top and {bottom} at the bottom, scaled to "
        f"{size[0]} x {size[1]} and divided by 255"
    )
    return Source(
        frames,
        np.array([frame.angle for frame in rows], dtype=np.float64),
        (),
        f"driving log {folder.name}: {len(rows)} frames, target steering angle",
        notes=tuple(notes),
        rows=np.array([frame.row for frame in rows], dtype=np.int64),
        total=len(recorded),
        divisor=255.0,
    )


@dataclass(frozen=True)
class _Frame:
    """A row of the log: the path of its image and its steering angle."""

    row: int
    line: int
    image: str
    angle: float


def _frames(log: Path) -> list[_Frame]:
    """Every row of the log, as wide as the first and with numbers where they are due.

    Raises:
        InvalidInputError: another width, a missing column, a cell that is no number.
    """
    with opened(log) as stream:
        first = next(csv.reader(stream, strict=True), [])
        names = tuple(cell.strip().lower() for cell in first)
        header = names if "steering" in names else COLUMNS
        stream.seek(0)
        reader = csv.reader(stream, strict=True)
        lines = [(reader.line_num, cells) for cells in reader if cells][header is names :]
    if not lines:
        raise refused(f"no frames in {log.name}", "record some")
    absent = [name for name in ("center", "steering") if name not in header]
    if absent:
        raise refused(
            f"no column '{absent[0]}' among {', '.join(header)}",
            f"name the columns {', '.join(COLUMNS)}",
        )
    image, angle = header.index("center"), header.index("steering")
    frames = []
    for row, line, cells in wide(lines, header, ","):
        for name, cell in zip(header, cells, strict=True):
            if name in NUMBERS and number(cell) is None:
                raise refused(
                    f"'{cell.strip()}' in column '{name}' of {place(row, line)} of {log.name}, where a "
                    "number is due",
                    f"give each frame the columns {', '.join(header)}, numbers in plain digits",
                )
        frames.append(_Frame(row, line, cells[image].strip(), float(cells[angle])))
    return frames


def _find(folder: Path, frame: _Frame, seen: dict[Path, str]) -> Path:
    """The image of a frame; ``seen`` keeps which path of the log each file was found by."""
    # A log may come from a machine with other paths and separators.
    plain = PureWindowsPath(frame.image).name
    for candidate in (folder / frame.image, folder / FOLDER / plain, folder / plain):
        if not plain or not candidate.is_file():
            continue
        if seen.setdefault(candidate, frame.image) != frame.image:
            raise refused(
                f"'{frame.image}' in {place(frame.row, frame.line)} and '{seen[candidate]}' before it, "
                f"for which there is one file alone: {candidate.name}",
                "give images names of their own, or join logs with their folders as they were",
            )
        return candidate
    raise refused(
        f"no image '{plain}' under {folder / FOLDER}, which {place(frame.row, frame.line)} names",
        "keep the images beside the log, in a folder IMG",
    )
