"""What every reader gets and gives."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError, MilpAgtError

Array = npt.NDArray[Any]


class DatasetUnavailableError(MilpAgtError, ImportError):
    """A data set whose optional package is not installed."""


@dataclass(frozen=True)
class Reading:
    """Options that a reader may need; None where nothing was said."""

    samples: int | None = None
    noise: float | None = None
    target: str | None = None
    id: str | None = None
    image_size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """What a reader hands over before anything is split or scaled; ``x_test`` may be None.

    Attributes:
        x, y: features (n, ...) and targets of the samples, or of the training part.
        feature_names: one for each feature; empty where the file has none.
        description: one sentence for people.
        x_test, y_test: the test part that the file brings along; None where it brings none.
        notes: what was done to the data, or taken for granted of the file; trusted by the claim.
        rows: where the samples stand in the file, from 0, (n,); None for all of them in order.
        total: rows of the file; None for n.
        ids: who each sample is, as text, where a column says so; nobody says it of a test part.
        lines: the line of the file of each sample, for messages; None where files have no lines.
        divisor: what the file's numbers were divided by, 255 for pixels.
    """

    x: Array
    y: Array
    feature_names: tuple[str, ...]
    description: str
    x_test: Array | None = None
    y_test: Array | None = None
    notes: tuple[str, ...] = ()
    rows: Array | None = None
    total: int | None = None
    ids: Array | None = None
    lines: Array | None = None
    divisor: float = 1.0


def refused(found: str, remedy: str) -> InvalidInputError:
    """What is wrong with a file, and what to do; whoever has it read adds what was asked."""
    return InvalidInputError("", found, remedy)


def optional(module: str, package: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        DatasetUnavailableError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise missing(package, extra) from error


def missing(package: str, extra: str) -> DatasetUnavailableError:
    """An optional package is not there."""
    return DatasetUnavailableError(
        "", f"{package} is not installed", f"pip install milp_agt[{extra}]"
    )


def subset(count: int, samples: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of a random subset, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:samples])
