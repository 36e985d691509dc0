"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from milp_agt.errors import InvalidInputError

# What numpy and zipfile raise on a file that is missing, cut short or has flipped bits.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    SyntaxError,
    tokenize.TokenError,
)

PACKED_BYTES = 2**24  # larger files are not packed: each 25 MB of them would take a second


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file as a whole: readers and a power cut meet the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def replace_text(path: Path, text: str | bytes) -> None:
    """The same for a text, in UTF-8, or for bytes."""
    content = text.encode() if isinstance(text, str) else text
    replace(path, lambda stream: stream.write(content))


def replace_arrays(path: Path, arrays: Mapping[str, Any]) -> Path:
    """The same for an .npz file; the suffix is added where it is missing. Returns its path."""
    path = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
    large = sum(np.asarray(array).nbytes for array in arrays.values()) > PACKED_BYTES
    save = np.savez if large else np.savez_compressed
    replace(path, lambda stream: save(stream, allow_pickle=False, **arrays))
    return path


def arrays_of(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file; raises what :data:`DAMAGE` lists."""
    with path.open("rb") as stream:
        stored = np.load(stream, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        return {name: stored[name] for name in stored.files}


@contextmanager
def writing(asked: str, remedy: str) -> Iterator[None]:
    """An error of the system while files are written, as one in three parts.

    Raises:
        InvalidInputError: such an error.
    """
    try:
        yield
    except OSError as error:
        raise InvalidInputError(asked, error.strerror or str(error), remedy) from error


@dataclass(frozen=True)
class Archive:
    """A kind of .npz file: arrays with a description, which is a table, beside them.

    Attributes:
        what: "A recorded run", for messages.
        version: of the format.
        again: what to do where a file is none of these.
        kind: a word in the description that tells these files from others.
    """

    what: str
    version: int
    again: str
    kind: str | None = None

    def write(self, path: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
        """Write a file as a whole; the suffix is added where it is missing. Returns its path.

        Raises:
            InvalidInputError: no such folder, or one that takes no files.
        """
        asked = f"{self.what} was to be saved as {path}"
        if not path.parent.is_dir():
            raise InvalidInputError(asked, "no such folder", "make the folder first")
        marked = {"version": self.version, **({"kind": self.kind} if self.kind else {}), **about}
        with writing(asked, "make room, or save it elsewhere; a file that was there is as it was"):
            return replace_arrays(path, {"about": np.array(json.dumps(marked)), **arrays})

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays and description of a file; the suffix may be omitted.

        Raises:
            InvalidInputError: a missing or damaged file, one of another kind, or of another version.
        """
        path = (
            path if path.exists() or path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
        )
        asked = f"{self.what} was to be read from {path}"
        try:
            arrays = arrays_of(path)
            about: dict[str, Any] = json.loads(str(arrays.pop("about")))
            if not isinstance(about, dict) or about.get("kind") != self.kind:
                raise ValueError("a file that holds something else")
        except DAMAGE as error:
            raise InvalidInputError(asked, str(error), self.again) from None
        if about.get("version") != self.version:
            found = f"version {about.get('version')}, not {self.version}"
            raise InvalidInputError(asked, found, f"{self.again} with this version of milp_agt")
        return arrays, about


def _sync_folder(folder: Path) -> None:
    """Make a renaming durable, where folders can be flushed."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
