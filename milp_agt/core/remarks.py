"""What a result says of how it was made: choices, and where less was done than was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Remarks:
    """Two lists of sentences; ``+`` puts one after the other.

    Attributes:
        notes: what was chosen where the options left it open, and what else is worth knowing: no bound is
            looser than what was asked for because of it.
        fallbacks: where less than what was asked for could be done, and why: bounds hold, and may be
            looser for it.
    """

    notes: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()

    def __add__(self, other: Remarks) -> Remarks:
        return Remarks(self.notes + other.notes, self.fallbacks + other.fallbacks)


@dataclass
class Notes:
    """Remarks while a run goes on, and whether a limit was the reason for any of them."""

    notes: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    limit_reached: bool = False

    @staticmethod
    def of(remarks: Remarks) -> Notes:
        return Notes(list(remarks.notes), list(remarks.fallbacks))

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from what ``asdict`` made of another journal."""
        self.notes, self.fallbacks = list(kept.get("notes", ())), list(kept["fallbacks"])
        self.limit_reached = kept["limit_reached"]

    @property
    def remarks(self) -> Remarks:
        return Remarks(tuple(self.notes), tuple(self.fallbacks))

    def note(self, line: str) -> None:
        self.notes.append(line)

    def fall_back(self, line: str, *, limit: bool = False) -> None:
        """Less was done than was asked for; ``limit`` says that a limit was the reason."""
        self.fallbacks.append(line)
        self.limit_reached |= limit

    def fall_back_once(self, line: str) -> None:
        """The same, unless a fallback that begins alike is there."""
        if not any(known.startswith(line[:40]) for known in self.fallbacks):
            self.fall_back(line)
