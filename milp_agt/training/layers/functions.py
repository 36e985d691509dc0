"""Functions and methods that a forward of its own may call, as nodes of the graph: one handler each."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from milp_agt.core.graph import Node
from milp_agt.errors import UnsupportedOperationError
from milp_agt.formulations.gather import Gather
from milp_agt.formulations.linear import Combine, Reshape
from milp_agt.training.layers.builder import FEATURES, Builder, layer_rules


class Batch:
    """The number of samples, which a forward may only hand to view and reshape."""


@dataclass(frozen=True)
class Turned:
    """The transpose of a trainable matrix, which only products know."""

    weight: Node


BATCH = Batch()
Build = Callable[..., Any]


class SupportedFunction(NamedTuple):
    """One function: how torch computes it, and how its nodes are built."""

    run: Build
    build: Build

    def append(self, builder: Builder, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The value of a call; of numbers and constants alone, what torch computes."""
        drawn = self.run is functional.dropout  # refused whatever it is given
        if drawn or _is_symbolic([*args, *kwargs.values()]):
            return self.build(builder, *args, **kwargs)
        single = self.run(*_single(args), **_single(kwargs))
        found = self.run(*args, **kwargs)
        if not _are_equal(found, single):
            builder.rounded[getattr(self.run, "__name__", "a function").strip("_")] = None
        return found


def _single(value: Any) -> Any:
    """With every tensor of real numbers in float32."""
    if isinstance(value, dict):
        return {name: _single(each) for name, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_single, value))
    real = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(torch.float32) if real else value


def _are_equal(one: Any, other: Any) -> bool:
    """Whether all numbers are the same, in whatever precision."""
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    if isinstance(one, Tensor):
        return torch.equal(one.to(torch.float64), other.to(torch.float64))
    return bool(one == other)


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_is_symbolic, value))
    return isinstance(value, (Node, Turned, Batch))


refused = UnsupportedOperationError
FUNCTIONS: dict[str, SupportedFunction] = {}
_KEYS: dict[Any, str] = {}


def calls(key: str, run: Callable[..., Any], *targets: Any) -> Callable[[Build], Build]:
    """Decorator: a handler of a function that fx records as one of ``targets`` (methods by name)."""

    def enter(build: Build) -> Build:
        FUNCTIONS[key] = SupportedFunction(run, build)
        for target in (run, *targets):
            _KEYS[target] = key
        return build

    return enter


def key_of(target: Any) -> str | None:
    """The key of a function or method that fx recorded, or None."""
    try:
        return _KEYS.get(target)
    except TypeError:
        return None


def supported_functions() -> tuple[str, ...]:
    layer_rules()
    return tuple(sorted(FUNCTIONS))


def is_sample(value: Any) -> TypeGuard[Node]:
    return isinstance(value, Node) and value.batched


# ------------------------------------------------------------------ functions that are layers

_AS_LAYERS: dict[str, tuple[type[nn.Module], Callable[..., Any], tuple[Any, ...]]] = {
    "relu": (
        nn.ReLU,
        functional.relu,
        (torch.relu, torch.relu_, functional.relu_, "relu", "relu_"),
    ),
    "relu6": (nn.ReLU6, functional.relu6, ()),
    "hardtanh": (nn.Hardtanh, functional.hardtanh, (functional.hardtanh_,)),
    "leaky_relu": (nn.LeakyReLU, functional.leaky_relu, (functional.leaky_relu_,)),
    "sigmoid": (nn.Sigmoid, torch.sigmoid, (functional.sigmoid, "sigmoid", "sigmoid_")),
    "tanh": (nn.Tanh, torch.tanh, (functional.tanh, "tanh", "tanh_")),
    "softplus": (nn.Softplus, functional.softplus, ()),
    "gelu": (nn.GELU, functional.gelu, ()),
    "silu": (nn.SiLU, functional.silu, ()),
    "elu": (nn.ELU, functional.elu, (functional.elu_,)),
    "flatten": (nn.Flatten, torch.flatten, ("flatten",)),
    "max_pool2d": (nn.MaxPool2d, functional.max_pool2d, (torch.max_pool2d,)),
    "avg_pool2d": (nn.AvgPool2d, functional.avg_pool2d, ()),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d, functional.adaptive_avg_pool2d, ()),
}


def _as_layer(kind: type[nn.Module]) -> Build:
    accepted = inspect.signature(kind.__init__).parameters

    def build(builder: Builder, x: Any, *args: Any, **kwargs: Any) -> Node:
        if not is_sample(x):
            raise refused(
                f"{kind.__name__} of something that is no value of a sample",
                "a parameter or a constant",
                "compute it beforehand, or apply it to the features",
            )
        kwargs = {n: v for n, v in kwargs.items() if n in accepted or v}
        if kind is nn.Flatten and not args and "start_dim" not in kwargs:
            args = (0,)  # torch.flatten begins with the sample axis, the layer behind it
        builder.current = x
        layer_rules()[kind].append(builder, kind(*args, **kwargs), builder.place)
        return builder.current

    return build


