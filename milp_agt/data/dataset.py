"""Data sets by name or from a file, split and standardised the same way every time.

What happens here is outside the claim of a certificate: the adversary changes the arrays that
leave this module, not the scaler or the split that made them. ``Dataset.notes`` says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from milp_agt.core.arguments import array_of, at_least, is_at_least, listed, of_kind
from milp_agt.data.projection import project
from milp_agt.data.sources import DatasetUnavailableError, Reading, dataset_names, read
from milp_agt.errors import InvalidInputError

__all__ = ["Dataset", "DatasetUnavailableError", "Task", "dataset_names", "load_dataset"]

Array = npt.NDArray[Any]
Task = Literal["classification", "regression"]

DEFAULT_TEST_FRACTION = 0.2


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test data, checked: finite, shapes that fit, float64 and int64 only.

    Attributes:
        name: the built-in name, or the path of the file.
        x_train: features, shape (n, ...), float64.
        y_train: class labels (n,), int64; or real targets (n,) or (n, outputs), float64.
        x_test, y_test: the same for the test part, which may be empty.
        feature_names: one name for each feature column, in order.
        description: one sentence for people.
        notes: what was done to the data before it got here, and is trusted by the claim.
    """

    name: str
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    feature_names: tuple[str, ...]
    description: str
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(
        x_train: npt.ArrayLike,
        y_train: npt.ArrayLike,
        x_test: npt.ArrayLike | None = None,
        y_test: npt.ArrayLike | None = None,
        *,
        name: str = "arrays",
        description: str | None = None,
        feature_names: Sequence[str] | None = None,
        task: Task | None = None,
    ) -> Dataset:
        """Arrays or tensors of your own, checked as files are; nothing is split, scaled or reordered.

        Args:
            x_train, y_train: what training sees: features (n, ...), and class labels (n,) as whole
                numbers, or targets (n,) or (n, outputs).
            x_test, y_test: the same for the test part; None for none.
            name, description: for files and people.
            feature_names: one for each feature (default: x0, x1, ...).
            task: as in :func:`load_dataset`.

        Raises:
            InvalidInputError: NaN, shapes that do not fit, labels that are no classes.
        """
        of_kind(name, str, "The name of a data set", "give a text")
        asked = f"Make a data set of {name}"
        of_kind(description, (str, type(None)), "A description", "give a text, or leave it out")
        if feature_names is not None:
            listed(feature_names, str, "feature_names", "give a text for each feature")
        _check_task(asked, task)
        x, y = _checked(asked, "", _copied(x_train, "x_train"), _copied(y_train, "y_train"), task)
        x_held, y_held = x[:0], y[:0]
        if x_test is not None and y_test is not None:
            given = _copied(x_test, "x_test"), _copied(y_test, "y_test")
            x_held, y_held = _own_test_part(asked, x, y, *given, None)
        elif x_test is not None or y_test is not None:
            found = "y_test without x_test" if x_test is None else "x_test without y_test"
            raise InvalidInputError(asked, found, "give both, or neither")
        size = math.prod(x.shape[1:])
        own = () if feature_names is None else tuple(feature_names)
        names = own or tuple(f"x{i}" for i in range(size))
        if len(names) != size:
            raise InvalidInputError(
                asked, f"{len(names)} names for {size} features", "give one name for each"
            )
        about = description or f"{name}: {len(x) + len(x_held)} samples, {size} features"
        return Dataset(name, x, y, x_held, y_held, names, about)

    @property
    def task(self) -> Task:
        """Whether the targets are class labels (int64) or real numbers (float64)."""
        return "classification" if self.y_train.dtype == np.int64 else "regression"

    @property
    def sha256(self) -> str:
        """Hash of the four arrays: type, shape and bytes, in a fixed order."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def load_dataset(
    name_or_path: str | Path,
    *,
    samples: int | None = None,
    noise: float | None = None,
    target: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    standardise: bool = False,
    standardise_targets: bool = False,
    pca: int | None = None,
    image_size: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    task: Task | None = None,
) -> Dataset:
    """Load a data set; the same arguments give the same arrays, bit for bit.

    Args:
        name_or_path: one of ``dataset_names()``, or a file. An ``.npz`` holds ``x_train,
            y_train[, x_test, y_test]`` or ``X, y``, or the parts of MedMNIST. A ``.csv`` has a
            header row and numeric columns. Also: the household power data of the UCI repository
            (``.txt``, ``.csv``, packed as ``.gz``), and the folder of a driving simulator.
        samples: how many samples to use in all: drawn anew for moons (default: 100), a random
            subset elsewhere (default: all).
        noise: standard deviation of the noise of moons (default: 0.1); only for moons.
        target: name of the target column; needed for ``.csv``, only for ``.csv``.
        test_fraction: share of the samples held out, in [0, 1) (default: 0.2). At 0 nothing is
            held out and the order of the samples is kept. Only where the file brings no test part.
        seed: fixes the drawing of moons, the subset and the split.
        standardise: subtract the mean and divide by the standard deviation of each feature, both
            taken from the training part. A constant feature is only centred.
        standardise_targets: the same for regression targets.
        pca: project the features on so many principal components. They are fitted on a fifth of the
            training part, which training does not use: an adversary that poisons the training part
            does not touch them.
        image_size: height and width to which the frames of a driving log are scaled.
        crop: rows that are cut off these frames at the top and at the bottom.
        task: read the targets as class labels or as real numbers; by default integers are labels.

    Raises:
        InvalidInputError: an unknown name, an unreadable file, missing values, text columns, NaN,
            shapes that do not fit, labels out of range, an option that does not apply here.
        DatasetUnavailableError: an optional package is needed and not installed.
    """
    asked = f"Load data set '{name_or_path}'"
    of_kind(name_or_path, (str, Path), "A data set", "give its name, or the path of its file")
    _check_options(asked, samples, noise, test_fraction, seed)
    _check_task(asked, task)
    if pca is not None:
        at_least(pca, 1, "pca", "give a count of components, or leave it out", whole=True)
    for option, value in (
        ("standardise", standardise),
        ("standardise_targets", standardise_targets),
    ):
        of_kind(value, bool, option, "give True or False")
    source = read(asked, name_or_path, Reading(samples, noise, target, image_size, crop, seed))
    notes = list(source.notes)
    if source.x.dtype == np.float32 or source.y.dtype == np.float32:
        notes.append("float32 values were converted to float64")
    x, y = _checked(asked, "", source.x, source.y, task)

    generator = np.random.default_rng(seed)
    if samples is not None and samples != len(x):
        if samples > len(x):
            raise InvalidInputError(
                asked, f"samples = {samples}, but the set has {len(x)}", f"ask for at most {len(x)}"
            )
        chosen = np.sort(generator.permutation(len(x))[:samples])
        x, y = x[chosen], y[chosen]
        notes.append(f"a subset of {samples} samples was drawn with seed {seed}")
    if source.x_test is not None and source.y_test is not None:
        x_test, y_test = _own_test_part(asked, x, y, source.x_test, source.y_test, test_fraction)
    else:
        fraction = DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction
        train, test = _split(asked, len(x), fraction, generator)
        x, y, x_test, y_test = x[train], y[train], x[test], y[test]
        if len(test):
            notes.append(f"{len(test)} samples were held out for testing with seed {seed}")

    names = source.feature_names or tuple(f"x{i}" for i in range(math.prod(x.shape[1:])))
    description = source.description
    del source  # its arrays are as large as all that is made of them
    if pca is not None:
        projected = project(asked, x, y, x_test, pca, seed)
        x, y, x_test = projected.x, projected.y, projected.x_test
        names = tuple(f"component{i + 1}" for i in range(pca))
        notes.append(projected.note)
    if standardise:
        x, x_test = _scale(x, x_test)
        notes.append("features were standardised by mean and deviation of the training part")
    if standardise_targets:
        if y.dtype == np.int64:
            raise InvalidInputError(
                asked, "standardise_targets = true on class labels", "use it for regression only"
            )
        y, y_test = _scale(y, y_test)
        notes.append("targets were standardised by mean and deviation of the training part")
    return Dataset(
        name=str(name_or_path),
        x_train=x,
        y_train=y,
        x_test=x_test,
        y_test=y_test,
        feature_names=names,
        description=description,
        notes=tuple(notes),
    )


def _check_options(
    asked: str, samples: int | None, noise: float | None, test_fraction: float | None, seed: int
) -> None:
    if samples is not None and not is_at_least(samples, 2, whole=True):
        raise InvalidInputError(asked, f"samples = {samples!r:.60}", "ask for at least 2 samples")
    if noise is not None and not (is_at_least(noise, 0.0) and noise < math.inf):
        raise InvalidInputError(asked, f"noise = {noise!r:.60}", "give a finite number >= 0")
    share = test_fraction
    if share is not None and not (is_at_least(share, 0.0) and share < 1):
        raise InvalidInputError(
            asked, f"test_fraction = {share!r:.60}", "give a number in [0, 1), for instance 0.2"
        )
    if not is_at_least(seed, 0, whole=True):
        raise InvalidInputError(asked, f"seed = {seed!r:.60}", "give an integer >= 0")


def _check_task(asked: str, task: object) -> None:
    if task is not None and (not isinstance(task, str) or task not in get_args(Task)):
        known = " or ".join(map(repr, get_args(Task)))
        raise InvalidInputError(asked, f"task = {task!r:.60}", f"use {known}, or leave it out")


def _copied(values: npt.ArrayLike, what: str) -> Array:
    return np.array(array_of(values, what, "give one row of numbers for each sample"))


def _split(
    asked: str, count: int, fraction: float, generator: np.random.Generator
) -> tuple[Array, Array]:
    """Indices of the training and of the test part; in the given order if nothing is held out."""
    held_out = round(fraction * count)
    if held_out == 0:
        return np.arange(count), np.arange(0)
    if held_out >= count:
        raise InvalidInputError(
            asked,
            f"{count} samples, of which test_fraction = {fraction} leaves none for training",
            "hold out less",
        )
    order = generator.permutation(count)
    return order[held_out:], order[:held_out]


def _own_test_part(
    asked: str, x: Array, y: Array, x_test: Array, y_test: Array, test_fraction: float | None
) -> tuple[Array, Array]:
    """The test part that a file brings along, checked against the training part."""
    if test_fraction is not None:
        raise InvalidInputError(
            asked,
            f"test_fraction = {test_fraction}, and a test part in the file already",
            "drop test_fraction, or store the samples under the keys X and y",
        )
    task: Task = "classification" if y.dtype == np.int64 else "regression"
    x_test, y_test = _checked(asked, " of the test part", x_test, y_test, task)
    if x_test.shape[1:] != x.shape[1:] or y_test.shape[1:] != y.shape[1:]:
        raise InvalidInputError(
            asked,
            f"training shapes {x.shape} and {y.shape}, test shapes {x_test.shape} and "
            f"{y_test.shape}",
            "give both parts the same features and outputs",
        )
    return x_test, y_test


def _scale(train: Array, test: Array) -> tuple[Array, Array]:
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    constant = train.max(axis=0) == train.min(axis=0)
    deviation = np.where(constant, 1.0, deviation)
    return (train - mean) / deviation, (test - mean) / deviation


def _checked(asked: str, part: str, x: Array, y: Array, task: Task | None) -> tuple[Array, Array]:
    """Features as float64 (n, ...), targets as int64 (n,) or float64 (n,) or (n, outputs)."""
    for label, array in (("features", x), ("targets", y)):
        if array.dtype.kind not in "fiub":
            raise InvalidInputError(
                asked, f"{label}{part} of type {array.dtype}", "store plain numbers"
            )
    if x.ndim < 2 or x.size == 0 or y.ndim not in (1, 2) or y.size == 0 or len(x) != len(y):
        raise InvalidInputError(
            asked,
            f"features{part} of shape {x.shape} and targets of shape {y.shape}",
            "give features (n, features) and targets (n,) or (n, outputs) with the same n >= 1",
        )
    for label, array in (("features", x), ("targets", y)):
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            raise InvalidInputError(
                asked,
                f"{len(bad)} NaN or infinite values among the {label}{part}, "
                f"the first at index {tuple(int(i) for i in bad[0])}",
                "drop or impute these samples before certifying",
            )
    x = x.astype(np.float64, copy=False)
    if task == "regression" or (task is None and y.dtype.kind == "f"):
        return x, y.astype(np.float64, copy=False)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or (y != np.round(y)).any() or (y < 0).any():
        found = f"shape {y.shape}" if y.ndim != 1 else f"values from {y.min()} to {y.max()}"
        raise InvalidInputError(
            asked,
            f"class labels{part} with {found}",
            "number the classes 0, 1, 2, ... (0 and 1 for two classes, hinge included)",
        )
    return x, y.astype(np.int64, copy=False)
