"""Recorded batches: the samples of every step, and which steps make an epoch where that is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError

Batch = npt.NDArray[np.int64]
_REMEDY = (
    "give the indices of each step, [[0, 3], [1, 2]], or these for each epoch: "
    "[[b.tolist() for b in loader] for _ in range(epochs)], with loader = "
    "DataLoader(range(n), batch_size=..., shuffle=...)"
)


@dataclass(frozen=True)
class Recorded:
    """Batches one after the other.

    Attributes:
        batches: indices of the samples of each step.
        epochs: steps of each epoch; None where the batches came without epochs.
    """

    batches: tuple[Batch, ...]
    epochs: tuple[int, ...] | None

    @staticmethod
    def of(given: object) -> Recorded:
        """Read a list of batches, or a list of epochs that are lists of batches. Raises
        InvalidInputError: anything else, an empty batch, a sample twice in a batch."""
        entries = _series(given, "batches")
        if not entries:
            raise InvalidInputError(
                "Recorded batches need at least one step", "an empty list", "leave out batches="
            )
        nested = [_is_epoch(entry) for entry in entries]
        if any(nested) != all(nested):
            raise InvalidInputError(
                "Recorded batches are those of every step, or of every epoch",
                f"batches and lists of batches side by side: entry {nested.index(False)} is no epoch",
                _REMEDY,
            )
        if not nested[0]:
            return Recorded(tuple(_batch(e, f"Batch {t}") for t, e in enumerate(entries)), None)
        epochs = [_series(entry, f"epoch {e}") for e, entry in enumerate(entries)]
        named = [
            (batch, f"Batch {t} of epoch {e}")
            for e, epoch in enumerate(epochs)
            for t, batch in enumerate(epoch)
        ]
        return Recorded(tuple(_batch(*each) for each in named), tuple(map(len, epochs)))

    def within(self, samples: int) -> tuple[Batch, ...]:
        """The batches, whose indices point into a data set of that size. Raises InvalidInputError: an
        index outside it."""
        for t, batch in enumerate(self.batches):
            if batch.max() >= samples:
                raise InvalidInputError(
                    f"Batch {t} must hold distinct indices of the {samples} samples",
                    f"index {int(batch.max())}, where the last sample is {samples - 1}",
                    "correct batches=, or give the data set that they were recorded on",
                )
        return self.batches


def _series(given: object, what: str) -> list[object]:
    if isinstance(given, np.ndarray) or (hasattr(given, "tolist") and hasattr(given, "ndim")):
        given = given.tolist()
    if not _is_list(given):
        raise InvalidInputError(
            "Recorded batches are a list, which can be read more than once",
            f"{what} of type {type(given).__name__} {given!r:.60}",
            _REMEDY,
        )
    return list(given)  # type: ignore[call-overload, no-any-return]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_epoch(entry: object) -> bool:
    """Whether this is a list of batches, and no list of indices."""
    if getattr(entry, "ndim", None) is not None:
        return entry.ndim > 1  # type: ignore[attr-defined, no-any-return]
    first = entry[0] if _is_list(entry) and entry else None  # type: ignore[index]
    return getattr(first, "ndim", 0) > 0 or _is_list(first)


def _batch(entry: object, name: str) -> Batch:
    try:
        indices = np.asarray(entry)
    except (TypeError, ValueError, RuntimeError):
        indices = np.asarray("no array")
    whole = indices.ndim == 1 and np.issubdtype(indices.dtype, np.integer)
    if (
        not whole
        or indices.size == 0
        or indices.min() < 0
        or np.unique(indices).size != indices.size
    ):
        raise InvalidInputError(
            f"{name} must hold distinct indices of samples, at least one and none below 0",
            f"{entry!r:.80}",
            f"correct batches=: {_REMEDY}",
        )
    return indices.astype(np.int64)
