"""Dense layers, changes of shape, activations, and layers without effect in evaluation mode."""

from __future__ import annotations

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
def linear(builder: Builder, layer: nn.Module, path: str) -> None:
    assert isinstance(layer, nn.Linear)
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
    if isinstance(bias, Tensor):
        builder.current = Combine.build(
            builder.graph, [(1.0, product)], bias, name, layer.in_features
        )
    elif bias is not None:
        terms = [(1.0, product), (1.0, bias)]
        builder.current = Combine.build(builder.graph, terms, None, name, layer.in_features)


@handles(nn.Flatten, saved=("start_dim", "end_dim"))
def flatten(builder: Builder, layer: nn.Module, path: str) -> None:
    assert isinstance(layer, nn.Flatten)
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
        merged = 1
        for extent in before[start : end + 1]:
            merged *= extent
        builder.append(Reshape(before, (*before[:start], merged, *before[end + 1 :])))


def _activation(builder: Builder, op: Univariate, path: str) -> None:
    builder.append(op, name=builder.free_name(f"{path}:h"))


@handles(nn.ReLU, name="relu")
def relu(builder: Builder, layer: nn.Module, path: str) -> None:
    _activation(builder, Relu(), path)


@handles(nn.LeakyReLU, saved=("negative_slope",), name="leaky_relu")
def leaky_relu(builder: Builder, layer: nn.Module, path: str) -> None:
    assert isinstance(layer, nn.LeakyReLU)
    _activation(builder, Relu(float(layer.negative_slope)), path)


@handles(nn.Sigmoid, name="sigmoid")
def sigmoid(builder: Builder, layer: nn.Module, path: str) -> None:
    _activation(builder, Sigmoid(), path)


@handles(nn.Tanh, name="tanh")
def tanh(builder: Builder, layer: nn.Module, path: str) -> None:
    _activation(builder, Tanh(), path)


@handles(nn.GELU, saved=("approximate",), name="gelu")
def gelu(builder: Builder, layer: nn.Module, path: str) -> None:
    assert isinstance(layer, nn.GELU)
    _activation(builder, Gelu() if layer.approximate == "none" else GeluTanh(), path)


@handles(nn.SiLU, name="silu")
def silu(builder: Builder, layer: nn.Module, path: str) -> None:
    _activation(builder, Silu(), path)


@handles(nn.ELU, saved=("alpha",), name="elu")
def elu(builder: Builder, layer: nn.Module, path: str) -> None:
    assert isinstance(layer, nn.ELU)
    if not layer.alpha > 0:
        raise UnsupportedOperationError(
            f"Layer '{path}' is ELU(alpha={layer.alpha:g})", "alpha <= 0", "use alpha > 0"
        )
    _activation(builder, Elu(float(layer.alpha)), path)


@handles(nn.Softplus, saved=("beta", "threshold"), name="softplus")
def softplus(builder: Builder, layer: nn.Module, path: str) -> None:
    assert isinstance(layer, nn.Softplus)
    if not layer.beta > 0 or not layer.threshold >= 1:
        raise UnsupportedOperationError(
            f"Layer '{path}' is Softplus(beta={layer.beta:g}, threshold={layer.threshold:g})",
            "beta <= 0, or a threshold below 1",
            "use beta > 0 and the threshold of torch, 20",
        )
    _activation(builder, Softplus(float(layer.beta), float(layer.threshold)), path)


@handles(nn.Hardtanh, saved=("min_val", "max_val"), name="hardtanh")
@handles(nn.ReLU6, name="relu6")
def hardtanh(builder: Builder, layer: nn.Module, path: str) -> None:
    assert isinstance(layer, nn.Hardtanh)
    _activation(builder, Hardtanh(float(layer.min_val), float(layer.max_val)), path)


@handles(nn.Identity)
def identity(builder: Builder, layer: nn.Module, path: str) -> None:
    return


@handles(nn.Dropout, nn.Dropout1d, nn.Dropout2d, saved=("p",))
def dropout(builder: Builder, layer: nn.Module, path: str) -> None:
    """No effect in evaluation mode; training with dropout is random and has no reachable set."""
    assert isinstance(layer, (nn.Dropout, nn.Dropout1d, nn.Dropout2d))
    if layer.training and layer.p > 0:
        raise UnsupportedOperationError(
            f"Layer '{path}' is {type(layer).__name__}(p={layer.p:g}) in training mode",
            "a random run, where a certificate is about one deterministic training run",
            "train without it (p=0), or call eval() on the layer",
        )
