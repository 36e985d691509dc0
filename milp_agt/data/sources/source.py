"""What every reader gets and gives."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import MilpAgtError

Array = npt.NDArray[Any]


class DatasetUnavailableError(MilpAgtError, ImportError):
    """A data set whose optional package is not installed."""


@dataclass(frozen=True)
class Reading:
    """Options that a reader may need; None where nothing was said."""

    samples: int | None = None
    noise: float | None = None
    target: str | None = None
    image_size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """What a reader hands over before anything is split or scaled; ``x_test`` may be None.

    ``notes`` say what was done to the data, and is trusted by the claim.
    """

    x: Array
    y: Array
    feature_names: tuple[str, ...]
    description: str
    x_test: Array | None = None
    y_test: Array | None = None
    notes: tuple[str, ...] = ()


def optional(module: str, package: str, extra: str, asked: str) -> ModuleType:
    """Import an optional package.

    Raises:
        DatasetUnavailableError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise DatasetUnavailableError(
            asked, f"{package} is not installed", f"pip install milp_agt[{extra}]"
        ) from error


def subset(count: int, samples: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of a random subset, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:samples])
