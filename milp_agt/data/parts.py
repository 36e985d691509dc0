"""Training and test part: how samples are divided, scaled, named, and projected on components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.core.arguments import listed
from milp_agt.data.checks import checked
from milp_agt.data.origin import Parts, Scaling
from milp_agt.errors import InvalidInputError

Array = npt.NDArray[Any]


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


@dataclass(frozen=True, eq=False)
class Projected:
    """What is left for training after the fit, at which positions it stood, and what to say about it."""

    x: Array
    y: Array
    x_test: Array
    kept: Array
    note: str


def project(asked: str, x: Array, y: Array, x_test: Array, components: int, seed: int) -> Projected:
    """Project features on the leading principal components of a part that is set aside.

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
    return Projected(
        (flat[kept] - mean) @ basis.T,
        y[kept],
        (flat_test - mean) @ basis.T,
        kept,
        f"features were projected on {components} principal components, fitted on {aside} samples "
        "that were taken out of the training part and that the adversary does not touch",
    )
