"""Image sets in the format of MedMNIST: training, validation and test part in one .npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from milp_agt.data.sources.npz import load_arrays
from milp_agt.data.sources.source import Array, Reading, Source, subset
from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE

KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def is_medmnist(path: Path) -> bool:
    """Whether an .npz file has the keys of MedMNIST; False if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return "train_images" in archive.files
    except DAMAGE:
        return False


def read_medmnist(asked: str, path: Path, reading: Reading) -> Source:
    """Images (n, channels, height, width) in [0, 1] and class labels (n,).

    Yang et al., *MedMNIST v2* (Scientific Data 2023). The validation part is left out. Of a subset of
    the training part no other image is ever held as float64, of which OCTMNIST has 0.6 GB.

    Raises:
        InvalidInputError: missing keys, images or labels of other shapes or types.
    """
    arrays = load_arrays(asked, path, "download it again", without="val_")
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise InvalidInputError(
            asked,
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
    images = [_images(asked, key, arrays[key]) for key in (KEYS[0], KEYS[2])]
    labels = [_labels(asked, key, arrays[key]) for key in (KEYS[1], KEYS[3])]
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


def _images(asked: str, key: str, images: Array) -> Array:
    """(n, height, width[, 3]) in 0..255 as (n, channels, height, width) in [0, 1]."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InvalidInputError(
            asked,
            f"'{key}' of type {images.dtype} and shape {images.shape}",
            "store images as uint8, (n, height, width) or (n, height, width, channels)",
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        remedy = "store one picture for each sample, channels last: (n, height, width, 1 or 3)"
        if images.shape[1] in (1, 3):
            remedy = f"channels seem to come first: store np.moveaxis({key}, 1, -1)"
        elif images.shape[-1] == 4:
            remedy = f"leave the transparency out: store {key}[..., :3]"
        raise InvalidInputError(
            asked,
            f"'{key}' of shape {images.shape}, whose last axis is neither 1 nor 3 channels",
            remedy,
        )
    channels_last = images[..., None] if images.ndim == 3 else images
    scaled = np.ascontiguousarray(np.moveaxis(channels_last, -1, 1)).astype(np.float64)
    scaled /= 255.0
    return scaled


def _labels(asked: str, key: str, labels: Array) -> Array:
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] != 1):
        raise InvalidInputError(
            asked,
            f"'{key}' of shape {labels.shape}, several labels for each image",
            "use a set with one label for each image",
        )
    return labels.reshape(len(labels))
