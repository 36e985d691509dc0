"""Sums and products that a forward of its own may call, as nodes of the graph."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from milp_agt.core.graph import Node
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.gather import Gather
from milp_agt.formulations.linear import Affine, Combine
from milp_agt.training.layers.builder import Builder
from milp_agt.training.layers.functions import (
    Turned,
    axis_of,
    calls,
    is_sample,
    lifted,
    picked,
    refused,
    reshaped,
    shape_of,
)


def _spread(builder: Builder, x: Any, shape: tuple[int, ...]) -> Any:
    """A parameter, a constant or a value of samples, repeated along axes to the shape of a sample."""
    own = tuple(x.shape)
    if is_sample(x) and len(own) != len(shape):
        raise refused(
            "Values of samples of different ranks together",
            f"shapes {own} and {shape} for each sample",
            "bring them to one shape with unsqueeze or view",
        )
    if len(own) == len(shape) + 1 and own[:1] == (1,):
        x = reshaped(builder, x, own[1:]) if isinstance(x, Node) else x[0]
    if len(x.shape) > len(shape):
        raise refused(
            f"A parameter or constant of shape {own} with a value of shape {shape}",
            "one that would need as many entries as there are samples",
            "give it the shape of one sample",
        )
    if not isinstance(x, Node):
        return x.to(torch.float64).expand(shape)
    return x if x.shape == shape else picked(builder, x, lambda t: t.expand(shape))


def _common(builder: Builder, a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands in one shape, for every sample where neither has samples."""
    if not (is_sample(a) or is_sample(b)):
        a, b = lifted(builder, a), lifted(builder, b)
    a, b = (
        torch.tensor(v, dtype=torch.float64) if isinstance(v, (int, float)) else v for v in (a, b)
    )
    for value in (a, b):
        if not isinstance(value, (Node, Tensor)):
            raise refused(
                "Arithmetic on something that is no number and no value",
                f"{type(value).__name__}",
                "use constants for sizes",
            )
    shapes = [tuple(v.shape) for v in (a, b) if is_sample(v)]
    try:
        shape = tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise refused("Values together", f"shapes {shapes}", "match them") from None
    return _spread(builder, a, shape), _spread(builder, b, shape)


def _sum(builder: Builder, a: Any, b: Any, alpha: float = 1.0, sign: float = 1.0) -> Any:
    scales = (1.0, sign * float(alpha))
    operands = list(zip(scales, _common(builder, a, b), strict=True))
    terms = [(scale, v) for scale, v in operands if isinstance(v, Node)]
    constant = next((scale * v for scale, v in operands if not isinstance(v, Node)), None)
    return Combine.build(builder.graph, terms, constant)


def _plus(a: Any, b: Any, alpha: float = 1.0) -> Any:
    return a + (b if alpha == 1.0 else alpha * b)


def _minus(a: Any, b: Any, alpha: float = 1.0) -> Any:
    return a - (b if alpha == 1.0 else alpha * b)


calls("add", _plus, torch.add, operator.add, operator.iadd, "add", "add_")(_sum)


@calls("sub", _minus, torch.sub, operator.sub, operator.isub, torch.subtract, "sub", "sub_")
def _sub(builder: Builder, a: Any, b: Any, alpha: float = 1.0) -> Any:
    return _sum(builder, a, b, alpha, -1.0)


@calls("neg", operator.neg, torch.neg, torch.negative, "neg")
def _neg(builder: Builder, a: Any) -> Any:
    return Combine.build(builder.graph, [(-1.0, lifted(builder, a))])


@calls("mul", operator.mul, torch.mul, operator.imul, torch.multiply, "mul", "mul_")
def _mul(builder: Builder, a: Any, b: Any) -> Any:
    a, b = _common(builder, a, b)
    if isinstance(a, Node) and isinstance(b, Node):
        axes = "abcdefg"[: len(a.shape)]
        first, second = ("n" * v.batched + axes for v in (a, b))
        out = "n" * (a.batched or b.batched) + axes
        return builder.graph.add(Einsum(f"{first},{second}->{out}"), a, b)
    node, constant = (a, b) if isinstance(a, Node) else (b, a)
    return Combine.build(builder.graph, [(constant, node)])


