"""Dense layers, changes of shape, activations, and layers without effect in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.elu import Elu
from milp_agt.formulations.gelu import Gelu
from milp_agt.formulations.gelu_tanh import GeluTanh
from milp_agt.formulations.hardtanh import Hardtanh
from milp_agt.formulations.linear import Affine, Combine, Reshape
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.silu import Silu
from milp_agt.formulations.softplus import Softplus
from milp_agt.formulations.tanh import Tanh
from milp_agt.formulations.univariate import Univariate
from milp_agt.training.layers.builder import Builder, handles


@handles(nn.Linear, saved=("in_features", "out_features", "bias"))
def linear(builder: Builder, layer: nn.Linear, path: str) -> None:
    source = builder.current
    if len(source.shape) != 1 or source.shape[0] != layer.in_features:
        raise InvalidInputError(
            f"Layer '{path}' is Linear({layer.in_features}, {layer.out_features})",
            f"an input of shape {source.shape} for each sample",
            "add nn.Flatten() before it, or match the sizes",
        )
    weight, bias = builder.weight(layer.weight), builder.optional_weight(layer.bias)
    if isinstance(weight, Tensor):
        product = builder.append(Affine(weight))
    else:
        product = builder.append(Einsum("hd,nd->nh"), weight, source)
    name = builder.free_name(f"{path}:z")
    if bias is not None:
        constant, terms = (bias, []) if isinstance(bias, Tensor) else (None, [(1.0, bias)])
        terms = [(1.0, product), *terms]
        builder.current = Combine.build(builder.graph, terms, constant, name, layer.in_features)


@handles(nn.Flatten, saved=("start_dim", "end_dim"))
def flatten(builder: Builder, layer: nn.Flatten, path: str) -> None:
    before = builder.current.shape
    rank = len(before)
    start = layer.start_dim - 1 if layer.start_dim > 0 else rank + layer.start_dim
    end = layer.end_dim - 1 if layer.end_dim > 0 else rank + layer.end_dim
    if layer.start_dim == 0 or start < 0 or end >= rank:
        raise UnsupportedOperationError(
            f"Layer '{path}' flattens dimensions {layer.start_dim} to {layer.end_dim}",
            f"an input of shape {before} for each sample",
            "leave the sample axis (0) alone and stay within the input",
        )
    if start < end:
        merged = math.prod(before[start : end + 1])
        builder.append(Reshape(before, (*before[:start], merged, *before[end + 1 :])))


def _activation(
    kind: type[nn.Module],
    name: str,
    op: Callable[[Any, str], Univariate],
    saved: tuple[str, ...] = (),
) -> None:
    def append(builder: Builder, layer: nn.Module, path: str) -> None:
        builder.append(op(layer, path), name=builder.free_name(f"{path}:h"))

    handles(kind, saved=saved, name=name)(append)


def _elu(layer: Any, path: str) -> Univariate:
    if not layer.alpha > 0:
        raise UnsupportedOperationError(
            f"Layer '{path}' is ELU(alpha={layer.alpha:g})", "alpha <= 0", "use alpha > 0"
        )
    return Elu(float(layer.alpha))


def _softplus(layer: Any, path: str) -> Univariate:
    if not layer.beta > 0 or not layer.threshold >= 1:
        raise UnsupportedOperationError(
            f"Layer '{path}' is Softplus(beta={layer.beta:g}, threshold={layer.threshold:g})",
            "beta <= 0, or a threshold below 1",
            "use beta > 0 and the threshold of torch, 20",
        )
    return Softplus(float(layer.beta), float(layer.threshold))


def _hardtanh(layer: Any, path: str) -> Univariate:
    return Hardtanh(float(layer.min_val), float(layer.max_val))


_activation(nn.ReLU, "relu", lambda *_: Relu())
_activation(
    nn.LeakyReLU, "leaky_relu", lambda r, _: Relu(float(r.negative_slope)), ("negative_slope",)
)
_activation(nn.Sigmoid, "sigmoid", lambda *_: Sigmoid())
_activation(nn.Tanh, "tanh", lambda *_: Tanh())
_activation(
    nn.GELU,
    "gelu",
    lambda g, _: Gelu() if g.approximate == "none" else GeluTanh(),
    ("approximate",),
)
_activation(nn.SiLU, "silu", lambda *_: Silu())
_activation(nn.ELU, "elu", _elu, ("alpha",))
_activation(nn.Softplus, "softplus", _softplus, ("beta", "threshold"))
_activation(nn.ReLU6, "relu6", _hardtanh)
_activation(nn.Hardtanh, "hardtanh", _hardtanh, ("min_val", "max_val"))
handles(nn.Identity)(lambda builder, layer, path: None)


@handles(nn.Dropout, nn.Dropout1d, nn.Dropout2d, saved=("p",))
def dropout(builder: Builder, layer: nn.Dropout | nn.Dropout1d | nn.Dropout2d, path: str) -> None:
    """No effect in evaluation mode; training with dropout is random and has no reachable set."""
    if layer.training and layer.p > 0:
        raise UnsupportedOperationError(
            f"Layer '{path}' is {type(layer).__name__}(p={layer.p:g}) in training mode",
            "a random run, where a certificate is about one deterministic training run",
            "train without it (p=0), or call eval() on the layer",
        )
