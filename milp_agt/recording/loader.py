"""Watching a DataLoader: which samples each of its batches holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.data import DataLoader

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
