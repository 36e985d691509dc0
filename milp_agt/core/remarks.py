"""Remarks of a result: choices that options left open, and where less was done than requested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Remarks:
    """Two lists of sentences; ``+`` concatenates them.

    Attributes:
        notes: choices that the options left open, and other useful facts; no bound is looser than
            requested because of them.
        fallbacks: where the run did less than requested, and why; bounds hold but may be looser.
    """

    notes: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()

    def __add__(self, other: Remarks) -> Remarks:
        return Remarks(self.notes + other.notes, self.fallbacks + other.fallbacks)


@dataclass
class Notes:
    """The remarks of a run in progress, and whether a limit was the reason for any of them."""

    notes: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    limit_reached: bool = False

    @staticmethod
    def of(remarks: Remarks) -> Notes:
        return Notes(list(remarks.notes), list(remarks.fallbacks))

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Restore from ``asdict`` of other notes."""
        self.notes, self.fallbacks = list(kept.get("notes", ())), list(kept["fallbacks"])
        self.limit_reached = kept["limit_reached"]

    @property
    def remarks(self) -> Remarks:
        return Remarks(tuple(self.notes), tuple(self.fallbacks))

    def note(self, line: str) -> None:
        self.notes.append(line)

    def fall_back(self, line: str, *, limit: bool = False) -> None:
        """Record that less was done than requested; ``limit``: whether a limit was the reason."""
        self.fallbacks.append(line)
        self.limit_reached |= limit

    def fall_back_once(self, line: str) -> None:
        """:meth:`fall_back`, unless there is already a fallback with the same first 40 characters."""
        if not any(known.startswith(line[:40]) for known in self.fallbacks):
            self.fall_back(line)
