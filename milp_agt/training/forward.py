"""A forward that a user wrote: traced by torch.fx, kept as plain data, and built as nodes of the graph."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError

from milp_agt.core.graph import Node
from milp_agt.errors import EncodingError, InvalidInputError, UnsupportedOperationError
from milp_agt.training.layers.builder import Builder, Unknown, layer_rules
from milp_agt.training.layers.functions import FUNCTIONS, key_of, supported_functions
from milp_agt.training.plain_calls import CALLS, Call, arguments, attribute, packed, unpacked
from milp_agt.training.torch_names import replacement

EXAMPLES = 3
_INSIDE = (str(Path(torch.__file__).parent), __file__)
_LIMITS = (
    "a forward may not branch on values or on the number of samples, loop over them, or turn them into "
    "numbers; write it with functions of torch on one tensor, such as relu and clamp"
)


class _Proxy(fx.Proxy):
    """A value whose shape is known, but for the number of samples."""

    @property
    def _example(self) -> Tensor:
        value = self.node.meta.get("example")
        if not isinstance(value, Tensor):
            raise TraceError("the shape of a value that torch could not compute")
        return value

    shape = property(lambda self: tuple(self.size()))
    ndim = property(lambda self: self._example.dim())

    def dim(self) -> int:
        return self._example.dim()

    def size(self, dim: int | None = None) -> Any:
        shape = tuple(self._example.shape)
        rows = self.tracer.create_proxy("call_method", "size", (self, 0), {})
        first: Any = rows if self.node.meta.get("batched") else shape[0] if shape else None
        sizes = (first, *shape[1:]) if shape else ()
        return sizes if dim is None else sizes[dim]


class _Tracer(fx.Tracer):
    """Layers with a handler are calls of their own; everything else is traced through."""

    def __init__(self, example: Tensor, module: nn.Module) -> None:
        super().__init__()
        # Attributes of the root are traced values meanwhile; those of a twin are not.
        self.twin = copy.deepcopy(module).eval()
        self.kept = {n: v.detach() for n, v in self.twin.named_parameters(remove_duplicate=False)}
        self.kept |= dict(self.twin.named_buffers(remove_duplicate=False))
        self.proxy_buffer_attributes = True
        self.record_stack_traces = False
        self.example = example

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in layer_rules():
            return True
        return type(m).__module__.startswith("torch.") and type(m) is not nn.Sequential

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["line"] = self._line()
        node.meta["path"] = self.scope.module_path
        node.meta["example"], node.meta["batched"] = self._computed(node)
        return node

    def _line(self) -> str:
        frame = self._find_user_frame()
        while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""

    def _computed(self, node: fx.Node) -> tuple[Any, bool]:
        """The value at the example, and whether it has a sample axis; None where torch fails."""
        known = [n.meta.get("batched", False) for n in node.all_input_nodes]

        def get(value: fx.Node) -> Any:
            return value.meta.get("example")

        args, kwargs = map_arg(node.args, get), map_arg(node.kwargs, get)
        try:
            target: Any = node.target
            with torch.no_grad():
                if node.op == "placeholder":
                    return self.example, True
                if node.op == "get_attr":
                    return self.kept[target] if target in self.kept else vars(self.root)[
                        target
                    ], False
                if node.op == "call_module":
                    layer = self.twin.get_submodule(target)
                    return type(layer).forward(layer, *args, **kwargs), any(known)
                if node.op == "call_function":
                    return target(*_copied(args), **kwargs), any(known)
                if node.op == "call_method":
                    first, *rest = _copied(args)
                    found = getattr(first, target)(*rest, **kwargs)
                    return found, any(known) and isinstance(found, (Tensor, tuple, list))
        except Exception:
            return None, any(known)
        return None, False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _copied(args: Sequence[Any]) -> tuple[Any, ...]:
    """In-place functions change the copy."""
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


def build_forward(builder: Builder, module: nn.Module, path: str) -> None:
    """Append the nodes of a module with a forward of its own; ``builder.current`` is its input. Raises
    UnsupportedOperationError: a forward that branches on values, has more than one input, is random or
    changes the module; InvalidInputError: a forward that fails on features of this shape."""
    calls = getattr(module, CALLS, None)
    if calls is None:
        calls = traced(module, builder.current.shape, path or "model")
        setattr(module, CALLS, calls)
    _Walk(builder, module, path).run(calls)


def traced(module: nn.Module, shape: tuple[int, ...], name: str) -> list[Call]:
    """The calls of a forward on a batch of values of this shape, as plain data."""
    dtype = next((p.dtype for p in module.parameters()), torch.float64)
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(EXAMPLES, *shape, generator=generator, dtype=torch.float64).to(dtype)
    _try(module, example, name)
    root = copy.deepcopy(module)
    tracer = _Tracer(example, module)
    asked = f"The forward of '{name}' ({type(module).__name__}) was to be traced"
    try:
        with torch.random.fork_rng(devices=[]):
            graph = tracer.trace(root, _defaults(module))
    except Exception as error:
        found = str(error) if isinstance(error, TraceError) else _in_words(error)
        raise UnsupportedOperationError(asked, found + _where(error), _LIMITS) from None
    kept = [n for n in graph.nodes if not getattr(n.target, "__name__", "").startswith("_assert")]
    placeholders = [n for n in kept if n.op == "placeholder"]
    if [n for n in placeholders if set(n.users) & set(kept)] != placeholders[:1]:
        raise UnsupportedOperationError(
            asked,
            f"inputs {[str(n.target) for n in placeholders]}",
            "a forward has one input that counts: the batch of features",
        )
    return [_recorded(node, root, module) for node in kept]


def _defaults(module: nn.Module) -> dict[str, Any] | None:
    """Further inputs of a forward, at their defaults: nobody gives them in a training run."""
    inputs = list(inspect.signature(type(module).forward).parameters.values())[2:]
    found = {p.name: p.default for p in inputs if p.default is not inspect.Parameter.empty}
    return found or None


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _where(error: BaseException) -> str:
    """The innermost line of the user's own code in a traceback."""
    lines = [(frame.f_code.co_filename, n) for frame, n in traceback.walk_tb(error.__traceback__)]
    own = [f" at {Path(file).name}:{n}" for file, n in lines if not file.startswith(_INSIDE)]
    return own[-1] if own else ""


