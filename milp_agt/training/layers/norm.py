"""Batch normalisation with the running statistics of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from milp_agt.core.graph import Node
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.channel_bias import ChannelBias
from milp_agt.formulations.linear import Combine
from milp_agt.training.layers.builder import Builder, handles


@handles(nn.BatchNorm1d, nn.BatchNorm2d, saved=("num_features", "eps", "momentum", "affine"))
def batch_norm(builder: Builder, layer: nn.BatchNorm1d | nn.BatchNorm2d, path: str) -> None:
    """``v = weight * (u - mean) / sqrt(variance + eps) + bias`` in each channel.

    Two nodes, so that the rounding of ``u - mean`` is covered before terms cancel.
    """
    mean, variance = layer.running_mean, layer.running_var
    if layer.training or mean is None or variance is None:
        raise UnsupportedOperationError(
            f"Layer '{path}' is {type(layer).__name__}",
            "training mode, in which each output depends on the whole batch, so that one poisoned "
            "sample moves all others"
            if layer.training
            else "no running statistics (track_running_stats=False)",
            "fit its statistics beforehand on trusted data and call eval() on it",
        )
    shape = builder.current.shape
    axes = 3 if isinstance(layer, nn.BatchNorm2d) else min(len(shape), 2)
    if shape[:1] != (layer.num_features,) or len(shape) != axes:
        raise InvalidInputError(
            f"Layer '{path}' is {type(layer).__name__}({layer.num_features})",
            f"an input of shape {shape} for each sample",
            "match the channels",
        )
    extents = shape[1:]

    def per_channel(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, *[1] * len(extents)).expand(shape)

    centre = builder.buffer(mean, f"{path}.running_mean")
    spread = builder.buffer(variance, f"{path}.running_var")
    if layer.num_batches_tracked is not None:
        builder.buffer(layer.num_batches_tracked, f"{path}.num_batches_tracked")
    scale = 1.0 / torch.sqrt(spread + layer.eps)
    graph = builder.graph
    centred = per_channel(-centre * scale)
    scaled: Node = Combine.build(graph, [(per_channel(scale), builder.current)], centred)
    name = builder.free_name(f"{path}:z")
    weight, bias = builder.optional_weight(layer.weight), builder.optional_weight(layer.bias)
    shift = per_channel(bias) if isinstance(bias, Tensor) else None
    if isinstance(weight, Node):
        inner = "abdefg"[: len(extents)]
        scaled = graph.add(Einsum(f"c,nc{inner}->nc{inner}"), weight, scaled)
        weight = None
    if weight is not None or shift is not None:
        factor = 1.0 if weight is None else per_channel(weight)
        last = name if not isinstance(bias, Node) else None
        scaled = Combine.build(graph, [(factor, scaled)], shift, name=last)
    if isinstance(bias, Node):
        scaled = graph.add(ChannelBias(extents=extents), scaled, bias, name=name)
    builder.current = scaled
