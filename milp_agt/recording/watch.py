"""Watching what a loop does with tensors, through torch's own way of overriding functions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from milp_agt.recording.loop import Loop
from milp_agt.recording.losses import FUNCTIONS, loss_call
from milp_agt.recording.origins import FRESH, is_watched, tensors_in, watched
from milp_agt.recording.places import asks_for_edge, called_by_torch, place

_TRUTHS = {Tensor.__bool__, torch.equal, Tensor.equal, torch.allclose, Tensor.allclose}
_TRUTHS |= {torch.is_nonzero, Tensor.is_nonzero}
_OUT_OF_TORCH = {Tensor.tolist, Tensor.numpy, Tensor.__int__, Tensor.__float__, Tensor.__array__}
_OUT_OF_TORCH |= {Tensor.__index__, Tensor.__complex__, Tensor.__dlpack__}
_VALUES = {Tensor.item} | _TRUTHS | _OUT_OF_TORCH
_HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook}
_BACKWARDS = {Tensor.backward, torch.autograd.backward}
# Methods that end in "_" and change no values.
_HARMLESS = {"requires_grad_", "detach_", "share_memory_", "rename_"}
_ZEROS = {"zero_", "_foreach_zero_"}
_ASSIGNS = {f"__i{name}__" for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "pow")}
_ASSIGNS |= {"__imod__", "__iand__", "__ior__", "__ixor__", "__setitem__"}
_PRODUCTS = {"mul", "multiply", "__mul__", "__rmul__"}
_QUOTIENTS = {"div", "divide", "true_divide", "__truediv__", "__div__"}


class Watch(TorchFunctionMode):
    """Tells a loop of every call that can make a run another run, unless the loop is deaf."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, loop, name = kwargs or {}, self._loop, getattr(func, "__name__", "")
        if loop.deaf or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if func in _BACKWARDS:
            given = args[0] if args else kwargs.get("tensors", kwargs.get("self"))
            options = dict(kwargs) | {str(n): v for n, v in enumerate(args[1:])}
            return loop.backward(lambda: func(*args, **kwargs), list(tensors_in(given)), options)
        result = func(*args, **kwargs)
        loop.origins.follow(name, args, kwargs, result)
        if func in FUNCTIONS:
            loop.lost(loss_call(func, args, kwargs, result, place()))
        elif func in _HOOKS:
            loop.saw("hook", place())
        elif func in _VALUES:
            return self._value(func, args, result)
        elif name in ("__get__", "__set__") and hasattr(func, "__self__"):
            self._assigned(name, getattr(func.__self__, "__name__", None), args)
        elif func is Tensor.view_as and asks_for_edge():
            loop.saw("node", place())
        else:
            self._scaled(name, args, kwargs, result)
            self._in_place(name, args, kwargs)
        return result

    def _scaled(self, name: str, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        if name not in _PRODUCTS | _QUOTIENTS or len(args) != 2 or kwargs:
            return
        source, number = args
        if name in _PRODUCTS and not isinstance(source, Tensor):
            source, number = number, source
        plain = isinstance(number, (int, float)) and not is_watched(number)
        if isinstance(source, Tensor) and plain and number:
            factor = float(number) if name in _PRODUCTS else 1.0 / float(number)
            self._loop.scaled(source, factor, result)

    def _value(self, func: Any, args: tuple[Any, ...], result: Any) -> Any:
        """A number or a truth leaves torch."""
        loop = self._loop
        if loop.in_forward:
            loop.saw("read", place())
        origins = {loop.origins.of(each) for each in tensors_in(args)}
        if called_by_torch() or origins == {FRESH}:
            return result
        if func in _OUT_OF_TORCH:
            if origins - {None, FRESH}:
                loop.saw("left", place())
            return result
        if func in _TRUTHS:
            loop.saw("compared", place())
            return result

        def report() -> None:
            if not loop.deaf and not called_by_torch():
                loop.saw("compared", place())

        return watched(result, report)

    def _assigned(self, how: str, attribute: str | None, args: tuple[Any, ...]) -> None:
        """An attribute of a tensor was read or set."""
        taken = how == "__get__" and attribute == "grad_fn"
        if taken and (asks_for_edge() or not called_by_torch()):
            self._loop.saw("node", place())
        if how != "__set__" or attribute not in ("grad", "data"):
            return
        of_grad = attribute == "grad"
        if not (of_grad and args[1] is None):
            found = args[0].grad if of_grad else args[0]
            zeroed = of_grad and not bool(args[1].any())
            self._loop.changed(f"{attribute} was assigned", [found], zeroed, place())

    def _in_place(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        changes = (name.endswith("_") and not name.endswith("__")) or name in _ASSIGNS
        targets: list[Tensor] = []
        if changes and name not in _HARMLESS:
            # Functions of torch.nn.init name all of their arguments.
            targets += tensors_in(args[0] if args else next(iter(kwargs.values()), None))
        targets += tensors_in(kwargs.get("out"))
        if targets:
            self._loop.changed(name, targets, name in _ZEROS, place())


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
