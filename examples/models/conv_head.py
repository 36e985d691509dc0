"""A small convolutional network for images of 28 x 28 pixels, with a dense head."""

from __future__ import annotations

from torch import nn

FEATURES = 16


def convolutions() -> nn.Sequential:
    """The feature extractor: images (1, 28, 28) to 16 features in [-1, 1].

    Bounded features keep the steps of the head small, and with them the reachable set.
    """
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, FEATURES),
        nn.Tanh(),
    )


def dense(classes: int = 4) -> nn.Sequential:
    """The head that is fine-tuned."""
    return nn.Sequential(nn.Linear(FEATURES, classes))


def frozen_features() -> nn.Sequential:
    """Convolutions that do not train, in evaluation mode, and a head that does."""
    body = convolutions().requires_grad_(False).eval()
    return nn.Sequential(body, dense()).double()
