"""The samples of a loader as two arrays, which of them its batches hold, and watching it draw them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from milp_agt.core.numbers import numbers_of
from milp_agt.errors import InvalidInputError, UnsupportedOperationError

ASKED = "The samples of a recorded run were to be read"
ARRAYS = "give agt.record(..., (X, y)) with the arrays that your loop takes its batches from"


def samples_of(loader: object) -> tuple[Tensor, Tensor, bool]:
    """Features (n, *shape) and labels (n, ...) of a loader, and whether they change when read again.

    A DataLoader's samples are what its data set and its collate function give: transforms come before
    the adversary. The states of all random generators are put back.

    Raises:
        InvalidInputError, UnsupportedOperationError: no pair of arrays, or a stream of samples.
    """
    if isinstance(loader, DataLoader):
        return _of_dataset(loader)
    if isinstance(loader, TensorDataset):
        loader = loader.tensors
    if isinstance(loader, (tuple, list)) and len(loader) == 2:
        return *_pair(*loader), False
    raise UnsupportedOperationError(ASKED, f"an object of type {type(loader).__name__}", ARRAYS)


def _of_dataset(loader: DataLoader[Any]) -> tuple[Tensor, Tensor, bool]:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise UnsupportedOperationError(
            ASKED, f"a stream of samples ({type(dataset).__name__}) without numbers", ARRAYS
        )
    with _generators_kept():
        features, labels = _collated(loader, dataset)
        if isinstance(dataset, TensorDataset):
            return features, labels, False
        again, labels_again = _collated(loader, dataset)
    varies = not (_equal(features, again) and _equal(labels, labels_again))
    return features, labels, varies


def _collated(loader: DataLoader[Any], dataset: Dataset[Any]) -> tuple[Tensor, Tensor]:
    count = len(dataset)  # type: ignore[arg-type]
    found: Any
    if isinstance(dataset, TensorDataset):
        found = dataset.tensors
    else:
        items = [dataset[i] for i in range(count)]
        collate = loader.collate_fn if loader.batch_size or loader.batch_sampler else None
        found = torch.utils.data.default_collate(items) if collate is None else collate(items)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        what = f"{len(found)} parts" if isinstance(found, (tuple, list)) else type(found).__name__
        raise UnsupportedOperationError(
            ASKED, f"samples of {what}", "let the data set give pairs (features, label)"
        )
    return _pair(*found)


def _pair(features: object, labels: object) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(np.array(numbers_of(features, "The features of a recorded run")))
    y = torch.from_numpy(np.array(numbers_of(labels, "The labels of a recorded run")))
    if x.dim() < 1 or y.dim() < 1 or len(x) != len(y) or not len(y):
        raise InvalidInputError(
            ASKED,
            f"features of shape {tuple(x.shape)}, labels of {tuple(y.shape)}",
            "give one label for each sample",
        )
    return x, y


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Reading samples draws nothing from the generators that the user's loop draws from."""
    of_python, of_torch = random.getstate(), torch.get_rng_state()
    of_numpy = np.random.get_state()  # noqa: NPY002 - users may draw from the global generator
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_torch)


