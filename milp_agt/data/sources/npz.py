"""Arrays in an ``.npz`` file: a table, or images in the format of MedMNIST."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np

from milp_agt.data.sources.source import Array, Reading, Source, refused, subset
from milp_agt.io.files import DAMAGE

PARTS = ("x_train", "y_train", "x_test", "y_test")
WHOLE = ("X", "y")


def load_arrays(path: Path, remedy: str, without: str = "") -> dict[str, Array]:
    """The arrays of an ``.npz`` file whose names do not begin with ``without``, never unpickled.

    Raises:
        InvalidInputError: no such file, one that numpy cannot read, or objects in it.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [n for n in archive.files if not without or not n.startswith(without)]
            return {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise refused(f"no file at {path}", "check the path") from error
    except DAMAGE as error:
        if "Object arrays" in str(error):
            remedy = "store numbers: array.astype(float), each text column encoded or left out"
        raise refused(f"a file that numpy cannot read ({error})", remedy) from error


def read_npz(path: Path, reading: Reading) -> Source:
    """``x_train, y_train[, x_test, y_test]`` or ``X, y``; ``reading.id`` names an array of ids.

    Raises:
        InvalidInputError: unusable files, other names of arrays, or both sets of them.
    """
    arrays = load_arrays(path, "write it with numpy.savez")
    ids = None if reading.id is None else _ids(arrays, reading.id)
    parted, whole = {"x_train", "y_train"} <= arrays.keys(), {"X", "y"} <= arrays.keys()
    if parted and whole:
        raise refused(
            "both X, y and x_train, y_train", "store one of the two, or another file for each"
        )
    used = PARTS if parted else WHOLE
    spare = sorted(name for name in arrays if name not in used and name != reading.id)
    notes = (f"the arrays {', '.join(spare)} of the file were not read",) if spare else ()
    if parted:
        if ("x_test" in arrays) != ("y_test" in arrays):
            raise refused("only one of x_test and y_test", "store both of them, or neither")
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
    raise refused(
        f"the keys {', '.join(sorted(arrays)) or '(none)'}",
        "store x_train, y_train[, x_test, y_test], or X and y",
    )


def _ids(arrays: dict[str, Array], name: str) -> Array:
    samples = arrays.get("x_train", arrays.get("X"))
    if name not in arrays:
        near = difflib.get_close_matches(name, arrays, 1)
        raise refused(
            f"no array '{name}' among {', '.join(sorted(arrays))}",
            f"did you mean '{near[0]}'?" if near else f"store the ids under the key {name}",
        )
    found = arrays[name]
    if samples is not None and found.shape != (len(samples),):
        raise refused(
            f"'{name}' of shape {found.shape} for {len(samples)} samples",
            "give each training sample one id",
        )
    return found.astype(np.str_)


KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def is_medmnist(path: Path) -> bool:
    """Whether an .npz file has the keys of MedMNIST; False if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return "train_images" in archive.files
    except DAMAGE:
        return False


def read_medmnist(path: Path, reading: Reading) -> Source:
    """Images (n, channels, height, width) in [0, 1] and class labels (n,).

    Yang et al., *MedMNIST v2* (Scientific Data 2023). The validation part is left out. Of a subset of
    the training part no other image is ever held as float64, of which OCTMNIST has 0.6 GB.

    Raises:
        InvalidInputError: missing keys, images or labels of other shapes or types.
    """
    arrays = load_arrays(path, "download it again", without="val_")
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise refused(
            f"no {' and no '.join(missing)} beside train_images",
            f"store {', '.join(KEYS)}, as MedMNIST does",
        )
    count, notes = len(arrays[KEYS[0]]), ["pixels were divided by 255"]
    rows = None
    if reading.samples is not None and reading.samples < count == len(arrays[KEYS[1]]):
        rows = chosen = subset(count, reading.samples, reading.seed)
        for key in KEYS[:2]:
            arrays[key] = arrays[key][chosen]
        notes.append(f"a subset of {len(chosen)} samples was drawn with seed {reading.seed}")
    images = [_images(key, arrays[key]) for key in (KEYS[0], KEYS[2])]
    labels = [_labels(key, arrays[key]) for key in (KEYS[1], KEYS[3])]
    shape = "x".join(map(str, images[0].shape[1:]))
    return Source(
        images[0],
        labels[0],
        (),
        f"{path.name}: {count} images {shape}, {int(labels[0].max(initial=0)) + 1} classes",
        images[1],
        labels[1],
        notes=(*notes, "the validation part was left out"),
        rows=rows,
        total=count,
        divisor=255.0,
    )


def _images(key: str, images: Array) -> Array:
    """(n, height, width[, 3]) in 0..255 as (n, channels, height, width) in [0, 1]."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise refused(
            f"'{key}' of type {images.dtype} and shape {images.shape}",
            "store images as uint8, (n, height, width) or (n, height, width, channels)",
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        remedy = "store one picture for each sample, channels last: (n, height, width, 1 or 3)"
        if images.shape[1] in (1, 3):
            remedy = f"channels seem to come first: store np.moveaxis({key}, 1, -1)"
        elif images.shape[-1] == 4:
            remedy = f"leave the transparency out: store {key}[..., :3]"
        raise refused(
            f"'{key}' of shape {images.shape}, whose last axis is neither 1 nor 3 channels", remedy
        )
    channels_last = images[..., None] if images.ndim == 3 else images
    scaled = np.ascontiguousarray(np.moveaxis(channels_last, -1, 1)).astype(np.float64)
    scaled /= 255.0
    return scaled


def _labels(key: str, labels: Array) -> Array:
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] != 1):
        raise refused(
            f"'{key}' of shape {labels.shape}, several labels for each image",
            "use a set with one label for each image",
        )
    return labels.reshape(len(labels))