@calls("div", operator.truediv, torch.div, operator.itruediv, torch.true_divide, "div", "div_")
def _div(builder: Builder, a: Any, b: Any, rounding_mode: None = None) -> Any:
    if rounding_mode is not None:
        raise refused("A division that rounds", f"rounding_mode={rounding_mode}", "leave it out")
    if isinstance(b, Node):
        raise refused(
            "A division by a value that depends on samples or parameters",
            "no rule for it",
            "divide by constants; normalise with fixed statistics (nn.BatchNorm1d in eval())",
        )
    inverse = 1.0 / torch.as_tensor(b, dtype=torch.float64)
    if not bool(torch.isfinite(inverse).all()):
        raise refused("A division by a constant", "zero or NaN", "divide by other numbers")
    return _mul(builder, a, inverse)


@calls("square", torch.square, "square")
def _square(builder: Builder, a: Any) -> Any:
    return _mul(builder, a, a)


@calls("pow", operator.pow, torch.pow, "pow")
def _pow(builder: Builder, a: Any, exponent: Any) -> Any:
    if exponent not in (1, 2, 3):
        raise refused("A power", f"exponent {exponent!r:.30}", "use the exponents 1, 2 or 3")
    result = a
    for _ in range(int(exponent) - 1):
        result = _mul(builder, result, a)
    return result


def _dims(x: Node, dim: Any) -> list[int]:
    if dim is None:
        raise refused("A sum over all axes", "samples that are added up", "name dim=")
    return [axis_of(x, d) for d in (dim if isinstance(dim, (tuple, list)) else [dim])]


@calls("sum", torch.sum, "sum")
def _total(builder: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if not x.batched:
        raise refused("A sum over a parameter", "no rule for it", "sum values of samples")
    axes = _dims(x, dim)
    kept = [1 if a in axes else e for a, e in enumerate(x.shape)]
    numbers = torch.arange(math.prod(kept)).reshape(kept).expand(x.shape)
    index = tuple(numbers.flatten().tolist())
    total = builder.graph.add(Gather(index, tuple(kept), x.shape, transposed=True), x)
    left = tuple(e for a, e in enumerate(x.shape) if a not in axes)
    return total if keepdim else reshaped(builder, total, left)


@calls("mean", torch.mean, "mean")
def _mean(builder: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    count = math.prod(x.shape[a] for a in _dims(x, dim))
    total = _total(builder, x, dim, keepdim)
    return Combine.build(builder.graph, [(1.0 / count, total)])


@calls("matmul", torch.matmul, operator.matmul, torch.mm, "matmul", "mm")
def _matmul(builder: Builder, a: Any, b: Any) -> Any:
    if isinstance(b, Turned):
        return _linear(builder, a, b.weight)
    fits = is_sample(a) and not is_sample(b) and len(a.shape) == 1 and len(b.shape) == 2
    if not fits or a.shape[0] != b.shape[0]:
        shapes = [tuple(map(str, shape_of(v))) for v in (a, b)]
        raise refused(
            "A matrix product",
            f"shapes {shapes[0]} and {shapes[1]}",
            "multiply vectors of samples (n, d) by a matrix (d, h)",
        )
    if isinstance(b, Node):
        return builder.graph.add(Einsum("nd,dh->nh"), a, b)
    return builder.graph.add(Affine(b.to(torch.float64).T.contiguous()), a)


@calls("linear", functional.linear)
def _linear(builder: Builder, x: Any, weight: Any, bias: Any = None) -> Any:
    if isinstance(weight, Turned):
        product = _matmul(builder, x, weight.weight)
        return product if bias is None else _sum(builder, product, bias)
    if not is_sample(x) or is_sample(weight) or len(x.shape) != 1:
        raise refused(
            "linear needs a vector for each sample and a weight",
            f"shape {shape_of(x)[1:]}",
            "flatten the value first: x.flatten(1)",
        )
    if weight.shape[1] != x.shape[0]:
        raise refused("linear", f"{x.shape[0]} inputs for {weight.shape[1]}", "match the sizes")
    if isinstance(weight, Node):
        product = builder.graph.add(Einsum("hd,nd->nh"), weight, x)
    else:
        product = builder.graph.add(Affine(weight.to(torch.float64)), x)
    return product if bias is None else _sum(builder, product, bias)
