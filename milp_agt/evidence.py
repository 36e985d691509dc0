"""What a report shows point by point: bounds of test points, and a map of a two-dimensional input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from milp_agt.checkpoint import replace
from milp_agt.errors import InvalidInputError

if TYPE_CHECKING:
    from milp_agt.data import Dataset
    from milp_agt.result import Result

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

NAME = "evidence.npz"
CELLS = 31  # of the map, in each direction
SHOWN_TRAINING = 1000
SHOWN_PICTURES = 200


def collect(result: Result, dataset: Dataset) -> dict[str, Array]:
    """Arrays by name, for the test part, or the training part where nothing was held out.

    ``points/index, label, lower, nominal, upper``: of the margin of the true class (classification) or
    of the loss (regression), (n,) each; ``points/predicted`` by the nominal model. ``points/on`` names
    the part. With two features ``map/x, y`` (m,) and ``map/predicted, lower`` (m, m): the margin by
    which the predicted class is the only possible one at this point. ``train/x, label``: some
    training points. ``pictures``: the first inputs as (n, height, width) or (n, height, width, 3).
    """
    part: Literal["test", "train"] = "test" if len(dataset.x_test) else "train"
    x = dataset.x_test if part == "test" else dataset.x_train
    y = dataset.y_test if part == "test" else dataset.y_train
    arrays: dict[str, Array] = {"points/on": np.array(part), "points/index": np.arange(len(x))}
    if dataset.task == "classification":
        predicted = _predicted(result, x)
        lower, upper = result.margins(x, y)
        arrays |= {
            "points/label": y,
            "points/predicted": predicted,
            "points/lower": lower,
            "points/nominal": _margins(_scores(result, x), y),
            "points/upper": upper,
        }
        if dataset.x_train.shape[1:] == (2,):
            arrays |= _map(result, dataset)
    pictures = _pictures(x[:SHOWN_PICTURES], dataset.feature_names)
    return arrays if pictures is None else arrays | {"pictures": pictures}


def save(folder: Path, arrays: Arrays) -> Path:
    """Write the arrays beside ``result.json``, as a whole.

    Raises:
        InvalidInputError: the folder takes no files.
    """
    path = folder / NAME
    try:
        replace(path, lambda stream: np.savez_compressed(stream, **dict(arrays)))
    except OSError as error:
        raise InvalidInputError(
            f"Write the bounds of the test points to {folder}",
            error.strerror or str(error),
            "make room or give the folder back its rights, then go on with "
            f"milp-agt certify --resume {folder}",
        ) from error
    return path


def load(folder: Path) -> dict[str, Array]:
    """What :func:`save` wrote; nothing where there is no such file."""
    path = folder / NAME
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _scores(result: Result, x: Array) -> Array:
    """One score for each class, (n, classes), of the nominal model."""
    features = torch.from_numpy(np.asarray(x, dtype=np.float64))
    device = result.models.poison.features.device
    outputs = result.models.outputs(features.to(device)).cpu().numpy()
    return (
        np.concatenate([np.zeros_like(outputs), outputs], 1) if outputs.shape[1] == 1 else outputs
    )


def _predicted(result: Result, x: Array) -> Array:
    predicted: Array = _scores(result, x).argmax(1)
    return predicted


def _margins(scores: Array, labels: Array) -> Array:
    """Score of the label less the best other one, (n,)."""
    rows = np.arange(len(labels))
    own = scores[rows, labels]
    others = scores.copy()
    others[rows, labels] = -np.inf
    margins: Array = own - others.max(1)
    return margins


def _map(result: Result, dataset: Dataset) -> dict[str, Array]:
    """The margin of the predicted class at the points of a grid around the data."""
    points = np.concatenate([dataset.x_train, dataset.x_test])
    low, high = points.min(0), points.max(0)
    pad = 0.12 * (high - low) + 1e-9
    axes = [np.linspace(a - p, b + p, CELLS) for a, b, p in zip(low, high, pad, strict=True)]
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    predicted = _predicted(result, grid)
    lower, _ = result.margins(grid, predicted)
    shape = (CELLS, CELLS)
    return {
        "map/x": axes[0],
        "map/y": axes[1],
        "map/predicted": predicted.reshape(shape),
        "map/lower": lower.reshape(shape),
        "train/x": dataset.x_train[:SHOWN_TRAINING],
        "train/label": dataset.y_train[:SHOWN_TRAINING],
        "test/x": dataset.x_test[:SHOWN_TRAINING],
        "test/label": dataset.y_test[:SHOWN_TRAINING],
    }


def _pictures(x: Array, names: tuple[str, ...]) -> Array | None:
    """Inputs as pictures: (n, h, w), (n, channels, h, w), or flat pixels with names like pixel_3_5."""
    if x.ndim == 3:
        return x
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return x[:, 0] if x.shape[1] == 1 else np.moveaxis(x, 1, -1)
    places = [re.fullmatch(r"pixel_(\d+)_(\d+)", name) for name in names]
    if x.ndim != 2 or not places or not all(places):
        return None
    rows, columns = (np.array([int(p[k]) for p in places if p is not None]) for k in (1, 2))
    pictures = np.zeros((len(x), rows.max() + 1, columns.max() + 1))
    pictures[:, rows, columns] = x
    return pictures
