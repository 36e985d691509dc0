"""The exception tree: every error says what was asked, what was found and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

Problem = tuple[str, str]  # what was found, what to do


class MilpAgtError(Exception):
    """Base of every error that this library raises on purpose.

    The message has three parts, in this order: what was asked, what was found (names, shapes,
    numbers) and what to do next. An error about several things at once names each of ``problems`` on
    a line of its own, beside what to do about it.
    """

    def __init__(
        self, asked: str, found: str = "", remedy: str = "", problems: Sequence[Problem] = ()
    ) -> None:
        self.asked, self.found, self.remedy = asked, found, remedy
        self.problems = tuple(problems) or ((found, remedy),)
        if len(self.problems) > 1:
            lines = (_line(found, remedy) for found, remedy in self.problems)
            super().__init__("\n  - ".join([asked.rstrip(".") + ".", *lines]))
            return
        parts = [asked.rstrip(".") + "."]
        if found:
            parts.append(f"Found: {found.rstrip('.')}.")
        if remedy:
            parts.append(f"What to do: {remedy.rstrip('.')}.")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.asked, self.found, self.remedy, self.problems)

    @classmethod
    def of(cls, asked: str, problems: Sequence[Problem]) -> Self:
        """One error about all of them; ``found`` and ``remedy`` hold them side by side."""
        distinct = tuple(dict.fromkeys(problems))
        found = dict.fromkeys(found for found, _ in distinct)
        remedies = dict.fromkeys(remedy for _, remedy in distinct)
        return cls(asked, "; ".join(found), "; ".join(remedies), distinct)


def _line(found: str, remedy: str) -> str:
    return f"Found: {found.rstrip('.')}. What to do: {remedy.rstrip('.')}."


class InvalidInputError(MilpAgtError, ValueError):
    """Data, weights, labels or options that cannot be certified as they are."""


class InvalidThreatModelError(InvalidInputError):
    """A threat model that does not fit the data or contradicts itself."""


class ConfigurationError(InvalidInputError):
    """A run file (TOML) with an unknown key, a missing table or a value of the wrong kind."""


class UnsupportedOperationError(MilpAgtError, NotImplementedError):
    """A layer, loss or option that has no rule; the message lists what is supported."""


class SolverUnavailableError(MilpAgtError, ImportError):
    """A solver that is not installed, or whose licence does not admit this program."""


class EncodingError(MilpAgtError, RuntimeError):
    """A program that contradicts what is known, e.g. infeasible although the nominal run is feasible."""


class SoundnessError(MilpAgtError, RuntimeError):
    """A bound that is violated: an empty meet, a nominal value outside its range, a NaN bound."""
