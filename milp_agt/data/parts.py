"""Training and test part: how samples are divided, scaled and named."""

from __future__ import annotations

from collections.abc import Sequence
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