def _try(module: nn.Module, example: Tensor, name: str) -> None:
    """Run the forward of a copy twice: it must work, say the same again and leave the copy alone."""
    tried = copy.deepcopy(module)
    before = _state(tried)
    asked = f"The forward of '{name}' ({type(module).__name__}) was tried on features {tuple(example.shape)}"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            first = tried(example)
            after = _state(tried)
            torch.manual_seed(2)
            second = tried(example)
    except Exception as error:
        raise InvalidInputError(
            asked, _in_words(error), "match the model and the features"
        ) from None
    names, none = after.keys() | before.keys(), object()
    changed = sorted(n for n in names if _differ(before.get(n, none), after.get(n, none)))
    if changed:
        raise UnsupportedOperationError(
            asked,
            f"it changes {', '.join(changed)}: the next step would see another model",
            "let the forward compute its output from its input and its parameters alone",
        )
    if not isinstance(first, Tensor):
        raise UnsupportedOperationError(
            asked, f"an output of type {type(first).__name__}", "return one tensor"
        )
    if not torch.equal(first, second) and not bool(torch.isnan(first).any()):
        raise UnsupportedOperationError(
            asked,
            "two different outputs for one input: a random forward",
            "call eval() on dropout layers, and draw no numbers in the forward",
        )


def _state(module: nn.Module) -> dict[str, Any]:
    """What a module keeps, but for statistics of layers that are refused or fixed anyway."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        own = {} if type(part).__module__.startswith("torch.") else vars(part) | part._buffers
        for name, value in own.items():
            if not name.startswith("_") and not isinstance(value, nn.Module):
                kept = value.clone() if isinstance(value, Tensor) else value
                kept = repr(value) if isinstance(value, (list, dict, set)) else kept
                found[f"'{path}.{name}'".replace("'.", "'")] = kept
    return found


def _differ(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return not torch.equal(first, second)
    return first is not second and bool(first != second)


# ------------------------------------------------------------------ calls as plain data


def _recorded(node: fx.Node, root: nn.Module, module: nn.Module) -> Call:
    """One call: what it is, its target, and its arguments in forms that JSON keeps."""
    call: Call = {"name": node.name, "op": node.op, "target": str(node.target)}
    call |= {"line": node.meta.get("line", ""), "path": node.meta.get("path", "")}
    kept = {n for n, _ in module.named_parameters(remove_duplicate=False)}
    kept |= {n for n, _ in module.named_buffers(remove_duplicate=False)}
    if node.op == "get_attr" and node.target not in kept:
        value = attribute(root, str(node.target))
        return call | {"op": "constant", "value": packed(value)}
    if node.op in ("call_function", "call_method"):
        key = key_of(node.target)
        call["op"] = "function" if key else "unknown"
        call["target"] = key or getattr(node.target, "__name__", str(node.target))
    call["args"] = [packed(a) for a in node.args]
    call["kwargs"] = {n: packed(v) for n, v in node.kwargs.items()}
    return call


class _Walk:
    """Builds the nodes of recorded calls; what has no rule is noted, and the rest goes on."""

    def __init__(self, builder: Builder, module: nn.Module, path: str) -> None:
        self.builder, self.module, self.path = builder, module, path
        self.values: dict[str, Any] = {}

    def run(self, calls: Sequence[Call]) -> None:
        source = self.builder.current
        *calls, output = calls
        for call in calls:
            placeholder = call["op"] == "placeholder"
            self.values[call["name"]] = source if placeholder else self._call(call)
        result = unpacked(output["args"][0], self.values.__getitem__)
        if isinstance(result, Unknown):
            self.builder.lost = True
        elif isinstance(result, Node) and result.batched:
            self.builder.current = result
        else:
            raise UnsupportedOperationError(
                f"The forward of '{self.path or 'model'}' was to be traced",
                "an output that is not one value for each sample",
                "return one tensor that depends on the input",
            )

    def _call(self, call: Call) -> Any:
        place = ".".join(filter(None, [self.path, call["path"], call["name"]]))
        line = f" at {call['line']}" if call["line"] else ""
        within = ".".join(filter(None, [self.path, call["path"]])) or "model"
        what = f"'{call['target']}' in the forward of '{within}'{line}"
        if call["op"] == "get_attr":
            return self._kept(call["target"])
        if call["op"] == "constant":
            return unpacked(call["value"], self.values.__getitem__)
        args, kwargs = arguments(call, self.values.__getitem__)
        if call["op"] == "call_module":
            return self._layer(call["target"], args, kwargs, line)
        if call["op"] == "unknown":
            self.builder.note(
                f"{what}: no rule for it",
                replacement(call["target"])
                or f"use one of {', '.join(supported_functions())}, or layers",
            )
            return Unknown(call["target"])
        if _unknown(args) or _unknown(list(kwargs.values())):
            return Unknown(call["target"])
        self.builder.place = place
        try:
            return FUNCTIONS[call["target"]].append(self.builder, args, kwargs)
        except UnsupportedOperationError as error:
            self.builder.note(f"{what}: {error.asked}, found {error.found}", error.remedy)
        except (TypeError, ValueError, IndexError, AttributeError, EncodingError) as error:
            self.builder.note(f"{what}: {str(error).splitlines()[0]}", "use other arguments")
        return Unknown(call["target"])

    def _kept(self, name: str) -> Any:
        value = attribute(self.module, name)
        full = f"{self.path}.{name}" if self.path else name
        if isinstance(value, nn.Parameter):
            if value.requires_grad and not value.shape:
                what = f"parameter '{full}': a trainable number without an axis, shape ()"
                self.builder.note(what, "give it the shape (1,): nn.Parameter(torch.ones(1))")
                return Unknown(name)
            return self.builder.weight(value)
        return self.builder.buffer(value, full)

    def _layer(self, name: str, args: list[Any], kwargs: dict[str, Any], line: str) -> Any:
        layer = self.module.get_submodule(name)
        path = f"{self.path}.{name}" if self.path else name
        if not args and len(kwargs) == 1:
            args, kwargs = [*kwargs.values()], {}
        if len(args) != 1 or kwargs:
            self.builder.note(
                f"layer '{path}' ({type(layer).__name__}){line}: called with {len(args)} inputs",
                "call layers with one tensor",
            )
            return Unknown(name)
        if isinstance(args[0], Node) and args[0].batched:
            self.builder.current, self.builder.lost = args[0], False
        else:
            self.builder.lost = True
        self.builder.layer(layer, path, line)
        if self.builder.lost:
            self.builder.lost = False
            return Unknown(name)
        return self.builder.current


def _unknown(values: Sequence[Any]) -> bool:
    return any(isinstance(v, Unknown) or (isinstance(v, tuple) and _unknown(v)) for v in values)
