"""Where the tensors and numbers of a loop come from: moved about, computed from others, or from the model.

A batch whose values were clamped, rounded, filtered or chosen inside the loop may be the batch of the
data set as given, and yet another one where the data are poisoned. Numbers read from tensors say when they
are compared: a loop that reads ``loss.item()`` may print it, or may stop, skip a step or change a rate by it.
They behave as the floats and ints that they are; arithmetic keeps them watched, and a comparison, a test for
truth, and a conversion that loses the watch (``float(x)``, ``int(x)``, numpy) is reported. Functions of
:mod:`math` lose it unseen, text does, and so do whole numbers to the right of a plain float (``1.0 < x``,
``1.0 * x``), which Python asks first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

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


# Calls after which every number is one that was there before, in another place or precision.
_MOVES = frozenset(
    (
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze"),
        *("unsqueeze", "ravel", "clone", "contiguous", "detach", "cpu", "cuda", "to", "type"),
        *("type_as", "float", "double", "long", "int", "half", "bool", "numel", "size"),
        *("stack", "cat", "concat", "concatenate", "hstack", "vstack", "split", "chunk"),
        *("tensor_split", "unbind", "__getitem__", "__iter__", "select", "index_select"),
        *("narrow", "take", "gather", "permute", "transpose", "movedim", "t", "swapaxes"),
        *("expand", "expand_as", "broadcast_to", "repeat", "tile", "flip", "roll"),
        *("pin_memory", "requires_grad_", "detach_", "as_tensor", "tensor", "__get__", "copy_"),
        *("__deepcopy__", "alias", "share_memory_", "default_collate"),
    )
)
MODEL = "the model"
ROUNDED = "a conversion to fewer digits"
# Made of nothing that the data could change: random numbers, constants, arrays of numpy.
FRESH = "nothing"
# The samples, moved about at most.
DATA = "the data"


class Origins:
    """Follows tensors through the calls of a loop."""

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()
        # What was written into memory that several tensors may share, as long as it lives.
        self._written: dict[int, tuple[StorageWeakRef, str]] = {}

    def mark(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that hold samples."""
        for tensor in tensors:
            self._known[tensor] = DATA

    def follow(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: object
    ) -> None:
        """A function of torch was called; what it gives (or changes) comes from what it was given."""
        results = list(tensors_in(result if result is not None else args[:1]))
        if not results:
            return
        values = (*args, *kwargs.values())
        given = list(tensors_in(values))
        origins = [self.of(each) for each in given]
        origin: str | None = f"{name}()"
        if MODEL in origins or any(_holds_watched(each) for each in values):
            origin = MODEL
        elif all(each == FRESH for each in origins):
            origin = FRESH
        elif name in _MOVES:
            computed = [each for each in origins if each not in (None, DATA, FRESH)]
            origin = computed[0] if computed else DATA if DATA in origins else None
            if not computed and any(_is_real(g) for g in given) and not _is_real(results[0]):
                origin = ROUNDED
        writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        for each in results:
            if origin is not None:
                self._known[each] = origin
            if (writes or "out" in kwargs) and origin not in (None, FRESH):
                held = StorageWeakRef(each.untyped_storage())
                self._written[held.cdata] = held, origin

    def of(self, tensor: Tensor) -> str | None:
        """The function that computed a tensor, or one of the names above; None for one from outside."""
        if isinstance(tensor, nn.Parameter):
            return MODEL
        if self._written and tensor.layout is torch.strided:
            held = self._written.get(tensor.untyped_storage()._cdata)
            if held is not None and not held[0].expired():
                return held[1]
        found: str | None = self._known.get(tensor)
        return found


def _holds_watched(value: object) -> bool:
    """Whether a number of the training stands in a call, or in a list of one."""
    if isinstance(value, (list, tuple)):
        return any(_holds_watched(each) for each in value)
    return is_watched(value)


def _is_real(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers of at least single precision."""
    return tensor.is_floating_point() and tensor.element_size() >= 4


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in lists and tuples inside one another."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
