"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

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


def replace_text(path: Path, text: str) -> None:
    """The same for a text, in UTF-8."""
    replace(path, lambda stream: stream.write(text.encode()))


def _sync_folder(folder: Path) -> None:
    """Make a renaming durable, where folders can be flushed."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
