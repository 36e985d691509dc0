"""Predictions as a goal: how many test points get a class out of a set, with or without a trigger."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt import inputs
from milp_agt.attacks.trained import Models
from milp_agt.errors import InvalidInputError

# Width of the smooth step that stands for "is classified so", in units of the mean margin.
SHARPNESS = (1.0, 0.3, 0.1, 0.03)
TRIGGER_STEPS = 6


@dataclass(frozen=True, eq=False)
class Trigger:
    """What the adversary may do to a test input, coordinate by coordinate: tensors (*shape).

    Attributes:
        lower, upper: the coordinate becomes any number between them ...
        relative: ... added to its own value where True, in place of it where False.

    Tensors of no axes stand for every coordinate.
    """

    lower: Tensor
    upper: Tensor
    relative: Tensor

    @staticmethod
    def ball(radius: float | inputs.ArrayLike) -> Trigger:
        """Every coordinate moves by at most ``radius``: one number, or (*shape)."""
        width = _numbers(radius, "a trigger radius")
        if bool((width < 0).any()):
            raise InvalidInputError(
                "A trigger needs a radius >= 0", f"{float(width.min())}", "give a number >= 0"
            )
        return Trigger(-width, width, torch.ones(width.shape, dtype=torch.bool))

    @staticmethod
    def free(coordinates: inputs.ArrayLike, low: float, high: float) -> Trigger:
        """The coordinates of a mask (*shape) take any value in [low, high]; others stay."""
        mask = _mask(coordinates)
        if not (np.isfinite([low, high]).all() and low <= high):
            raise InvalidInputError(
                "Free coordinates need low <= high", f"[{low}, {high}]", "give finite ends"
            )
        ends = torch.zeros(mask.shape, dtype=torch.float64)
        return Trigger(torch.where(mask, low, ends), torch.where(mask, high, ends), relative=~mask)

    @staticmethod
    def patch(coordinates: inputs.ArrayLike, values: inputs.ArrayLike) -> Trigger:
        """The coordinates of a mask (*shape) are set to ``values`` (*shape); others stay."""
        mask = _mask(coordinates)
        given = _numbers(values, "the values of a patch")
        if given.dim() and given.shape != mask.shape:
            raise InvalidInputError(
                f"A patch needs one value, or one for each coordinate {tuple(mask.shape)}",
                f"shape {tuple(given.shape)}",
                "match the shape of the mask",
            )
        fixed = torch.where(mask, given, torch.zeros(mask.shape, dtype=torch.float64))
        return Trigger(fixed, fixed, relative=~mask)

    def around(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the inputs that test points can become, (n, *shape).

        Raises:
            InvalidInputError: a trigger of another shape than the features.
        """
        if self.lower.dim() and self.lower.shape != features.shape[1:]:
            raise InvalidInputError(
                f"A trigger needs the shape of one sample, {tuple(features.shape[1:])}",
                f"shape {tuple(self.lower.shape)}",
                "match the features",
            )
        own = torch.where(self.relative, features, 0.0)
        return own + self.lower, own + self.upper


class Predictions:
    """Share of test points whose predicted class is in a set.

    The margin of a point is the best score in the set less the best outside it; the class is in the
    set if the margin is above zero, so that a tie never counts.

    Args:
        name: of the quantity.
        features: (n, *shape).
        wanted: the set of each point, (n, classes) bool.
        box: ends of the triggered inputs, (n, *shape) each; None without a trigger.
    """

    def __init__(
        self,
        name: str,
        features: Tensor,
        wanted: Tensor,
        box: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.names, self.features, self.wanted, self.box = (name,), features, wanted, box

    def margins(self, models: Models, features: Tensor) -> Tensor:
        """(attacks, n)."""
        scores = models.outputs(features)
        if scores.shape[-1] == 1:
            scores = torch.cat([torch.zeros_like(scores), scores], -1)
        wanted = self.wanted.to(scores.device)
        best = scores.masked_fill(~wanted, -torch.inf).amax(-1)
        return best - scores.masked_fill(wanted, -torch.inf).amax(-1)

    def values(self, models: Models) -> Tensor:
        margins = self.margins(models, self._inputs(models))
        return (margins > 0).to(torch.float64).mean(-1, keepdim=True)

    def surrogate(self, models: Models, quantity: Tensor, sign: Tensor, trial: Tensor) -> Tensor:
        """Mean of smooth steps of the margins; every trial has its own width of the step."""
        margins = self.margins(models, self._inputs(models))
        sharpness = torch.tensor(SHARPNESS, dtype=torch.float64).to(margins)
        size = margins.detach().abs().clamp(max=1e300).mean(-1) + 1e-300
        width = size * sharpness[trial % len(SHARPNESS)]
        return sign * torch.sigmoid(margins / width[:, None]).mean(-1)

    def _inputs(self, models: Models) -> Tensor:
        """The test inputs, (n, *shape), or the best triggers found, (attacks, n, *shape)."""
        theta = models.parameters.detach()
        if self.box is None:
            return self.features.to(theta)
        low, high = (end.to(theta) for end in self.box)
        middle = torch.minimum(torch.maximum(self.features.to(theta), low), high)
        shape = (len(theta), *middle.shape)
        best = middle.expand(shape)
        reached = self.margins(models, best).detach()
        current, stride = best, 1.0
        for _ in range(TRIGGER_STEPS):
            leaf = current.detach().clone().requires_grad_()
            with torch.enable_grad():
                (pull,) = torch.autograd.grad(self.margins(models, leaf).sum(), leaf)
            step = stride * (high - low) * torch.sign(torch.nan_to_num(pull))
            current = torch.minimum(torch.maximum(current + step, low), high)
            margin = self.margins(models, current).detach()
            better = margin > reached
            reached = torch.where(better, margin, reached)
            at = better.reshape(*better.shape, *[1] * (current.dim() - 2))
            best = torch.where(at, current, best)
            stride = 0.5 * stride
        return best.detach()


def _numbers(values: float | inputs.ArrayLike, what: str) -> Tensor:
    given = torch.as_tensor(np.asarray(values, dtype=np.float64))
    if not bool(torch.isfinite(given).all()):
        raise InvalidInputError(
            f"Finite numbers are needed for {what}", "NaN or infinity", "give finite numbers"
        )
    return given


def _mask(coordinates: inputs.ArrayLike) -> Tensor:
    mask = torch.as_tensor(np.asarray(coordinates))
    if mask.dtype != torch.bool:
        raise InvalidInputError(
            "The coordinates of a trigger are a mask", f"{mask.dtype}", "give an array of bool"
        )
    return mask
