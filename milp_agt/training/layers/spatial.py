"""Layers on images: convolution and pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from milp_agt.core.graph import Node
from milp_agt.errors import EncodingError, InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.channel_bias import ChannelBias
from milp_agt.formulations.convolution import Convolution
from milp_agt.formulations.linear import Combine, Reshape
from milp_agt.formulations.max_pool import MaxPool
from milp_agt.formulations.unfold import Unfold
from milp_agt.formulations.windows import Pair, Windows
from milp_agt.training.layers.builder import Builder, handles

_POOL = ("kernel_size", "stride", "padding", "ceil_mode")


@handles(
    nn.Conv2d,
    saved=(
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
        *("groups", "bias"),
    ),
)
def convolution(builder: Builder, layer: nn.Conv2d, path: str) -> None:
    """Frozen weights give a linear map, trainable ones a product with the unfolded image."""
    if layer.padding_mode != "zeros":
        raise UnsupportedOperationError(
            f"Layer '{path}' is Conv2d with padding_mode='{layer.padding_mode}'",
            "no rule for it",
            "use padding_mode='zeros'",
        )
    asked = f"Layer '{path}' is Conv2d({layer.in_channels}, {layer.out_channels})"
    windows = _windows(builder, asked, layer, _padding(layer, path), layer.in_channels)
    source = builder.current
    weight, bias = builder.weight(layer.weight), builder.optional_weight(layer.bias)
    name = builder.free_name(f"{path}:z")
    if isinstance(weight, Tensor):
        constant = bias if isinstance(bias, Tensor) else None
        product = builder.graph.add(Convolution(windows, weight, constant, layer.groups), source)
    else:
        product = _product(builder, weight, windows, layer, path)
    summed = windows.elements * layer.in_channels
    if isinstance(bias, Node):
        added = ChannelBias(extents=windows.out, summed=summed)
        product = builder.graph.add(added, product, bias, name=name)
    elif bias is not None and isinstance(weight, Node):
        shift = bias[:, None, None].expand(product.shape)
        product = Combine.build(builder.graph, [(1.0, product)], shift, name, summed)
    builder.current = product


def _product(builder: Builder, weight: Node, windows: Windows, layer: nn.Conv2d, path: str) -> Node:
    """``v_oij = sum_cab w_ocab u_cabij``, with ab inside a window and ij its position."""
    channels = windows.image[0]
    by_channel = layer.groups == channels == layer.out_channels
    if layer.groups != 1 and not by_channel:
        raise UnsupportedOperationError(
            f"Layer '{path}' is a trainable Conv2d with groups={layer.groups}",
            f"{channels} channels in, {layer.out_channels} out",
            "use groups=1, one group for each channel, or freeze its weights",
        )
    graph = builder.graph
    columns = graph.add(Unfold(windows), builder.current)
    kernel = (1, *windows.size) if by_channel else windows.size
    shape = (channels, *kernel, *windows.out)
    columns = graph.add(Reshape(columns.shape, shape), columns)
    equation = "ocab,nocabij->noij" if by_channel else "ocab,ncabij->noij"
    return graph.add(Einsum(equation), weight, columns)


@handles(nn.AvgPool2d, saved=(*_POOL, "count_include_pad", "divisor_override"))
def average_pool(builder: Builder, layer: nn.AvgPool2d, path: str) -> None:
    """A convolution of each channel with a constant kernel."""
    windows = _pooled(builder, layer, path)
    _average(builder, windows, layer.divisor_override, layer.count_include_pad)


@handles(nn.AdaptiveAvgPool2d, saved=("output_size",))
def adaptive_average_pool(builder: Builder, layer: nn.AdaptiveAvgPool2d, path: str) -> None:
    asked = f"Layer '{path}' is AdaptiveAvgPool2d({layer.output_size})"
    image = _image(builder, asked)
    wanted = layer.output_size
    goal = (wanted, wanted) if isinstance(wanted, int) or wanted is None else tuple(wanted)
    size = []
    for extent, count in zip(image[1:], goal, strict=True):
        count = extent if count is None else count
        if extent % count:
            raise UnsupportedOperationError(
                asked,
                f"an image of shape {image}, whose extents it does not divide",
                "use AvgPool2d, or an output size that divides the image",
            )
        size.append(extent // count)
    _average(builder, Windows(image, (size[0], size[1]), (size[0], size[1])), None, True)


def _average(builder: Builder, windows: Windows, divisor: int | None, count_padding: bool) -> None:
    channels = windows.image[0]
    kernel = torch.ones(channels, 1, *windows.size, dtype=torch.float64)
    if divisor is not None or count_padding or windows.padding == (0, 0):
        builder.append(Convolution(windows, kernel / (divisor or windows.elements), None, channels))
        return
    inside = (windows.index()[: windows.elements] >= 0).sum(0).reshape(windows.out)
    total = builder.append(Convolution(windows, kernel, None, channels))
    scale = (1.0 / inside.to(torch.float64)).expand(total.shape)
    builder.current = Combine.build(builder.graph, [(scale, total)])


@handles(nn.MaxPool2d, saved=(*_POOL, "dilation"), frozen_only=True)
def max_pool(builder: Builder, layer: nn.MaxPool2d, path: str) -> None:
    if layer.return_indices:
        raise UnsupportedOperationError(
            f"Layer '{path}' is MaxPool2d with return_indices=True",
            "two outputs",
            "leave return_indices out",
        )
    builder.append(MaxPool(_pooled(builder, layer, path)), name=builder.free_name(f"{path}:h"))


def _pooled(builder: Builder, layer: nn.AvgPool2d | nn.MaxPool2d, path: str) -> Windows:
    asked = f"Layer '{path}' is {type(layer).__name__}"
    if layer.ceil_mode:
        raise UnsupportedOperationError(
            f"{asked} with ceil_mode=True",
            "windows that reach beyond the image",
            "use ceil_mode=False, and padding where the border counts",
        )
    return _windows(builder, f"{asked}({_pair(layer.kernel_size)})", layer, _pair(layer.padding))


def _windows(
    builder: Builder, asked: str, layer: Any, padding: Pair, channels: int | None = None
) -> Windows:
    image, size = _image(builder, asked, channels), _pair(layer.kernel_size)
    dilation = _pair(getattr(layer, "dilation", 1))
    try:
        return Windows(image, size, _pair(layer.stride), padding, dilation)
    except EncodingError:
        raise InvalidInputError(
            asked, f"an image of shape {image}, smaller than its kernel {size}", "match the sizes"
        ) from None


def _image(builder: Builder, asked: str, channels: int | None = None) -> tuple[int, int, int]:
    shape = builder.current.shape
    if len(shape) != 3 or (channels is not None and shape[0] != channels):
        wanted = "channels" if channels is None else str(channels)
        raise InvalidInputError(
            asked,
            f"an input of shape {shape} for each sample",
            f"give images of shape ({wanted}, height, width)",
        )
    return shape[0], shape[1], shape[2]


def _pair(value: int | tuple[int, ...] | None) -> Pair:
    assert value is not None
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _padding(layer: nn.Conv2d, path: str) -> Pair:
    if not isinstance(layer.padding, str):
        return _pair(layer.padding)
    if layer.padding == "valid":
        return (0, 0)
    totals = [
        step * (size - 1)
        for step, size in zip(_pair(layer.dilation), _pair(layer.kernel_size), strict=True)
    ]
    if any(total % 2 for total in totals):
        raise UnsupportedOperationError(
            f"Layer '{path}' is Conv2d with padding='same'",
            f"a kernel {tuple(layer.kernel_size)} that needs more padding on one side",
            "use an odd kernel, or give the padding in numbers",
        )
    return totals[0] // 2, totals[1] // 2