for _key, (_kind, _run, _others) in _AS_LAYERS.items():
    calls(_key, _run, *_others)(_as_layer(_kind))


@calls("clamp", torch.clamp, torch.clip, "clamp", "clip")
def _clamp(builder: Builder, x: Any, min: Any = None, max: Any = None) -> Node:
    from milp_agt.formulations.hardtanh import Hardtanh

    bounds = [isinstance(v, (int, float)) and math.isfinite(v) for v in (min, max)]
    if not is_sample(x) or not all(bounds) or not min < max:
        raise refused(
            "clamp needs two numbers min < max",
            f"min = {min!r:.30}, max = {max!r:.30}",
            "give both, or use relu for one end",
        )
    name = builder.free_name(f"{builder.place}:h")
    return builder.graph.add(Hardtanh(float(min), float(max), True), x, name=name)


@calls("dropout", functional.dropout)
def _dropout(
    builder: Builder, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Any:
    if training and p > 0:
        raise refused(
            f"dropout(p={p:g}) in training mode",
            "a random run, where a certificate is about one deterministic training run",
            "train without it (p=0), or call model.eval()",
        )
    return x


@calls("same", torch.clone, "contiguous", "clone", "double")
def _same(builder: Builder, x: Any, **_: Any) -> Any:
    return x


# ------------------------------------------------------------------ shapes


@calls("size", torch.Tensor.size, "size")
def _size(builder: Builder, x: Any, dim: int | None = None) -> Any:
    shape = shape_of(x)
    return shape if dim is None else shape[dim]


def shape_of(x: Any) -> tuple[Any, ...]:
    if isinstance(x, Node):
        return (BATCH, *x.shape) if x.batched else x.shape
    return tuple(x.shape)


def _reshape(builder: Builder, x: Any, *shape: Any) -> Any:
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else [*shape]
    first, own = sizes[:1], sizes[1:] if x.batched else sizes
    if x.batched and (first not in ([BATCH], [-1]) or BATCH in own):
        raise refused(
            f"A view of shape {x.shape} for each sample as {tuple(map(str, sizes))}",
            "a shape that does not keep the sample axis in front",
            "use x.view(x.shape[0], ...), or x.flatten(1)",
        )
    count = math.prod(x.shape)
    known = math.prod(s for s in own if s != -1)
    after = tuple(count // max(known, 1) if s == -1 else int(s) for s in own)
    if math.prod(after) != count:
        raise refused(
            f"A view of shape {x.shape} as {after}", "another number of elements", "match the sizes"
        )
    return reshaped(builder, x, after)


calls("view", torch.Tensor.reshape, torch.reshape, "view", "reshape")(_reshape)


def axis_of(x: Node, dim: int) -> int:
    """An axis of a node behind the sample axis."""
    rank = len(x.shape) + x.batched
    axis = dim + rank if dim < 0 else dim
    if x.batched and axis == 0:
        raise refused(
            "An operation along the sample axis (dim 0)",
            "samples that would depend on each other",
            "work on the axes behind it",
        )
    return axis - x.batched


def picked(builder: Builder, x: Any, pick: Callable[[Tensor], Tensor]) -> Any:
    """Elements of a value, told by what happens to their numbers."""
    if not isinstance(x, Node):
        return pick(x)
    numbers = torch.arange(math.prod(x.shape)).reshape(x.shape)
    chosen = pick(numbers)
    if chosen.numel() == 0:
        raise refused("A part of a value", "no elements", "take at least one")
    if torch.equal(chosen.flatten(), numbers.flatten()):
        return reshaped(builder, x, tuple(chosen.shape))
    _see_an_axis(tuple(chosen.shape))
    return builder.graph.add(Gather.of(chosen, x.shape), lifted(builder, x))


def lifted(builder: Builder, x: Any) -> Any:
    """A parameter repeated for every sample, ``0 * (one feature) + parameter``.

    Whatever is computed from it then has a sample axis: bounds on single samples are walked back
    through nodes with a sample axis to the parameters themselves.
    """
    if not isinstance(x, Node) or x.batched:
        return x
    graph = builder.graph
    features = graph[FEATURES]
    one = Gather((0,) * math.prod(x.shape), features.shape, x.shape)
    return Combine.build(graph, [(0.0, graph.add(one, features)), (1.0, x)])


def reshaped(builder: Builder, x: Node, shape: tuple[int, ...]) -> Node:
    """A value in another shape; a parameter in its own shape comes back itself."""
    _see_an_axis(shape)
    if x.shape == shape:
        return x
    return builder.graph.add(Reshape(x.shape, shape), lifted(builder, x))


def _see_an_axis(shape: tuple[int, ...]) -> None:
    if not shape:
        raise refused(
            "A single number for each sample without an axis",
            "shape (n,)",
            "keep the axis: x[:, 0:1], keepdim=True, and no squeeze",
        )


@calls("getitem", operator.getitem)
def _getitem(builder: Builder, x: Any, index: Any) -> Any:
    if not isinstance(x, (Node, Tensor)):
        return x[index]
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(p, (Node, Batch)) for p in parts):
        raise refused("An index that depends on values", "no rule for it", "use fixed indices")
    if is_sample(x):
        if isinstance(parts[0], EllipsisType):
            if len([p for p in parts if p is not None and p is not ...]) > len(x.shape):
                raise refused("An index of the sample axis", "no rule for it", "use x[:, ...]")
        elif parts.pop(0) != slice(None):
            raise refused(
                f"Samples picked by {index!r:.40}",
                "a model whose samples depend on each other",
                "index the axes behind the samples: x[:, ...]",
            )
    return picked(builder, x, lambda t: t[tuple(parts)]) if parts else x


@calls("permute", torch.Tensor.permute, torch.permute, "permute")
def _permute(builder: Builder, x: Any, *dims: Any) -> Any:
    axes = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else [*dims]
    if not is_sample(x):
        return picked(builder, x, lambda t: t.permute(axes))
    if axes[0] != 0:
        raise refused("A permutation of axes", "a moved sample axis", "leave axis 0 in front")
    return picked(builder, x, lambda t: t.permute([axis_of(x, d) for d in axes[1:]]))


@calls("transpose", torch.transpose, torch.swapaxes, "transpose", "swapaxes")
def _transpose(builder: Builder, x: Any, dim0: int, dim1: int) -> Any:
    return picked(builder, x, lambda t: t.transpose(axis_of(x, dim0), axis_of(x, dim1)))


@calls("t", torch.t, "t")
def _t(builder: Builder, x: Any) -> Any:
    if is_sample(x):
        raise refused("The transpose of a batch", "a moved sample axis", "transpose a weight")
    return x if len(x.shape) < 2 else Turned(x)


@calls("unsqueeze", torch.unsqueeze, "unsqueeze")
def _unsqueeze(builder: Builder, x: Any, dim: int) -> Any:
    rank = len(x.shape) + x.batched + 1
    axis = (dim + rank if dim < 0 else dim) - x.batched
    if axis < 0:
        raise refused("An axis in front of the samples", "unsqueeze(0)", "use unsqueeze(1)")
    return reshaped(builder, x, (*x.shape[:axis], 1, *x.shape[axis:]))


@calls("squeeze", torch.squeeze, "squeeze")
def _squeeze(builder: Builder, x: Any, dim: int | None = None) -> Any:
    if dim is None:
        raise refused("squeeze() of all axes", "a batch of one would lose its axis", "name dim=")
    axis = axis_of(x, dim)
    if x.shape[axis] != 1:
        return x
    return reshaped(builder, x, (*x.shape[:axis], *x.shape[axis + 1 :]))


@calls("chunk", torch.chunk, "chunk")
def _chunk(builder: Builder, x: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    return _parts(builder, x, dim, lambda numbers: numbers.chunk(chunks))


@calls("split", torch.split, "split")
def _split(builder: Builder, x: Any, size: Any, dim: int = 0) -> tuple[Any, ...]:
    return _parts(builder, x, dim, lambda numbers: numbers.split(size))


def _parts(
    builder: Builder, x: Any, dim: int, cut: Callable[[Tensor], Sequence[Tensor]]
) -> tuple[Any, ...]:
    axis = axis_of(x, dim)

    def along(part: Tensor) -> Any:
        return picked(builder, x, lambda t: t.index_select(axis, part))

    return tuple(map(along, cut(torch.arange(x.shape[axis]))))


@calls("cat", torch.cat, torch.concat, torch.concatenate)
def _cat(builder: Builder, tensors: Sequence[Any], dim: int = 0) -> Any:
    if not all(is_sample(t) for t in tensors):
        raise refused(
            "A concatenation of values of samples with parameters or constants",
            "no rule for it",
            "concatenate values of samples only",
        )
    axis = axis_of(tensors[0], dim)
    extents = [t.shape[axis] for t in tensors]
    shape = list(tensors[0].shape)
    shape[axis] = sum(extents)
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    terms: list[tuple[float, Node]] = []
    for tensor, part in zip(tensors, numbers.split(extents, axis), strict=True):
        if part.shape != tensor.shape:
            raise refused("A concatenation", f"shapes {[t.shape for t in tensors]}", "match them")
        index = tuple(part.flatten().tolist())
        placed = Gather(index, tuple(shape), tensor.shape, transposed=True)
        terms.append((1.0, builder.graph.add(placed, tensor)))
    return Combine.build(builder.graph, terms)
