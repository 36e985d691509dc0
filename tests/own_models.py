"""Models as people write them, with a forward of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """A residual block, shared by two calls, functions and a clip of the input."""

    def __init__(self, width: int = 2, hidden: int = 3, outputs: int = 1) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.back = nn.Linear(hidden, width)
        self.head = nn.Linear(width, outputs)

    def block(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.back(functional.relu(self.inner(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(x, -3.0, 3.0)
        return self.head(self.block(self.block(x)))


class Scaled(nn.Module):
    """Fixed statistics, a trainable gain and shift, a skip by concatenation, slices and a gate."""

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int = 2, outputs: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.2, 0.3, width))
        self.register_buffer("spread", torch.linspace(0.8, 1.5, width))
        self.gain = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.full((width,), 0.1))
        self.inner = nn.Linear(width, 4)
        self.head = nn.Linear(width + 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.view(x.size(0), -1) - self.mean) / self.spread
        u = functional.gelu(self.inner(x * self.gain + self.shift))
        gated = u[:, :2] * torch.sigmoid(u[:, 2:])
        return self.head(torch.cat([x, gated], dim=1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            x = x.flatten(1)
        y = self.act(self.first(x))
        y += x
        return y


class Nested(nn.Module):
    """Blocks in a list, a weight used twice, and a mean over slices."""

    def __init__(self, width: int = 2, outputs: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Sequential(nn.Linear(width, outputs), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        tied = functional.linear(x, self.blocks[0].first.weight)
        pooled = tied.reshape(x.shape[0], *x.shape[1:], 1).mean(dim=-1)
        return self.head(functional.softplus(pooled) - functional.elu(x))


def own(kind: type[nn.Module], seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return kind(**options).double()


OWN = (Residual, Scaled, Nested)
