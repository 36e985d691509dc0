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
_COMPARISONS = tuple(f"__{name}__" for name in ("lt", "le", "gt", "ge", "eq", "ne"))
_CONVERSIONS = (
    *("__float__", "__int__", "__trunc__", "__floor__", "__ceil__", "__divmod__", "__rdivmod__"),
    *("as_integer_ratio", "is_integer", "hex", "bit_length", "to_bytes", "__bool__"),
)


class WatchedFloat(float):
    """A float that reports comparisons."""

    report: Callable[[], None]


class WatchedInt(int):
    """An int that reports comparisons."""

    report: Callable[[], None]


def watched(value: object, report: Callable[[], None]) -> Any:
    """A number that calls ``report`` when it is compared; anything else as it is."""
    kinds: dict[type, Any] = {float: WatchedFloat, int: WatchedInt}
    if type(value) not in kinds:
        return value
    found = kinds[type(value)](value)
    found.report = report
    return found


def is_watched(value: object) -> bool:
    """Whether a number was read from a tensor, or computed from one that was."""
    return isinstance(value, (WatchedFloat, WatchedInt))


def _arithmetic(base: type, plain: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        found = plain(self, *others)
        if isinstance(found, int) and base is float:
            self.report()  # a whole number may count something, which nobody asks it about
        return watched(found, self.report)

    return method


def _reported(plain: Callable[..., Any], of: Callable[[Any], Any]) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        self.report()
        return plain(of(self), *others)

    return method


def _prepare(kind: type, base: Any) -> None:
    def bare(number: Any) -> Any:
        return base.__sub__(number, 0)  # a plain float or int

    for name in _ARITHMETIC:
        if hasattr(base, f"__{name}__"):
            setattr(kind, f"__{name}__", _arithmetic(base, getattr(base, f"__{name}__")))
    for name in _COMPARISONS:
        setattr(kind, name, _reported(getattr(base, name), lambda number: number))
    for name in _CONVERSIONS:
        if hasattr(base, name):
            setattr(kind, name, _reported(getattr(base, name), bare))
    own = {
        "__reduce__": lambda self: (base, (bare(self),)),
        "__format__": lambda self, how: format(bare(self), how),
        "__hash__": base.__hash__,
    }
    for name, method in own.items():
        setattr(kind, name, method)


_prepare(WatchedFloat, float)
_prepare(WatchedInt, int)
