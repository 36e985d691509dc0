"""Logs of a driving simulator: images beside a table of steering angles."""

from __future__ import annotations

import csv
from pathlib import Path, PureWindowsPath

import numpy as np

from milp_agt.data.sources.source import Reading, Source, optional, subset
from milp_agt.errors import InvalidInputError

LOG = "driving_log.csv"
FOLDER = "IMG"
# The input of PilotNet (Bojarski et al. 2016).
IMAGE_SIZE = (66, 200)
# Columns of the simulator, which writes no header.
COLUMNS = ("center", "left", "right", "steering", "throttle", "brake", "speed")


def read_driving_log(asked: str, path: Path, reading: Reading) -> Source:
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
    rows = _rows(asked, folder / LOG)
    notes = []
    if reading.samples is not None and reading.samples < len(rows):
        rows = [rows[i] for i in subset(len(rows), reading.samples, reading.seed)]
        notes.append(f"a subset of {len(rows)} frames was drawn with seed {reading.seed}")
    image = optional("PIL.Image", "Pillow", "data", asked)
    size = reading.image_size or IMAGE_SIZE
    top, bottom = reading.crop or (0, 0)
    frames = np.empty((len(rows), 3, *size), dtype=np.float64)
    for index, (name, _) in enumerate(rows):
        file = _find(asked, folder, name)
        try:
            with image.open(file) as opened:
                pixels = opened.convert("RGB")
                width, height = pixels.size
                if top + bottom >= height:
                    raise InvalidInputError(
                        asked,
                        f"crop = [{top}, {bottom}] of {file.name}, which has {height} rows",
                        "cut off less",
                    )
                cut = pixels.crop((0, top, width, height - bottom))
                scaled = cut.resize((size[1], size[0]), image.Resampling.BILINEAR)
                frames[index] = np.moveaxis(np.asarray(scaled, dtype=np.float64), -1, 0) / 255.0
        except OSError as error:
            raise InvalidInputError(
                asked, f"{file.name}, which is no readable image ({error})", "record it again"
            ) from error
    notes.append(
        f"frames were cut by {top} rows at the top and {bottom} at the bottom, scaled to "
        f"{size[0]} x {size[1]} and divided by 255"
    )
    angles = np.array([angle for _, angle in rows], dtype=np.float64)
    about = f"driving log {folder.name}: {len(rows)} frames, target steering angle"
    return Source(frames, angles, (), about, notes=tuple(notes))


def _rows(asked: str, log: Path) -> list[tuple[str, float]]:
    """Image name and steering angle of every row."""
    try:
        with log.open(newline="", encoding="utf-8-sig") as stream:
            lines = [[cell.strip() for cell in row] for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(
            asked, f"a log that cannot be read ({error})", f"give a folder with {LOG}"
        ) from error
    header: tuple[str, ...] = COLUMNS
    if lines and "steering" in lines[0]:
        header = tuple(lines.pop(0))
    if not lines:
        raise InvalidInputError(asked, f"no frames in {log.name}", "record some")
    absent = [name for name in ("center", "steering") if name not in header]
    if absent:
        raise InvalidInputError(
            asked,
            f"no column '{absent[0]}' among {', '.join(header)}",
            f"name the columns {', '.join(COLUMNS)}",
        )
    image, angle = header.index("center"), header.index("steering")
    rows = []
    for number, cells in enumerate(lines, 1):
        try:
            rows.append((cells[image], float(cells[angle])))
        except (IndexError, ValueError):
            raise InvalidInputError(
                asked,
                f"row {number} of {log.name}: {', '.join(cells)}",
                f"give each frame the columns {', '.join(header)}",
            ) from None
    return rows


def _find(asked: str, folder: Path, name: str) -> Path:
    # A log may come from a machine with other paths and separators.
    plain = PureWindowsPath(name).name
    for candidate in (folder / name, folder / FOLDER / plain, folder / plain):
        if candidate.is_file():
            return candidate
    raise InvalidInputError(
        asked,
        f"no image '{plain}' under {folder / FOLDER}",
        "keep the images beside the log, in a folder IMG",
    )
