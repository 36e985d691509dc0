"""Data sets by name or from a file, split and standardised the same way every time.

What happens here is outside the claim of a certificate: the adversary changes the arrays that
leave this module, not the scaler or the split that made them. ``Dataset.notes`` says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from milp_agt.core.arguments import columns_of, listed, of_kind, same_rows
from milp_agt.core.numbers import numbers_of
from milp_agt.core.option_table import Count, Index, NonNegative, misfit
from milp_agt.data.origin import UNKNOWN, Origin, Parts, Scaling
from milp_agt.data.parts import checked, ids_of, own_test_part, project, scale, split
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
        notes: what was done to the data before it got here, or taken for granted of its file; trusted by
            the claim.
        origin: rows, names and units of the samples in the user's file; see :attr:`rows`, :attr:`ids`.
    """

    name: str
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    feature_names: tuple[str, ...]
    description: str
    notes: tuple[str, ...] = ()
    origin: Origin = field(default=UNKNOWN, repr=False)

    def __post_init__(self) -> None:
        if self.origin is UNKNOWN:
            plain = Origin.of_arrays(len(self.x_train), len(self.x_test), self.feature_names, None)
            object.__setattr__(self, "origin", plain)
        rows, counts = self.origin.rows, (len(self.x_train), len(self.x_test))
        if (len(rows.train), len(rows.test)) != counts:
            raise InvalidInputError(
                f"Make a data set of {self.name}",
                f"{counts} samples, and rows of {(len(rows.train), len(rows.test))}",
                "make parts of a data set by Dataset.of(x_train, y_train, ..., ids=)",
            )

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
        ids: Sequence[object] | None = None,
        test_ids: Sequence[object] | None = None,
        task: Task | None = None,
    ) -> Dataset:
        """Arrays, tensors or DataFrames of your own, checked as files are.

        Nothing is split, scaled or reordered.

        Args:
            x_train, y_train: what training sees: features (n, ...), and class labels (n,) as whole
                numbers, or targets (n,) or (n, outputs).
            x_test, y_test: the same for the test part; None for none.
            name, description: for files and people.
            feature_names: one for each feature (default: the columns of a DataFrame, else x0, x1, ...).
            ids, test_ids: who each sample is, by which threats and questions can name it.
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
        own = columns_of(x_train) if feature_names is None else tuple(feature_names)
        same_rows(x_train, y_train, asked)
        same_rows(x_test, y_test, asked)
        given_x = np.array(numbers_of(x_train, "x_train"))
        given_y = np.array(numbers_of(y_train, "y_train"))
        named = own if given_x.ndim == 2 and len(own) == given_x.shape[1] else ()
        x, y = checked(asked, "", given_x, given_y, task, named)
        x_held, y_held = x[:0], y[:0]
        if x_test is not None and y_test is not None:
            other = columns_of(x_test)
            if own and other and other != own and feature_names is None:
                raise InvalidInputError(
                    asked,
                    f"a test part with the columns {', '.join(other):.60}, "
                    f"a training part with {', '.join(own):.60}",
                    "give both the same columns in the same order: x_test[x_train.columns]",
                )
            held_x = np.array(numbers_of(x_test, "x_test"))
            held_y = np.array(numbers_of(y_test, "y_test"))
            x_held, y_held = own_test_part(asked, x, y, held_x, held_y, None)
        elif x_test is not None or y_test is not None:
            found = "y_test without x_test" if x_test is None else "x_test without y_test"
            raise InvalidInputError(asked, found, "give both, or neither")
        size = math.prod(x.shape[1:])
        names = own or tuple(f"x{i}" for i in range(size))
        if len(names) != size:
            raise InvalidInputError(
                asked, f"{len(names)} names for {size} features", "give one name for each"
            )
        about = description or f"{name}: {len(x) + len(x_held)} samples, {size} features"
        own_ids = ids_of(asked, ids, test_ids, len(x), len(x_held))
        origin = Origin.of_arrays(len(x), len(x_held), names, own_ids)
        return Dataset(name, x, y, x_held, y_held, names, about, origin=origin)

    def in_float32(self) -> Dataset:
        """The same with features and targets rounded to float32 numbers, as a float32 run reads them.

        What follows is about these numbers: radii and threats are around them. A note says so.

        Raises:
            InvalidInputError: numbers beyond the range of float32.
        """
        parts = {n: getattr(self, n) for n in ("x_train", "y_train", "x_test", "y_test")}
        real = {name: array for name, array in parts.items() if array.dtype == np.float64}
        with np.errstate(over="ignore"):
            rounded = {n: a.astype(np.float32).astype(np.float64) for n, a in real.items()}
        for name, array in rounded.items():
            if not np.isfinite(array).all():
                raise InvalidInputError(
                    f"Round the data set {self.name} to float32",
                    f"{name} has numbers up to {np.abs(parts[name]).max():.3g}, which overflow",
                    "scale the data, or train in float64",
                )
        note = "Features and targets were rounded to float32 before anybody touched them."
        return replace(self, **rounded, notes=(*self.notes, note))

    @property
    def rows(self) -> Parts:
        """Rows of the samples in the user's file, ``rows.train`` (n,) and ``rows.test`` (m,), from 0.

        Below the header, as ``pandas.read_csv`` counts; positions in arrays of one's own, where the test
        part is counted apart.
        """
        return self.origin.rows

    @property
    def ids(self) -> Parts | None:
        """Who the samples are, as text, by the column that ``id=`` named; None without one."""
        return self.origin.ids

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
    id: str | None = None,
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
            y_train[, x_test, y_test]`` or ``X, y``, or the parts of MedMNIST. A ``.csv`` or ``.tsv``
            (commas, semicolons, tabs or bars; packed as ``.gz`` or not) has a header row and numeric
            columns. Also: the household power data of the UCI repository (``.txt``, ``.csv``), and the
            folder of a driving simulator.
        samples: how many samples to use in all, drawn anew for moons and at random elsewhere; unless given,
            100 of moons and all of others.
        noise: standard deviation of the noise of moons, for which it is 0.1 unless given.
        target: target column of a ``.csv``, which needs it; whole numbers are classes.
        id: column of a ``.csv`` (array of an ``.npz``) that says who a sample is: no feature, but a name by
            which ``ids`` of threats and properties find it.
        test_fraction: share of the samples held out for testing, where the file brings no test part; 0.2
            unless given, and at 0 the order of the samples is kept.
        seed: seed of the drawing of moons, of the subset and of the split.
        standardise: subtract the mean of each feature and divide by its standard deviation, both of the
            training part; a constant feature is only centred.
        standardise_targets: the same for the targets of a regression.
        pca: project the features on so many principal components, fitted on a fifth of the training part
            that training then leaves out: an adversary that poisons the training part does not touch them.
        image_size: height and width to which the frames of a driving log are scaled.
        crop: rows that are cut off the frames of a driving log at the top and at the bottom.
        task: read the targets as class labels or as real numbers; by default integers are labels.

    Raises:
        InvalidInputError: an unknown name, an unreadable file, missing values, text columns, NaN,
            shapes that do not fit, labels out of range, an option that does not apply here.
        DatasetUnavailableError: an optional package is needed and not installed.
    """
    given, asked = locals(), f"Load data set '{name_or_path}'"
    of_kind(name_or_path, (str, Path), "A data set", "give its name, or the path of its file")
    for name, default in defaults_of_options().items():
        error = misfit(
            f"Data set '{name_or_path}'", name, OPTIONS[name], given[name], default is None
        )
        if error is not None:
            raise error
    _check_task(asked, task)
    of_kind(id, (str, type(None)), "id", "give the name of a column, or leave it out")
    source = read(asked, name_or_path, Reading(samples, noise, target, id, image_size, crop, seed))
    notes = list(source.notes)
    if source.x.dtype == np.float32 or source.y.dtype == np.float32:
        notes.append("float32 values were converted to float64")
    x, y = checked(asked, "", source.x, source.y, task, source.feature_names, source.lines)
    rows = np.arange(len(x)) if source.rows is None else source.rows
    at = np.arange(len(x))  # of each sample among those that were read

    generator = np.random.default_rng(seed)
    if samples is not None and samples != len(x):
        if samples > len(x):
            raise InvalidInputError(
                asked, f"samples = {samples}, but the set has {len(x)}", f"ask for at most {len(x)}"
            )
        at = np.sort(generator.permutation(len(x))[:samples])
        notes.append(f"a subset of {samples} samples was drawn with seed {seed}")
    held, apart = at[:0], False
    if source.x_test is not None and source.y_test is not None:
        apart = True
        x_test, y_test = own_test_part(asked, x, y, source.x_test, source.y_test, test_fraction)
    else:
        fraction = DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction
        train, test = split(asked, len(at), fraction, generator)
        at, held = at[train], at[test]
        x_test, y_test = x[held], y[held]
        if len(held):
            notes.append(f"{len(held)} samples were held out for testing with seed {seed}")
    x, y = x[at], y[at]

    names = source.feature_names or tuple(f"x{i}" for i in range(math.prod(x.shape[1:])))
    description, total = source.description, source.total or len(rows)
    train_ids, divisor = source.ids, source.divisor
    rows_test = np.arange(len(x_test)) if apart else rows[held]
    ids_test = None if apart or train_ids is None else train_ids[held]
    del source  # its arrays are as large as all that is made of them
    if pca is not None:
        x, x_test, kept = project(asked, x, x_test, pca, seed)
        notes.append(
            f"features were projected on {pca} principal components, fitted on {len(y) - len(kept)} samples "
            "that were taken out of the training part and that the adversary does not touch"
        )
        y, at, divisor = y[kept], at[kept], 1.0
        names = tuple(f"component{i + 1}" for i in range(pca))
    ids = None
    if train_ids is not None:
        unnamed = np.full(len(x_test), "", dtype=np.str_)
        ids = Parts(train_ids[at], unnamed if ids_test is None else ids_test)
    features = targets = None
    if standardise:
        x, x_test, features = scale(x, x_test, divisor, names)
        notes.append("features were standardised by mean and deviation of the training part")
    elif divisor != 1.0:
        ones = np.ones(x.shape[1:])
        features = Scaling(np.zeros_like(ones), ones, divisor, names, fitted=False)
    if standardise_targets:
        if y.dtype == np.int64:
            raise InvalidInputError(
                asked, "standardise_targets = true on class labels", "use it for regression only"
            )
        several = tuple(f"target{j}" for j in range(y.shape[-1]))
        outputs = (target or "target",) if y.ndim == 1 else several
        y, y_test, targets = scale(y, y_test, 1.0, outputs)
        notes.append("targets were standardised by mean and deviation of the training part")
    origin = Origin(
        where=f"rows of {Path(name_or_path).name}",
        rows=Parts(rows[at], rows_test),
        total=total,
        names=names,
        apart=apart,
        ids=ids,
        features=features,
        targets=targets,
        projected=pca is not None,
    )
    arrays = (x, y, x_test, y_test)
    return Dataset(str(name_or_path), *arrays, names, description, tuple(notes), origin)


# What the options may be, in Python as in a run file.
OPTIONS: Mapping[str, Any] = {
    "samples": Annotated[int, Field(ge=2)],
    "noise": NonNegative,
    "target": str,
    "id": str,
    "test_fraction": Annotated[float, Field(ge=0, lt=1)],
    "seed": Index,
    "standardise": bool,
    "standardise_targets": bool,
    "pca": Count,
    "image_size": Annotated[list[Count], Field(min_length=2, max_length=2)],
    "crop": Annotated[list[Index], Field(min_length=2, max_length=2)],
}


def defaults_of_options() -> dict[str, Any]:
    known = signature(load_dataset).parameters
    return {name: known[name].default for name in OPTIONS}


def _check_task(asked: str, task: object) -> None:
    if task is not None and (not isinstance(task, str) or task not in get_args(Task)):
        known = " or ".join(map(repr, get_args(Task)))
        raise InvalidInputError(asked, f"task = {task!r:.60}", f"use {known}, or leave it out")
