"""A layer: a trainable gain of each feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from milp_agt.formulations.bilinear import Einsum
from milp_agt.training.layers.builder import Builder, handles


class Gain(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, features, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@handles(Gain, saved=("features",))
def gain(builder: Builder, layer: nn.Module, path: str) -> None:
    assert isinstance(layer, Gain)
    weight = builder.weight(layer.weight)
    builder.append(Einsum("na,a->na"), builder.current, weight, name=builder.free_name(f"{path}:g"))
