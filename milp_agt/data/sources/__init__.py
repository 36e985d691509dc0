"""Where data sets come from: one file for each format, before any split or scaling."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from milp_agt.data.sources.bundled import BUILTIN, MEDMNIST, medmnist_file, moons
from milp_agt.data.sources.csv_table import read_csv
from milp_agt.data.sources.driving import LOG, read_driving_log
from milp_agt.data.sources.household import is_household_power, read_household_power
from milp_agt.data.sources.npz import is_medmnist, read_medmnist, read_npz
from milp_agt.data.sources.source import DatasetUnavailableError, Reading, Source, refused
from milp_agt.errors import MilpAgtError

__all__ = ["DatasetUnavailableError", "Reading", "Source", "dataset_names", "read"]

TABLES = (".csv", ".tsv", ".txt")
_APPLIES: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "noise": ("the generated set 'moons'", lambda kind: kind == "moons"),
    "target": ("a .csv file", lambda kind: kind == "csv"),
    "id": ("a .csv or plain .npz file", lambda kind: kind in ("csv", "npz")),
    "image_size": ("a driving log", lambda kind: kind == "driving"),
    "crop": ("a driving log", lambda kind: kind == "driving"),
}


def dataset_names() -> tuple[str, ...]:
    """The names of the built-in data sets."""
    return ("moons", *BUILTIN, *MEDMNIST)


def read(asked: str, name_or_path: str | Path, reading: Reading) -> Source:
    """Find out what a data set is, and read it.

    Raises:
        InvalidInputError: nothing of that name, an unreadable file, an option that does not apply.
        DatasetUnavailableError: an optional package is needed and not installed.
    """
    try:
        return _read(name_or_path, reading)
    except MilpAgtError as error:
        raise type(error)(asked, error.found, error.remedy) from error.__cause__


def _read(name_or_path: str | Path, reading: Reading) -> Source:
    name, path = str(name_or_path), Path(name_or_path)
    kind = _kind(name, path)
    if kind == "npz" and is_medmnist(path):
        kind = "medmnist file"
    for option, (owner, applies) in _APPLIES.items():
        value = getattr(reading, option)
        if value is not None and not applies(kind):
            shown = f"'{value}'" if isinstance(value, str) else value
            raise refused(f"{option} = {shown}, which only {owner} has", "drop the option")
    readers: dict[str, Callable[[], Source]] = {
        "moons": lambda: moons(reading),
        "bundled": lambda: BUILTIN[name](),
        "medmnist": lambda: read_medmnist(medmnist_file(name), reading),
        "medmnist file": lambda: read_medmnist(path, reading),
        "household": lambda: read_household_power(path),
        "driving": lambda: read_driving_log(path, reading),
        "npz": lambda: read_npz(path, reading),
        "csv": lambda: read_csv(path, reading),
    }
    return readers[kind]()


def _kind(name: str, path: Path) -> str:
    if name == "moons":
        return "moons"
    if name in BUILTIN:
        return "bundled"
    if name in MEDMNIST:
        return "medmnist"
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower()
    if path.name == LOG or (path / LOG).is_file():
        return "driving"
    if suffix in TABLES:
        return "household" if is_household_power(path) else "csv"
    if suffix == ".npz":
        return "npz"
    near = difflib.get_close_matches(name, dataset_names(), 1)
    raise refused(
        "neither a built-in name nor a file of a known format",
        (f"did you mean '{near[0]}'? " if near else "")
        + f"built-in names are {', '.join(dataset_names())}; formats are .npz (numpy.savez), .csv, .tsv or "
        f".txt with a header (DataFrame.to_csv), packed as .gz or not, and a folder with {LOG}",
    )