class DataRows:
    """Finds the samples of batches by value, and by what the loader drew where values are equal.

    Attributes:
        features, labels: all samples, as the model and the loss see them once a batch was located.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels
        self._group: np.ndarray[Any, np.dtype[np.int64]] | None = None
        self._numbers: dict[bytes, int] = {}
        self._members: list[list[int]] = []
        self._drawn: list[tuple[tuple[int, ...], int]] = []
        self._by_content: dict[tuple[int, ...], set[frozenset[int]]] = {}

    def __len__(self) -> int:
        return len(self.features)

    def drew(self, indices: Sequence[int], features: object) -> None:
        """A loader gave a batch: the samples that it drew, and the tensor that it made of them."""
        storage = features.untyped_storage().data_ptr() if isinstance(features, Tensor) else 0
        self._drawn.append((tuple(int(i) for i in indices), storage))
        if self._group is not None:
            self._index(self._drawn[-1][0])

    def locate(self, features: Tensor, labels: Tensor) -> tuple[int, ...]:
        """The samples of a batch, from what the model and the loss were given.

        Raises:
            UnsupportedOperationError: rows that are no samples, repeated samples, or rows that
                belong to several samples with nothing to tell them apart.
        """
        if self._group is None:
            self._group_rows(features, labels)
        assert self._group is not None
        keys = _bytes_of(features, labels)
        numbers = [self._numbers.get(key, -1) for key in keys]
        if -1 in numbers:
            raise UnsupportedOperationError(
                "The rows of every batch must be samples of the data set",
                f"row {numbers.index(-1)} of the batch ({numbers.count(-1)} of {len(numbers)} rows) is "
                "not: data augmentation, noise, mixed samples, or labels that were changed on the way",
                "train on the samples as they are, or put what changes them once into the data set "
                "before the recording",
            )
        counts = Counter(numbers)
        if any(count > len(self._members[number]) for number, count in counts.items()):
            raise _twice()
        if all(count == len(self._members[number]) for number, count in counts.items()):
            left = {number: list(self._members[number]) for number in counts}
            return tuple(left[number].pop(0) for number in numbers)
        return self._of_equal_rows(tuple(sorted(numbers)), features)

    def _of_equal_rows(self, content: tuple[int, ...], features: Tensor) -> tuple[int, ...]:
        """A batch with copies of samples whose other copies are elsewhere: what the loader drew."""
        found = self._by_content.get(content, set())
        storage = features.untyped_storage().data_ptr()
        last = self._drawn[-1] if self._drawn else ((), -1)
        if len(found) == 1:
            ((indices),) = found
            drawn = next(d for d, _ in self._drawn if frozenset(d) == indices)
        elif len(found) > 1 and last[1] == storage and frozenset(last[0]) in found:
            drawn = last[0]
        else:
            raise UnsupportedOperationError(
                "The samples of every batch must be known",
                "rows that occur several times in the data set, and nothing that tells which of them "
                "a batch holds",
                "take batches from the DataLoader that agt.record was given, or drop the copies",
            )
        if len(set(drawn)) != len(drawn):
            raise _twice()
        return drawn

    def _group_rows(self, features: Tensor, labels: Tensor) -> None:
        """Give equal rows one number, in the precision and shape that the model sees."""
        shape = features.shape[1:]
        if self.features[0].numel() != shape.numel():
            raise UnsupportedOperationError(
                "The rows of every batch must be samples of the data set",
                f"features of shape {tuple(shape)}, where the data set has "
                f"{tuple(self.features.shape[1:])}",
                "give agt.record the data that the model is called with",
            )
        self.features = self.features.reshape(len(self), *shape).to(features.dtype)
        if labels.is_floating_point():
            self.labels = self.labels.to(labels.dtype)
        keys = _bytes_of(self.features, self.labels)
        self._numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self._group = np.array([self._numbers[key] for key in keys], dtype=np.int64)
        self._members = [[] for _ in self._numbers]
        for row, number in enumerate(self._group.tolist()):
            self._members[number].append(row)
        for indices, _ in self._drawn:
            self._index(indices)

    def _index(self, indices: tuple[int, ...]) -> None:
        assert self._group is not None
        content = tuple(sorted(self._group[list(indices)].tolist()))
        self._by_content.setdefault(content, set()).add(frozenset(indices))


def _twice() -> UnsupportedOperationError:
    return UnsupportedOperationError(
        "Every batch must hold distinct samples",
        "a sample that occurs twice in one batch (sampling with replacement)",
        "sample without replacement",
    )


def _bytes_of(features: Tensor, labels: Tensor) -> list[bytes]:
    """The numbers of each sample as bytes; -0 counts as 0."""
    parts = [p.detach().cpu().to(torch.float64).reshape(len(p), -1) for p in (features, labels)]
    return [row.tobytes() for row in (torch.cat(parts, 1) + 0.0).numpy()]


# Indices that were drawn, None if they are not known, and the batch that was made of them.
Drew = Callable[[Sequence[int] | None, object], None]
Quiet = Callable[[], AbstractContextManager[None]]


class _Indices:
    """Stands in for a batch sampler and keeps what it draws, one list for each pass."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.passes: list[list[Sequence[int]]] = []

    def __iter__(self) -> Iterator[Sequence[int]]:
        drawn: list[Sequence[int]] = []
        self.passes.append(drawn)
        return self._draw(iter(self._inner), drawn)

    @staticmethod
    def _draw(inner: Iterator[Any], drawn: list[Sequence[int]]) -> Iterator[Sequence[int]]:
        for indices in inner:
            drawn.append(tuple(indices))
            yield indices

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Batches:
    """One pass over a loader that says, with every batch, what it is made of."""

    def __init__(
        self, inner: Iterator[Any], drawn: list[Sequence[int]] | None, drew: Drew, quiet: Quiet
    ) -> None:
        self._inner, self._drawn, self._drew, self._quiet = inner, drawn, drew, quiet
        self._given = 0

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Any:
        with self._quiet():
            batch = next(self._inner)
        self._drew(None if self._drawn is None else self._drawn[self._given], batch)
        self._given += 1
        return batch

    def __len__(self) -> int:
        return len(self._inner)  # type: ignore[arg-type]


def watch_loader(loader: object, drew: Drew, quiet: Quiet) -> Callable[[], None]:
    """Have a DataLoader report its batches; returns what undoes it. Other objects are left alone.

    Batches of workers come in the order in which they were drawn, so that the n-th batch of a pass is
    made of the n-th draw. Loaders that give batches out of order, or draw no batches, report nothing.
    Samples are read inside ``quiet()``.
    """
    if not isinstance(loader, DataLoader):
        return lambda: None
    kind, sampler = type(loader), loader.batch_sampler
    indices: _Indices | None = None
    if sampler is not None and getattr(loader, "in_order", True):
        indices = _Indices(sampler)
        loader.__dict__["batch_sampler"] = indices  # torch forbids setting it; it is put back

    class Watched(kind):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Any:
            with quiet():
                inner = super().__iter__()
            return _Batches(inner, None if indices is None else indices.passes[-1], drew, quiet)

    Watched.__name__, Watched.__qualname__ = kind.__name__, kind.__qualname__
    loader.__class__ = Watched

    def undo() -> None:
        loader.__class__ = kind
        loader.__dict__["batch_sampler"] = sampler

    return undo
