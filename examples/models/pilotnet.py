"""PilotNet (Bojarski et al. 2016): five convolutions, four dense layers, one steering angle."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

# Channels, kernel and stride of the five convolutions.
CONVOLUTIONS = ((24, 5, 2), (36, 5, 2), (48, 5, 2), (64, 3, 1), (64, 3, 1))


# Widths of the dense layers, from the features of the convolutions to the angle.
DENSE = (1152, 100, 50, 10, 1)


def body(dense_layers: int = 0) -> nn.Sequential:
    """The convolutions and the first dense layers: frames (3, 66, 200) to features."""
    layers: list[nn.Module] = []
    channels = 3
    for out, kernel, stride in CONVOLUTIONS:
        layers += [nn.Conv2d(channels, out, kernel, stride), nn.ReLU()]
        channels = out
    layers.append(nn.Flatten())
    for first, second in pairwise(DENSE[: dense_layers + 1]):
        layers += [nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(*layers)


def head(dense_layers: int = 0) -> nn.Sequential:
    """The dense layers behind :func:`body`, which turn its features into an angle."""
    layers: list[nn.Module] = []
    for first, second in pairwise(DENSE[dense_layers:]):
        layers += [nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def frozen_features() -> nn.Sequential:
    """Convolutions that do not train, and all four dense layers, which do."""
    return nn.Sequential(body().requires_grad_(False).eval(), head()).double()


def frozen_front() -> nn.Sequential:
    """The same with the first two dense layers, by far the largest, frozen as well: 50-10-1 trains."""
    return nn.Sequential(body(2).requires_grad_(False).eval(), head(2)).double()
