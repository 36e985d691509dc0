"""What a data set must be, and its parts: how samples are divided, scaled, named, and projected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.core.arguments import listed
from milp_agt.core.numbers import all_finite
from milp_agt.data.origin import Parts, Scaling
from milp_agt.errors import InvalidInputError

Array = npt.NDArray[Any]
EXACT = 2**53


def checked(
    asked: str,
    part: str,
    x: Array,
    y: Array,
    task: str | None,
    names: tuple[str, ...] = (),
    lines: Array | None = None,
) -> tuple[Array, Array]:
    """Features as float64 (n, ...), targets as int64 (n,) or float64 (n,) or (n, outputs).

    Raises:
        InvalidInputError: no numbers, shapes that do not fit, NaN, labels that are no classes.
    """
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
    all_finite(asked, f"the features{part}", x, names, lines)
    all_finite(asked, f"the targets{part}", y, (), lines)
    x = exact(asked, f"features{part}", x)
    if task == "regression" or (task is None and y.dtype.kind == "f"):
        return x, exact(asked, f"targets{part}", y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or (y != np.round(y)).any() or (y < 0).any():
        found = f"values from {y.min()} to {y.max()}"
        remedy = "number the classes 0, 1, 2, ... (0 and 1 for two classes, hinge included)"
        if y.ndim != 1:
            found = f"shape {y.shape}"
            one_hot = bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())
            remedy = "give y.argmax(axis=1)" if one_hot else remedy
        raise InvalidInputError(asked, f"class labels{part} with {found}", remedy)
    return x, y.astype(np.int64, copy=False)


def exact(asked: str, what: str, values: Array) -> Array:
    """The values as float64, where none is rounded by that.

    Raises:
        InvalidInputError: whole numbers beyond 2^53, or floats longer than float64, that would be.
    """
    converted = values.astype(np.float64, copy=False)
    if values.dtype.kind in "iu":
        rounded = (np.abs(converted) >= EXACT) & (converted.astype(object) != values.astype(object))
    elif values.dtype.itemsize > 8:
        rounded = converted != values
    else:
        return converted
    if rounded.any():
        first = tuple(int(i) for i in np.argwhere(rounded)[0])
        raise InvalidInputError(
            asked,
            f"{int(rounded.sum())} {what} that float64 would round, the first at {first}: {values[first]}",
            "drop columns that say who a sample is; scale quantities, or round them to float64 yourself",
        )
    return converted


def split(
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


def own_test_part(
    asked: str, x: Array, y: Array, x_test: Array, y_test: Array, test_fraction: float | None
) -> tuple[Array, Array]:
    """The test part that a file brings along, checked against the training part."""
    if test_fraction is not None:
        raise InvalidInputError(
            asked,
            f"test_fraction = {test_fraction}, and a test part in the file already",
            "drop test_fraction, or store the samples under the keys X and y",
        )
    task = "classification" if y.dtype == np.int64 else "regression"
    x_test, y_test = checked(asked, " of the test part", x_test, y_test, task)
    if x_test.shape[1:] != x.shape[1:] or y_test.shape[1:] != y.shape[1:]:
        raise InvalidInputError(
            asked,
            f"training shapes {x.shape} and {y.shape}, test shapes {x_test.shape} and "
            f"{y_test.shape}",
            "give both parts the same features and outputs",
        )
    return x_test, y_test


def scale(
    train: Array, test: Array, divisor: float, names: tuple[str, ...]
) -> tuple[Array, Array, Scaling]:
    """Both parts by mean and deviation of the first, and how that was done."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    constant = train.max(axis=0) == train.min(axis=0)
    deviation = np.where(constant, 1.0, deviation)
    scaling = Scaling(np.asarray(mean), deviation, divisor, names)
    return (train - mean) / deviation, (test - mean) / deviation, scaling


def ids_of(
    asked: str,
    ids: Sequence[object] | None,
    test_ids: Sequence[object] | None,
    count: int,
    held: int,
) -> Parts | None:
    """The ids of both parts as text; empty where the test part has none."""
    if ids is None and test_ids is None:
        return None
    listed(ids if ids is not None else (), object, "ids", "give one for each training sample")
    own = np.array([str(each) for each in ids or ()], dtype=np.str_)
    other = np.array([str(each) for each in test_ids or [""] * held], dtype=np.str_)
    if len(own) != count or len(other) != held:
        raise InvalidInputError(
            asked,
            f"{len(own)} ids for {count} training samples, {len(other)} for {held} test samples",
            "give one for each sample",
        )
    return Parts(own, other)


# Share of the training part that is set aside for the fit.
SHARE = 0.2


def project(
    asked: str, x: Array, x_test: Array, components: int, seed: int
) -> tuple[Array, Array, Array]:
    """Features of both parts on the leading principal components of samples that are set aside, and the
    positions of those that are left for training.

    ``z = V^T (x - mean)`` with V the leading right singular vectors of the centred part. Samples
    are flattened first. A sign convention makes V the same on every machine: the largest entry of
    each component is positive.

    Raises:
        InvalidInputError: fewer than one component, or more than the features or the part allow.
    """
    aside, width = round(SHARE * len(x)), math.prod(x.shape[1:])
    flat, flat_test = x.reshape(len(x), width), x_test.reshape(len(x_test), width)
    limit = min(aside, width)
    if not 1 <= components <= limit:
        raise InvalidInputError(
            asked,
            f"pca = {components}, with {width} features and {aside} samples set aside",
            f"ask for 1 to {limit} components",
        )
    order = np.random.default_rng(seed).permutation(len(x))
    fit, kept = np.sort(order[:aside]), np.sort(order[aside:])
    mean = flat[fit].mean(axis=0)
    _, _, basis = np.linalg.svd(flat[fit] - mean, full_matrices=False)
    basis = basis[:components]
    rows = np.arange(components)
    basis = basis * np.sign(basis[rows, np.abs(basis).argmax(axis=1)])[:, None]
    return (flat[kept] - mean) @ basis.T, (flat_test - mean) @ basis.T, kept
