"""The exception tree: every error says what was asked, what was found and what to do next."""

from __future__ import annotations


class MilpAgtError(Exception):
    """Base of every error that this library raises on purpose.

    The message has three parts, in this order: what was asked, what was found (names, shapes,
    numbers) and what to do next.
    """

    def __init__(self, asked: str, found: str = "", remedy: str = "") -> None:
        self.asked, self.found, self.remedy = asked, found, remedy
        parts = [asked.rstrip(".") + "."]
        if found:
            parts.append(f"Found: {found.rstrip('.')}.")
        if remedy:
            parts.append(f"What to do: {remedy.rstrip('.')}.")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.asked, self.found, self.remedy)


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
