"""Watching what a loop does with tensors, through torch's own way of overriding functions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from milp_agt.recording.losses import FUNCTIONS, LossCall, loss_call
from milp_agt.recording.origins import FRESH, Origins, tensors_in
from milp_agt.recording.places import asks_for_edge, called_by_torch, place
from milp_agt.recording.watched_numbers import is_watched, watched

_READS = {Tensor.item}
_TRUTHS = {Tensor.__bool__, torch.equal, Tensor.equal, torch.allclose, Tensor.allclose}
_TRUTHS |= {torch.is_nonzero, Tensor.is_nonzero}
_OUT_OF_TORCH = {Tensor.tolist, Tensor.numpy, Tensor.__int__, Tensor.__float__, Tensor.__array__}
_OUT_OF_TORCH |= {Tensor.__index__, Tensor.__complex__, Tensor.__dlpack__}
_HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook}
_BACKWARDS = {Tensor.backward, torch.autograd.backward}
# Methods that end in "_" and change no values.
_HARMLESS = {"requires_grad_", "detach_", "share_memory_", "rename_"}
_ZEROS = {"zero_", "_foreach_zero_"}
_ASSIGNS = {f"__i{name}__" for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "pow")}
_PRODUCTS = {"mul", "multiply", "__mul__", "__rmul__"}
_QUOTIENTS = {"div", "divide", "true_divide", "__truediv__", "__div__"}
_ASSIGNS |= {"__imod__", "__iand__", "__ior__", "__ixor__", "__setitem__"}


class Listener(Protocol):
    """Whoever is told what a loop does; nothing is told while ``deaf``."""

    deaf: bool
    in_forward: bool

    def lost(self, call: LossCall) -> None:
        """A loss was computed."""

    def scaled(self, source: Tensor, factor: float, result: Tensor) -> None:
        """A tensor was multiplied by a number that is no tensor's."""

    def backward(
        self, run: Callable[[], object], tensors: list[Tensor], options: dict[str, Any]
    ) -> object:
        """A backward pass is asked for; ``run`` takes it."""

    def changed(self, how: str, tensors: list[Tensor], zeroed: bool, at: str) -> None:
        """Tensors were changed in place, or given other contents."""

    def hooked(self, at: str) -> None:
        """A hook was put on a tensor."""

    def compared(self, at: str) -> None:
        """A number that came out of a tensor decided something."""

    def left(self, at: str) -> None:
        """Numbers of the training left torch to where nobody sees what they decide."""

    def read(self, at: str) -> None:
        """A number left torch while the model was called."""

    def looked_at_graph(self, at: str) -> None:
        """A node of the gradient's graph was taken, on which hooks cannot be seen."""


class Watch(TorchFunctionMode):
    """Tells a listener of every call that can make a run another run.

    Attributes:
        origins: where the tensors come from that calls have given.
    """

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener
        self.origins = Origins()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        listener = self._listener
        if listener.deaf or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if func in _BACKWARDS:
            tensors = _tensors(args[0] if args else kwargs.get("tensors", kwargs.get("self")))
            options = dict(kwargs) | {str(n): v for n, v in enumerate(args[1:])}
            return listener.backward(lambda: func(*args, **kwargs), tensors, options)
        result = func(*args, **kwargs)
        self.origins.follow(getattr(func, "__name__", ""), args, kwargs, result)
        if func in FUNCTIONS:
            listener.lost(loss_call(func, args, kwargs, result, str(place())))
        elif func in _HOOKS:
            listener.hooked(str(place()))
        elif func in _READS or func in _TRUTHS or func in _OUT_OF_TORCH:
            return self._value(func, args, result)
        elif (attribute := _attribute(func)) is not None:
            self._assigned(func.__name__, attribute, args)
        elif func is Tensor.view_as and asks_for_edge():
            listener.looked_at_graph(str(place()))
        else:
            self._scaled(func, args, kwargs, result)
            self._in_place(func, args, kwargs)
        return result

    def _scaled(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        name = getattr(func, "__name__", "")
        if name not in _PRODUCTS | _QUOTIENTS or len(args) != 2 or kwargs:
            return
        source, number = args
        if name in _PRODUCTS and not isinstance(source, Tensor):
            source, number = number, source
        plain = isinstance(number, (int, float)) and not is_watched(number)
        if isinstance(source, Tensor) and plain and number:
            factor = float(number) if name in _PRODUCTS else 1.0 / float(number)
            self._listener.scaled(source, factor, result)

    def _value(self, func: Any, args: tuple[Any, ...], result: Any) -> Any:
        """A number or a truth leaves torch."""
        listener = self._listener
        if listener.in_forward:
            listener.read(str(place()))
        origins = {self.origins.of(each) for each in tensors_in(args)}
        if called_by_torch() or origins == {FRESH}:
            return result
        if func in _OUT_OF_TORCH:
            if origins - {None, FRESH}:
                listener.left(str(place()))
            return result
        if func in _TRUTHS:
            listener.compared(str(place()))
            return result

        def report() -> None:
            if not listener.deaf and not called_by_torch():
                listener.compared(str(place()))

        return watched(result, report)

    def _assigned(self, how: str, attribute: str, args: tuple[Any, ...]) -> None:
        taken = how == "__get__" and attribute == "grad_fn"
        if taken and (asks_for_edge() or not called_by_torch()):
            self._listener.looked_at_graph(str(place()))
        if how != "__set__" or attribute not in ("grad", "data"):
            return
        if attribute == "grad" and args[1] is None:
            return
        zeroed = attribute == "grad" and not bool(args[1].any())
        found = args[0].grad if attribute == "grad" else args[0]
        self._listener.changed(f"{attribute} was assigned", [found], zeroed, str(place()))

    def _in_place(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = getattr(func, "__name__", "")
        changes = (name.endswith("_") and not name.endswith("__")) or name in _ASSIGNS
        targets: list[Tensor] = []
        if changes and name not in _HARMLESS:
            # Functions of torch.nn.init name all of their arguments.
            targets = _tensors(args[0] if args else next(iter(kwargs.values()), None))
        if kwargs.get("out") is not None:
            targets += _tensors(kwargs["out"])
        if targets:
            self._listener.changed(name, targets, name in _ZEROS, str(place()))


def watch_threads(watch: Watch) -> Callable[[], None]:
    """Have threads that the loop starts be watched as the loop is; returns what undoes it."""
    plain = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        run = thread.run

        def watched_run() -> None:
            with watch:
                run()

        setattr(thread, "run", watched_run)  # noqa: B010
        plain(thread)

    setattr(threading.Thread, "start", start)  # noqa: B010
    return lambda: setattr(threading.Thread, "start", plain)


def _attribute(func: Any) -> str | None:
    """Name of the attribute of a tensor that a call reads or sets; None for another call."""
    if getattr(func, "__name__", "") not in ("__get__", "__set__"):
        return None
    return getattr(getattr(func, "__self__", None), "__name__", None)


def _tensors(value: object) -> list[Tensor]:
    return list(tensors_in(value))
