"""Arrays in an ``.npz`` file."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np

from milp_agt.data.sources.source import Array, Reading, Source
from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE

PARTS = ("x_train", "y_train", "x_test", "y_test")
WHOLE = ("X", "y")


def load_arrays(asked: str, path: Path, remedy: str, without: str = "") -> dict[str, Array]:
    """The arrays of an ``.npz`` file whose names do not begin with ``without``, never unpickled.

    Raises:
        InvalidInputError: no such file, one that numpy cannot read, or objects in it.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [n for n in archive.files if not without or not n.startswith(without)]
            return {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise InvalidInputError(asked, f"no file at {path}", "check the path") from error
    except DAMAGE as error:
        if "Object arrays" in str(error):
            remedy = "store numbers: array.astype(float), each text column encoded or left out"
        raise InvalidInputError(
            asked, f"a file that numpy cannot read ({error})", remedy
        ) from error


def read_npz(asked: str, path: Path, reading: Reading) -> Source:
    """``x_train, y_train[, x_test, y_test]`` or ``X, y``; ``reading.id`` names an array of ids.

    Raises:
        InvalidInputError: unusable files, other names of arrays, or both sets of them.
    """
    arrays = load_arrays(asked, path, "write it with numpy.savez")
    ids = None if reading.id is None else _ids(asked, arrays, reading.id)
    parted, whole = {"x_train", "y_train"} <= arrays.keys(), {"X", "y"} <= arrays.keys()
    if parted and whole:
        raise InvalidInputError(
            asked,
            "both X, y and x_train, y_train",
            "store one of the two, or another file for each",
        )
    used = PARTS if parted else WHOLE
    spare = sorted(name for name in arrays if name not in used and name != reading.id)
    notes = (f"the arrays {', '.join(spare)} of the file were not read",) if spare else ()
    if parted:
        if ("x_test" in arrays) != ("y_test" in arrays):
            raise InvalidInputError(
                asked, "only one of x_test and y_test", "store both of them, or neither"
            )
        return Source(
            arrays["x_train"],
            arrays["y_train"],
            (),
            path.name,
            arrays.get("x_test"),
            arrays.get("y_test"),
            notes=notes,
            ids=ids,
        )
    if whole:
        return Source(arrays["X"], arrays["y"], (), path.name, notes=notes, ids=ids)
    raise InvalidInputError(
        asked,
        f"the keys {', '.join(sorted(arrays)) or '(none)'}",
        "store x_train, y_train[, x_test, y_test], or X and y",
    )


def _ids(asked: str, arrays: dict[str, Array], name: str) -> Array:
    samples = arrays.get("x_train", arrays.get("X"))
    if name not in arrays:
        near = difflib.get_close_matches(name, arrays, 1)
        raise InvalidInputError(
            asked,
            f"no array '{name}' among {', '.join(sorted(arrays))}",
            f"did you mean '{near[0]}'?" if near else f"store the ids under the key {name}",
        )
    found = arrays[name]
    if samples is not None and found.shape != (len(samples),):
        raise InvalidInputError(
            asked,
            f"'{name}' of shape {found.shape} for {len(samples)} samples",
            "give each training sample one id",
        )
    return found.astype(np.str_)
