"""Dataclasses of many things of a kind, one row each: some of them, several one after the other, a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


class Stacked:
    """A dataclass whose parts, tensors or such dataclasses, have one row for each of the same things.

    Rows are along the first axis, or that of ``AXES`` by name. Other parts belong to all rows.
    """

    AXES: ClassVar[Mapping[str, int]] = {}
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def _each(self, of: Callable[[Any, int, str], Any]) -> Self:
        """Of every part that has rows, its axis and its name."""
        parts = ((own.name, getattr(self, own.name)) for own in fields(self))
        return type(self)(
            *(
                of(part, self.AXES.get(name, 0), name)
                if isinstance(part, Tensor | Stacked)
                else part
                for name, part in parts
            )
        )

    def take(self, rows: Tensor | slice) -> Self:
        """Those in some rows."""
        return self._each(
            lambda part, axis, _: (
                part.take(rows)
                if isinstance(part, Stacked)
                else part[(slice(None),) * axis + (rows,)]
            )
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The rows of all, in order; what belongs to all rows is that of the first."""

        def joined(first: Any, axis: int, name: str) -> Any:
            own = [getattr(part, name) for part in parts]
            return first.cat(own) if isinstance(first, Stacked) else torch.cat(own, axis)

        return parts[0]._each(joined)

    def where(self, wins: Tensor, other: Self) -> Self:
        """These rows where the mask (rows,) says so, else those of the other."""

        def chosen(own: Any, axis: int, name: str) -> Any:
            rest = getattr(other, name)
            if isinstance(own, Stacked):
                return own.where(wins, rest)
            return torch.where(wins.reshape(-1, *[1] * (own.dim() - axis - 1)), own, rest)

        return self._each(chosen)
