"""Goals on predictions: how many test points end up where the adversary wants them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from milp_agt.attacks.trained import TrainedModels
from milp_agt.core.interval import Interval

# Width of the smooth step that stands for "is hit", in units of the mean margin.
SHARPNESS = (1.0, 0.3, 0.1, 0.03)
TRIGGER_STEPS = 6


class Share(ABC):
    """Share of test points with a margin above zero, on the worst of the inputs that a box allows.

    Args:
        name: of the quantity.
        features: (n, *shape).
        box: triggered inputs, (1, n, *shape); None without a trigger.
    """

    def __init__(self, name: str, features: Tensor, box: Interval | None = None) -> None:
        self.names, self.features, self.box = (name,), features, box
        self.points = len(features)

    @abstractmethod
    def margins(self, models: TrainedModels, features: Tensor) -> Tensor:
        """(attacks, n), from features (n, *shape) or (attacks, n, *shape)."""

    def values(self, models: TrainedModels) -> Tensor:
        margins = self.margins(models, self._inputs(models))
        return (margins > 0).to(torch.float64).mean(-1, keepdim=True)

    def scores(self, models: TrainedModels) -> Tensor:
        """Mean of smooth steps of the margins: attacks of one share differ in how near they are to more."""
        margins = self.margins(models, self._inputs(models))
        size = margins.abs().clamp(max=1e300).mean(-1, keepdim=True) + 1e-300
        return torch.sigmoid(margins / (size * SHARPNESS[1])).mean(-1, keepdim=True)

    def surrogate(
        self, models: TrainedModels, quantity: Tensor, sign: Tensor, trial: Tensor
    ) -> Tensor:
        """Mean of smooth steps of the margins; every trial has its own width of the step."""
        margins = self.margins(models, self._inputs(models))
        sharpness = torch.tensor(SHARPNESS, dtype=torch.float64).to(margins)
        size = margins.detach().abs().clamp(max=1e300).mean(-1) + 1e-300
        width = size * sharpness[trial % len(SHARPNESS)]
        return sign * torch.sigmoid(margins / width[:, None]).mean(-1)

    def _inputs(self, models: TrainedModels) -> Tensor:
        """The test inputs, (n, *shape), or the best triggers found, (attacks, n, *shape)."""
        theta = models.parameters.detach()
        if self.box is None:
            return self.features.to(theta)
        low, high = self.box.lower[0].to(theta), self.box.upper[0].to(theta)
        inside = torch.minimum(torch.maximum(self.features.to(theta), low), high)
        best = current = inside.expand(len(theta), *inside.shape)
        with torch.no_grad():
            reached = self.margins(models, best)
        for step in range(TRIGGER_STEPS):
            leaf = current.detach().clone().requires_grad_()
            with torch.enable_grad():
                (backward,) = torch.autograd.grad(self.margins(models, leaf).sum(), leaf)
            stride = 0.5**step * (high - low)
            current = current + stride * torch.sign(torch.nan_to_num(backward))
            current = torch.minimum(torch.maximum(current, low), high)
            with torch.no_grad():
                margin = self.margins(models, current)
            better = (margin > reached).reshape(*margin.shape, *[1] * (current.dim() - 2))
            reached = torch.maximum(margin, reached)
            best = torch.where(better, current, best)
        return best.detach()


class PredictionGoal(Share):
    """Share of test points whose predicted class is in a set.

    The margin is the best score in the set less the best outside it, so that a tie never counts.
    """

    def __init__(
        self, name: str, features: Tensor, wanted: Tensor, box: Interval | None = None
    ) -> None:
        super().__init__(name, features, box)
        self.wanted = wanted  # (n, classes) bool

    def margins(self, models: TrainedModels, features: Tensor) -> Tensor:
        scores = models.outputs(features)
        if scores.shape[-1] == 1:
            scores = torch.cat([torch.zeros_like(scores), scores], -1)
        wanted = self.wanted.to(scores.device)
        best = scores.masked_fill(~wanted, -torch.inf).amax(-1)
        return best - scores.masked_fill(wanted, -torch.inf).amax(-1)


class Region(Share):
    """Share of test points whose outputs lie inside a box, [low, high] of shape (n, outputs)."""

    def __init__(self, name: str, features: Tensor, low: Tensor, high: Tensor) -> None:
        super().__init__(name, features)
        self.low, self.high = low, high

    def margins(self, models: TrainedModels, features: Tensor) -> Tensor:
        out = models.outputs(features)
        return torch.minimum(out - self.low.to(out), self.high.to(out) - out).amin(-1)
