"""Arrays in one file, with a versioned description beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE, replace

VERSION = 2
KIND = "recorded run"
_ABOUT = "about"
Arrays = dict[str, npt.NDArray[Any]]


def write(path: Path, arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write an .npz file at once: a half-written file never takes the place of a good one.

    Raises:
        InvalidInputError: no such folder, or one that takes no files.
    """
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    asked = f"A recorded run was to be saved as {path}"
    if not path.parent.is_dir():
        raise InvalidInputError(asked, "no such folder", "make the folder first")
    text = json.dumps({"version": VERSION, "kind": KIND, **about})
    named = {_ABOUT: np.array(text), **arrays}
    try:
        replace(path, lambda stream: np.savez_compressed(stream, allow_pickle=False, **named))
    except OSError as error:
        raise InvalidInputError(
            asked,
            error.strerror or str(error),
            "make room, or save it elsewhere; a file that was there is as it was",
        ) from error


def read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read what :func:`write` wrote.

    Raises:
        InvalidInputError: a missing or damaged file, a file of another kind, or of another version.
    """
    path = path if path.exists() or path.suffix == ".npz" else path.with_name(path.name + ".npz")
    asked = f"A recorded run was to be read from {path}"
    try:
        with open(path, "rb") as stream:
            stored = np.load(stream, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            arrays = {name: stored[name] for name in stored.files}
        about: dict[str, Any] = json.loads(str(arrays.pop(_ABOUT)))
        if not isinstance(about, dict) or about.get("kind") != KIND:
            raise ValueError("a file that holds something else")
    except DAMAGE as error:
        raise InvalidInputError(
            asked, str(error), "give a file that run.save(path) wrote, or save the run again"
        ) from None
    if about.get("version") != VERSION:
        raise InvalidInputError(
            asked, f"version {about.get('version')}", "record again with this version of milp_agt"
        )
    return arrays, about
