"""Numbers that were read from tensors and say when they are compared.

A loop that reads ``loss.item()`` may print it, or may stop, skip a step or change a rate by it. The
numbers below behave as the floats and ints that they are; arithmetic keeps them watched, and a
comparison, a test for truth, and a conversion that loses the watch (``float(x)``, ``int(x)``, numpy) is
reported. Functions of :mod:`math` lose it unseen, text does, and so do whole numbers to the right of a plain
float (``1.0 < x``, ``1.0 * x``), which Python asks first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ARITHMETIC = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"),
    *("radd", "rsub", "rmul", "rtruediv", "rfloordiv", "rmod", "rpow"),
    *("neg", "pos", "abs", "round"),
)
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_CONVERSIONS: tuple[str, ...] = (
    "__float__",
    "__int__",
    "__trunc__",
    "__floor__",
    "__ceil__",
    "__divmod__",
    "__rdivmod__",
)
_CONVERSIONS += ("as_integer_ratio", "is_integer", "hex", "bit_length", "to_bytes")


class WatchedFloat(float):
    """A float that reports comparisons."""

    report: Callable[[], None]


class WatchedInt(int):
    """An int that reports comparisons."""

    report: Callable[[], None]


def watched(value: object, report: Callable[[], None]) -> Any:
    """A number that calls ``report`` when it is compared; anything else as it is."""
    found: WatchedFloat | WatchedInt
    if type(value) is float:
        found = WatchedFloat(value)
    elif type(value) is int:
        found = WatchedInt(value)
    else:
        return value
    found.report = report
    return found


def is_watched(value: object) -> bool:
    """Whether a number was read from a tensor, or computed from one that was."""
    return isinstance(value, (WatchedFloat, WatchedInt))


def _arithmetic(base: type, name: str) -> Callable[..., Any]:
    plain = getattr(base, f"__{name}__")

    def method(self: Any, *others: Any) -> Any:
        found = plain(self, *others)
        if isinstance(found, int) and base is float:
            self.report()  # a whole number may count something, which nobody asks it about
        return watched(found, self.report)

    return method


def _conversion(base: type, name: str) -> Callable[..., Any]:
    plain = getattr(base, name)

    def method(self: Any, *others: Any) -> Any:
        self.report()
        return plain(_plain(base, self), *others)

    return method


def _plain(base: Any, number: Any) -> Any:
    """The number as a plain float or int."""
    return base.__sub__(number, 0)


def _comparison(base: type, name: str) -> Callable[..., Any]:
    plain = getattr(base, f"__{name}__")

    def method(self: Any, other: Any) -> Any:
        self.report()
        return plain(self, other)

    return method


def _prepare(kind: type, base: type) -> None:
    for name in _ARITHMETIC:
        if hasattr(base, f"__{name}__"):
            setattr(kind, f"__{name}__", _arithmetic(base, name))
    for name in _COMPARISONS:
        setattr(kind, f"__{name}__", _comparison(base, name))
    for name in _CONVERSIONS:
        if hasattr(base, name):
            setattr(kind, name, _conversion(base, name))

    def truth(self: Any) -> bool:
        self.report()
        return bool(base.__bool__(self))  # type: ignore[attr-defined]

    def reduce(self: Any) -> tuple[object, ...]:
        return base, (_plain(base, self),)

    def shown(self: Any, how: str) -> str:
        return format(_plain(base, self), how)

    own = {"bool": truth, "reduce": reduce, "format": shown, "hash": base.__hash__}
    for name, method in own.items():
        setattr(kind, f"__{name}__", method)


_prepare(WatchedFloat, float)
_prepare(WatchedInt, int)
